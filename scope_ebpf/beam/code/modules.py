# SPDX-License-Identifier: Apache-2.0
"""
Which code of a module is current, which is old, and which is about to be.

The VM keeps three tables of modules: one is in use and the next is prepared
while code is loaded (OTP-25.2.3 erts/emulator/beam/module.c). So new code can
be seen a moment before it runs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.arrays import within
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.search import data
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: The name of the tables in the VM, and their number (ERTS_NUM_CODE_IX, code_ix.h).
_NAME = b"module_code"
_TABLES = 3
#: Entries of one segment (INDEX_PAGE_SIZE, index.h), and more than any VM has.
_PAGE = 1024
_MAX_MODULES = 1 << 20
#: Readings of tables that came into use meanwhile: each takes the VM milliseconds.
_ATTEMPTS = 5


class Code(NamedTuple):
    """Addresses of the code of one module (BeamCodeHeader); 0 for none."""

    #: Of the table that changed last, where the VM hides which table is in use.
    current: int
    old: int
    #: Code in tables that are not in use: to be loaded, or purged.
    others: tuple[int, ...]
    #: Current and old code in each table.
    tables: tuple[tuple[int, int], ...] = ()
    #: Number of the table in use; None where hidden.
    active: int | None = None


class Modules:
    """The module tables of a running VM; ReadRefusedError where they are not found."""

    def __init__(self, target: Target, atoms: Atoms) -> None:
        self._memory = target.memory
        self._layout = target.layout
        self._atoms = atoms
        self._tables = _find(target)
        self._active_at = target.find("the_active_code_index")
        self._counts: list[int] = []
        self._rows: dict[int, list[int]] = {}
        self._last: dict[int, tuple[tuple[tuple[int, int], ...], int]] = {}

    @property
    def knows_active(self) -> bool:
        """True if the VM shows which table is in use."""
        return self._active_at is not None

    def names(self) -> dict[str, int]:
        """The atom's index of every module that has code, by its name."""
        found: set[int] = set()
        for table in self._tables:
            _, rows = self._entries(table)
            code = column(rows, self._layout.offset("Module", "curr.code_hdr"), np.uint64) != 0
            found |= set(column(rows, self._layout.offset("Module", "module"), np.int32)[code])
        texts = self._atoms.texts(int(index) for index in found)
        return {text: index for index, text in texts.items() if text is not None}

    def natives(self) -> set[tuple[str, int]]:
        """The name of each module that has NIFs, and the address of its erl_module_nif."""
        found: set[tuple[int, int]] = set()
        for table in self._tables:
            _, rows = self._entries(table)
            names = column(rows, self._layout.offset("Module", "module"), np.int32)
            for field in ("curr.nif", "old.nif"):
                places = column(rows, self._layout.offset("Module", field), np.uint64)
                has = places != 0
                found |= set(zip(names[has].tolist(), places[has].tolist(), strict=True))
        texts = self._atoms.texts(index for index, _ in found)
        return {(text, place) for index, place in found if (text := texts[index]) is not None}

    def code(self, indices: Iterable[int]) -> dict[int, Code]:
        """
        The code of modules, given by the index of their name; some system calls.

        Current code was current at some moment of this call.
        """
        wanted = list(indices)
        state = self._state()
        for _ in range(_ATTEMPTS):
            found, before = self._read(wanted, *state), state
            if (state := self._state()) == before:
                break
        return found

    def _read(self, wanted: list[int], counts: list[int], active: int | None) -> dict[int, Code]:
        if counts != self._counts or any(index not in self._rows for index in wanted):
            self._counts = counts
            self._locate(wanted)
        addresses = np.array([self._rows[index] for index in wanted], np.uint64)
        size = self._layout.size("Module")
        rows, _ = self._memory.gather(addresses.reshape(-1), size)
        current = column(rows, self._layout.offset("Module", "curr.code_hdr"), np.uint64)
        old = column(rows, self._layout.offset("Module", "old.code_hdr"), np.uint64)
        pairs = np.stack([current, old], axis=1).reshape(-1, _TABLES, 2)
        return {
            index: self._code(index, tuple((int(c), int(o)) for c, o in tables), active)
            for index, tables in zip(wanted, pairs, strict=True)
        }

    def _state(self) -> tuple[list[int], int | None]:
        """Read how many entries each table has, and which is in use, at one moment."""
        entries = self._layout.offset("IndexTable", "entries")
        counts_at = [table + entries for table in self._tables]
        counts_at += [] if self._active_at is None else [self._active_at]
        rows, good = self._memory.gather(np.array(counts_at, np.uint64), 4)
        if not good.all():
            raise ReadRefusedError("the tables of modules cannot be read any more")
        numbers: list[int] = rows.view(np.uint32)[:, 0].tolist()
        return numbers[:_TABLES], numbers[_TABLES] % _TABLES if self.knows_active else None

    def _code(self, index: int, tables: tuple[tuple[int, int], ...], active: int | None) -> Code:
        if active is not None:
            number = active
        else:
            before, number = self._last.get(index, (tables, 0))
            number = newest(before, tables, number)
            self._last[index] = tables, number
        current, old = tables[number]
        others = dict.fromkeys(c for c, _ in tables if c not in (0, current))
        return Code(current, old, tuple(others), tables, active)

    def _locate(self, wanted: list[int]) -> None:
        """Find the entries of modules in each table; 0 where a table has none yet."""
        found = {index: [0] * _TABLES for index in wanted}
        for number, table in enumerate(self._tables):
            pointers, rows = self._entries(table)
            names = column(rows, self._layout.offset("Module", "module"), np.int32)
            for index in wanted:
                for row in np.flatnonzero(names == index):
                    found[index][number] = int(pointers[row])
        self._rows.update(found)

    def _entries(self, table: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        """Read one table: where its entries lie, and the entries, a Module each."""
        layout, memory = self._layout, self._memory
        count = memory.u32(table + layout.offset("IndexTable", "entries"))
        if count > _MAX_MODULES:
            raise ReadRefusedError(f"the VM claims {count} modules: none is believed")
        pages = -(-count // _PAGE)
        segments = memory.words(memory.u64(table + layout.offset("IndexTable", "seg_table")), pages)
        parts = [
            memory.words(int(segment), min(_PAGE, count - _PAGE * page))
            for page, segment in enumerate(segments)
        ]
        pointers = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        rows, good = memory.gather(pointers, layout.size("Module"))
        return pointers[good], rows[good]


def newest(
    before: tuple[tuple[int, int], ...], tables: tuple[tuple[int, int], ...], number: int
) -> int:
    """
    Return which table was written last, where the VM hides it; *number* if none was since *before*.

    They are written in turn, so of those that changed it is the one whose next did not. Where all
    did, it is the one that the next does not go on from.
    """
    changed = [n for n in range(_TABLES) if tables[n] != before[n]]
    if len(changed) == _TABLES:
        pairs = [(tables[n][0], tables[(n + 1) % _TABLES]) for n in changed]
        last = [n for n, (current, after) in enumerate(pairs) if current not in after]
        return last[0] if len(last) == 1 else number
    return next((n for n in changed if (n + 1) % _TABLES not in changed), number)


def _find(target: Target) -> list[int]:
    """Find ``module_tables[3]``, which is static: three tables in a row that say their name."""
    if target.binary.section_address(".rodata") is None:
        raise ReadRefusedError(f"process {target.pid} has no .rodata, so its modules are not found")
    # Compilers put it behind another text, or behind numbers.
    found = target.binary.find(".rodata", _NAME + b"\0")
    texts = [target.base + address for address in found]
    name = target.layout.offset("IndexTable", "htable.name")
    tables: list[int] = []
    for address, words in data(target):
        hits = np.flatnonzero(within(words, np.array(texts, np.uint64)))
        tables += [address + 8 * int(hit) - name for hit in hits]
    tables.sort()
    size = target.layout.size("IndexTable")
    if len(tables) != _TABLES or any(b - a != size for a, b in pairwise(tables)):
        raise ReadRefusedError(
            f"process {target.pid} (OTP {target.otp_release}): the tables of its modules are not "
            f"found ({len(tables)} candidates, expected {_TABLES} in a row)"
        )
    return tables
