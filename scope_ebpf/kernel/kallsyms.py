# SPDX-License-Identifier: Apache-2.0
"""Names of the kernel's functions, from ``/proc/kallsyms``."""

from __future__ import annotations

import bisect
from pathlib import Path

#: A function of the kernel is not longer; what lies further from a symbol is something else.
_LONGEST = 1 << 20


class KernelSymbols:
    """Read once; empty where the kernel hides its addresses (kptr_restrict)."""

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
        """Name the function around *address*."""
        place = bisect.bisect_right(self._starts, address) - 1
        if place < 0 or not self._starts[place] or address - self._starts[place] > _LONGEST:
            return "[kernel]"
        return self._names[place]
