# SPDX-License-Identifier: Apache-2.0
"""
Windows on a real VM, as the daemon opens and closes them, beside what the VM did meanwhile.

    with observing(beam, "send") as eye:
        count, closed = eye.window("send", 0.005)
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.memory.process_memory import Memory
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.budget.estimate import Estimate
from scope_ebpf.budget.governor import Action
from scope_ebpf.budget.reference_counters import ReferenceCounters
from scope_ebpf.budget.windows import Baseline, ClosedWindow, Window
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.sessions import open_governed_session, plan_target

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from beams_run import Beam

    from scope_ebpf.kernel.observers.governed import GovernedSession

#: More hits than any window here has.
_UNLIMITED = 1 << 40


class Seen(NamedTuple):
    """
    One window: what was counted, and what else is known of it.
    """

    number: int
    closed: ClosedWindow


class Eye:
    """
    Opens windows on one target.
    """

    def __init__(self, session: GovernedSession, counters: ReferenceCounters) -> None:
        self.session, self.counters = session, counters

    def window(self, event: str, seconds: float, hits: int = _UNLIMITED) -> Seen:
        """
        One window of *seconds*, or of *hits*.
        """
        before = self._count(event)
        action = Action("window", event, hits, seconds)
        baseline = Baseline(self.counters, action)
        time.sleep(max(0.0, baseline.ready - time.monotonic()))
        rates = baseline.rates()
        assert self.session.attach(event), self.session.failures
        window = Window(self.session, self.counters, action, *rates)
        time.sleep(max(0.0, window.closes - time.monotonic()))
        closed = window.close()
        self.session.release(event)
        return Seen(self._count(event) - before, closed)

    def now(self, event: str) -> int:
        """
        The reference counter of *event* now.
        """
        return self.counters.now()[self.counters.name_of(event)]

    def _count(self, event: str) -> int:
        tallies, _ = self.session.kind(event)
        # Of schedules those in are counted: those out are the same.
        return int(tallies["count"][0] if event == "schedule" else tallies["count"].sum())


@contextlib.contextmanager
def observing(beam: Beam, *wanted: str) -> Iterator[Eye]:
    """
    An eye on *beam* for the events *wanted*.
    """
    target = inspect(beam.pid)
    counters = ReferenceCounters(target)
    assert not counters.refused
    with (
        Attacher() as attacher,
        open_governed_session(target, plan_target(target, wanted), attacher) as session,
    ):
        for event in wanted:
            ranges = counters.ranges(event)
            assert ranges is not None
            session.set_reference_counters(event, *ranges)
        yield Eye(session, counters)


@contextlib.contextmanager
def busy(hogs: int) -> Iterator[None]:
    """
    That many other processes that take all the CPU they get.
    """
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(hogs)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Block:
    """
    Some windows, their total, its stated error, and the truth.
    """

    found: float
    error: float
    truth: int

    @property
    def within(self) -> bool:
        """
        Whether the truth is where the stated error says it is.
        """
        return abs(self.found - self.truth) <= self.error * self.found


def block(truth: Truth, eye: Eye, event: str, windows: int, rng: random.Random) -> Block:
    """
    A total from *windows* windows at irregular times.
    """
    estimate = Estimate(1, 1)
    began, first = eye.counters.sample(event), truth()
    for _ in range(windows):
        time.sleep(rng.uniform(0.02, 0.08))
        seen = eye.window(event, rng.uniform(0.003, 0.01))
        closed = seen.closed
        if closed.growth is not None and closed.rate_before is not None:
            count = np.array([float(seen.number)])
            estimate.window(count, closed.growth, closed.seconds, closed.rate_before, closed.second)
    ended = eye.counters.sample(event)
    growth = eye.counters.growth(event, began.value, ended.value)
    second = None
    if began.second is not None and ended.second is not None:
        second = float(ended.second - began.second)
    error = estimate.settle([(growth, (ended.time_ns - began.time_ns) / 1e9, second)])
    return Block(float(estimate.total[0]), 1.0 if error is None else error, truth() - first)


class Truth:
    """
    What ``bursts.erl`` counts of its own doing, found in the memory of its VM.
    """

    def __init__(self, pid: int) -> None:
        self._memory = Memory(pid)
        marker = np.array([0xC0047E45EBBF5C09, 0x5C09EEBBF0000000 | pid], np.uint64).tobytes()
        found = [(start, self._find(marker, start, end)) for start, end in _writable(pid)]
        (self._address,) = [start + offset + len(marker) for start, offset in found if offset >= 0]

    def _find(self, marker: bytes, start: int, end: int) -> int:
        try:
            return self._memory.read(start, end - start).find(marker)
        except ReadRefusedError:  # not all of it is there; atomics lie in what is
            return -1

    def __call__(self) -> int:
        return self._memory.u64(self._address)


def _writable(pid: int) -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        bounds, mode, _, _, inode, *_ = line.split()
        if mode.startswith("rw-p") and inode == "0":
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            yield start, end
