# SPDX-License-Identifier: Apache-2.0
"""
The BPF ring buffer as numpy batches.

Every record has the same size, so what the kernel has written is one array of them,
:data:`events.RECORD` for our own probes, over the mapped ring: no copy and no loop, wrap-around
included, because the kernel maps the data twice in a row
(Documentation/bpf/ringbuf.rst).
"""

from __future__ import annotations

import contextlib
import mmap
import platform
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_BUSY = np.uint32(1 << 31)
_DISCARD = np.uint32(1 << 30)
#: What the kernel puts before each record, bytes.
_HEADER_BYTES = 8


class RingError(HostError):
    """A record in the ring is not one of ours."""


def complete(records: NDArray[np.void]) -> int:
    """How many of *records*, from the first, the kernel has finished writing."""
    busy = (records["ring_length"] & _BUSY) != 0
    return int(busy.argmax()) if busy.any() else len(records)


def kept(records: NDArray[np.void]) -> NDArray[np.void]:
    """
    The finished *records* without those that were discarded.

    Raises RingError for a record of another size: then the kernel side and this
    side were built from different descriptions.
    """
    lengths = records["ring_length"]
    body_bytes = records.dtype.itemsize - _HEADER_BYTES
    odd = (lengths & ~_DISCARD) != body_bytes
    if odd.any():
        raise RingError(
            f"a record of {int(lengths[odd][0] & ~_DISCARD)} bytes in a ring of {body_bytes}: "
            "the BPF objects and this program are of different builds; run `make objects`"
        )
    discarded = (lengths & _DISCARD) != 0
    return records[~discarded] if discarded.any() else records


class Ring:
    """
    The consumer of the ring behind *fd*, of *size* bytes.

    Its records are all of type *record*, whose bytes are a power of two.
    """

    def __init__(self, fd: int, size: int, record: np.dtype[np.void] = events.RECORD) -> None:
        if platform.machine() != "x86_64":
            # Elsewhere the producer's stores may be seen out of order; x86 keeps them in order.
            raise HostError("the ring is read on x86_64 only; other CPUs are not supported yet")
        page = mmap.PAGESIZE
        self._size = size
        self._consumer_map = mmap.mmap(fd, page, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer_map = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        self._consumer = np.frombuffer(self._consumer_map, np.uint64, 1)
        self._producer = np.frombuffer(self._producer_map, np.uint64, 1)
        self._step = record.itemsize
        self._records = np.frombuffer(
            self._producer_map, record, 2 * size // self._step, offset=page
        )

    @contextlib.contextmanager
    def batch(self, most: int | None = None) -> Iterator[NDArray[np.void]]:
        """
        The finished records, shape ``(n,)``, oldest first.

        All of them, or the first *most*: a sink that makes text of them needs ten
        times their memory.

        They lie in the ring itself and are given back when the block ends: copy
        what is to be kept.
        """
        start = int(self._consumer[0])
        first = (start & (self._size - 1)) // self._step
        written = (int(self._producer[0]) - start) // self._step
        records = self._records[first : first + (written if most is None else min(written, most))]
        records = records[: complete(records)]
        yield kept(records)
        self._consumer[0] = start + len(records) * self._step

    def fill(self) -> float:
        """The share of the ring that is in use, 0 to 1."""
        return (int(self._producer[0]) - int(self._consumer[0])) / self._size

    def close(self) -> None:
        """Unmap the ring. Batches must not be used any more."""
        del self._consumer, self._producer, self._records
        # A batch that somebody still holds keeps its mapping; the process's end frees it.
        for mapping in (self._consumer_map, self._producer_map):
            with contextlib.suppress(BufferError):
                mapping.close()
