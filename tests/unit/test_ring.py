# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.errors import HostError
from scope_ebpf.kernel.bpf.ring import Ring, RingError, complete, kept

if TYPE_CHECKING:
    from collections.abc import Iterator

BODY = 56
BUSY = 1 << 31
DISCARD = 1 << 30
PAGE = mmap.PAGESIZE
SIZE = PAGE
ROOM = SIZE // 64


def image(*lengths: int) -> np.ndarray:
    """
    Records as the kernel writes them, with these length words, numbered by their thread.
    """
    records = np.zeros(len(lengths), events.RECORD)
    records["ring_length"] = lengths
    records["tid"] = range(len(lengths))
    return records


@dataclass
class Kernel:
    """
    A file laid out as the kernel's ring: two pages of positions, and the data twice in a row.
    """

    fd: int

    def __post_init__(self):
        os.truncate(self.fd, 2 * PAGE + 2 * SIZE)
        whole = mmap.mmap(self.fd, 2 * PAGE + 2 * SIZE)
        self.consumer = np.frombuffer(whole, np.uint64, 1)
        self.producer = np.frombuffer(whole, np.uint64, 1, offset=PAGE)
        self.data = np.frombuffer(whole, events.RECORD, 2 * ROOM, offset=2 * PAGE)

    def write(self, *tids: int, length: int = BODY) -> None:
        for tid in tids:
            index = int(self.producer[0]) // 64 % ROOM
            for copy in (index, index + ROOM):
                self.data[copy]["ring_length"] = length
                self.data[copy]["tid"] = tid
            self.producer[0] += 64


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    fd = os.memfd_create("ring")
    yield Kernel(fd)
    os.close(fd)


@pytest.fixture
def ring(kernel: Kernel) -> Iterator[Ring]:
    ring = Ring(kernel.fd, SIZE)
    yield ring
    ring.close()


def taken(ring: Ring) -> list[int]:
    with ring.batch() as records:
        return records["tid"].tolist()


def test_records_are_complete_up_to_the_first_busy_one():
    """
    What lies behind a record that is still being written waits for it, even if it is finished.
    """
    assert 2 == complete(image(BODY, BODY, BODY | BUSY, BODY))


def test_all_records_are_complete_when_none_is_busy():
    """
    Without a busy record the whole image is complete, the empty one too.
    """
    assert (3, 0) == (complete(image(BODY, BODY, BODY)), complete(image()))


def test_discarded_records_are_left_out():
    """
    A record that the kernel side gave back unused is none, and the others keep their order.
    """
    records = image(BODY, BODY | DISCARD, BODY, BODY | DISCARD)
    assert [0, 2] == kept(records)["tid"].tolist()


def test_records_are_not_copied():
    """
    Where nothing was discarded the batch is the ring's own memory.
    """
    records = image(BODY, BODY)
    assert np.shares_memory(records, kept(records))


@pytest.mark.parametrize("length", [48, 64, 0, 48 | DISCARD])
def test_a_record_of_another_size_is_refused(length: int):
    """
    A record of another size means kernel side and Python side differ, so we say that.
    """
    with pytest.raises(RingError) as error:
        kept(image(BODY, length))
    assert (
        f"a record of {length & ~DISCARD} bytes in a ring of 56: "
        "the BPF objects and this program are of different builds; run `make objects`"
    ) == str(error.value)


def test_an_empty_ring_gives_an_empty_batch(ring: Ring):
    """
    A ring into which nothing was written gives no record and is not in use.
    """
    assert ([], 0.0) == (taken(ring), ring.fill())


def test_a_batch_is_given_back_when_its_block_ends(kernel: Kernel, ring: Ring):
    """
    Records are the reader's until the block ends, and then room for new ones.
    """
    kernel.write(1, 2, 3)
    with ring.batch() as records:
        assert [1, 2, 3] == records["tid"].tolist()
        assert 0 == int(kernel.consumer[0])
    assert 3 * 64 == int(kernel.consumer[0])
    assert [] == taken(ring)


def test_a_batch_whose_use_failed_comes_again(kernel: Kernel, ring: Ring):
    """
    If the block raises, its records stay in the ring and are not lost.
    """
    kernel.write(1, 2)
    with pytest.raises(OSError, match="disk full"), ring.batch():
        raise OSError("disk full")
    assert [1, 2] == taken(ring)


def test_a_batch_across_the_end_of_the_ring_is_one_piece(kernel: Kernel, ring: Ring):
    """
    A batch that begins at the end of the ring and goes on at its start is one array.
    """
    kernel.write(*range(ROOM - 3))
    assert ROOM - 3 == len(taken(ring))
    kernel.write(*range(100, 110))
    with ring.batch() as records:
        assert list(range(100, 110)) == records["tid"].tolist()
        assert records.flags.c_contiguous
    kernel.write(7)
    assert [7] == taken(ring)


def test_a_full_ring_is_one_batch(kernel: Kernel, ring: Ring):
    """
    A ring that is full to its last record is read whole, wherever it begins.
    """
    kernel.write(*range(5))
    taken(ring)
    kernel.write(*range(ROOM))
    assert 1.0 == ring.fill()
    assert list(range(ROOM)) == taken(ring)


def test_a_busy_record_stops_the_batch_and_comes_later(kernel: Kernel, ring: Ring):
    """
    A busy record is not given out; once it is finished it comes first, and nothing is lost.
    """
    kernel.write(1)
    kernel.write(2, length=BODY | BUSY)
    kernel.write(3)
    assert [1] == taken(ring)
    assert [] == taken(ring)
    kernel.data["ring_length"][1] = BODY
    assert [2, 3] == taken(ring)


def test_discarded_records_are_given_back_too(kernel: Kernel, ring: Ring):
    """
    The room of a discarded record is free again although it is in no batch.
    """
    kernel.write(1, length=BODY | DISCARD)
    assert [] == taken(ring)
    assert 64 == int(kernel.consumer[0])


def test_a_refused_record_is_not_given_back(kernel: Kernel, ring: Ring):
    """
    A record of another size stays where it is: we do not know where the next one begins.
    """
    kernel.write(1, length=48)
    with pytest.raises(RingError):
        taken(ring)
    assert 0 == int(kernel.consumer[0])


def test_the_ring_is_read_on_x86_only(kernel: Kernel, monkeypatch: pytest.MonkeyPatch):
    """
    A machine that may reorder the kernel's stores is refused instead of read wrong.
    """
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    with pytest.raises(HostError) as error:
        Ring(kernel.fd, SIZE)
    assert ("the ring is read on x86_64 only; other CPUs are not supported yet") == str(error.value)
