# SPDX-License-Identifier: Apache-2.0
"""
Where the VM's global tables lie in its memory.

A symbol tells, where there is one. What is static or hidden is looked for in
the VM's data by its shape: a table that points to itself in the right way is
not found twice by chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scope_ebpf.beam.discover import Target

#: Where the VM's variables lie; ERTS_LOW_WRITE holds those that hardly change.
_SECTIONS = (".bss", ".data", "ERTS_LOW_WRITE")
_WORD = 8


class Roots:
    """Addresses of globals in one running VM, by their names in the VM's source."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._found: dict[str, int | None] = {}

    def find(self, name: str) -> int | None:
        """Find a global, or None."""
        if name not in self._found:
            symbol = self._target.binary.symbol(name) if name != "r" else None
            if symbol is not None:
                self._found[name] = self._target.base + symbol.address
            else:
                search = _SEARCHES.get(name)
                self._found[name] = search(self._target) if search else None
        return self._found[name]

    def address(self, name: str) -> int:
        """Find a global; ReadRefusedError with the reason where nothing tells its place."""
        address = self.find(name)
        if address is None:
            target = self._target
            raise ReadRefusedError(
                f"process {target.pid} hides {name}: its emulator (OTP {target.otp_release}) has "
                "no symbol for it, and its memory does not tell. Debug symbols of the same "
                "build would show it"
            )
        return address


def data(target: Target) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Read the VM's variables: (address, words) of each section that holds some."""
    for name in _SECTIONS:
        section = target.binary.section_address(name)
        if section is None:
            continue
        address, size = section
        start = address + -address % _WORD
        yield target.base + start, target.memory.words(target.base + start, size // _WORD - 1)


def _code_ranges(target: Target) -> int | None:
    """
    Find ``struct ranges r[3]`` (OTP-25.2.3 erts/emulator/beam/beam_ranges.c).

    Three times in a row: an array, how much of it is used, how large it is,
    and a place within it.
    """
    layout = target.layout
    stride = layout.size("ranges") // _WORD
    fields = ("modules", "n", "allocated", "mid")
    modules, count, allocated, middle = (
        layout.offset("ranges", field) // _WORD for field in fields
    )
    found = []
    for address, words in data(target):
        length = len(words) - 3 * stride
        fits = np.ones(max(0, length), np.bool_)
        for shift in (0, stride, 2 * stride):
            at = [
                words[shift + field : shift + field + len(fits)]
                for field in (modules, count, allocated, middle)
            ]
            fits &= (at[0] != 0) & (at[1] > 0) & (at[1] <= at[2]) & (at[2] < 1 << 20)
            fits &= (at[3] >= at[0]) & (at[3] < at[0] + at[2] * np.uint64(2 * _WORD))
        found += [address + _WORD * int(place) for place in np.flatnonzero(fits)]
    found = [place for place in found if _in_order(target, place)]
    return found[0] if len(found) == 1 else None


def _in_order(target: Target, place: int) -> bool:
    """Tell whether three sets of ranges of code, each in rising order, start at *place*."""
    layout = target.layout
    try:
        for index in range(3):
            at = place + index * layout.size("ranges")
            modules = target.memory.u64(at + layout.offset("ranges", "modules"))
            count = target.memory.u64(at + layout.offset("ranges", "n"))
            edges = target.memory.words(modules, 2 * count)
            if edges[0] >= edges[-1] or (edges[1:] < edges[:-1]).any():
                return False
    except ReadRefusedError:
        return False
    return True


_SEARCHES = {"r": _code_ranges}
