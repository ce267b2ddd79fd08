# SPDX-License-Identifier: Apache-2.0
"""
Marks by which a function without a name is recognized in another build. Runs confined.

Calls, addresses of functions and texts are found for all functions at once, by the bytes of the
instructions that name them (x86-64: ``call``, ``jmp``, ``jcc`` with a distance of 32 bits, ``lea``
relative to the next instruction). Where such bytes stand by chance, they name a function's start
in one of 600,000 cases. Constants need a disassembly, so they are found for the functions that are
asked for.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING
from zlib import crc32

from scope_ebpf.sandbox import limits
from scope_ebpf.sandbox.decoder import texts
from scope_ebpf.sandbox.starts import TEXT, Starts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.sandbox.elf import Elf

#: A call or jump to the address of a function, or to the name of one of another file.
Call = int | str

_DISTANCE = struct.Struct("<i")
#: Bytes of an instruction before its distance.
_BRANCHES = re.compile(rb"(?=[\xe8\xe9]|\x0f[\x80-\x8f])")
_LEA = re.compile(rb"[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]")
_INDIRECT = re.compile(rb"\xff[\x15\x25]")
_STUBS = (".plt", ".plt.sec", ".plt.got")
_RELOCATION = struct.Struct("<QQq")
_SYMBOL = struct.Struct("<IBBHQQ")
#: R_X86_64_64, GLOB_DAT, JUMP_SLOT (System V ABI for x86-64).
_KINDS = (1, 6, 7)
#: A text is at least that long, and at most so many bytes of it count.
_SHORT, _LONG = 4, 80
_TEXT = re.compile(rb"[\x20-\x7e\t\n]{%d,}" % _SHORT)
#: Operands: a constant that ends them, a distance from a register that is no stack's.
_CONSTANT = re.compile(r"(?<![\w\[+*-])(-?0x[0-9a-f]+)$")
_FIELD = re.compile(r"\[r(?!sp|ip|bp)\w+ \+ (0x[0-9a-f]+)\]")
#: Constants from here on distinguish functions.
_LARGE = 0x20


@dataclass(slots=True)
class Function:
    """The cheap marks of one function: texts by hash, and calls and addresses taken in order."""

    texts: list[int] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Body:
    """What a disassembly shows: number of instructions, constants, offsets of fields."""

    instructions: int
    constants: Counter[int]
    fields: Counter[int]


class Marks:
    """The marks of every function of *elf*."""

    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        self.starts = Starts(elf)
        self._bodies: dict[int, Body] = {}

    @cached_property
    def functions(self) -> dict[int, Function]:
        """The cheap marks by the start of the function."""
        found = {start: Function() for start in self.starts.addresses}
        order = self.starts.addresses
        for site, target in sorted(self._calls(), key=lambda call: call[0]):
            start = order[max(bisect_right(order, site) - 1, 0)]
            if target != start and 0 <= site - start < self.starts.sizes[start]:
                calls = found[start].calls
                if len(calls) < limits.CALLS:
                    calls.append(target)
        for site, text in self._texts():
            around = self.starts.around(site)
            if around is not None:
                found[around].texts.append(text)
        return found

    @cached_property
    def callers(self) -> dict[int, list[int]]:
        """For each function the functions that call it."""
        found: dict[int, list[int]] = {}
        for start, function in self.functions.items():
            for target in dict.fromkeys(function.calls):
                if isinstance(target, int):
                    found.setdefault(target, []).append(start)
        return found

    def body(self, start: int) -> Body:
        """The constants of one function."""
        if start not in self._bodies:
            size = min(self.starts.sizes[start], limits.MARKED)
            self._bodies[start] = _body(self._elf.read(start, size))
        return self._bodies[start]

    @cached_property
    def _code(self) -> bytes:
        return self._elf.section(TEXT) or b""

    def _calls(self) -> Iterator[tuple[int, Call]]:
        begin, code, sizes = self.starts.begin, self._code, self.starts.sizes
        stubs, slots = self._stubs, self._slots
        last = len(code) - _DISTANCE.size
        for match in _BRANCHES.finditer(code):
            at = match.start() + (2 if code[match.start()] == 0x0F else 1)
            if at > last:
                break
            target = begin + at + 4 + _DISTANCE.unpack_from(code, at)[0]
            if target in sizes:
                yield begin + match.start(), target
            elif target in stubs:
                yield begin + match.start(), stubs[target]
        for match in _INDIRECT.finditer(code, 0, max(last, 0)):
            at = match.end()
            name = slots.get(begin + at + 4 + _DISTANCE.unpack_from(code, at)[0])
            if name:
                yield begin + match.start(), name

        for match in _LEA.finditer(code, 0, max(last, 0)):  # a function that is called later
            at = match.end()
            target = begin + at + 4 + _DISTANCE.unpack_from(code, at)[0]
            if target in sizes:
                yield begin + match.start(), target

    def _texts(self) -> Iterator[tuple[int, int]]:
        begin, code = self.starts.begin, self._code
        constants = self._elf.section(".rodata") or b""
        first = self._elf.address(".rodata") or 0
        last = max(len(code) - _DISTANCE.size, 0)
        for match in _LEA.finditer(code, 0, last):
            at = match.end()
            offset = begin + at + 4 + _DISTANCE.unpack_from(code, at)[0] - first
            if 0 <= offset < len(constants):
                text = constants[offset : offset + _LONG].split(b"\0", 1)[0]
                if _TEXT.fullmatch(text):
                    yield begin + match.start(), crc32(text)

    @cached_property
    def _slots(self) -> dict[int, str]:
        """Names of other files' functions, by the address of the pointer to each."""
        rows, names = self._elf.section(".dynsym") or b"", self._elf.section(".dynstr") or b""
        found: dict[int, str] = {}
        for section in (".rela.plt", ".rela.dyn"):
            data = self._elf.section(section) or b""
            whole = data[: min(len(data), limits.RELOCATIONS) // _RELOCATION.size * 24]
            for address, info, _ in _RELOCATION.iter_unpack(whole):
                at = (info >> 32) * _SYMBOL.size
                if info & 0xFFFFFFFF in _KINDS and info >> 32 and at + _SYMBOL.size <= len(rows):
                    name = _SYMBOL.unpack_from(rows, at)[0]
                    text = names[name : name + limits.CALLED].split(b"\0", 1)[0]
                    found[address] = text.decode("ascii", "replace")
        return found

    @cached_property
    def _stubs(self) -> dict[int, str]:
        """The same by the addresses of the linker's stubs, of 8 or 16 bytes."""
        found: dict[int, str] = {}
        for section in _STUBS:
            code, address = self._elf.section(section) or b"", self._elf.address(section) or 0
            for match in _INDIRECT.finditer(code, 0, max(len(code) - 4, 0)):
                at = match.end()
                name = self._slots.get(address + at + 4 + _DISTANCE.unpack_from(code, at)[0])
                if name:
                    place = address + match.start()
                    found[place & ~7] = found[place & ~15] = name
        return found


def _body(code: bytes) -> Body:
    count = 0
    constants: Counter[int] = Counter()
    fields: Counter[int] = Counter()
    for mnemonic, operands in texts(code):
        count += 1
        if "0x" not in operands or mnemonic[0] == "j" or mnemonic in ("call", "nop", "lea"):
            continue
        if found := _CONSTANT.search(operands):
            value = int(found[1], 16)
            if abs(value) > _LARGE:
                constants[value & 0xFFFFFFFF] += 1
        if found := _FIELD.search(operands):
            fields[int(found[1], 16) & 0xFFFFFFFF] += 1
    return Body(count, constants, fields)
