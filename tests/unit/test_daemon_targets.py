# SPDX-License-Identifier: Apache-2.0
"""
Targets that begin, end and fail, without a kernel: what remains of them in the daemon.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from scope_ebpf.daemon.config import Config
from scope_ebpf.daemon.looks.hangs import MOST
from scope_ebpf.daemon.looks.owners import ROOT, Owner, Shares
from scope_ebpf.daemon.targets import Observed, Targets
from scope_ebpf.errors import HostError, NoAnswerError, NoSuchProcessError
from scope_ebpf.kernel.bpf.stats import ProgramStats

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS = {"send_entry": ProgramStats(1_000, 0.001, 2)}


@dataclass
class FakeWatch:
    """
    A watch with a *pid*, which raises *error* when its quota is exhausted.
    """

    pid: int
    ticked: float = 0.0
    next_tick: float = 1e12
    error: Exception | None = None
    node: str = "node"
    owner: Owner = ROOT
    closed: bool = False
    program_stats: dict[str, ProgramStats] = field(default_factory=lambda: dict(RUNS))
    owes: tuple[float, float] = (0.0, 0.1)
    heard: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        identity = SimpleNamespace(close=lambda: None)
        self.target = SimpleNamespace(pid=self.pid, identity=identity)
        self._ring, self.wakeup = os.pipe()

    def fileno(self) -> int:
        return self._ring

    def on_exhausted(self) -> None:
        os.read(self._ring, 1)
        if self.error:
            raise self.error

    def close(self) -> None:
        self.closed = True

    def next_window(self) -> None:
        return None

    def debt(self) -> tuple[float, float]:
        return self.owes

    def resumed(self) -> None:
        self.heard.append("resumed")

    def unwatch_threads(self, why: str) -> None:
        self.heard.append(why)


@dataclass
class FakeTracepoints:
    """
    Tracepoints that are attached or not, and may be refused.
    """

    attached: bool = True
    refusal: str = ""
    closed: bool = False

    def pause(self) -> None:
        self.attached = False

    def resume(self) -> bool:
        if self.refusal:
            raise HostError(self.refusal)
        was, self.attached = self.attached, True
        return not was

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def targets() -> Iterator[Targets]:
    """
    Targets without a VM; nothing waits for their descriptors, and the scanner forgets everything.
    """
    scanner = SimpleNamespace(ended=lambda _pid: None, again=lambda _pid, _seconds: None)
    files = SimpleNamespace(register=lambda *_: None, unregister=lambda _fd: None)
    found = Targets(Config(), None, files, scanner, errors=Counter(), shares=Shares())
    yield found
    found.close()


def keep(targets: Targets, watch: FakeWatch) -> FakeWatch:
    """
    Observe *watch*, as if it had been found.
    """
    targets._observed[watch.pid] = Observed(watch, (), None)
    return watch


@pytest.mark.parametrize(
    ("error", "errors", "refused"),
    [(NoSuchProcessError("it has ended"), 0, []), (ValueError("what?"), 1, [7])],
)
def test_a_target_that_fails_when_its_quota_is_exhausted_affects_no_other(
    targets, error, errors, refused
):
    """
    One that has ended is dropped; an unexpected error is counted, and the target tried again later.
    """
    failing, well = keep(targets, FakeWatch(7, error=error)), keep(targets, FakeWatch(8))
    for watch in (failing, well):
        os.write(watch.wakeup, b"!")
    targets._detach_exhausted()
    assert failing.closed
    assert [well] == targets.watches
    assert errors == targets._errors["watch"]
    assert refused == list(targets.admission.refused)


def test_what_programs_ran_for_targets_that_have_ended_stays(targets):
    """
    Totals of programs are counters: they do not fall when a VM ends.
    """
    keep(targets, FakeWatch(7))
    keep(targets, FakeWatch(8))
    both = targets.program_stats()
    assert {"send_entry": ProgramStats(2_000, 0.002, 4)} == both
    targets.drop(7, "it has ended")
    assert both == targets.program_stats()


def test_a_scrape_refreshes_the_oldest_readings(targets):
    """
    Four of them, and none that is younger than a second.
    """
    now = time.monotonic()
    watches = [keep(targets, FakeWatch(pid, ticked=now - pid)) for pid in range(8)]
    targets.refresh_stale()
    assert [4, 5, 6, 7] == [watch.pid for watch in watches if watch.next_tick <= time.monotonic()]
    fresh = [keep(targets, FakeWatch(pid, ticked=now + 60)) for pid in range(8)]
    targets.refresh_stale()
    assert not any(watch.next_tick <= time.monotonic() for watch in fresh)


def test_tracepoints_are_detached_until_their_cost_is_paid(targets):
    """
    They run for all targets together: the share of one target pays for the debt of another.
    """
    first, second = keep(targets, FakeWatch(7)), keep(targets, FakeWatch(8))
    targets.tracepoints.thread_watch = tracepoints = FakeTracepoints()
    seen = []
    for first.owes in ((0.15, 0.1), (0.25, 0.1), (0.05, 0.1), (-0.01, 0.1), (-0.02, 0.1)):
        targets.run_once()
        seen.append(tracepoints.attached)
    assert [True, False, False, True, True] == seen
    assert ["resumed"] == first.heard == second.heard


def test_targets_go_on_without_tracepoints_that_are_refused_later(targets):
    """
    Each target gets the reason once, and is still observed.
    """
    watch = keep(targets, FakeWatch(7, owes=(0.2, 0.1)))
    tracepoints = FakeTracepoints(refusal="the kernel is locked down")
    targets.tracepoints.thread_watch = tracepoints
    targets.run_once()
    watch.owes = (-0.1, 0.1)
    for _ in range(2):
        targets.run_once()
    assert tracepoints.closed
    assert targets.tracepoints.thread_watch is None
    assert ["the kernel is locked down"] == watch.heard
    assert [watch] == targets.watches


def test_targets_whose_memory_hangs_are_dropped_and_then_all_of_their_owner(targets):
    """
    The third one takes all others of its owner along, and no target of another owner.
    """
    evil = Owner(666, "")
    hanging = [keep(targets, FakeWatch(pid, owner=evil)) for pid in range(7, 7 + MOST)]
    bystander = keep(targets, FakeWatch(90, owner=evil))
    innocent = keep(targets, FakeWatch(91, owner=Owner(1000, "")))
    left = []
    for watch in hanging:
        watch.error = NoAnswerError("it has memory that cannot be read")
        os.write(watch.wakeup, b"x")
        targets._detach_exhausted()
        left.append(len(targets.watches))
    assert [4, 3, 1] == left
    assert [innocent] == targets.watches
    refused = targets.admission.refused
    assert "it has memory that cannot be read" == refused[7]
    assert "3 processes of uid 666" in refused[90]
    assert bystander.closed
