# SPDX-License-Identifier: Apache-2.0
"""
Whether a file itself shows that a breakpoint may stand at an address in it.

A symbol is a claim, and a file may claim anything: a function that is data, that has no size, or
that lies where nothing is executed. So an address must lie within a function that has bounds, in a
segment that is executed; where the symbol is not the file's own, call frame information must
describe a function of that start and size. A USDT site must be the ``nop`` that it is compiled to,
and its semaphore data that may be written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from scope_ebpf.errors import NothingToAttachError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.beam.elf.contents import Segment, Symbol

#: The code of a USDT site (systemtap's sys/sdt.h); the second is of five bytes.
_NOPS = (b"\x90", b"\x0f\x1f\x44\x00\x00")
_SEMAPHORE_BYTES = 2


class File(Protocol):
    """An executable; ``beam.elf.binary.Binary`` is one."""

    @property
    def segments(self) -> Sequence[Segment]:
        """The segments that the kernel loads."""

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the file at an address; UnreadableElfError if it has fewer."""

    def is_start(self, address: int, size: int) -> bool:
        """Whether call frame information describes a function of *size* bytes there."""


class UnprovenPlaceError(NothingToAttachError):
    """The file does not show that the address is what it is said to be."""


def require_in_function(file: File, function: Symbol, address: int) -> None:
    """Refuse *address* unless it lies in *function*, all of which is executed."""
    if not function.is_function or function.size <= 0:
        raise UnprovenPlaceError(f"{function.name} is no function that has a size")
    if not function.address <= address < function.address + function.size:
        raise UnprovenPlaceError(f"{address:#x} is not within {function.name}")
    part = _part(file, function.address, function.size)
    if part is None or not part.executable:
        raise UnprovenPlaceError(f"{function.name} does not lie in code of the file")
    if function.source and not file.is_start(function.address, function.size):
        raise UnprovenPlaceError(f"no function begins where {function.name} was looked for")


def require_site(file: File, address: int, semaphore: int) -> None:
    """Refuse a USDT site that is no ``nop`` in code; its *semaphore*, if not 0, as well."""
    part = _part(file, address, 1)
    if part is None or not part.executable:
        raise UnprovenPlaceError(f"the site at {address:#x} does not lie in code of the file")
    if not any(file.read(address, len(nop)) == nop for nop in _NOPS):
        raise UnprovenPlaceError(f"the site at {address:#x} is no nop")
    if not semaphore:
        return
    part = _part(file, semaphore, _SEMAPHORE_BYTES)
    if part is None or part.executable or not part.writable:
        raise UnprovenPlaceError(f"the semaphore at {semaphore:#x} does not lie in data")


def _part(file: File, address: int, size: int) -> Segment | None:
    """Find the segment of which the file has those bytes; the first, as ``file_offset`` does."""
    for part in file.segments:
        if part.address <= address < part.address + part.file_size:
            return part if address + size <= part.address + part.file_size else None
    return None
