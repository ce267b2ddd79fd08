# SPDX-License-Identifier: Apache-2.0
"""
How far it is looked for what a process waits for, in rings that a VM makes as long as it likes.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from scope_ebpf.beam.processes import reasons
from scope_ebpf.beam.vm.connections import MOST, ConnectionReader
from scope_ebpf.errors import ReadRefusedError

LENGTH, RING, PLACES = 1000, 0x1000, 50


class Rings:
    """
    A memory in which a ring of LENGTH pids begins at RING; it counts what is read of it.
    """

    def __init__(self) -> None:
        self.looks = 0

    def read(self, start: int, size: int) -> bytes:
        words = [self.u64(address) for address in range(start, start + size, 8)]
        return np.array(words, np.uint64).tobytes()

    def u64(self, address: int) -> int:
        self.looks += 1
        place, field = divmod(address - RING, 64)
        if field == 16:
            return RING + (place + 1) % LENGTH * 64
        return place << 4 | 3

    def u32(self, _address: int) -> int:
        return PLACES

    def words(self, _first: int, count: int):
        return np.arange(1, count + 1, dtype=np.uint64) << np.uint64(16)

    def gather(self, places, _size: int):
        rows = np.full(len(places), RING, np.uint64).view(np.uint8).reshape(-1, 8)
        return rows, np.ones(len(places), np.bool_)


def connection(memory: Rings, pid: int) -> object:
    reader = ConnectionReader.__new__(ConnectionReader)
    entry = RING, {"suspended": RING, "sysname": 11, "queued": 7}
    lists = SimpleNamespace(heads=[RING] * 3, follow=lambda _: iter([entry] * PLACES))
    reader._memory, reader._lists = memory, lists
    return reader.waited_for(pid)


def port(memory: Rings, pid: int) -> object:
    layout = SimpleNamespace(offset=lambda *_: 0)
    target = SimpleNamespace(memory=memory, layout=layout, address=lambda _: RING)
    return reasons._port(target, pid)


@pytest.mark.parametrize("look", [connection, port])
def test_one_question_looks_through_so_many_processes(look, monkeypatch):
    """
    However many ports or nodes there are for which others wait: the bound is of all together.
    """
    monkeypatch.setattr(reasons, "check_ports", lambda _target: None)  # there are only rings
    memory = Rings()
    with pytest.raises(ReadRefusedError, match=f"more than {MOST} processes wait"):
        look(memory, 0)
    assert memory.looks < 30 * MOST


def test_who_waits_within_that_is_found():
    """
    The last process of the first ring.
    """
    assert (11, 7) == connection(Rings(), LENGTH - 1 << 4 | 3)
