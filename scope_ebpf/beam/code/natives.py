# SPDX-License-Identifier: Apache-2.0
"""
Erlang names of C functions, by the tables in which the VM itself looks them up.

A stripped file has no symbol of a static function, and OTP 29 hides those of the others. But the
VM calls BIFs and NIFs by pointers, so its memory has the address of each beside its name: in
``bif_table``, and in the ErlNifEntry of each module that has NIFs. A table is taken only if it
looks as a whole like one; what is not certain has no name.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import numpy as np

from scope_ebpf.beam.code.modules import Modules
from scope_ebpf.beam.elf.contents import UnreadableElfError
from scope_ebpf.beam.memory.terms import ATOM_MASK, ATOM_TAG
from scope_ebpf.errors import ReadRefusedError, RefusedFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: Sections that may hold ``bif_table``, and the most bytes of one; those of emulators are 100 kB.
_SECTIONS: Final = (".data", ".data.rel.ro")
_MOST_DATA: Final = 4 << 20
#: Module, name, arity, what calls of Erlang code go to, the C function, kind (BifEntry,
#: OTP-25.2.3 erts/emulator/beam/bif.h; 29.1.1 has the same). The two functions differ where the
#: first only moves the process to a dirty scheduler.
_BIF: Final = np.dtype(
    {
        "names": ["module", "name", "arity", "padding", "called", "function", "kind"],
        "formats": ["<u8", "<u8", "<i4", "<i4", "<u8", "<u8", "<u8"],
    }
)
_KINDS, _MOST_ARGUMENTS = 3, 255
#: One that every release has, as module, name and arity; and how many a table has: OTP 25 has 505.
_ANCHOR: Final = ("erlang", "abs", 1)
_LEAST, _MOST = 300, 4096
#: Where an ErlNifEntry is looked for in a struct erl_module_nif, in words.
_SEARCHED: Final = 64
#: ErlNifFunc: name, arity, function, flags (erl_nif.h, the published interface).
_NIF: Final = np.dtype(
    {
        "names": ["name", "arity", "function"],
        "formats": ["<u8", "<u4", "<u8"],
        "offsets": [0, 8, 16],
        "itemsize": 32,
    }
)
#: NIFs of one module, and of all that are read; bytes of a name.
_MOST_OF_MODULE, _MOST_NIFS, _NAME = 1024, 1 << 14, 256
_PAGE: Final = 4096


class Natives:
    """The BIFs and NIFs of one VM, which are read when they are asked for first."""

    def __init__(self, target: Target, atoms: Atoms) -> None:
        self._target = target
        self._atoms = atoms
        self._bifs: dict[int, str] | None = None
        self._nifs: dict[int, str] | None = None

    def forget_nifs(self) -> None:
        """Read the NIFs again at the next question, since modules have come or gone."""
        self._nifs = None

    def name(self, address: int) -> str | None:
        """
        ``M:F/A (BIF)`` or ``M:F/A (NIF)`` of the C function that begins at *address*.

        A NIF that one function is for several arities has all of them: ``M:F/1,2 (NIF)``.
        """
        return self.bifs.get(address) or self.nifs.get(address)

    @property
    def bifs(self) -> dict[int, str]:
        """The name of each BIF by the address of its function; empty if they are not certain."""
        if self._bifs is None:
            try:
                self._bifs = self._read_bifs()
            except (ReadRefusedError, RefusedFileError, UnreadableElfError):
                self._bifs = {}
        return self._bifs

    @property
    def nifs(self) -> dict[int, str]:
        """The name of each NIF likewise, in the emulator and in libraries."""
        if self._nifs is None:
            try:
                self._nifs = _named(self._read_nifs(), "NIF")
            except (ReadRefusedError, RefusedFileError, UnreadableElfError):
                self._nifs = {}
        return self._nifs

    def _read_bifs(self) -> dict[int, str]:
        terms = [self._atoms.term(name) for name in _ANCHOR[:2]]
        if None in terms:
            return {}
        key = struct.pack("<QQi", *terms, _ANCHOR[2])
        tables = [table for data in self._data() for table in self._tables(data, key)]
        if len(tables) != 1:
            return {}
        (rows,) = tables
        names = self._atoms.texts((np.concatenate([rows["module"], rows["name"]]) >> 6).tolist())
        return _named(
            (
                (int(row["function"]), f"{module}:{name}", int(row["arity"]))
                for row in rows
                if (module := names[int(row["module"]) >> 6]) is not None
                and (name := names[int(row["name"]) >> 6]) is not None
            ),
            "BIF",
        )

    def _data(self) -> Iterator[bytes]:
        for section in _SECTIONS:
            place = self._target.binary.section_address(section)
            if place is not None and 0 < place[1] <= _MOST_DATA:
                yield self._target.memory.read(place[0] + self._target.base, place[1])

    def _tables(self, data: bytes, key: bytes) -> Iterator[NDArray[np.void]]:
        """Every run of entries around one that begins with *key*, if it is as long as a table."""
        text, size = self._target.binary.section_address(".text") or (0, 0)
        at = data.find(key)
        while at >= 0:
            if at % 8 == 0:
                first = at % _BIF.itemsize
                count = (len(data) - first) // _BIF.itemsize
                rows = np.frombuffer(data, _BIF, count, first)
                run = _run(_are_bifs(rows, text + self._target.base, size), at // _BIF.itemsize)
                if _LEAST <= run.stop - run.start <= _MOST:
                    yield rows[run]
            at = data.find(key, at + 1)

    def _read_nifs(self) -> Iterator[tuple[int, str, int]]:
        left = _MOST_NIFS
        for module, place in Modules(self._target, self._atoms).natives():
            for name, arity, function in self._functions(module.encode(), place, left):
                left -= 1
                yield function, f"{module}:{name}", arity

    def _functions(self, module: bytes, place: int, most: int) -> Iterator[tuple[str, int, int]]:
        """Name, arity and address of each NIF of *module*, whose erl_module_nif is at *place*."""
        memory = self._target.memory
        try:
            words = memory.words(place, _SEARCHED)
            texts, good = memory.gather(words[:-2], len(module) + 1)
            (entries,) = np.nonzero(good & (texts == np.frombuffer(module + b"\0", "u1")).all(1))
            if not len(entries):
                return
            count = int(words[entries[0] + 1]) & 0xFFFFFFFF
            if not 0 < count <= min(most, _MOST_OF_MODULE):
                return
            rows = memory.read(int(words[entries[0] + 2]), count * _NIF.itemsize)
        except ReadRefusedError:
            return
        for name, arity, function in np.frombuffer(rows, _NIF).tolist():
            text = self._text(name)
            if text and arity <= _MOST_ARGUMENTS:
                yield text, arity, function

    def _text(self, address: int) -> str | None:
        """The text at *address* up to its zero; None without one."""
        memory, found = self._target.memory, b""
        try:
            while len(found) < _NAME and b"\0" not in found:
                at = address + len(found)
                found += memory.read(at, min(_NAME, _PAGE - at % _PAGE))
        except ReadRefusedError:
            return None
        text, end, _ = found.partition(b"\0")
        return text.decode("utf-8", "replace") if end else None


def _are_bifs(rows: NDArray[np.void], text: int, size: int) -> NDArray[np.bool_]:
    """Whether each of *rows* can be a BifEntry: two atoms, few arguments, functions in .text."""
    tag, mask = np.uint64(ATOM_TAG), np.uint64(ATOM_MASK)
    found: NDArray[np.bool_] = (rows["module"] & mask == tag) & (rows["name"] & mask == tag)
    found &= (rows["arity"] >= 0) & (rows["arity"] <= _MOST_ARGUMENTS) & (rows["padding"] == 0)
    found &= rows["kind"] < _KINDS
    for function in ("called", "function"):
        found &= (rows[function] >= text) & (rows[function] < text + size)
    return found


def _run(good: NDArray[np.bool_], index: int) -> slice:
    """The rows around *index* that are all *good*."""
    if index >= len(good) or not good[index]:
        return slice(0, 0)
    (bad,) = np.nonzero(~good)
    after = int(np.searchsorted(bad, index))
    return slice(
        int(bad[after - 1]) + 1 if after else 0,
        int(bad[after]) if after < len(bad) else len(good),
    )


def _named(found: Iterable[tuple[int, str, int]], kind: str) -> dict[int, str]:
    """
    The name of each address, of address, M:F and arity.

    A function of several arities has all of them; one that has different names has none.
    """
    arities: dict[int, dict[str, set[int]]] = {}
    for address, name, arity in found:
        arities.setdefault(address, {}).setdefault(name, set()).add(arity)
    return {
        address: f"{name}/{','.join(map(str, sorted(each)))} ({kind})"
        for address, names in arities.items()
        if len(names) == 1
        for name, each in names.items()
    }
