# SPDX-License-Identifier: Apache-2.0
"""
Atoms: the text behind an atom's index.

The table only grows and an atom never changes its text, so a text that was
read once stays right. The text itself is the VM's and may hold anything: it is
bounded here and escaped by the sink that shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import arrays
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import ATOM_TAG, POINTER_MASK, is_atom
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

    _NameRanges = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.bool_]]

#: Atoms in one segment of the table (INDEX_PAGE_SIZE, OTP-25.2.3 erts/emulator/beam/index.h).
_PAGE = 1024
#: The most bytes of one atom: 255 characters of UTF-8.
MAX_BYTES = 255 * 4
#: No VM has more; the default limit is 1,048,576 (erl +t).
MAX_ATOMS = 1 << 25
#: The first of erts/emulator/beam/atom.names, OTP-21 to OTP-29: false is 0 and true is 1.
_FIRST = {0: "false", 1: "true"}
#: Texts kept; most are never asked for.
CACHE = 1 << 16
#: Atoms that a search reads together, first those that the VM is born with, and in all: some
#: seconds.
_BORN, _BLOCK, _SEARCHED = 2048, 8192, 1 << 22
#: Blocks that are read once: 140 kB each.
_KEPT_BLOCKS = 4
#: Where the bytes follow in the heap binary that holds a name since OTP 28
#: (ErlHeapBits.data, OTP-28.5 erts/emulator/beam/erl_bits.h).
_HEAP_BITS_DATA = 16


class Atoms:
    """
    The atom table of a running VM.

    ReadRefusedError if its first atoms are not those that every VM has.
    """

    def __init__(self, target: Target) -> None:
        self._memory = target.memory
        layout = target.layout
        self._table = target.address("erts_atom_table")
        self._entries = layout.offset("IndexTable", "entries")
        self._segments = layout.offset("IndexTable", "seg_table")
        self._size = layout.size("Atom")
        self._index = layout.offset("Atom", "slot.index")
        self._length = layout.offset("Atom", "len")
        self._boxed = layout.has("Atom", "u.bin")
        self._name = layout.offset("Atom", "u.bin" if self._boxed else "name")
        self._texts: dict[int, str] = {}
        self._blocks: dict[tuple[int, int], _NameRanges] = {}
        if self.texts(_FIRST) != _FIRST:
            raise ReadRefusedError(
                f"process {self._memory.pid}: the check that its first atoms are "
                f"{' and '.join(_FIRST.values())} does not hold, so {layout} does not fit and no "
                "name is read"
            )

    def __len__(self) -> int:
        """Return the number of atoms that the VM has now."""
        count = self._memory.u32(self._table + self._entries)
        if count > MAX_ATOMS:
            raise ReadRefusedError(f"process {self._memory.pid} claims {count} atoms")
        return count

    def text(self, term: int) -> str:
        """Read the text of an atom term; ReadRefusedError for what is no atom of this VM."""
        if not is_atom(term):
            raise ReadRefusedError(f"{term:#x} is no atom of process {self._memory.pid}")
        return self.text_at(term >> 6)

    def text_at(self, index: int) -> str:
        """Read the text of the atom with this index in the table; ReadRefusedError as above."""
        text = self._texts.get(index)
        if text is None:
            text = self.texts([index])[index]
        if text is None:
            raise ReadRefusedError(f"process {self._memory.pid} has no atom {index}")
        return text

    def texts(self, indices: Iterable[int]) -> dict[int, str | None]:
        """Read many texts at once, by index; None for what is no atom of this VM."""
        wanted = set(indices)
        found: dict[int, str | None] = {index: self._texts.get(index) for index in wanted}
        missing = np.array(sorted(i for i, text in found.items() if text is None), np.int64)
        if len(missing):
            fresh = self._read(missing)
            self._keep(fresh)
            found.update(fresh)
        return found

    def index(self, name: str, first: int = 0) -> int | None:
        """
        Find the index of the atom called *name*, at *first* or behind it, or None.

        Those that the VM is born with come first, and a search ends with them.
        """
        return self.indices((name,), first).get(name)

    def indices(self, names: Collection[str], first: int = 0) -> dict[str, int]:
        """Find the indices of several atoms by one search, as :meth:`index` does."""
        total = min(len(self), first + _SEARCHED)
        wanted = {name.encode(): name for name in names}
        lengths_wanted = np.array(sorted(set(map(len, wanted))), np.uint64)
        found: dict[str, int] = {}
        for start in (first, *range(first + _BORN, total, _BLOCK)):
            size = _BORN if start == first else _BLOCK
            indices = np.arange(start, min(start + size, total), dtype=np.int64)
            if not len(indices):
                break
            addresses, lengths, good = self._searched(indices)
            if not good.any():
                break  # the VM claims more atoms than it has
            rows = np.flatnonzero(good & arrays.within(lengths, lengths_wanted))
            texts, _ = self._memory.gather_ragged(addresses[rows], lengths[rows])
            for row, text in zip(rows.tolist(), texts, strict=True):
                if text in wanted:
                    found.setdefault(wanted[text], start + int(row))
            if len(found) == len(wanted):
                break
        return found

    def _searched(self, indices: NDArray[np.int64]) -> _NameRanges:
        """The names of *indices*; the first that are searched stay known for the next search."""
        key = int(indices[0]), len(indices)
        found = self._blocks.get(key)
        if found is None:
            found = self._name_ranges(indices)
            if found[2].all() and len(self._blocks) < _KEPT_BLOCKS:
                self._blocks[key] = found
        return found

    def term(self, name: str, first: int = 0) -> int | None:
        """Find the term of the atom called *name*, as :meth:`index` does, or None."""
        index = self.index(name, first)
        return None if index is None else index << 6 | ATOM_TAG

    def text_bytes(self, most: int) -> int:
        """
        The bytes of all texts together.

        Raises ReadRefusedError where there are more atoms than *most*, or where one does not fit.
        """
        count = len(self)
        if count > most:
            raise ReadRefusedError(
                f"process {self._memory.pid} has {count:,} atoms: the bytes of their texts would "
                "take too long to add up"
            )
        total = 0
        for first in range(0, count, _BLOCK):
            _, lengths, good = self._name_ranges(np.arange(first, min(first + _BLOCK, count)))
            if not good.all():
                raise ReadRefusedError(f"process {self._memory.pid}: an atom could not be read")
            total += int(lengths.sum())
        return total

    def _keep(self, fresh: dict[int, str]) -> None:
        self._texts.update(fresh)
        for index in list(self._texts)[: max(0, len(self._texts) - CACHE)]:
            del self._texts[index]

    def _read(self, indices: NDArray[np.int64]) -> dict[int, str]:
        addresses, lengths, good = self._name_ranges(indices)
        rows = np.flatnonzero(good)
        names, read = self._memory.gather_ragged(addresses[rows], lengths[rows])
        return {
            int(indices[row]): name.decode("utf-8", "replace")
            for row, name, ok in zip(rows.tolist(), names, read.tolist(), strict=True)
            if ok
        }

    def _name_ranges(self, indices: NDArray[np.int64]) -> _NameRanges:
        """
        Find where the name of each atom lies and how long it is.

        Good is an atom that says itself which index it has.
        """
        good = (indices >= 0) & (indices < len(self))
        inside = np.where(good, indices, 0)
        pages, _, page_of = arrays.grouped(inside // _PAGE)
        table = np.uint64(self._memory.u64(self._table + self._segments))
        segments, _ = self._memory.gather(table + pages.astype(np.uint64) * np.uint64(8), 8)
        within = (inside % _PAGE).astype(np.uint64) * np.uint64(8)
        entries = segments.view(np.uint64)[:, 0][page_of] + within
        pointers, read = self._memory.gather(entries, 8)
        atoms, whole = self._memory.gather(pointers.view(np.uint64)[:, 0], self._size)
        index = column(atoms, self._index, np.int32)
        length = column(atoms, self._length, np.int16)
        good &= read & whole & (index == inside) & (length >= 0) & (length <= MAX_BYTES)
        names = column(atoms, self._name, np.uint64)
        if self._boxed:
            names = (names & np.uint64(POINTER_MASK)) + np.uint64(_HEAP_BITS_DATA)
        return names, np.where(good, length, 0).astype(np.uint64), good
