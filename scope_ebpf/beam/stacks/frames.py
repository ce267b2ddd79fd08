# SPDX-License-Identifier: Apache-2.0
"""
Where a C function keeps its caller's registers: the call frame information of one file.

Stripped files without frame pointers still carry it (``.eh_frame``), because
C++ exceptions need it. A confined process parses it, a function at a time
(``sandbox.frames``).
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.beam.elf.binary import Binary

#: Numbers of registers (System V ABI for x86-64, "DWARF Register Number Mapping").
RBX, RBP, RSP, R12, R13, R14, R15, RETURN = 3, 6, 7, 12, 13, 14, 15, 16
#: A jump table is described once, for stubs of this many bytes.
_STUB = 16
#: Addresses that are kept with what is known of them, and rows of functions.
_MOST, _MOST_ROWS = 1 << 16, 1 << 18


class Rules(NamedTuple):
    """
    How to find the caller at one address.

    The frame begins at register *base* plus *offset*; *saved* gives how far from
    there each register lies. *outermost*: there is no caller.
    """

    base: int
    offset: int
    saved: Mapping[int, int]
    outermost: bool = False


class _Function(NamedTuple):
    """Where a function begins and ends, and its rules from address to address."""

    start: int
    end: int
    starts: list[int]
    rules: list[Rules | None]


class CallFrames:
    """Call frame information of one file, by addresses of the file."""

    def __init__(self, binary: Binary) -> None:
        self._binary = binary
        self._known: dict[int, Rules | None] = {}
        #: By their starts, in order.
        self._starts: list[int] = []
        self._functions: list[_Function] = []
        self._rows = 0

    def function(self, address: int) -> int | None:
        """Return where the function around *address* begins; a jump table is one function."""
        found = self._function(address)
        return found.start if found else None

    def rules(self, address: int) -> Rules | None:
        """Return the rules to find the caller from *address*; None where the file has none."""
        if address not in self._known:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[address] = self._look_up(address)
        return self._known[address]

    def _look_up(self, address: int) -> Rules | None:
        function = self._function(address)
        if function is None:
            return None
        index = bisect_right(function.starts, address) - 1
        found = function.rules[index] if index >= 0 else None
        if found is not None and found.base == RETURN:
            # A stub pushes one word more from its eleventh byte on.
            return Rules(RSP, 8 + 8 * (address % _STUB >= 11), found.saved)
        return found

    def _function(self, address: int) -> _Function | None:
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._functions[index].end:
            return self._functions[index]
        found = self._binary.frames(address) if address >= 0 else None
        if found is None or not found[0] <= address < found[1]:
            return None
        start, end, rows = found
        rules = [Rules(*rule) if rule else None for _, rule in rows]
        function = _Function(start, end, [pc for pc, _ in rows], rules)
        self._rows += len(rows)
        if self._rows > _MOST_ROWS:
            self._starts.clear()
            self._functions.clear()
            index, self._rows = -1, len(rows)
        self._starts.insert(index + 1, start)
        self._functions.insert(index + 1, function)
        return function
