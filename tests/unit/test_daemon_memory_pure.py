# SPDX-License-Identifier: Apache-2.0
"""
How much a reading of the VM's own memory takes, by which the daemon says when the next one is.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from scope_ebpf.daemon.readings import memory
from scope_ebpf.errors import ReadRefusedError


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """
    Readers of a VM, each of which takes 5 s of CPU to be found and 1 s to be read.
    """
    state = SimpleNamespace(cpu=0.0, found=0, fits=True)

    class Reader:
        def __init__(self, _: object) -> None:
            state.cpu += 5.0
            if not state.fits:
                raise ReadRefusedError("the layout does not fit")
            state.found += 1

        def read(self) -> SimpleNamespace:
            state.cpu += 1.0
            return SimpleNamespace(why="", links=(), connections=None)

    monkeypatch.setattr(memory, "cpu_seconds", lambda: state.cpu)
    monkeypatch.setattr(memory, "replace", lambda target, **_: target)
    monkeypatch.setattr(memory, "Memory", lambda *_: None)
    monkeypatch.setattr(memory, "AllocatorReader", Reader)
    monkeypatch.setattr(memory, "LinkReader", Reader)
    target = SimpleNamespace(pid=7, identity=SimpleNamespace(process=None))
    state.readers = memory.Readers(target)
    return state


def test_finding_a_part_once_does_not_make_readings_rarer(readers: SimpleNamespace):
    """
    Each of two readings takes two seconds, though the first one has its files parsed as well.
    """
    assert [readers.readers.read().seconds for _ in range(2)] == [2.0, 2.0]
    assert readers.found == 2


def test_a_search_in_each_reading_counts_each_time(readers: SimpleNamespace):
    """
    Two parts that do not fit are searched for again each time: such a VM is read less often.
    """
    readers.fits = False
    for _ in range(2):
        reading = readers.readers.read()
        assert reading.seconds == 10.0
        assert reading.refused.keys() == {"allocators", "connections"}
