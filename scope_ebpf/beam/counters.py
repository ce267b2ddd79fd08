# SPDX-License-Identifier: Apache-2.0
"""
What the VM counts anyway, read from its memory: exact, and free for the VM.

Run queues and scheduler data are arrays of structs, whose places are checked
before use: each struct carries its own number. Sources: OTP-25.2.3
erts/emulator/beam/erl_process.h (struct ErtsRunQueue_, struct
ErtsSchedulerData_), erl_ptab.h (ErtsPTab), index.h (IndexTable).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf.beam.memory import column
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.discover import Target

#: OTP allows 1024 schedulers of each of the three kinds.
_MAX_SCHEDULERS = 1024
#: Slots of an array of run queues that are no queue of normal schedulers: dirty CPU, dirty IO.
_DIRTY = 2

#: Behind the count of a table: how many places were taken from its queue of free ones
#: (vola.tile.aid_ix, OTP-25.2.3 erts/emulator/beam/erl_ptab.h; 32 bits that wrap).
_TAKEN = 4


@dataclass(frozen=True, slots=True)
class Counters:
    """
    One reading.

    *run_queues* has the processes and ports ready to run: one number for each
    normal scheduler, then dirty CPU, then dirty IO. *collections* and
    *reclaimed_words* leave out what dirty schedulers collected. *spawned* grows
    by one for each process that is made, modulo 2^32, from any number.
    """

    context_switches: int
    reductions: int
    run_queues: NDArray[np.int32]
    collections: int
    reclaimed_words: int
    spawned: int
    processes: int
    ports: int
    atoms: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the tables of a VM can hold."""

    processes: int
    ports: int
    atoms: int


class CounterReader:
    """Reads the counters of one VM. ReadRefusedError where they cannot be found or do not fit."""

    def __init__(self, target: Target) -> None:
        self._memory = target.memory
        self._layout = layout = target.layout
        self._normal = self._u32(target, "erts_no_schedulers")
        if not 0 < self._normal <= _MAX_SCHEDULERS:
            raise ReadRefusedError(
                f"process {target.pid} claims {self._normal} schedulers, so its counters are "
                "not read"
            )
        self._queues = _array(
            self._memory.u64(target.address("erts_aligned_run_queues")),
            self._normal + _DIRTY,
            layout.size("ErtsAlignedRunQueue"),
        )
        self._schedulers = _array(
            self._memory.u64(target.address("erts_aligned_scheduler_data")),
            self._normal,
            layout.size("ErtsAlignedSchedulerData"),
        )
        self._tables = {name: target.address(name) for name in ("erts_proc", "erts_port")}
        self._taken = layout.offset("ErtsPTab", "vola.tile.count") + _TAKEN
        self._atoms = target.address("erts_atom_table")
        self._check(target)

    def read(self) -> Counters:
        """Read everything, in a handful of system calls."""
        queues = self._fields(
            self._queues,
            "ErtsRunQueue",
            ("procs.context_switches", np.uint64),
            ("procs.reductions", np.uint64),
            ("len", np.int32),
            ("ports.info.len", np.int32),
        )
        collections, reclaimed = self._fields(
            self._schedulers,
            "ErtsSchedulerData",
            ("gc_info.garbage_cols", np.uint64),
            ("gc_info.reclaimed", np.uint64),
        )
        return Counters(
            context_switches=int(queues[0].sum()),
            reductions=int(queues[1].sum()),
            run_queues=(queues[2] + queues[3]).astype(np.int32),
            collections=int(collections.sum()),
            reclaimed_words=int(reclaimed.sum()),
            spawned=self._memory.u32(self._tables["erts_proc"] + self._taken),
            processes=self._table("erts_proc", "vola.tile.count"),
            ports=self._table("erts_port", "vola.tile.count"),
            atoms=self._memory.u32(self._atoms + self._layout.offset("IndexTable", "entries")),
        )

    def limits(self) -> Limits:
        """What the tables can hold."""
        return Limits(
            processes=self._table("erts_proc", "r.o.max"),
            ports=self._table("erts_port", "r.o.max"),
            atoms=self._memory.u32(self._atoms + self._layout.offset("IndexTable", "limit")),
        )

    def _table(self, name: str, field: str) -> int:
        return self._memory.u32(self._tables[name] + self._layout.offset("ErtsPTab", field))

    def _fields(
        self, places: NDArray[np.uint64], struct: str, *fields: tuple[str, type[np.generic]]
    ) -> list[NDArray[Any]]:
        """One column for each field; the structs are read from the first to the last of them."""
        offsets = [self._layout.offset(struct, name) for name, _ in fields]
        first = min(offsets)
        raw, good = self._memory.gather(places + np.uint64(first), max(offsets) + 8 - first)
        if not good.all():
            raise ReadRefusedError(f"{int((~good).sum())} structs {struct} could not be read")
        return [
            column(raw, offset - first, kind)
            for offset, (_, kind) in zip(offsets, fields, strict=True)
        ]

    def _check(self, target: Target) -> None:
        """Each scheduler's data tells its number, each run queue its index."""
        numbers = self._fields(self._schedulers, "ErtsSchedulerData", ("no", np.uint64))[0]
        indexes = self._fields(self._queues, "ErtsRunQueue", ("ix", np.int32))[0]
        good = (numbers == np.arange(1, self._normal + 1)).all()
        if not good or not (indexes[: self._normal] == np.arange(self._normal)).all():
            raise ReadRefusedError(
                f"process {target.pid}: its schedulers are not where {self._layout} has them, "
                "so its counters are not read"
            )

    def _u32(self, target: Target, name: str) -> int:
        return self._memory.u32(target.address(name))


def _array(start: int, count: int, stride: int) -> NDArray[np.uint64]:
    places: NDArray[np.uint64] = np.uint64(start) + np.arange(count, dtype=np.uint64) * np.uint64(
        stride
    )
    return places
