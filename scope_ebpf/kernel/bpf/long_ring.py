# SPDX-License-Identifier: Apache-2.0
"""
A BPF ring buffer whose records are of any length.

For the few and large: a record at a time, copied out. What comes by the hundred
thousand goes through :mod:`scope_ebpf.kernel.bpf.ring`.
"""

from __future__ import annotations

import contextlib
import mmap
import platform
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUSY = 1 << 31
_DISCARD = 1 << 30
_HEADER = 8


class LongRing:
    """The consumer of the ring behind *fd*, of *size* bytes (Documentation/bpf/ringbuf.rst)."""

    def __init__(self, fd: int, size: int) -> None:
        if platform.machine() != "x86_64":
            # Elsewhere the producer's stores may be seen out of order; x86 keeps them in order.
            raise HostError("the ring is read on x86_64 only; other CPUs are not supported yet")
        page = mmap.PAGESIZE
        self._size = size
        self._consumer_map = mmap.mmap(fd, page, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer_map = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        self._consumer = np.frombuffer(self._consumer_map, np.uint64, 1)
        self._producer = np.frombuffer(self._producer_map, np.uint64, 1)
        self._lengths = np.frombuffer(self._producer_map, np.uint32, 2 * size // 4, offset=page)

    def records(self) -> Iterator[bytes]:
        """Copy out every finished record, oldest first; its place is then the kernel's again."""
        page = mmap.PAGESIZE
        while int(self._consumer[0]) < int(self._producer[0]):
            start = int(self._consumer[0]) & (self._size - 1)
            length = int(self._lengths[start // 4])
            if length & _BUSY:
                return
            size = length & ~_DISCARD
            first = page + start + _HEADER
            record = b"" if length & _DISCARD else self._producer_map[first : first + size]
            self._consumer[0] += np.uint64(_HEADER + size + -size % 8)
            if record:
                yield record

    def close(self) -> None:
        """Unmap the ring."""
        del self._consumer, self._producer, self._lengths
        for mapping in (self._consumer_map, self._producer_map):
            with contextlib.suppress(BufferError):
                mapping.close()
