# SPDX-License-Identifier: Apache-2.0
"""
Where the memory of a VM is: kinds as ``erlang:memory/0`` has them, allocators, tables, holders.

Each part is read by itself. One that a build hides, or that does not pass its checks, is left out
with the reason, and the others are still read.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from scope_ebpf.beam.held.areas import atom_bytes, code_bytes, persistent_terms
from scope_ebpf.beam.held.tables import TableReader
from scope_ebpf.beam.held.timers import MOST, TIMERS, timers
from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.table import BINARIES, LOAD, ProcessTable, base_bytes
from scope_ebpf.beam.vm.allocators import AllocatorReader
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.relations import impossible, of_allocators, of_use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from scope_ebpf.beam.held.areas import PersistentTerms
    from scope_ebpf.beam.held.tables import TableReading
    from scope_ebpf.beam.held.timers import Timers
    from scope_ebpf.beam.processes.table import Snapshot
    from scope_ebpf.beam.vm.allocators import AllocatorReading
    from scope_ebpf.beam.vm.target import Target

#: The kinds of ``erlang:memory/0``, in its order.
KINDS = (
    *("total", "processes", "processes_used", "system", "atom", "atom_used", "binary", "code"),
    "ets",
)
#: Those that the allocators tell.
_ALLOCATED = ("total", "processes", "processes_used", "system", "binary", "ets")
#: Tables of the VM that have a limit, or none.
TABLES = ("processes", "ports", "atoms", "ets_tables")
_COLUMNS = (*LOAD, *BINARIES, *TIMERS)
#: Processes that are read: the rows of one look take some 100 bytes each.
_MOST = 1 << 21
_Reading = TypeVar("_Reading")


@dataclass(slots=True)
class Look:
    """The memory of a VM at one moment; None for a part that was not read."""

    #: Bytes by kind, for each of :data:`KINDS`.
    kinds: dict[str, int | None]
    allocators: AllocatorReading | None = None
    #: Rows in use and the most there may be, for each of :data:`TABLES` that was read.
    tables: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    terms: PersistentTerms | None = None
    #: The last atoms that were made, the newest first.
    newest: tuple[str, ...] = ()
    processes: Snapshot | None = None
    #: Timers by receiver, which is a row of *processes*.
    timers: Timers | None = None
    ets: TableReading | None = None
    #: What was not read, and why.
    refused: dict[str, str] = field(default_factory=dict)
    #: CPU seconds of the look.
    seconds: float = 0.0


class MemoryReader:
    """Reads the memory of one VM; *holders* bounds the atoms and persistent terms that are kept."""

    def __init__(self, target: Target, holders: int) -> None:
        self.target = target
        self._holders = holders
        self._refused: dict[str, str] = {}
        self._allocators = self._made("allocators", AllocatorReader)
        self._counters = self._made("tables", CounterReader)
        self._ets = self._made("ets", TableReader)
        self._atoms = self._made("atoms", Atoms)
        self._table = self._made("processes", lambda one: ProcessTable(one, _COLUMNS))

    def read(self) -> Look:
        """Read it once. Errors of a VM that has ended are raised, others are in the look."""
        began = cpu_seconds()
        found = Look(dict.fromkeys(KINDS), refused=dict(self._refused))
        if self._allocators:
            with _told(found, "allocators"):
                self._use(found, self._allocators.read())
        for name, read in (("atom", self._atom), ("code", self._code)):
            with _told(found, name):
                read(found)
        with _told(found, "persistent terms"):
            found.terms = persistent_terms(self.target, self._holders)
        if self._counters:
            with _told(found, "tables"):
                self._count(found, self._counters)
        if self._atoms:
            with _told(found, "atoms"):
                found.newest = self._newest(self._atoms)
        if self._ets:
            with _told(found, "ets"):
                found.ets = self._ets.read()
        if self._table:
            with _told(found, "processes"):
                found.processes = self._table.snapshot(most=_MOST)
        if found.processes is not None:
            with _told(found, "timers by receiver"):
                self._receivers(found, found.processes)
        found.seconds = cpu_seconds() - began
        return found

    def _made(self, what: str, make: Callable[[Target], _Reading]) -> _Reading | None:
        try:
            return make(self.target)
        except ReadRefusedError as error:
            self._refused[what] = str(error)
            return None

    def _use(self, found: Look, read: AllocatorReading) -> None:
        """Take in what the allocators say, if it can be."""
        wrong = of_allocators(read.allocators) or (of_use(read.memory) if read.memory else [])
        if wrong:
            raise ReadRefusedError(f"the figures of its allocators do not agree: {wrong[0]}")
        found.allocators = read
        if read.memory is None:
            raise ReadRefusedError(read.why)
        for kind in _ALLOCATED:
            found.kinds[kind] = getattr(read.memory, kind)
            if found.kinds[kind] is None:
                found.refused[kind] = (
                    f"process {self.target.pid} (OTP {self.target.otp_release}) hides a part of it"
                )

    def _atom(self, found: Look) -> None:
        allocated, used = atom_bytes(self.target)
        self._within(found, {"atom": allocated, "atom_used": used}, (("atom_used", "atom"),))

    def _code(self, found: Look) -> None:
        self._within(found, {"code": code_bytes(self.target)}, ())

    def _receivers(self, found: Look, processes: Snapshot) -> None:
        found.timers = timers(self.target, processes.rows)
        if found.timers.cut:
            raise ReadRefusedError(f"there are more than {MOST:,}: only so many are counted")

    @staticmethod
    def _within(found: Look, figures: dict[str, int], pairs: tuple[tuple[str, str], ...]) -> None:
        """Take in *figures* that are no more than the total and hold the relations of *pairs*."""
        totals = tuple((name, "total") for name in figures)
        wrong = impossible({**figures, "total": found.kinds["total"]}, (*pairs, *totals))
        if wrong:
            raise ReadRefusedError(f"the figures of its memory do not agree: {wrong[0]}")
        found.kinds.update(figures)

    @staticmethod
    def _count(found: Look, reader: CounterReader) -> None:
        counters, limits = reader.read(), reader.limits()
        for name in TABLES:
            found.tables[name] = getattr(counters, name), getattr(limits, name, None)

    def _newest(self, atoms: Atoms) -> tuple[str, ...]:
        count = len(atoms)
        texts = atoms.texts(range(max(0, count - self._holders), count))
        return tuple(text for _, text in sorted(texts.items(), reverse=True) if text is not None)


@contextmanager
def _told(found: Look, what: str) -> Iterator[None]:
    """Note the refusal of one part, and let the others be read."""
    try:
        yield
    except ReadRefusedError as error:
        found.refused[what] = str(error)


def heap_bytes(target: Target, rows: NDArray[np.void]) -> NDArray[np.int64]:
    """Bytes of struct and heaps of each process of a look, shape ``(n,)``."""
    found: NDArray[np.int64] = base_bytes(rows, target.layout.size("Process")).astype(np.int64)
    return found
