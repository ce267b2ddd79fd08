# SPDX-License-Identifier: Apache-2.0
"""
A BPF ring buffer whose records are of any length.

For few and large records: each is copied out. A ring of many small records is read by
:mod:`scope_ebpf.kernel.bpf.ring`.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.kernel.bpf.ring import RingMapping

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUSY = 1 << 31
_DISCARD = 1 << 30
#: Header of each record, bytes.
_HEADER = 8


class LongRing:
    """The consumer of the ring behind *fd*, of *size* bytes."""

    def __init__(self, fd: int, size: int) -> None:
        self._mapping = RingMapping(fd, size)
        self._consumer, self._producer = self._mapping.consumer, self._mapping.producer
        self._size = size
        self._lengths = self._mapping.data(np.dtype(np.uint32))

    def records(self) -> Iterator[bytes]:
        """
        Copy out every record that is finished now, oldest first; its room is then free again.

        What comes meanwhile is for the next call: a VM may write as fast as this reads.
        """
        page, end = mmap.PAGESIZE, int(self._producer[0])
        while int(self._consumer[0]) < end:
            start = int(self._consumer[0]) & (self._size - 1)
            length = int(self._lengths[start // 4])
            if length & _BUSY:
                return
            size = length & ~_DISCARD
            first = page + start + _HEADER
            record = b"" if length & _DISCARD else self._mapping.memory[first : first + size]
            self._consumer[0] += np.uint64(_HEADER + size + -size % 8)
            if record:
                yield record

    def close(self) -> None:
        """Unmap the ring."""
        del self._consumer, self._producer, self._lengths
        self._mapping.close()
