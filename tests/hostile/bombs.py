# SPDX-License-Identifier: Apache-2.0
"""
ELF files that are small on the disk and expensive to read, each by another part.
"""

from __future__ import annotations

import lzma
import os
import re
import struct
from typing import TYPE_CHECKING

from test_beam_elf import (  # type: ignore[import-not-found]
    NOTE,
    PROGBITS,
    STRTAB,
    SYMTAB,
    elf,
    note,
    stapsdt,
)

from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.beam.elf.contents import UnreadableElfError
from scope_ebpf.beam.vm import discover
from scope_ebpf.errors import RefusedFileError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MB = 1 << 20
#: The fields of a section's header that say where it lies and how much it has.
_OFFSET, _SIZE = 24, 32


def _with_hole(path: Path, sections: dict[str, tuple[int, int, bytes]], size: int) -> None:
    """
    Write a file whose first section is a hole of *size* bytes behind all else.
    """
    data = bytearray(elf(sections))
    (headers,) = struct.unpack_from("<Q", data, 40)
    struct.pack_into("<Q", data, headers + 64 + _OFFSET, len(data))
    struct.pack_into("<Q", data, headers + 64 + _SIZE, size)
    path.write_bytes(data)
    os.truncate(path, len(data) + size)


def _symbols(path: Path, count: int, names: bytes) -> None:
    row = struct.pack("<IBBHQQ", 1, 0x12, 0, 1, 0x1000, 8)
    path.write_bytes(elf({".symtab": (SYMTAB, 0, row * count), ".strtab": (STRTAB, 0, names)}))


def notes(path: Path) -> None:
    """64 MB of USDT notes."""
    one = note(b"stapsdt\0", 3, stapsdt(1, 2, 3))
    path.write_bytes(elf({".note.stapsdt": (NOTE, 0, one * (64 * MB // len(one)))}))


def sites(path: Path) -> None:
    """4,097 sites of the provider erlang."""
    one = note(b"stapsdt\0", 3, stapsdt(1, 2, 3))
    path.write_bytes(elf({".note.stapsdt": (NOTE, 0, one * 4097)}))


def empty_notes(path: Path) -> None:
    """A hole of 255 MB that reads as 22 million notes."""
    _with_hole(path, {".note.stapsdt": (NOTE, 0, b"")}, 255 * MB)


def few_empty_notes(path: Path) -> None:
    """A hole of 4 MB that reads as 350,000 notes: within the limit of bytes."""
    _with_hole(path, {".note.stapsdt": (NOTE, 0, b"")}, 4 * MB)


def many_symbols(path: Path) -> None:
    """A hole of 64 MB that reads as 2.8 million symbols."""
    _with_hole(path, {".symtab": (SYMTAB, 0, b""), ".strtab": (STRTAB, 0, b"\0a\0")}, 64 * MB)


def one_name(path: Path) -> None:
    """A million symbols of one name that is looked for."""
    _symbols(path, 1_000_000, b"\0etp_otp_release\0")


def endless_names(path: Path) -> None:
    """A million symbols whose one name has no end within a megabyte."""
    _symbols(path, 1_000_000, b"\0" + b"x" * MB)


def tails(path: Path) -> None:
    """8 MB of a name that is looked for, which no symbol bears."""
    _symbols(path, 1, b"\0a\0" + b"etp_otp_release\0" * (8 * MB // 16))


def greetings(path: Path) -> None:
    """64 MB of beginnings of a greeting."""
    path.write_bytes(elf({".rodata": (PROGBITS, 0, b"Erlang/OTP 25" * (64 * MB // 13))}))


def packed(path: Path) -> None:
    """Kilobytes that unfold to 80 MB."""
    packer = lzma.LZMACompressor(preset=0)
    data = b"".join(packer.compress(bytes(MB)) for _ in range(80)) + packer.flush()
    path.write_bytes(elf({".gnu_debugdata": (PROGBITS, 0, data)}))


def huge_section(path: Path) -> None:
    """A hole of 4 TB that says that it is names."""
    _with_hole(path, {".strtab": (STRTAB, 0, b""), ".symtab": (SYMTAB, 0, b"")}, 4 << 40)


def frames(path: Path) -> None:
    """One frame description of 64 KB, each instruction of which is a row."""
    common = struct.pack("<II", 20, 0) + b"\x01zR\0\x01\x78\x10\x01\0\x0c\x07\x08\x90\x01\0\0"
    body = struct.pack("<IQQB", 28, 0x1000, 60_000, 0) + b"\x41" * 60_000
    one = struct.pack("<I", len(body)) + body
    table = b"\x01\x1b\x03\x3b" + struct.pack("<iI", 0, 1) + struct.pack("<ii", 0, 0)
    sections = {".eh_frame": (PROGBITS, 0x2000, common + one + bytes(4))}
    sections[".eh_frame_hdr"] = (PROGBITS, 0x1000, table[:12] + struct.pack("<ii", 0, 0x1018))
    path.write_bytes(elf(sections))


#: Each with the limit that the refusal names; "" where it is read within the limits.
BOMBS: dict[Callable[[Path], None], str] = {
    notes: "bytes of notes",
    sites: "USDT sites",
    empty_notes: "bytes of notes",
    few_empty_notes: "",
    many_symbols: "symbols",
    one_name: "CPU time|^$",
    endless_names: "CPU time",
    tails: "",
    greetings: "",
    packed: "gnu_debugdata has more than",
    huge_section: "bytes, at most|bytes at once",
    frames: "",
}


def look(path: Path) -> str:
    """
    Ask all that a look at an emulator asks, as the daemon does; the reason of a refusal, or "".
    """
    try:
        binary = Binary.open(path, debug_files=False)
        for ask in (
            lambda: binary.symbol("etp_otp_release"),
            lambda: binary.search((".rodata", ".data"), b"Erlang/OTP ", discover._BANNER),
            lambda: binary.matching(re.compile("_Z23beam_jit_remove_message[A-Z].*")),
            lambda: binary.usdt_sites,
            lambda: binary.function_at(0x1001),
            lambda: binary.frames(0x1001),
            lambda: binary.find(".rodata", b"module_code\0"),
        ):
            try:
                ask()
            except UnreadableElfError:
                continue
        binary.close()
    except UnreadableElfError:
        return ""
    except RefusedFileError as error:
        return str(error)
    return ""
