# SPDX-License-Identifier: Apache-2.0
"""
One ELF file, read with bounds: its sections, segments, notes and symbol tables.

Nothing here knows the BEAM. A file may be hostile or cut short, so every size
that it claims is compared with the size it has.
"""

from __future__ import annotations

import lzma
import os
import stat
import struct
import threading
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from elftools.common.exceptions import ELFError
from elftools.construct.core import ConstructError
from elftools.elf.elffile import ELFFile

from scope_ebpf.errors import NotABeamError

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

#: An executable has some 30 sections; this many is not one of ours.
MAX_SECTIONS = 4096
#: The largest table we load. An unstripped emulator has 3 MB of names.
MAX_TABLE = 256 << 20
#: Names longer than this are cut: C++ makes long ones, hostile files endless ones.
MAX_NAME = 4096

#: Elf64_Sym, System V ABI, "Symbol Table".
SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("address", "<u8"),
        ("size", "<u8"),
    ]
)
_OBJECT, _FUNCTION, _INDIRECT = 1, 2, 10
_USED_KINDS = (0, _OBJECT, _FUNCTION, _INDIRECT)


#: What pyelftools raises for a hostile file is not one tree.
PARSE_ERRORS = (
    ELFError,
    ConstructError,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
    struct.error,
)


class UnreadableElfError(NotABeamError):
    """The file is no ELF file that we can read."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """One defined symbol: where it lies in the file's own address space."""

    name: str
    address: int
    size: int
    is_function: bool


@dataclass(frozen=True, slots=True)
class Section:
    """A section's place in memory (*address*) and in the file (*offset*)."""

    address: int
    offset: int
    size: int
    in_file: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD segment."""

    address: int
    offset: int
    file_size: int
    executable: bool
    writable: bool = False


def _section(header: Any) -> Section:
    return Section(
        header["sh_addr"],
        header["sh_offset"],
        header["sh_size"],
        header["sh_type"] != "SHT_NOBITS",
    )


def _segment(header: Any) -> Segment:
    flags = header["p_flags"]
    return Segment(
        header["p_vaddr"], header["p_offset"], header["p_filesz"], bool(flags & 1), bool(flags & 2)
    )


class SymbolTable:
    """A symbol table as one numpy array; a name is decoded when it is asked for."""

    def __init__(self, source: str, symbols: NDArray[np.void], names: bytes) -> None:
        self.source = source
        self._names = names
        kind = symbols["info"] & 0xF
        defined = (symbols["section"] != 0) & np.isin(kind, _USED_KINDS) & (symbols["name"] != 0)
        self._symbols = symbols[defined]

    def __len__(self) -> int:
        return len(self._symbols)

    @cached_property
    def _by_name_offset(self) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        order = np.argsort(self._symbols["name"], kind="stable")
        return order, self._symbols["name"][order]

    def find(self, name: str) -> Symbol | None:
        """
        Find the symbol called *name*; of several the global one, then the largest.

        A linker lets a name be the tail of a longer one, so every place where
        the text ends with *name* is a candidate.
        """
        order, offsets = self._by_name_offset
        rows: list[np.void] = []
        wanted = name.encode() + b"\0"
        place = self._names.find(wanted)
        while place >= 0 and len(rows) < MAX_NAME:
            low, high = np.searchsorted(offsets, [place, place + 1])
            rows.extend(self._symbols[order[low:high]])
            place = self._names.find(wanted, place + 1)
        if not rows:
            return None
        best = max(rows, key=lambda row: (int(row["info"]) >> 4 != 0, int(row["size"])))
        return self._symbol(name, best)

    def matching(self, pattern: re.Pattern[str]) -> Iterator[Symbol]:
        """Every symbol whose name matches from its start."""
        for row in self._symbols:
            name = self._name(int(row["name"]))
            if pattern.match(name):
                yield self._symbol(name, row)

    def at(self, address: int) -> Symbol | None:
        """Find the symbol that spans *address*, a function before anything else."""
        if not 0 <= address < 1 << 64:
            return None
        starts = self._symbols["address"]
        spans = (starts <= address) & (address - starts < self._symbols["size"])
        rows = self._symbols[spans]
        if not len(rows):
            return None
        best = max(rows, key=lambda row: (int(row["info"]) & 0xF == _FUNCTION, int(row["address"])))
        return self._symbol(self._name(int(best["name"])), best)

    def _name(self, offset: int) -> str:
        end = self._names.find(b"\0", offset, offset + MAX_NAME)
        end = offset + MAX_NAME if end < 0 else end
        return self._names[offset:end].decode("utf-8", "replace")

    @staticmethod
    def _symbol(name: str, row: np.void) -> Symbol:
        kind = int(row["info"]) & 0xF
        return Symbol(name, int(row["address"]), int(row["size"]), kind in (_FUNCTION, _INDIRECT))


class Elf:
    """
    An open ELF file (64-bit, little-endian).

    The file stays open, so ``/proc/PID/exe`` goes on meaning the file that runs
    even when the one on the disk was replaced.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.name = name
        self._stream = stream
        self._size = stream.seek(0, os.SEEK_END)
        #: Threads that look at VMs of one program share this file.
        self._reading = threading.Lock()
        try:
            elf = ELFFile(stream)
            self._refuse_odd(elf)
            self.machine: str = elf.get_machine_arch()
            self.entry: int = elf["e_entry"]
            self.relative: bool = elf["e_type"] == "ET_DYN"
            # Reversed, so that of two sections with one name the first stays.
            sections = reversed(list(elf.iter_sections()))
            self.sections = {section.name: _section(section) for section in sections}
            self.segments = tuple(_segment(item) for item in elf.iter_segments("PT_LOAD"))
        except UnreadableElfError:
            raise
        except PARSE_ERRORS as error:
            raise UnreadableElfError(f"{name} is not a readable ELF file: {error}") from error

    def _refuse_odd(self, elf: ELFFile) -> None:
        if elf.elfclass != 64 or not elf.little_endian:
            raise UnreadableElfError(f"{self.name} is not a 64-bit little-endian ELF file")
        if elf.num_sections() > MAX_SECTIONS or elf["e_phnum"] > MAX_SECTIONS:
            raise UnreadableElfError(f"{self.name} claims {elf.num_sections()} sections")

    @classmethod
    def open(cls, path: Path) -> Elf:
        """Open a regular file; OSError goes to the caller, who knows what the path means."""
        # A FIFO or a device in a foreign root must not make us wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        stream = os.fdopen(descriptor, "rb")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            stream.close()
            raise UnreadableElfError(f"{path} is not a file")
        try:
            return cls(stream, str(path))
        except UnreadableElfError:
            stream.close()
            raise

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._stream.fileno()

    def at_offset(self, offset: int, size: int) -> bytes:
        """*size* bytes of the file, or an error: never fewer."""
        if size > MAX_TABLE or offset + size > self._size:
            raise UnreadableElfError(f"{self.name} is cut short: {size} bytes wanted at {offset}")
        with self._reading:
            self._stream.seek(offset)
            return self._stream.read(size)

    def section(self, name: str) -> bytes | None:
        """Read a section; None where the file has no such section."""
        section = self.sections.get(name)
        if section is None or not section.in_file:
            return None
        return self.at_offset(section.offset, section.size)

    def notes(self, section: str) -> Iterator[tuple[str, int, bytes]]:
        """(owner, type, description) of every note in *section*."""
        data = self.section(section) or b""
        place = 0
        while place + 12 <= len(data):
            owner_size, size, kind = struct.unpack_from("<III", data, place)
            start = place + 12 + (owner_size + 3 & ~3)
            if start + size > len(data):
                raise UnreadableElfError(f"{self.name}: a note in {section} is cut short")
            owner = data[place + 12 : place + 12 + owner_size].split(b"\0")[0]
            yield owner.decode("ascii", "replace"), kind, data[start : start + size]
            place = start + (size + 3 & ~3)

    @cached_property
    def build_id(self) -> str | None:
        """The linker's fingerprint of the file, in hex."""
        for owner, kind, description in self.notes(".note.gnu.build-id"):
            if owner == "GNU" and kind == 3:
                return description.hex()
        return None

    def symbols(self, section: str, source: str | None = None) -> SymbolTable | None:
        """Load the symbol table of *section*, or None."""
        table = self.section(section)
        if table is None:
            return None
        strings = {".symtab": ".strtab", ".dynsym": ".dynstr"}[section]
        rows = np.frombuffer(table, SYMBOL, count=len(table) // SYMBOL.itemsize)
        return SymbolTable(source or section, rows, self.section(strings) or b"")

    def embedded(self) -> Elf | None:
        """Unpack the ELF file in .gnu_debugdata (xz, "MiniDebugInfo"), if any."""
        packed = self.section(".gnu_debugdata")
        if packed is None:
            return None
        try:
            # Bounded: a few packed bytes may unfold to any size.
            data = lzma.LZMADecompressor().decompress(packed, max_length=MAX_TABLE)
        except lzma.LZMAError as error:
            raise UnreadableElfError(f"{self.name}: .gnu_debugdata: {error}") from error
        return Elf(BytesIO(data), f"{self.name}(.gnu_debugdata)")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
