# SPDX-License-Identifier: Apache-2.0
"""
A target's threads without a kernel: slots that are freed, intervals that are still open.
"""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.beam.vm.threads import ROLES, TaskFaults
from scope_ebpf.daemon.readings import threads
from scope_ebpf.daemon.readings.threads import WatchedThreads
from scope_ebpf.errors import HostError, NoSuchProcessError
from scope_ebpf.kernel.observers.thread_watch import Doing, add_open

SLOT = 7
IDLE, BLOCKED, PREEMPTED, QUEUED, THROTTLED = range(5)
WORDS = events.THREAD_TOTALS.itemsize // 8


class Kernel:
    """
    A ThreadWatch that keeps what is watched, with room for so many threads.
    """

    unsampled = "nothing is sampled here"

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self.watched: set[int] = set()
        self.given_back: list[int] = []
        self.idle = [0]

    def watch(self, target: int, found: dict[int, np.ndarray]) -> None:
        for tid in found:
            if len(self.watched | {tid}) > self.room:
                raise HostError("no room")
            self.watched.add(tid)

    def asleep(self, target: int, tid: int, reason: int) -> None:
        raise AssertionError("a thread of no process cannot be asleep")

    def unwatch(self, target: int, tids: set[int]) -> None:
        self.watched -= set(tids)

    def remove(self, target: int) -> None:
        self.watched.clear()
        self.given_back.append(target)

    def attached(self, now) -> float:
        return time.monotonic()

    def totals(self, target: int) -> np.ndarray:
        totals = np.zeros(events.THREAD_TYPES, events.THREAD_TOTALS)
        totals["off_ns"][0, IDLE] = self.idle.pop(0) if len(self.idle) > 1 else self.idle[0]
        return totals


class Places:
    """
    Schedulers of a VM that ends when the second of them is looked for, or never.
    """

    ends = False

    def __init__(self, _target: object) -> None:
        pass

    def find(self, _role: str, number: int) -> None:
        if self.ends and number == 2:
            raise NoSuchProcessError("process 0 has ended")


@pytest.fixture
def vm(monkeypatch: pytest.MonkeyPatch) -> list[TaskFaults]:
    """
    The threads of a VM, which has two schedulers at first.
    """
    found = [TaskFaults(100 + number, "normal", number, 0, 0) for number in (1, 2)]
    monkeypatch.setattr(threads, "faults", lambda _pid: list(found))
    monkeypatch.setattr(threads, "SchedulerFinder", Places)
    return found


def seen(kernel: Kernel, slot: int | None = SLOT) -> WatchedThreads:
    # No process has this pid.
    return WatchedThreads(kernel, SimpleNamespace(pid=0), slot)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.fields["why"] for record in caplog.records if "threads are not" in record.message
    ]


def test_a_vm_that_ends_at_the_beginning_leaves_nothing(vm, monkeypatch):
    """
    Its slot is freed: 64 such VMs would take the slots of all others.
    """
    monkeypatch.setattr(Places, "ends", True)
    kernel = Kernel()
    with pytest.raises(NoSuchProcessError):
        seen(kernel)
    assert [SLOT] == kernel.given_back
    assert set() == kernel.watched


def test_without_room_the_threads_of_a_vm_are_not_watched(vm, caplog):
    """
    The rest of the VM is observed, and the log says once what is missing.
    """
    caplog.set_level(logging.WARNING)
    kernel = Kernel(room=1)
    watched = seen(kernel)
    watched.tick()
    assert watched.totals is None
    assert 2 == watched.accounting.counts[ROLES.index("normal")]
    assert [SLOT] == kernel.given_back
    assert set() == kernel.watched
    assert ["no room"] == lines(caplog)
    watched.close()
    assert [SLOT] == kernel.given_back


def test_room_may_be_used_up_later(vm, caplog):
    """
    A thread that comes when there is no room takes the target's other threads along.
    """
    caplog.set_level(logging.WARNING)
    kernel = Kernel(room=2)
    watched = seen(kernel)
    assert {101, 102} == kernel.watched
    vm.append(TaskFaults(103, "normal", 3, 0, 0))
    watched.tick()
    assert watched.totals is None
    assert [SLOT] == kernel.given_back
    assert ["no room"] == lines(caplog)
    assert 0.0 == watched.spent()


def test_a_vm_without_a_slot_is_logged(vm, caplog):
    """
    The log says of which VM threads are not watched.
    """
    caplog.set_level(logging.WARNING)
    kernel = Kernel()
    watched = seen(kernel, None)
    watched.tick()
    watched.close()
    assert watched.totals is None
    assert ["there is no place for one more VM"] == lines(caplog)
    assert [] == kernel.given_back


def test_times_never_fall(vm):
    """
    An interval that is being added may be missing from a reading, but not from the totals.
    """
    kernel = Kernel()
    kernel.idle = [50, 10, 70]
    watched = seen(kernel)
    totals = [int(watched.totals["off_ns"][0, IDLE])]
    for _ in range(2):
        watched.tick()
        totals.append(int(watched.totals["off_ns"][0, IDLE]))
    assert [50, 50, 70] == totals


def opened(now: int, *threads: tuple[int, int, int, int, int]) -> np.ndarray:
    """
    Totals that are only what *threads* do at *now*: type, since, ready, reason, running.
    """
    totals = np.zeros((events.THREAD_TYPES, WORDS), np.uint64)
    columns = [np.array(column, np.uint64) for column in zip(*threads, strict=True)]
    kinds = (np.intp, np.uint64, np.uint64, np.uint32, np.uint32)
    doing = Doing(*(column.astype(kind) for column, kind in zip(columns, kinds, strict=True)))
    add_open(totals, doing, now)
    return totals.view(events.THREAD_TOTALS).reshape(events.THREAD_TYPES)


def test_sleeping_and_running_threads_count_up_to_now():
    """
    Two dirty schedulers that sleep for hours are idle for hours before they wake, and so on.
    """
    hours = 10 * 3600 * 10**9
    totals = opened(
        hours + 5,
        (2, 5, 0, IDLE, 0),
        (2, 5, 0, IDLE, 0),
        (0, hours, 0, BLOCKED, 0),
        (0, hours - 95, 0, PREEMPTED, 1),
    )
    assert 2 * hours == int(totals["off_ns"][2, IDLE])
    assert [0, 5, 0, 0, 0] == totals["off_ns"][0].tolist()
    assert [100, 0, 0, 0, 0, 0] == totals["on_ns"].tolist()


def test_a_thread_that_waits_for_a_cpu_counts_its_sleep_only():
    """
    Whether that is a wait for a CPU or for the quota is known when it ends.
    """
    totals = opened(1000, (0, 100, 700, IDLE, 0), (1, 600, 600, PREEMPTED, 0))
    assert [600, 0, 0, 0, 0] == totals["off_ns"][0].tolist()
    assert 600 == int(totals["off_ns"].sum())


def test_unknown_intervals_do_not_count():
    """
    A thread before its first switch, and one that was switched after the clock was read.
    """
    totals = opened(1000, (0, 0, 0, IDLE, 0), (0, 1001, 0, IDLE, 0), (0, 1001, 0, IDLE, 1))
    assert 0 == int(totals.view(np.uint64).sum())


@pytest.mark.parametrize(
    ("first", "last", "working"),
    [
        ((10.0, 100.0, 50.0), (20.0, 130.0, 70.0), 1.0),
        ((10.0, 5.0, 1.0), (20.0, 6.0, 3.0), 0.0),
        ((10.0, 5.0, 1.0), (10.0, 5.0, 1.0), None),
    ],
)
def test_work_is_cpu_without_busy_waiting(first, last, working):
    """
    Thirty seconds of CPU in ten, twenty of them waiting, are one scheduler at work; samples that
    say more waiting than CPU are none.
    """
    assert threads.at_work(first, last) == working
