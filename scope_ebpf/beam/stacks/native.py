# SPDX-License-Identifier: Apache-2.0
"""
Native code of one VM: which file an address lies in, which function, who called it.

Files are opened as the VM sees them (``/proc/PID/map_files``, which also finds
one that was deleted or lies in another root). Memory without a file is the
JIT's, or data that happens to be executable.
"""

from __future__ import annotations

import bisect
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.beam.elf.contents import UnreadableElfError
from scope_ebpf.beam.stacks.frames import CallFrames
from scope_ebpf.errors import ReadRefusedError, RefusedFileError
from scope_ebpf.sandbox.proc import read_bounded, rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.code.natives import Natives
    from scope_ebpf.beam.stacks.frames import Rules
    from scope_ebpf.beam.vm.target import Target

#: A mangled C++ name: its length, then the name.
_MANGLED = re.compile(r"^_ZN?(?:L|K)?(\d+)")
#: Functions of the C library have versions, and aliases that the linker made.
_MAX_NAMES = 1 << 16


class Region(NamedTuple):
    """An executable mapping of the target; *path* is "" where there is no file."""

    start: int
    end: int
    offset: int
    path: str

    @property
    def jit(self) -> bool:
        """Whether the VM made this code itself (its memory has a name, but no file)."""
        return not self.path or self.path.startswith("/memfd:")


class NativeName(NamedTuple):
    """
    A function and the name of its file.

    By its symbol; without one as the VM's own table calls it, ``M:F/A (BIF)``; otherwise by where
    it begins in its file.
    """

    name: str
    file: str


@dataclass(slots=True)
class _File:
    """A mapped file, how far it was moved, and its frames."""

    binary: Binary
    moved: int
    frames: CallFrames


def regions(pid: int, proc: Path = Path("/proc")) -> list[Region]:
    """
    Read the executable mappings of a process, in order of address.

    Raises RefusedFileError for a process that has more mappings than are read.
    """
    found = []
    with suppress(OSError):
        for line in rows(read_bounded(proc / str(pid) / "maps")):
            bounds, rights, offset, _, _, *path = line.split(maxsplit=5)
            if "x" in rights:
                start, _, end = bounds.partition("-")
                name = path[0] if path else ""
                found.append(Region(int(start, 16), int(end, 16), int(offset, 16), name))
    return found


class NativeCode:
    """
    Finds native functions and their callers; :meth:`refresh` takes in new libraries.

    *natives* names what has no symbol.
    """

    def __init__(self, target: Target, natives: Natives) -> None:
        self._target = target
        self._natives = natives
        self._files: dict[tuple[str, int], _File | None] = {}
        self._names: dict[int, NativeName] = {}
        self._take([])
        self.refresh()

    def refresh(self) -> None:
        """Read again what is mapped where; forget names if that changed."""
        found = regions(self._target.pid)
        if found and found != self._regions:
            self._take(found)

    def _take(self, found: list[Region]) -> None:
        self._regions = found
        self._starts = [region.start for region in found]
        self.forget_names()
        made = [region for region in found if region.jit]
        self._jit_starts = np.array([region.start for region in made], np.uint64)
        self._jit_ends = np.array([region.end for region in made], np.uint64)

    def forget_names(self) -> None:
        """Name functions anew, since modules with NIFs may have come or gone."""
        self._names.clear()
        self._natives.forget_nifs()

    def region(self, address: int) -> Region | None:
        """Find the executable region around *address*."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._regions[index].end:
            return self._regions[index]
        return None

    def jit(self, address: int) -> bool:
        """Whether *address* lies in code that the VM made itself."""
        region = self.region(address)
        return region is not None and region.jit

    def jit_many(self, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """True for each address in code that the VM made itself, shape of *addresses*."""
        if not len(self._jit_starts):
            return np.zeros(len(addresses), np.bool_)
        index = np.searchsorted(self._jit_starts, addresses, side="right") - 1
        found: NDArray[np.bool_] = (index >= 0) & (addresses < self._jit_ends[index])
        return found

    def rules(self, address: int) -> Rules | None:
        """Return the rules to find the caller of the code at *address*; None if unknown."""
        region = self.region(address)
        file = self._file(region) if region else None
        if region is None or file is None:
            return None
        try:
            return file.frames.rules(address - file.moved)
        except (RefusedFileError, UnreadableElfError):
            self._files[_key(region)] = None
            return None

    def name(self, address: int) -> NativeName:
        """Name the function at *address*; by where it begins, if it has no symbol."""
        if address not in self._names:
            if len(self._names) >= _MAX_NAMES:
                self._names.clear()
            self._names[address] = self._look_up(address)
        return self._names[address]

    def _look_up(self, address: int) -> NativeName:
        region = self.region(address)
        if region is None:
            return NativeName("[unknown]", "")
        if region.jit:
            return NativeName("[jit runtime]", "")
        short = region.path.removesuffix(" (deleted)").rpartition("/")[2]
        file = self._file(region)
        if file is not None:
            file_address = address - file.moved
            try:
                symbol = file.binary.function_at(file_address)
                if symbol is not None:
                    return NativeName(_plain(symbol.name), region.path)
                start = file.frames.function(file_address)
            except (RefusedFileError, UnreadableElfError):
                self._files[_key(region)] = None
            else:
                name = None if start is None else self._natives.name(start + file.moved)
                place = file_address if start is None else start
                return NativeName(name or f"{short}+{place:#x}", region.path)
        return NativeName(f"{short}+{address - region.start + region.offset:#x}", region.path)

    def _file(self, region: Region) -> _File | None:
        if region.jit or (region.path.startswith("[") and region.path != "[vdso]"):
            return None
        key = _key(region)
        if key not in self._files:
            try:
                self._files[key] = self._open(region)
            except (OSError, UnreadableElfError, ReadRefusedError, RefusedFileError, ValueError):
                self._files[key] = None
        return self._files[key]

    def _open(self, region: Region) -> _File | None:
        pid = self._target.pid
        if region.path == self._target.exe:
            binary = self._target.binary
        elif region.path == "[vdso]":
            image = self._target.memory.read(region.start, region.end - region.start)
            binary = Binary.of_image(region.path, image)
        else:
            path = f"/proc/{pid}/map_files/{region.start:x}-{region.end:x}"
            binary = Binary.open(Path(path))
        for segment in binary.segments:
            first = segment.offset & -4096
            if segment.executable and first <= region.offset < segment.offset + segment.file_size:
                moved = region.start - region.offset + segment.offset - segment.address
                return _File(binary, moved, CallFrames(binary))
        return None


def _key(region: Region) -> tuple[str, int]:
    return region.path, region.start


def _plain(name: str) -> str:
    """Write a C++ name as its function's own name; others as they are, without a version."""
    match = _MANGLED.match(name)
    if match:
        return name[match.end() :][: int(match[1])]
    return name.partition("@")[0]
