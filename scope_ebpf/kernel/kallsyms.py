# SPDX-License-Identifier: Apache-2.0
"""Names of the kernel's functions, from ``/proc/kallsyms``."""

from __future__ import annotations

import bisect
from pathlib import Path

#: Longest function of the kernel, bytes: an address that is further from a symbol is not in it.
_LONGEST = 1 << 20


class KernelSymbols:
    """
    The symbols of the kernel's code, read once.

    There are none where the kernel hides its addresses (kptr_restrict).
    """

    def __init__(self, root: Path = Path("/")) -> None:
        found = []
        try:
            text = (root / "proc/kallsyms").read_bytes().decode("utf-8", "replace")
        except OSError:
            text = ""
        for line in filter(None, text.split("\n")):
            address, kind, name, *_ = line.split(maxsplit=3)
            if kind in "tTwW":
                found.append((int(address, 16), name))
        found.sort()
        self._starts = [start for start, _ in found]
        self._names = [name for _, name in found]

    def name(self, address: int) -> str:
        """The name of the function that contains *address*, or ``[kernel]``."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0 or not self._starts[index] or address - self._starts[index] > _LONGEST:
            return "[kernel]"
        return self._names[index]
