# SPDX-License-Identifier: Apache-2.0
"""
ELF files that lie: symbols, notes, call frames, packed debug data, and the code in them.
"""

from __future__ import annotations

import json
import lzma
import re
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from unittest import mock

import mutation
from test_beam_elf import DYNSYM, NOTE, PROGBITS, STRTAB, SYMTAB, elf, note, stapsdt, table

from scope_ebpf.beam.elf import binary as under_test
from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.beam.elf.usdt import ArgumentError, parse
from scope_ebpf.beam.stacks.frames import CallFrames
from scope_ebpf.errors import ScopeError
from scope_ebpf.sandbox import child
from scope_ebpf.sandbox.client import Parser
from scope_ebpf.sandbox.questions import Questions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

_HEADER = 64 + 56
_CODE = bytes.fromhex("f30f1efa554889e5534883ec08e8000000004885c0740231c05b5dc3e9fbffffff0f0b")
#: What describes the code at 0x1000: version 1, "zR", factors 1 and -8, return address in r16.
_FRAMES = (
    b"\x14\0\0\0\0\0\0\0\x01zR\0\x01\x78\x10\x01\x1b\x0c\x07\x08\x90\x01\0\0"
    b"\x14\0\0\0\x1c\0\0\0"
    + struct.pack("<iI", 0, 64)
    + b"\0\x41\x0e\x10\x86\x02\x43\x0d\x06\0\0\0"
    b"\0\0\0\0"
)


def _seeds() -> list[bytes]:
    """
    Files with everything that is looked for in them.
    """
    rows, names = table({f"erts_{n}": (0x1000 + n, 8, 2) for n in range(20)})
    inner = lzma.compress(elf({".symtab": (SYMTAB, 0, rows), ".strtab": (STRTAB, 0, names)}))
    hdr = b"\x01\x1b\x03\x3b" + struct.pack("<iIii", 0x1000, 1, -0x1000, 0x1000 + 24)
    frames = {
        ".text": (PROGBITS, 0x1000, _CODE),
        ".eh_frame_hdr": (PROGBITS, 0x2000, hdr),
        ".eh_frame": (PROGBITS, 0x3000, _FRAMES),
        ".symtab": (SYMTAB, 0, rows),
        ".strtab": (STRTAB, 0, names),
    }
    notes = {
        ".dynsym": (DYNSYM, 0, rows),
        ".dynstr": (STRTAB, 0, names),
        ".note.gnu.build-id": (NOTE, 0, note(b"GNU\0", 3, b"0123")),
        ".note.stapsdt": (NOTE, 0, note(b"stapsdt\0", 3, stapsdt(1, 2, 3)) * 3),
        ".stapsdt.base": (PROGBITS, 0x4000, b"\0"),
        ".gnu_debugdata": (PROGBITS, 0, inner),
        ".rodata": (PROGBITS, 0x5000, b"Erlang/OTP 25 [erts-13.1.5] [64-bit] [jit:ns]\0"),
    }
    return [elf(frames), elf(notes), elf(frames | notes)]


class InProcess(Parser):
    """
    A parser that answers here, where there is an alarm; some of what it answers is made up.
    """

    lies: float
    random: Random

    def _exchange(
        self, question: str, arguments: list[object], _fds: tuple[int, ...]
    ) -> tuple[object, object]:
        if not hasattr(self, "_questions"):
            self._questions = Questions(self._name, self._fd)
        found = list(child._answered(self._questions, question, arguments, []))
        text = json.dumps(found)
        if self.random.random() < self.lies:
            with suppress(ValueError, RecursionError):  # what cannot be sent
                text = json.dumps(mutation.change(self.random, json.loads(text), 1))
        answer = json.loads(text)
        return answer if isinstance(answer, list) and len(answer) == 2 else (None, None)


class Elves:
    """
    One case is one file, asked all that is ever asked of one.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "file"
        self._seeds = _seeds()

    def run(self, random: Random) -> None:
        """
        Raises UnreadableElfError and RefusedFileError for what cannot be read.
        """
        data = bytearray(random.choice(self._seeds))
        for _ in range(random.choice((1, 2, 4))):
            _change(random, data)
        self._path.write_bytes(mutation.spoil(random, bytes(data), random.choice((0, 0, 1, 4))))
        InProcess.random, InProcess.lies = random, random.choice((0.0, 0.0, 0.3))
        with mock.patch.object(under_test, "Parser", InProcess):
            binary = Binary.open(self._path, debug_files=False)
        try:
            for question in random.sample(_QUESTIONS, 4):
                with suppress(ScopeError, ArgumentError):
                    question(binary, random)
        finally:
            binary.close()


def _change(random: Random, data: bytearray) -> None:
    """
    A field of a header, of a section's head, or of a body becomes something else.
    """
    if len(data) < _HEADER:
        return
    (heads,) = struct.unpack_from("<Q", data, 40)
    choice = random.random()
    if choice < 0.2:
        low, high = 0, _HEADER
    elif choice < 0.6 and _HEADER < heads < len(data):
        low, high = heads, len(data)
    else:
        low, high = _HEADER, min(max(heads, _HEADER + 8), len(data))
    width = random.choice((1, 2, 4, 8))
    offset = random.randrange(low, max(low + 1, high - width + 1))
    offset -= (offset - low) % width
    near = random.choice((0, len(data), len(data) - 1, heads, mutation.word(random)))
    data[offset : offset + width] = (near & (1 << 8 * width) - 1).to_bytes(width, "little")


def _frames(binary: Binary, random: Random) -> None:
    frames = CallFrames(binary)
    for address in (0x1000, 0x1004, 0x1030, mutation.word(random) >> 1):
        frames.rules(address)
        frames.function(address)


def _sites(binary: Binary, _random: Random) -> None:
    for site in binary.usdt_sites:
        parse(site.arguments)


def _code(binary: Binary, random: Random) -> None:
    size = random.choice((8, 32, 35, 1 << 17))
    binary.cheap_entry(0x1000, size)
    binary.calls(0x1000, size)
    binary.references(0x1000, size)


def _search(binary: Binary, _random: Random) -> None:
    binary.search((".rodata", ".data"), b"Erlang/OTP ", re.compile(rb"Erlang/OTP (\d+)"))
    binary.find(".rodata", b"erts")


_QUESTIONS: tuple[Callable[[Binary, Random], Any], ...] = (
    _frames, _sites, _code, _search,
    lambda binary, _: binary.matching(re.compile("erts")),
    lambda binary, _: [binary.symbol(f"erts_{n}") for n in (1, 7, 77)],
    lambda binary, random: binary.function_at(random.choice((0x1001, mutation.word(random)))),
    lambda binary, _: binary.build_id,
    lambda binary, random: binary.read(mutation.word(random), random.choice((0, 16, 1 << 20))),
    lambda binary, _: [binary.section_address(n) for n in (".bss", ".data", ".text")],
    lambda binary, _: binary.symbol_source,
)  # fmt: skip
