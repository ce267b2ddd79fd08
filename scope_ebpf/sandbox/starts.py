# SPDX-License-Identifier: Apache-2.0
"""
Where the functions of a file begin, by its call frame information. Runs confined.

``.eh_frame`` stays in a stripped file, and compilers describe every function in it. A part that
the compiler moved away from its function (``.cold``) is described like a function. Formats: LSB
5.0, "Exception Frames".
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import TYPE_CHECKING

from scope_ebpf.sandbox import limits
from scope_ebpf.sandbox.limits import LimitError

if TYPE_CHECKING:
    from scope_ebpf.sandbox.elf import Elf

_WORDS = struct.Struct("<II")
_RANGE = struct.Struct("<iI")
#: Encoding of addresses: relative to the address itself, four bytes with a sign.
_RELATIVE = 0x1B
#: A length that says that a longer one follows; no compiler writes it for x86-64.
_LONG = 0xFFFFFFFF
#: Bytes of a common entry that are looked at for its encoding.
_COMMON = 256
#: The section that functions of an emulator lie in.
TEXT = ".text"


class Starts:
    """The functions of ``.text``: *addresses* in order, and the size of each in *sizes*."""

    def __init__(self, elf: Elf) -> None:
        text = elf.sections.get(TEXT)
        self.begin = text.address if text else 0
        self.end = text.address + text.size if text else 0
        every = _ranges(elf.section(".eh_frame") or b"", elf.address(".eh_frame") or 0)
        self.sizes = {
            start: size for start, size in every if self.begin <= start < start + size <= self.end
        }
        self.addresses = sorted(self.sizes)

    def around(self, address: int) -> int | None:
        """The start of the function that *address* lies in, or None."""
        index = bisect_right(self.addresses, address) - 1
        if index < 0:
            return None
        start = self.addresses[index]
        return start if address - start < self.sizes[start] else None


def _ranges(data: bytes, address: int) -> list[tuple[int, int]]:
    """(start, size) of every description in *data*, which lies at *address*."""
    found: list[tuple[int, int]] = []
    known: dict[int, bool] = {}
    at = 0
    while at + _WORDS.size <= len(data):
        length, back = _WORDS.unpack_from(data, at)
        if length in (0, _LONG) or at + 4 + length > len(data):
            break
        if back and length >= 12:
            common = at + 4 - back
            if common not in known:
                known[common] = _is_relative(data, common)
            if known[common]:
                start, size = _RANGE.unpack_from(data, at + 8)
                found.append((address + at + 8 + start, size))
                if len(found) > limits.FUNCTIONS:
                    raise LimitError(f"it has more than {limits.FUNCTIONS:,} functions")
        at += 4 + length
    return found


def _is_relative(data: bytes, at: int) -> bool:
    """Whether the descriptions of the common entry at *at* hold relative addresses."""
    if at < 0 or at + 9 > len(data):
        return False
    body = data[at + 9 : at + _COMMON]
    letters, zero, rest = body.partition(b"\0")
    if not zero or not letters.startswith(b"z"):
        return False
    rest = _after_numbers(rest, 4)  # alignments, the return register, the length of what follows
    for letter in letters[1:]:
        if letter == ord("R"):
            return rest[:1] == bytes([_RELATIVE])
        if letter == ord("P"):  # an encoding and an address of four bytes in a program of x86-64
            rest = rest[5:]
        elif letter == ord("L"):
            rest = rest[1:]
        elif letter not in b"SB":
            return False
    return False


def _after_numbers(data: bytes, count: int) -> bytes:
    """What follows *count* LEB128 numbers."""
    at = 0
    for _ in range(count):
        while at < len(data) and data[at] & 0x80:
            at += 1
        at += 1
    return data[at:]
