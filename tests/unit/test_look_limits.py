# SPDX-License-Identifier: Apache-2.0
"""
What reading another process may take.
"""

from __future__ import annotations

import ctypes
import os
import threading

import pytest

from scope_ebpf.beam.memory import look_limits
from scope_ebpf.beam.memory.look_limits import LookLimits, limited
from scope_ebpf.beam.memory.process_memory import Memory
from scope_ebpf.errors import TooMuchError

ROOM = {"data": 1 << 20, "calls": 1000, "cpu": 100.0, "wall": 100.0}


@pytest.fixture
def memory():
    """
    Our own, and an address of 4 KB in it.
    """
    buffer = ctypes.create_string_buffer(4096)
    yield Memory(os.getpid()), ctypes.addressof(buffer)
    del buffer


@pytest.mark.parametrize(
    ("bound", "said"), [({"data": 10_000}, "10,000 bytes"), ({"calls": 2}, "2 readings")]
)
def test_a_look_ends_when_it_has_read_too_much(memory, bound, said):
    """
    The third reading of 4 KB is one too many, whatever memory object it goes through.
    """
    first, address = memory
    with limited(LookLimits("a look", **{**ROOM, **bound})):
        for reader in (first, Memory(os.getpid())):
            assert 4096 == len(reader.read(address, 4096))
        with pytest.raises(TooMuchError, match=said):
            first.read(address, 4096)
    assert 4096 == len(first.read(address, 4096))


def test_readings_that_fail_count_as_well(memory):
    """
    Who has a million addresses that are not there is not looked at for ever.
    """
    first, _ = memory
    with limited(LookLimits("a look", **{**ROOM, "calls": 100})):
        for _ in range(100):
            assert b"" == first._read(0, 8)
        with pytest.raises(TooMuchError):
            first._read(0, 8)


def read_often(memory: Memory, address: int) -> None:
    for _ in range(64):
        memory.read(address, 8)


@pytest.mark.parametrize("clock", ["cpu_clock", "wall_clock"])
def test_a_look_ends_when_its_time_is_over(memory, clock):
    """
    The clocks are looked at now and then, and at the end.
    """
    first, address = memory
    now = [0.0]
    limits = LookLimits("a look", **ROOM, **{clock: lambda: now[0]})
    with limited(limits):
        first.read(address, 8)
        now[0] = 101.0
        with pytest.raises(TooMuchError, match="100 s"):
            read_often(first, address)
        with pytest.raises(TooMuchError):
            limits.check()


def test_a_call_that_takes_long_is_the_last_one(memory):
    """
    Memory that comes after some seconds each time would else do so 31 times more.
    """
    first, address = memory
    now = [0.0]
    with limited(LookLimits("a look", **ROOM, wall_clock=lambda: now[0])):
        for _ in range(20):
            first.read(address, 8)
            now[0] += 5.0
        first.read(address, 8)
        now[0] += 5.0
        with pytest.raises(TooMuchError, match="100 s"):
            first.read(address, 8)


def test_limits_are_of_one_thread(memory):
    """
    What another thread reads meanwhile is not counted.
    """
    first, address = memory
    with limited(LookLimits("a look", **{**ROOM, "calls": 1})):
        thread = threading.Thread(target=lambda: [first.read(address, 8) for _ in range(9)])
        thread.start()
        thread.join()
        first.read(address, 8)
        with pytest.raises(TooMuchError):
            first.read(address, 8)


def test_what_parses_files_for_a_look_is_of_its_time(memory, monkeypatch: pytest.MonkeyPatch):
    """
    The CPU time of a parser that this thread asked counts as the thread's own.
    """
    first, address = memory
    used = [5.0]
    monkeypatch.setattr(look_limits.client, "cpu_seconds", lambda: used[0])
    with limited(LookLimits("a look", **ROOM)):
        read_often(first, address)
        used[0] = 106.0
        with pytest.raises(TooMuchError, match="100 s of CPU"):
            read_often(first, address)
