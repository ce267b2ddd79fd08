# SPDX-License-Identifier: Apache-2.0
"""
What one executable tells about itself: symbols, USDT sites, build id, bytes.

Symbols come from ``.symtab``, then a debug file (``.gnu_debuglink`` or build
id), then ``.gnu_debugdata``, then ``.dynsym``; the first table that knows a
name wins.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.beam.elf import Elf, Segment, Symbol, SymbolTable, UnreadableElfError
from scope_ebpf.errors import NoSuchProcessError

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator

__all__ = ["Binary", "Symbol", "UnreadableElfError", "UsdtSite"]

#: Strings in a USDT note; longer ones are not ours.
_MAX_NOTE_STRING = 512
_DEBUG_ROOT = "usr/lib/debug"


@dataclass(frozen=True, slots=True)
class UsdtSite:
    """
    One place of one USDT probe.

    *address* and *semaphore* (0: none) are addresses of the file, corrected
    for prelinking; *arguments* is the note's own text, such as ``8@%r12``.
    Format: systemtap's "UserSpaceProbeImplementation".
    """

    provider: str
    name: str
    address: int
    semaphore: int
    arguments: str


class Binary:
    """An executable or shared object, open for reading; *path* is one that leads to it now."""

    def __init__(self, path: Path, elf: Elf) -> None:
        self.path = path
        self._elf = elf
        self._names: dict[str, Symbol | None] = {}
        self._matches: dict[re.Pattern[str], list[Symbol]] = {}

    @classmethod
    def open(cls, path: Path) -> Binary:
        """
        Open *path*, which may be ``/proc/PID/exe``.

        Raises OSError as the kernel says it and UnreadableElfError (a
        NotABeamError) for anything that is no whole 64-bit ELF file.
        """
        return cls(path, Elf.open(path))

    def fileno(self) -> int:
        """The descriptor of the file that is read, whatever has its name by now."""
        return self._elf.fileno()

    @cached_property
    def inode(self) -> tuple[int, int]:
        """Device and inode of that file."""
        status = os.fstat(self.fileno())
        return status.st_dev, status.st_ino

    @property
    def build_id(self) -> str | None:
        """The linker's fingerprint in hex, or None."""
        return self._elf.build_id

    @property
    def machine(self) -> str:
        """The processor, as pyelftools names it: ``x64``, ``AArch64``."""
        return self._elf.machine

    @property
    def relative(self) -> bool:
        """Whether the file is loaded at an address of the kernel's choice (PIE)."""
        return self._elf.relative

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What the kernel loads."""
        return self._elf.segments

    @property
    def entry(self) -> int:
        """The entry point, as an address of the file."""
        return self._elf.entry

    @cached_property
    def tables(self) -> tuple[SymbolTable, ...]:
        """
        The symbol tables there are, the most telling first.

        Raises NoSuchProcessError if the file was looked at through a process that has ended.
        """
        own = self._elf.symbols(".symtab")
        # With a .symtab there is nothing that another file could add.
        others = () if own else (self._from_debug_file(), self._from_minidebuginfo())
        if others and self.path.name == "exe" and not os.path.lexists(self.path):
            raise NoSuchProcessError(f"{self.path} has gone, and the way to its symbols with it")
        found = (own, *others, self._elf.symbols(".dynsym"))
        return tuple(table for table in found if table is not None)

    @property
    def symbol_source(self) -> str:
        """Where names are looked up first; "" for a file without any symbol."""
        return next((table.source for table in self.tables if len(table)), "")

    def symbol(self, name: str) -> Symbol | None:
        """Find the defined symbol called *name*, or None."""
        if name not in self._names:
            found = (table.find(name) for table in self.tables)
            self._names[name] = next((symbol for symbol in found if symbol), None)
        return self._names[name]

    def matching(self, pattern: re.Pattern[str]) -> list[Symbol]:
        """Every symbol whose name matches *pattern* from its start, sorted by name."""
        if pattern not in self._matches:
            union: dict[str, Symbol] = {}
            for table in self.tables:
                for symbol in table.matching(pattern):
                    union.setdefault(symbol.name, symbol)
            self._matches[pattern] = sorted(union.values(), key=lambda symbol: symbol.name)
        return list(self._matches[pattern])

    def function_at(self, address: int) -> Symbol | None:
        """Find the symbol that spans an address of the file, or None."""
        found = (table.at(address) for table in self.tables)
        return next((symbol for symbol in found if symbol), None)

    @cached_property
    def usdt_sites(self) -> tuple[UsdtSite, ...]:
        """Every USDT site of every provider, in the order of the notes."""
        base = self._elf.sections.get(".stapsdt.base")
        notes = self._elf.notes(".note.stapsdt")
        return tuple(
            _usdt_site(description, base.address if base else None)
            for owner, kind, description in notes
            if owner == "stapsdt" and kind == 3
        )

    def file_offset(self, address: int) -> int:
        """Where the byte at *address* lies in the file; UnreadableElfError if it does not."""
        for segment in self._elf.segments:
            if segment.address <= address < segment.address + segment.file_size:
                return address - segment.address + segment.offset
        raise UnreadableElfError(f"address {address:#x} is not in the file {self.path}")

    def read(self, address: int, size: int) -> bytes:
        """*size* bytes of the file at *address*, as the linker put them there."""
        return self._elf.at_offset(self.file_offset(address), size)

    def section(self, name: str) -> bytes | None:
        """Read the contents of a section, or None."""
        return self._elf.section(name)

    def section_address(self, name: str) -> tuple[int, int] | None:
        """(address, size) of a section, also of one without contents such as ``.bss``."""
        section = self._elf.sections.get(name)
        return (section.address, section.size) if section else None

    def close(self) -> None:
        """Close the file."""
        self._elf.close()

    def _from_minidebuginfo(self) -> SymbolTable | None:
        try:
            embedded = self._elf.embedded()
            return embedded.symbols(".symtab", ".gnu_debugdata") if embedded else None
        except UnreadableElfError:
            return None  # a broken extra must not hide the symbols that are there

    def _from_debug_file(self) -> SymbolTable | None:
        for path, crc in self._debug_files():
            try:
                debug = Elf.open(path)
            except (OSError, UnreadableElfError):
                continue
            same = debug.build_id == self.build_id if crc is None else _crc(path) == crc
            try:
                table = debug.symbols(".symtab", ".gnu_debuglink") if same else None
            except UnreadableElfError:
                table = None
            debug.close()
            if table is not None:
                return table
        return None

    def _debug_files(self) -> Iterator[tuple[Path, int | None]]:
        """Where debuggers look; with the CRC to check, or None to check the build id."""
        root, folder = self._place()
        if self.build_id:
            name = f"{self.build_id[:2]}/{self.build_id[2:]}.debug"
            yield root / _DEBUG_ROOT / ".build-id" / name, None
        link = self._elf.section(".gnu_debuglink") or b""
        name_bytes, _, rest = link.partition(b"\0")
        file_name = name_bytes.decode("utf-8", "replace")
        if len(rest) < 4 or not file_name or "/" in file_name or file_name in (".", ".."):
            return
        (crc,) = struct.unpack("<I", link[-4:])
        for place in (folder, folder / ".debug", Path(_DEBUG_ROOT) / folder):
            yield root / place / file_name, crc

    def _place(self) -> tuple[Path, Path]:
        """Find the root that the file's own paths start from, and its folder below that root."""
        try:
            real = Path(str(self.path.readlink()).removesuffix(" (deleted)"))
        except OSError:  # it is no link, or there is nothing
            return Path("/"), self.path.parent.resolve().relative_to("/")
        if self.path.name == "exe" and real.is_absolute():
            return self.path.parent / "root", real.parent.relative_to("/")
        return Path("/"), self.path.resolve().parent.relative_to("/")


def _usdt_site(note: bytes, base: int | None) -> UsdtSite:
    """Three addresses and three strings; moved by as much as .stapsdt.base was."""
    if len(note) < 24:
        raise UnreadableElfError("a USDT note is shorter than its three addresses")
    address, linked_base, semaphore = struct.unpack_from("<QQQ", note)
    moved = base - linked_base if base is not None else 0
    strings = [
        text[:_MAX_NOTE_STRING].decode("ascii", "replace") for text in note[24:].split(b"\0", 3)[:3]
    ]
    provider, name, arguments = (*strings, "", "", "")[:3]
    return UsdtSite(
        provider, name, address + moved, semaphore + moved if semaphore else 0, arguments
    )


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
