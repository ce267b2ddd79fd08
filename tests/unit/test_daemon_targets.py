# SPDX-License-Identifier: Apache-2.0
"""
Targets that come, go and fail, without a kernel: what is left of them in the daemon.
"""

from __future__ import annotations

import os
import selectors
import time
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from scope_ebpf.daemon.config import Config
from scope_ebpf.daemon.looks.hangs import MOST
from scope_ebpf.daemon.looks.owners import ROOT, Owner, Shares
from scope_ebpf.daemon.targets import Targets, _Observed
from scope_ebpf.errors import HostError, NoAnswerError, NoSuchProcessError
from scope_ebpf.kernel.bpf.stats import ProgramStats

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS = {"send_entry": ProgramStats(1_000, 0.001, 2)}


@dataclass
class FakeWatch:
    """
    A watch with a *pid*, whose *error* comes when its allowance rings.
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
        self._ring, self.bell = os.pipe()
        self.session = SimpleNamespace(fileno=lambda: self._ring)

    def rang(self) -> None:
        os.read(self._ring, 1)
        if self.error:
            raise self.error

    def close(self) -> None:
        self.closed = True

    def next_turn(self) -> None:
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
    Tracepoints that are in, or not, and may be refused.
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
    Targets of no VM, with a scanner that forgets everything.
    """
    scanner = SimpleNamespace(ended=lambda _pid: None, again=lambda _pid, _seconds: None)
    files = selectors.EpollSelector()
    found = Targets(Config(), None, files, scanner, errors=Counter(), shares=Shares())
    yield found
    found.close()


def keep(targets: Targets, watch: FakeWatch) -> FakeWatch:
    """
    Observe it, as if it had been taken in.
    """
    # What waits for the end of a process is not tried here.
    targets._files.unregister = lambda _fd: None
    targets._observed[watch.pid] = _Observed(watch, (), None)
    return watch


@pytest.mark.parametrize(
    ("error", "errors", "refused"),
    [(NoSuchProcessError("it has ended"), 0, []), (ValueError("what?"), 1, [7])],
)
def test_a_target_that_fails_while_it_rings_takes_nobody_along(targets, error, errors, refused):
    """
    Who has ended by then is let go; what nobody thought of is counted, and tried again later.
    """
    failing, well = keep(targets, FakeWatch(7, error=error)), keep(targets, FakeWatch(8))
    for watch in (failing, well):
        os.write(watch.bell, b"!")
    targets._listen()
    assert failing.closed
    assert [well] == targets.watches
    assert errors == targets._errors["watch"]
    assert refused == list(targets.refused)


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


def test_a_scrape_hastens_those_that_were_not_looked_at_for_longest(targets):
    """
    Four of them, and none that was looked at within a second.
    """
    now = time.monotonic()
    watches = [keep(targets, FakeWatch(pid, ticked=now - pid)) for pid in range(8)]
    targets.hasten()
    assert [4, 5, 6, 7] == [watch.pid for watch in watches if watch.next_tick <= time.monotonic()]
    fresh = [keep(targets, FakeWatch(pid, ticked=now + 60)) for pid in range(8)]
    targets.hasten()
    assert not any(watch.next_tick <= time.monotonic() for watch in fresh)


def test_tracepoints_are_out_until_what_they_took_is_paid(targets):
    """
    They are of all targets together: who owes too much is paid for by the others' part.
    """
    first, second = keep(targets, FakeWatch(7)), keep(targets, FakeWatch(8))
    targets.thread_watch = tracepoints = FakeTracepoints()
    seen = []
    for first.owes in ((0.15, 0.1), (0.25, 0.1), (0.05, 0.1), (-0.01, 0.1), (-0.02, 0.1)):
        targets.turn()
        seen.append(tracepoints.attached)
    assert [True, False, False, True, True] == seen
    assert ["resumed"] == first.heard == second.heard


def test_tracepoints_that_are_refused_later_are_gone_without(targets):
    """
    Everybody hears of it once, and is observed on.
    """
    watch = keep(targets, FakeWatch(7, owes=(0.2, 0.1)))
    targets.thread_watch = tracepoints = FakeTracepoints(refusal="the kernel is locked down")
    targets.turn()
    watch.owes = (-0.1, 0.1)
    for _ in range(2):
        targets.turn()
    assert tracepoints.closed
    assert targets.thread_watch is None
    assert ["the kernel is locked down"] == watch.heard
    assert [watch] == targets.watches


def test_who_has_memory_that_does_not_come_is_let_go_and_then_its_owner(targets):
    """
    Each by itself at first; with the third all others of that owner go, and those of others stay.
    """
    evil = Owner(666, "")
    hanging = [keep(targets, FakeWatch(pid, owner=evil)) for pid in range(7, 7 + MOST)]
    bystander = keep(targets, FakeWatch(90, owner=evil))
    innocent = keep(targets, FakeWatch(91, owner=Owner(1000, "")))
    left = []
    for watch in hanging:
        watch.error = NoAnswerError("it has memory that cannot be read")
        os.write(watch.bell, b"x")
        targets._listen()
        left.append(len(targets.watches))
    assert [4, 3, 1] == left
    assert [innocent] == targets.watches
    assert "it has memory that cannot be read" == targets.refused[7]
    assert "3 processes of uid 666" in targets.refused[90]
    assert bystander.closed
