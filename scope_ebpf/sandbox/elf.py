# SPDX-License-Identifier: Apache-2.0
"""
One ELF file (64-bit, little-endian): its sections, segments, notes and symbol tables.

Runs confined. A file may be hostile or cut short, so every size that it claims is compared with
the size it has and with a limit. Without numpy and pyelftools, which take longer to load than
this takes to read an emulator.
"""

from __future__ import annotations

import lzma
import os
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scope_ebpf.sandbox import limits
from scope_ebpf.sandbox.limits import LimitError, MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Elf64_Ehdr, Elf64_Shdr, Elf64_Phdr (System V ABI).
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_NOBITS, _LOAD, _EXECUTE, _WRITE, _SHARED = 8, 1, 1, 2, 3
_EXTENDED = 0xFFFF
_MACHINES = {62: "x64", 183: "AArch64"}
_STEP = 1 << 20
#: Known owners of notes have shorter names.
_NOTE_OWNER = 16
#: Longer names of sections are cut.
_SECTION_NAME = 64


class Section(NamedTuple):
    """A section's position in memory (*address*) and in the file (*offset*)."""

    kind: int
    address: int
    offset: int
    size: int


class Segment(NamedTuple):
    """A PT_LOAD segment."""

    address: int
    offset: int
    file_size: int
    executable: bool
    writable: bool


class Source(Protocol):
    """Bytes to parse."""

    size: int

    def at(self, offset: int, size: int) -> bytes:
        """Up to *size* bytes at *offset*."""


class File:
    """An open file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size

    def at(self, offset: int, size: int) -> bytes:
        """Read up to *size* bytes at *offset*."""
        return os.pread(self.fd, size, offset)


class Unpacked:
    """Bytes that were in another file."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.size = len(data)

    def at(self, offset: int, size: int) -> bytes:
        """Copy up to *size* bytes at *offset*."""
        return bytes(self.data[offset : offset + size])


class Elf:
    """The parts of one file; MalformedError and LimitError for what cannot be read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        head = source.at(0, _HEADER.size)
        if head[:4] != b"\x7fELF":
            raise MalformedError("it is no ELF file")
        if len(head) < _HEADER.size or head[4:6] != b"\x02\x01":
            raise MalformedError("it is no 64-bit little-endian ELF file")
        _, kind, machine, _, entry, segments, sections, *rest = _HEADER.unpack(head)
        _, _, segment_size, segment_count, section_size, section_count, names = rest
        self.entry: int = entry
        self.relative = kind == _SHARED
        self.machine = _MACHINES.get(machine, f"machine {machine}")
        self.segments = self._segments(segments, segment_size, segment_count)
        self.sections = self._sections(sections, section_size, section_count, names)

    def _segments(self, offset: int, size: int, count: int) -> list[Segment]:
        if count > limits.SEGMENTS:
            raise LimitError(f"it has {count:,} segments, at most {limits.SEGMENTS:,} are read")
        found = []
        for row in self._rows(_SEGMENT, offset, size, count):
            kind, flags, start, address, _, file_size, _, _ = row
            if kind == _LOAD:
                rights = bool(flags & _EXECUTE), bool(flags & _WRITE)
                found.append(Segment(address, start, file_size, *rights))
        return found

    def _sections(self, offset: int, size: int, count: int, names: int) -> dict[str, Section]:
        if not offset:
            return {}
        if not count or names == _EXTENDED:
            # Too many for the header: the first section has them (System V ABI, "Sections").
            _, _, _, _, _, many, link, _, _, _ = self._rows(_SECTION, offset, size, 1)[0]
            count, names = count or many, link if names == _EXTENDED else names
        if count > limits.SECTIONS:
            raise LimitError(f"it has {count:,} sections, at most {limits.SECTIONS:,} are read")
        rows = self._rows(_SECTION, offset, size, count)
        if not names < len(rows):
            raise MalformedError("its sections have no names")
        texts = self.at(rows[names][4], rows[names][5])
        found: dict[str, Section] = {}
        for name, kind, _, address, start, length, *_ in rows:
            text = texts[name : name + _SECTION_NAME].split(b"\0", 1)[0].decode("ascii", "replace")
            # Of two sections with one name the first stays.
            found.setdefault(text, Section(kind, address, start, length))
        return found

    def _rows(
        self, form: struct.Struct, offset: int, size: int, count: int
    ) -> list[tuple[int, ...]]:
        if not count:
            return []
        if size != form.size:
            raise MalformedError(f"rows of {size} bytes are of another format")
        return list(form.iter_unpack(self.at(offset, size * count)))

    def at(self, offset: int, size: int) -> bytes:
        """*size* bytes of the file, or an error: never fewer."""
        if size > limits.SECTION:
            raise LimitError(f"{size:,} bytes at once, at most {limits.SECTION:,} are read")
        if offset + size > self._source.size:
            raise MalformedError(f"it is cut short: {size} bytes wanted at {offset}")
        data = self._source.at(offset, size)
        if len(data) != size:
            raise MalformedError(f"it became shorter: {size} bytes wanted at {offset}")
        return data

    def section(self, name: str) -> bytes | None:
        """Read a section; None where the file has no such section."""
        section = self.sections.get(name)
        if section is None or section.kind == _NOBITS:
            return None
        return self.at(section.offset, section.size)

    def address(self, name: str) -> int | None:
        """Where a section lies in memory."""
        section = self.sections.get(name)
        return section.address if section else None

    def read(self, address: int, size: int) -> bytes:
        """*size* bytes at an address of the file."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.file_size:
                return self.at(address - segment.address + segment.offset, size)
        raise MalformedError(f"address {address:#x} is not in the file")

    def notes(self, name: str) -> Iterator[tuple[bytes, int, bytes]]:
        """(owner, type, description) of every note in a section."""
        section = self.sections.get(name)
        if section and section.size > limits.NOTES:
            raise LimitError(
                f"it has {section.size:,} bytes of notes, at most {limits.NOTES:,} are read"
            )
        data = self.section(name) or b""
        at = 0
        while at + _NOTE.size <= len(data):
            owner_size, size, kind = _NOTE.unpack_from(data, at)
            start = at + _NOTE.size + (owner_size + 3 & ~3)
            if start + size > len(data):
                raise MalformedError(f"a note in {name} is cut short")
            owner = data[at + _NOTE.size : at + _NOTE.size + min(owner_size, _NOTE_OWNER)]
            yield owner.split(b"\0")[0], kind, data[start : start + size]
            at = start + (size + 3 & ~3)

    def build_id(self) -> str | None:
        """The linker's fingerprint of the file, in hex."""
        for owner, kind, description in self.notes(".note.gnu.build-id"):
            if owner == b"GNU" and kind == 3 and 2 <= len(description) <= 64:
                return description.hex()
        return None

    def embedded(self) -> Elf | None:
        """Unpack the ELF file in .gnu_debugdata (xz, "MiniDebugInfo"), if any."""
        packed = self.section(".gnu_debugdata")
        if packed is None:
            return None
        data = bytearray()
        try:
            unpacker = lzma.LZMADecompressor(memlimit=limits.UNPACKING)
            while not unpacker.eof and (packed or not unpacker.needs_input):
                data += unpacker.decompress(packed, max_length=_STEP)
                packed = b""
                if len(data) > limits.UNPACKED:
                    raise LimitError(f".gnu_debugdata has more than {limits.UNPACKED:,} bytes")
        except lzma.LZMAError as error:
            raise MalformedError(f".gnu_debugdata: {error}") from error
        return Elf(Unpacked(data))
