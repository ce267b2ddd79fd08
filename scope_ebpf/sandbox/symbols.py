# SPDX-License-Identifier: Apache-2.0
"""Symbol tables of one file: by name, by pattern, by address. Runs confined."""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING

from scope_ebpf.sandbox import limits
from scope_ebpf.sandbox.limits import LimitError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from scope_ebpf.sandbox.elf import Elf

#: Name, address, size, whether it is a function.
Symbol = tuple[str, int, int, bool]

#: Elf64_Sym, System V ABI, "Symbol Table": name, info, other, section, address, size.
_ROW = struct.Struct("<IBBHQQ")
_OBJECT, _FUNCTION, _INDIRECT = 1, 2, 10
_USED_KINDS = frozenset((0, _OBJECT, _FUNCTION, _INDIRECT))
#: Symbols before an address that may still span it: one may lie within another.
_NESTED = 256
_STRINGS = {".symtab": ".strtab", ".dynsym": ".dynstr"}


#: Literal characters of a pattern, and operators that change the character before them.
_LITERAL, _REPEATS = re.compile(r"[A-Za-z0-9_]*"), ("*", "?", "{")


def _literal(pattern: str) -> bytes:
    """The literal prefix of all names that match *pattern*, maybe empty."""
    found = _LITERAL.match(pattern)
    if found is None or "|" in pattern:
        return b""
    return found[0][: -1 if pattern[found.end() :].startswith(_REPEATS) else None].encode()


class Table:
    """One symbol table; a name is decoded when it is asked for."""

    def __init__(self, source: str, rows: bytes, names: bytes) -> None:
        self.source = source
        self._names = names
        count = len(rows) // _ROW.size
        if count > limits.SYMBOLS:
            raise LimitError(f"it has {count:,} symbols, at most {limits.SYMBOLS:,} are read")
        self._rows = rows[: count * _ROW.size]

    @classmethod
    def of(cls, elf: Elf, section: str, source: str | None = None) -> Table | None:
        """Load the symbol table of *section*, or None."""
        rows = elf.section(section)
        if rows is None:
            return None
        return cls(source or section, rows, elf.section(_STRINGS[section]) or b"")

    def _defined(self) -> Iterator[tuple[int, int, int, int]]:
        """(name, info, address, size) of each symbol that the file defines."""
        for name, info, _, section, address, size in _ROW.iter_unpack(self._rows):
            if name and section and info & 0xF in _USED_KINDS:
                yield name, info, address, size

    def any(self) -> bool:
        """Whether it defines any symbol."""
        return next(self._defined(), None) is not None

    def find(self, wanted: Collection[str]) -> dict[str, Symbol]:
        """Find symbols by name; of several of one name the global one, then the largest."""
        texts = {name.encode(): name for name in wanted}
        longest = max(map(len, texts), default=0) + 1
        best: dict[str, tuple[bool, int]] = {}
        found: dict[str, Symbol] = {}
        names, find = self._names, self._names.find
        for name_at, info, address, size in self._defined():
            end = find(b"\0", name_at, name_at + longest)
            name = texts.get(names[name_at:end]) if end >= 0 else None
            if name is None:
                continue
            rank = (info >> 4 != 0, size)
            if name not in best or rank > best[name]:
                best[name] = rank
                found[name] = self._symbol(name, info, address, size)
        return found

    def functions(self) -> Iterator[tuple[str, int]]:
        """Name and address of each function."""
        for name_at, info, address, size in self._defined():
            if info & 0xF == _FUNCTION and size:
                yield self._name(name_at), address

    def matching(self, patterns: list[re.Pattern[str]]) -> Iterator[tuple[int, Symbol]]:
        """Every symbol whose name matches from its start, with the pattern's number."""
        starts = tuple(_literal(pattern.pattern) for pattern in patterns)
        for name_at, info, address, size in self._defined():
            if not self._names.startswith(starts, name_at):
                continue  # most names, without making a text of them
            name = self._name(name_at)
            for number, pattern in enumerate(patterns):
                if pattern.match(name):
                    yield number, self._symbol(name, info, address, size)

    @cached_property
    def _by_address(self) -> list[tuple[int, int, int, int]]:
        """
        (address, size, info, name) in order of address, of those that span anything.

        The first of the table of several at one address comes last, where :meth:`at` begins.
        """
        rows = [(a, size, info, name) for name, info, a, size in self._defined() if size]
        rows.reverse()
        rows.sort(key=itemgetter(0))
        return rows

    def at(self, address: int) -> Symbol | None:
        """Find the symbol that spans *address*, a function before anything else."""
        rows = self._by_address
        last = bisect_right(rows, address, key=itemgetter(0)) - 1
        other = None
        for index in range(last, max(-1, last - _NESTED), -1):
            start, size, info, name = rows[index]
            if address - start >= size:
                continue
            if info & 0xF == _FUNCTION:
                return self._symbol(self._name(name), info, start, size)
            other = other or self._symbol(self._name(name), info, start, size)
        return other

    def _name(self, name_at: int) -> str:
        end = self._names.find(b"\0", name_at, name_at + limits.NAME)
        end = name_at + limits.NAME if end < 0 else end
        return self._names[name_at:end].decode("utf-8", "replace")

    @staticmethod
    def _symbol(name: str, info: int, address: int, size: int) -> Symbol:
        return name, address, size, info & 0xF in (_FUNCTION, _INDIRECT)
