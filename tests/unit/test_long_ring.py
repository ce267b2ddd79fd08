# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from scope_ebpf.kernel.bpf.long_ring import LongRing

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSY, DISCARD = 1 << 31, 1 << 30
PAGE = mmap.PAGESIZE
SIZE = PAGE


class Kernel:
    """
    A file laid out as the kernel's ring: two pages of positions, and the data twice in a row.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.truncate(self.fd, 2 * PAGE + 2 * SIZE)
        self.whole = mmap.mmap(self.fd, 2 * PAGE + 2 * SIZE)
        self.consumer = np.frombuffer(self.whole, np.uint64, 1)
        self.producer = np.frombuffer(self.whole, np.uint64, 1, offset=PAGE)

    def write(self, data: bytes, flags: int = 0) -> int:
        start = int(self.producer[0])
        record = (len(data) | flags).to_bytes(4, "little") + b"\0" * 4 + data
        for at, byte in enumerate(record):
            for copy in (0, SIZE):
                self.whole[2 * PAGE + (start + at) % SIZE + copy] = byte
        self.producer[0] += np.uint64(len(record) + -len(record) % 8)
        return start

    def finish(self, start: int) -> None:
        for copy in (0, SIZE):
            self.whole[2 * PAGE + start % SIZE + 3 + copy] &= 0x7F


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    os.close(made.fd)


@pytest.fixture
def ring(kernel: Kernel) -> Iterator[LongRing]:
    made = LongRing(kernel.fd, SIZE)
    yield made
    made.close()


def test_records_of_any_length_come_in_order_and_once(kernel: Kernel, ring: LongRing):
    """
    Each record is returned whole, and its room is free again.
    """
    wanted = [b"a", b"bb" * 20, b"", b"c" * 1001]
    for data in wanted:
        kernel.write(data)
    assert [data for data in wanted if data] == list(ring.records())
    assert [] == list(ring.records())
    assert kernel.consumer[0] == kernel.producer[0]


def test_a_record_that_crosses_the_end_is_whole(kernel: Kernel, ring: LongRing):
    """
    Round after round, a record that lies across the end of the ring is read like any other.
    """
    for number in range(40):
        data = bytes([number]) * 700
        kernel.write(data)
        assert [data] == list(ring.records())


def test_reading_stops_at_a_record_that_is_being_written(kernel: Kernel, ring: LongRing):
    """
    What comes after it waits until it is finished.
    """
    kernel.write(b"first")
    start = kernel.write(b"second", BUSY)
    kernel.write(b"third")
    assert [b"first"] == list(ring.records())
    kernel.finish(start)
    assert [b"second", b"third"] == list(ring.records())


def test_a_record_that_was_discarded_is_skipped(kernel: Kernel, ring: LongRing):
    """
    It takes its room and gives nothing.
    """
    kernel.write(b"gone", DISCARD)
    kernel.write(b"here")
    assert [b"here"] == list(ring.records())
