# SPDX-License-Identifier: Apache-2.0
"""
The memory and the program file of a process that does not exist.

:class:`Space` is a sparse memory, read through the reader that the package itself uses to read
processes, so every line above the system call is the package's own.
"""

from __future__ import annotations

import ctypes
import errno
import random
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from scope_ebpf.beam.elf.contents import Symbol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from measured import Measured

PAGE: Final = 4096
#: Where the kernel put the program, and where its heap begins.
BASE: Final = 0x5555_5540_0000
HEAP: Final = 0x7F31_0000_0000
#: Sections of the file: address and size. Those behind .text hold variables.
SECTIONS: Final = {
    ".rodata": (0x1000, 0x1000),
    ".text": (0x4000, 0x4000),
    ".data": (0x10000, 0x2000),
    ".bss": (0x14000, 0x4000),
}
_NOISE: Final = random.Random(3166).randbytes(1 << 17)


class Space:
    """
    Pages of memory by number. *noise* fills structs with arbitrary bytes, else they are zero.
    """

    def __init__(self, *, noise: bool) -> None:
        self.pages: dict[int, bytearray] = {}
        self._noise = noise
        self._next = HEAP
        for address, size in SECTIONS.values():
            self._map(BASE + address, size)

    def _map(self, address: int, size: int) -> None:
        for number in range(address // PAGE, (address + max(size, 1) - 1) // PAGE + 1):
            self.pages.setdefault(number, bytearray(PAGE))

    def reserve(self, size: int, align: int = 16) -> int:
        """
        Give the address of a new block of *size* bytes of the heap, zero.

        The word before it says how large it is, with that word, and has a flag below (MBC_BLK_SZ
        and its flags, erl_alloc_util.c).
        """
        address = -(-(self._next + 8) // align) * align
        self._next = address + size
        self._map(address - 8, size + 8)
        self.write(address - 8, packed(8 + -(-size // 8) * 8 | 1))
        return address

    def put(self, data: bytes) -> int:
        """
        Add *data* to the heap; give its address.
        """
        address = self.reserve(len(data))
        self.write(address, data)
        return address

    def words(self, *words: int) -> int:
        """
        Add words to the heap; give their address.
        """
        return self.put(packed(*words))

    def blank(self, size: int) -> bytearray:
        """
        The contents of a struct of which nothing is set yet.
        """
        if not self._noise:
            return bytearray(size)
        return bytearray((_NOISE * (size // len(_NOISE) + 1))[:size])

    def write(self, address: int, data: bytes) -> None:
        """
        Overwrite what is mapped.
        """
        done = 0
        while done < len(data):
            number, offset = divmod(address + done, PAGE)
            part = data[done : done + PAGE - offset]
            self.pages[number][offset : offset + len(part)] = part
            done += len(part)

    def content(self, address: int, size: int) -> bytes:
        """
        What is there, up to the first page that is not.
        """
        number, offset = divmod(address, PAGE)
        page = self.pages.get(number)
        if page is None:
            return b""
        made = bytes(page[offset : offset + size])
        while len(made) < size and (page := self.pages.get(number := number + 1)):
            made += page[: size - len(made)]
        return made


class Reader:
    """
    A ``ProcessReader`` of one :class:`Space`, whatever the process number is.
    """

    def __init__(self, space: Space) -> None:
        self._space = space

    def read(self, _pid: int, out: int, size: int, iovecs: int, count: int) -> int:
        """
        As ``process_vm_readv``: stops at the first range that is not all there.
        """
        pairs = np.frombuffer(ctypes.string_at(iovecs, 16 * count), np.uint64).tolist()
        parts, done = [], 0
        for base, length in zip(pairs[::2], pairs[1::2], strict=True):
            part = self._space.content(base, length)
            parts.append(part)
            done += len(part)
            if len(part) < length:
                break
        assert done <= size
        ctypes.memmove(out, b"".join(parts), done)
        return done if done or not any(pairs[1::2]) else -errno.EFAULT

    def cpu_seconds(self) -> float:
        """
        Nothing: no process reads for this one.
        """
        return 0.0


@dataclass
class File:
    """
    The program: symbols by name (address, size), and which variables a function's code names.
    """

    symbols: dict[str, tuple[int, int]] = field(default_factory=dict)
    named: dict[int, list[int]] = field(default_factory=dict)
    code: dict[int, bytes] = field(default_factory=dict)
    texts: dict[bytes, int] = field(default_factory=dict)
    machine: str = "x64"
    relative: bool = True
    entry: int = 0
    path: Path = Path("/usr/lib/erlang/erts/bin/beam.smp")
    usdt_sites: tuple[()] = ()
    segments: tuple[()] = ()

    __hash__ = object.__hash__

    def symbol(self, name: str) -> Symbol | None:
        """
        As ``Binary.symbol``.
        """
        found = self.symbols.get(name)
        return Symbol(name, *found, is_function=found[0] in self.code) if found else None

    def section_address(self, name: str) -> tuple[int, int] | None:
        """
        As ``Binary.section_address``.
        """
        return SECTIONS.get(name)

    def references(self, address: int, _size: int) -> list[int]:
        """
        As ``Binary.references``.
        """
        return self.named.get(address, [])

    def read(self, address: int, size: int) -> bytes:
        """
        As ``Binary.read``.
        """
        return self.code[address][:size]

    def find(self, _section: str, data: bytes) -> list[int]:
        """
        As ``Binary.find``.
        """
        return [self.texts[data]] if data in self.texts else []


def packed(*words: int) -> bytes:
    """
    Words of 64 bits.
    """
    return struct.pack(f"<{len(words)}Q", *words)


def filled(space: Space, release: Measured, name: str, /, **fields: tuple[int, str]) -> bytes:
    """
    One struct; ``common__id=(1, "Q")`` is its field ``common.id``.
    """
    data = space.blank(release.size(name))
    for key, (value, kind) in fields.items():
        struct.pack_into("<" + kind, data, release.offset(name, key.replace("__", ".")), value)
    return bytes(data)


def numbers(first: int, step: int) -> Iterator[int]:
    """
    Planted values that are not round and not alike.
    """
    while True:
        yield first
        first += step
