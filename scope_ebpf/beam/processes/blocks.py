# SPDX-License-Identifier: Apache-2.0
"""
Whether structs are as large as the blocks of memory that they lie in.

The word before a block says how large it is (MBC_BLK_SZ_MASK, OTP-25.2.3
erts/emulator/beam/erl_alloc_util.c). A block is larger where the rest of a free one was too small
to be kept, so one that fits exactly proves a size, and one that is too small disproves it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.vm.allocators import fixed_sizes
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.layouts import Layout
    from scope_ebpf.beam.vm.target import Target

_WORD = 8
#: The bytes of a block, with the word before it, and three flags below.
_SIZE = np.uint64((1 << 40) - 8)
#: By how many bytes a block may be larger: the smallest that can be free (min_block_size).
_REST = 128
#: Blocks of one struct that must be seen before they disprove its size: memory that was freed and
#: used again under the reader does not fit either. Counts above the second figure are halved.
_ENOUGH, _MOST_SEEN = 64, 256
#: Structs of a fixed size: the type of the block, the struct, the field where it ends, and what is
#: behind that: a link within the VM is a node and a number (ErtsILink).
_FIXED = (
    ("monitor", "ErtsMonitorDataHeap", ("ErtsMonitorDataHeap", "sizeof"), 0),
    ("msg_ref", "ErtsMessage", ("ErtsMessage", "hfrag.next"), 0),
    ("link", "ErtsILink", ("ErtsMonLnkNode", "sizeof"), _WORD),
)


def as_ever(layout: Layout) -> bool:
    """
    Whether a message and the payload behind it consist of what they do in OTP 24 to 29.

    A message is *next*, *data* and words of which the third is its sender (ErtsMessageRef); a
    payload *next*, *off_heap*, *alloc_size*, *used_size* and its first word (ErlHeapFragment;
    OTP-25.2.3 and OTP-29.1.1 erts/emulator/beam/erl_message.h).
    """
    onward, data, words, payload, used, first = (
        layout.offset("ErtsMessage", name)
        for name in ("next", "data", "m", "hfrag.next", "hfrag.used_size", "hfrag.mem")
    )
    parts = (onward, data - onward, words - data, used - payload, first - used)
    end = layout.size("ErtsMessage") - first
    return (*parts, end) == (0, 8, 8, 32, 8, 8) and payload - words in (24, 32)


class Blocks:
    """
    The sizes of one VM's structs that its blocks have proven or disproven until now.

    Blocks that do not fit count against a size only together; later ones that fit take that back.
    """

    def __init__(self, target: Target) -> None:
        self._memory = target.memory
        self._proven: set[str] = set()
        self._wrong: set[str] = set()
        #: Blocks that fitted, and all that were looked at, by struct.
        self._counts: dict[str, tuple[int, int]] = {}
        if not as_ever(target.layout):
            self._wrong.add("ErtsMessage")
        try:
            sizes = fixed_sizes(target)
        except ReadRefusedError:
            return  # hidden: blocks decide
        for name, struct, end, besides in _FIXED:
            if name in sizes:
                fits = sizes[name] == target.layout.offset(*end) + besides
                (self._proven if fits else self._wrong).add(struct)

    def fits(
        self, struct: str, addresses: NDArray[np.uint64], sizes: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """
        Whether each *struct* has the size of its block, shape of *addresses*.

        None does until one has fitted exactly, nor while most do not fit.
        """
        if not len(addresses):
            return np.empty(0, np.bool_)
        heads, read = self._memory.gather(addresses - np.uint64(_WORD), _WORD)
        blocks = (column(heads, 0, np.uint64) & _SIZE).astype(np.int64) - _WORD
        rest = blocks - (sizes + _WORD - 1) // _WORD * _WORD
        if (read & (rest == 0)).any():
            self._proven.add(struct)
        found: NDArray[np.bool_] = read & (rest >= 0) & (rest < _REST)
        self._count(struct, int(found.sum()), len(found))
        return found & self.knows(struct)

    def _count(self, struct: str, fitted: int, seen: int) -> None:
        before = self._counts.get(struct, (0, 0))
        fitted, seen = fitted + before[0], seen + before[1]
        while seen > _MOST_SEEN:
            fitted, seen = (fitted + 1) // 2, (seen + 1) // 2
        self._counts[struct] = fitted, seen

    def knows(self, struct: str) -> bool:
        """Whether the size of *struct* is proven, and most blocks fit it."""
        fitted, seen = self._counts.get(struct, (0, 0))
        most = not seen or 2 * fitted > seen
        return struct in self._proven and struct not in self._wrong and most

    def disproves(self, struct: str) -> bool:
        """Whether the size of *struct* is not that of its blocks."""
        fitted, seen = self._counts.get(struct, (0, 0))
        return struct in self._wrong or (seen >= _ENOUGH and 2 * fitted <= seen)
