# SPDX-License-Identifier: Apache-2.0
"""
The BPF ring buffer (Documentation/bpf/ringbuf.rst), and its records as numpy batches.

Every record has the same size, so the records that the kernel has written are one array over the
mapped ring, for our own probes of :data:`events.RECORD`. There is no copy and no loop, also where
the ring wraps around, because the kernel maps the data twice in a row.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING, Any

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
    """A record in the ring has another size than this program expects."""


def complete(records: NDArray[np.void]) -> int:
    """Number of *records*, from the first, that the kernel has finished writing."""
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


class RingMapping:
    """
    The memory of the ring behind *fd*, whose data are *size* bytes, mapped twice in a row.

    ``consumer`` and ``producer`` are the positions, bytes since the start, each an array of one.
    ``memory`` holds the producer's page and then the data. HostError on a machine whose stores may
    be seen out of order.
    """

    def __init__(self, fd: int, size: int) -> None:
        if os.uname().machine != "x86_64":
            # Elsewhere the producer's stores may be seen out of order; x86 keeps them in order.
            raise HostError("the ring is read on x86_64 only; other CPUs are not supported yet")
        page = mmap.PAGESIZE
        self.size = size
        self._consumer_page = mmap.mmap(fd, page, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self.memory = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        self.consumer = np.frombuffer(self._consumer_page, np.uint64, 1)
        self.producer = np.frombuffer(self.memory, np.uint64, 1)

    def data(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The data as an array of *dtype*, shape ``(2 * size / itemsize,)``."""
        return np.frombuffer(
            self.memory, dtype, 2 * self.size // dtype.itemsize, offset=mmap.PAGESIZE
        )

    def close(self) -> None:
        """Unmap the ring. Arrays of its data must not be used any more."""
        del self.consumer, self.producer
        # An array that is still referenced keeps its mapping until the process ends.
        for mapping in (self._consumer_page, self.memory):
            with contextlib.suppress(BufferError):
                mapping.close()


class Ring:
    """
    The consumer of the ring behind *fd*, of *size* bytes.

    Its records are all of type *record*, whose bytes are a power of two.
    """

    def __init__(self, fd: int, size: int, record: np.dtype[np.void] = events.RECORD) -> None:
        self._mapping = RingMapping(fd, size)
        self._consumer, self._producer = self._mapping.consumer, self._mapping.producer
        self._size, self._record_bytes = size, record.itemsize
        self._records = self._mapping.data(record)

    @contextlib.contextmanager
    def batch(self, most: int | None = None) -> Iterator[NDArray[np.void]]:
        """
        The finished records, shape ``(n,)``, oldest first: all, or at most *most*.

        They lie in the ring itself, and their room is free again when the block ends without an
        exception: copy what is to be kept. A sink that makes text of records needs ten times
        their memory, so it limits their number. RingError as :func:`kept`.
        """
        start = int(self._consumer[0])
        first = (start & (self._size - 1)) // self._record_bytes
        written = (int(self._producer[0]) - start) // self._record_bytes
        records = self._records[first : first + (written if most is None else min(written, most))]
        records = records[: complete(records)]
        yield kept(records)
        self._consumer[0] = start + len(records) * self._record_bytes

    def fill(self) -> float:
        """The share of the ring that is in use, 0 to 1."""
        return (int(self._producer[0]) - int(self._consumer[0])) / self._size

    def close(self) -> None:
        """Unmap the ring. Batches must not be used any more."""
        del self._consumer, self._producer, self._records
        self._mapping.close()
