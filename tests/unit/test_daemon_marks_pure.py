# SPDX-License-Identifier: Apache-2.0
"""
When the daemon counts whose marked callbacks, and what it makes of a window.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from scope_ebpf.daemon.looks.owners import ROOT, Owner
from scope_ebpf.daemon.readings import marks
from scope_ebpf.daemon.readings.marks import MarkWindows, Window
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError, ReadRefusedError
from scope_ebpf.metrics.marks import Calls, MarksReading, MarkSums, expose_marks
from scope_ebpf.metrics.page import Page

HIT = 2e-6


@dataclass(eq=False)
class Watched:
    """
    A watch of a VM that passes *rate* markers a second, whose windows have planned failures.
    """

    pid: int = 7
    rate: int = 1000
    income: float = 0.01
    marked: bool = True
    planned: list = field(default_factory=list)
    owner: Owner = ROOT
    found: MarksReading = field(default_factory=MarksReading)
    spent: float = 0.0
    error: Exception | None = None
    made: int = 0
    left_out: int = 0
    closed: int = 0
    windows: int = 0
    reads: int = 0

    def __post_init__(self) -> None:
        identity = SimpleNamespace(check=lambda: None)
        self.target = SimpleNamespace(pid=self.pid, identity=identity, watch=self)
        self.hooks = None

    def publish_marks(self, found: MarksReading, spent: float) -> None:
        self.found = found
        self.spent += spent

    def fail(self, error: Exception) -> None:
        self.error = error


class ASight:
    """
    Stands for a MarkedSight: half of the markers are calls of one function, which take 1 ms.
    """

    hit = HIT

    def __init__(self, target: SimpleNamespace, _hooks: None) -> None:
        self.watch = target.watch
        self.watch.made += 1

    def refresh(self, *, room: bool) -> bool:
        assert room or not self.watch.windows  # what is counted keeps its room
        self.watch.reads += 1
        return self.watch.marked

    def window(self, seconds: float, hits: int) -> Window:
        self.watch.windows += 1
        if self.watch.planned and (error := self.watch.planned.pop(0)):
            raise error
        passed = min(self.watch.rate * seconds, hits)
        calls = Calls(passed / 2, passed / 20, passed / 2, passed / 2000)
        return Window(
            passed / self.watch.rate,
            {"shop:handle_call/3": calls},
            round(passed),
            self.watch.left_out,
        )

    def close(self) -> None:
        self.watch.closed += 1


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """
    Windows of *watches*, as the config's *marks* says.
    """
    state = SimpleNamespace(watches=[], now=0.0, errors=Counter())
    state.config = SimpleNamespace(marks=60)
    monkeypatch.setattr(marks, "cpu_seconds", lambda: 0.0)
    windows = MarkWindows(
        lambda: state.watches, lambda: state.config, state.errors, lambda: state.now, ASight
    )

    # Half of the pauses are shorter, half of them longer.
    windows._draw = SimpleNamespace(uniform=lambda low, high: (low + high) / 2)

    def go(seconds: int) -> None:
        for _ in range(10 * seconds):
            state.now += 0.1
            windows.look()

    state.go = go
    return state


@pytest.mark.parametrize("rate", [1_000, 200_000])
def test_windows_stay_within_their_part_of_the_budget(run: SimpleNamespace, rate: int):
    """
    Hits take 0.15 of the income at most, and calls are scaled up to what was called.
    """
    run.watches = [watched] = [Watched(rate=rate)]
    run.go(600)
    assert 0 < watched.spent <= 1.1 * marks.SHARE * 600 * watched.income
    ((name, calls), (other, rest)) = watched.found.functions
    assert (name, other, rest) == ("shop:handle_call/3", "other", Calls())
    assert rate / 2 * 600 == pytest.approx(calls.calls, rel=0.1)
    assert calls.calls / 10 == pytest.approx(calls.failures)
    assert 1e-3 == pytest.approx(calls.seconds / calls.timed)
    assert 0 <= watched.found.error_ratio < 0.3


def test_a_vm_without_marked_code_is_looked_at_now_and_then(run: SimpleNamespace):
    """
    It has no window, and is read once a minute.
    """
    run.watches = [watched] = [Watched(marked=False)]
    run.go(600)
    assert (0, MarksReading()) == (watched.windows, watched.found)
    assert 5 <= watched.reads <= 20


def test_only_some_vms_have_windows_at_a_time(run: SimpleNamespace, monkeypatch):
    """
    Of four marked VMs two are counted, and the others refused; another one is counted when one of
    them has gone.
    """
    monkeypatch.setattr(marks, "MOST", 2)
    run.watches = [Watched(pid) for pid in range(4)]
    run.go(60)
    counted = [one for one in run.watches if one.windows]
    assert 2 == len(counted)
    refused = {one.found.refused for one in run.watches if one not in counted}
    assert {"marked code of 2 VMs at most is observed at a time"} == refused
    assert {""} == {one.found.refused for one in counted}
    run.watches = [one for one in run.watches if one is not counted[0]]
    run.go(200)
    assert 1 == counted[0].closed
    assert 2 == sum(bool(one.windows) for one in run.watches)


def test_functions_without_room_are_refused_and_the_others_counted(run: SimpleNamespace):
    """
    Code that was loaded later may have more functions than the map has room for.
    """
    run.watches = [watched] = [Watched(left_out=23)]
    run.go(60)
    assert "23 marked functions found no room" == watched.found.refused
    assert watched.found.functions[0][1].calls > 0


def test_without_series_hooks_go_out(run: SimpleNamespace):
    """
    What was shown is shown no more; with another number all begins anew.
    """
    run.watches = [watched] = [Watched()]
    run.go(10)
    assert watched.found.windows
    spent = watched.spent
    run.config.marks = 0
    run.go(10)
    assert (MarksReading(), 1) == (watched.found, watched.closed)
    run.config.marks = 20
    run.go(10)
    assert spent < watched.spent  # what was spent before is not earned again
    assert (2, True) == (watched.made, watched.found.windows > 0)


def test_failures_are_shown_and_end(run: SimpleNamespace):
    """
    A window that fails shows its reason, and is tried again; an unexpected error is counted.
    """
    run.watches = [watched] = [Watched(planned=[ReadRefusedError("no table"), KeyError("x")])]
    run.go(1)
    assert ("no table", 1) == (watched.found.refused, watched.closed)
    run.go(100)
    assert ("KeyError('x')", {"snapshot": 1}) == (watched.found.refused, dict(run.errors))
    run.go(100)
    assert ("", True) == (watched.found.refused, watched.found.windows > 0)


def test_a_vm_that_hangs_is_dropped(run: SimpleNamespace):
    """
    One that has ended is the loop's to drop.
    """
    error = NoAnswerError("its memory hangs")
    run.watches = [hanging, gone] = [
        Watched(1, planned=[error]),
        Watched(2, planned=[NoSuchProcessError("gone")]),
    ]
    run.go(1)
    assert (error, None) == (hanging.error, gone.error)


def test_names_are_bounded_and_the_rest_is_other():
    """
    Sixty series are thirteen functions and the others; each call is somewhere.
    """
    sums, page = MarkSums(60), Page()
    for look in range(50):
        calls = {f"m:f{n + look}/1": Calls(n + 1.0) for n in range(100)} | {"": Calls(1000.0)}
        found = sums.add(calls, 1.0, float(look), 0.1)
    assert len(found.functions) <= 14
    assert "" not in dict(found.functions)
    assert 50 * 1000 < dict(found.functions)["other"].calls
    expose_marks(page, "shop", found)
    series = [
        sample
        for family in page.families()
        for sample in family.samples
        if sample.labels.get("node") == "shop"
    ]
    assert len(series) <= 60
