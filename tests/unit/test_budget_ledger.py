# SPDX-License-Identifier: Apache-2.0
"""
The counts of a run: exact where everything was counted, else from windows, with the error.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.budget.ledger import Ledger
from scope_ebpf.budget.reference_counters import CounterSample
from scope_ebpf.budget.windows import ClosedWindow

SECOND = 1_000_000_000


class Counters:
    """
    Reference counters whose values are given.
    """

    def growth(self, event: str, since: int, until: int) -> float:
        return float(until - since)


class Kernel:
    """
    The maps of one event, which only grow.
    """

    def __init__(self, event: str) -> None:
        self._classes = events.KINDS[event].classes
        self._tallies = np.zeros(events.CLASSES, events.COUNTERS)
        self._durations = np.zeros(events.CLASSES, events.HISTOGRAM)

    def count(self, **classes: int) -> tuple[np.ndarray, np.ndarray]:
        for name, count in classes.items():
            self._tallies["count"][self._classes.index(name)] += count
        return self._tallies.copy(), self._durations.copy()


def mark(seconds: float, value: float, second: float | None = None) -> CounterSample:
    other = None if second is None else round(second)
    return CounterSample(round(seconds * SECOND), round(value), other)


def begun(event: str, *, in_windows: bool = False, second: float | None = None) -> Ledger:
    ledger = Ledger([event], Counters())
    ledger.begin({event: mark(0, 0, second)}, [event] if in_windows else [])
    return ledger


def test_what_is_always_counted_is_exact():
    """
    An event whose hooks stay in has its count, without an error, for all of the time.
    """
    ledger, kernel = begun("send"), Kernel("send")
    ledger.exact("send", kernel.count(local=7), mark(1, 10))
    ledger.opened("send", mark(2, 20))
    ledger.end("send", kernel.count(local=4, remote=2), mark(3, 30))
    result = ledger.result("send")
    assert (11, 2) == tuple(result.totals[:2])
    assert (0.0, 1.0) == (result.error_ratio, result.sampling_ratio)


def test_windows_stand_for_the_time_between_them():
    """
    Windows with two events for each step of the counter give two for each step of all the time.
    """
    ledger, kernel = begun("send", in_windows=True), Kernel("send")
    rng = random.Random(1)
    for n in range(20):
        growth = rng.randint(90, 110)
        closed = ClosedWindow(0.003, growth, growth / 0.003)
        ledger.window("send", kernel.count(local=2 * growth), closed)
        ledger.estimated("send", mark(0.5 * n, 1000 * n))
    ledger.end("send", None, mark(10, 20_000))
    result = ledger.result("send")
    assert 40_000 == pytest.approx(result.totals[0], rel=0.01)
    assert 0 < result.error_ratio < 0.05
    assert 20 * 0.003 / 10 == pytest.approx(result.sampling_ratio)


def test_the_second_counter_is_better_where_a_program_alternates():
    """
    Events that are proportional to the second counter only have a small error, though the first one
    is hardly related to them.
    """
    ledger, kernel = begun("send", in_windows=True, second=0), Kernel("send")
    rng = random.Random(1)
    for _ in range(30):
        talks = rng.random() < 0.5
        growth, switches = (3000, rng.randint(95, 105)) if talks else (3000, 0)
        rates = (growth / 0.003, switches / 0.003)
        closed = ClosedWindow(0.003, growth, rates[0], switches, rates[1])
        ledger.window("send", kernel.count(local=switches), closed)
    ledger.end("send", None, mark(10, 10_000_000, 100_000))
    result = ledger.result("send")
    assert 100_000 == pytest.approx(result.totals[0], rel=0.1)
    assert result.error_ratio < 0.1


def test_counters_that_contradict_each_other_are_uncertain():
    """
    Where the totals by the two counters differ by more than their errors, the first one is taken
    and the difference is its error.
    """
    ledger, kernel = begun("send", in_windows=True, second=0), Kernel("send")
    for _ in range(20):
        closed = ClosedWindow(0.003, 100, 100 / 0.003, 100, 100 / 0.003)
        ledger.window("send", kernel.count(local=100), closed)
    ledger.end("send", None, mark(10, 10_000, 20_000))
    result = ledger.result("send")
    assert 10_000 == pytest.approx(result.totals[0], rel=0.01)
    assert result.error_ratio == pytest.approx(1.0, abs=0.01)


def test_an_exhausted_quota_turns_exact_into_estimated():
    """
    Counts from before the hooks were detached are exact, so only the rest has an error.
    """
    ledger, kernel = begun("send"), Kernel("send")
    ledger.exact("send", kernel.count(local=1000), mark(4, 500))
    ledger.exhausted("send", kernel.count(local=1000), mark(5, 1000))
    for n in range(20):
        count = 200 + n % 2 * 20
        ledger.window("send", kernel.count(local=count), ClosedWindow(0.003, 100, 100 / 0.003))
    ledger.end("send", None, mark(6, 2000))
    result = ledger.result("send")
    assert 2000 + 2100 == pytest.approx(result.totals[0], rel=0.01)
    assert 0 < result.error_ratio < 0.05
    assert 5 / 6 == pytest.approx(result.sampling_ratio, abs=0.02)


def test_without_a_window_the_rate_before_is_taken():
    """
    An event whose quota was exhausted at the very end has an error as large as that estimate.
    """
    ledger, kernel = begun("send"), Kernel("send")
    ledger.exhausted("send", kernel.count(local=1000), mark(9, 500))
    ledger.end("send", None, mark(10, 600))
    result = ledger.result("send")
    assert 1200 == pytest.approx(result.totals[0])
    assert 200 / 1200 == pytest.approx(result.error_ratio)


def test_an_event_without_windows_is_uncertain():
    """
    An event that was to be counted in windows, and had none, has an error of 100 %.
    """
    ledger = begun("send", in_windows=True)
    ledger.end("send", None, mark(1, 100))
    result = ledger.result("send")
    assert (1.0, 0.0) == (result.error_ratio, result.sampling_ratio)


def test_hooks_that_become_permanent_count_exactly_again():
    """
    The time before is estimated from windows; from then on the count is exact.
    """
    ledger, kernel = begun("send", in_windows=True), Kernel("send")
    for n in range(10):
        count = 100 + n % 2 * 4
        ledger.window("send", kernel.count(local=count), ClosedWindow(0.003, 100, 100 / 0.003))
    ledger.opened("send", mark(5, 5000))
    ledger.end("send", kernel.count(local=77), mark(10, 5100))
    assert 5100 + 77 == pytest.approx(ledger.result("send").totals[0], rel=0.01)


def test_the_vms_own_count_is_exact_and_windows_give_its_classes():
    """
    The classes are shares of the VM's own number, as in the windows.
    """
    ledger, kernel = begun("gc", in_windows=True), Kernel("gc")
    for n in range(12):
        count = 30 + n % 2 * 2
        closed = ClosedWindow(0.003, 40, 40 / 0.003)
        ledger.window("gc", kernel.count(minor=count, major=count // 3), closed)
    ledger.end("gc", None, mark(10, 4000))
    result = ledger.result("gc", known=4321)
    classes = events.KINDS["gc"].classes
    minor, major = (result.totals[classes.index(name)] for name in ("minor", "major"))
    assert (0.0, 4321) == (result.error_ratio, pytest.approx(minor + major))
    assert 3 == pytest.approx(minor / major, rel=0.05)


def test_windows_that_saw_none_do_not_make_the_error_zero():
    """
    After a burst windows saw nothing: of ten, three tenths of the time may still be as before.
    """
    ledger, kernel = begun("send"), Kernel("send")
    ledger.exhausted("send", kernel.count(local=1000), mark(1, 1000))
    for _ in range(10):
        ledger.window("send", kernel.count(), ClosedWindow(0.003, 100, 100 / 0.003))
    ledger.end("send", None, mark(2, 2000))
    result = ledger.result("send")
    assert 1000 == result.totals[0]
    assert 0.3 == pytest.approx(result.error_ratio)


def test_a_long_run_without_windows_is_bounded():
    """
    Steps that are joined in pairs have the same sums.
    """
    ledger, kernel = begun("send", in_windows=True, second=0), Kernel("send")
    for n in range(5):
        closed = ClosedWindow(0.003, 100 + n, 100 / 0.003, 100 + n, 100 / 0.003)
        ledger.window("send", kernel.count(local=100 + n), closed)
    for n in range(1, 5000):
        ledger.estimated("send", mark(0.1 * n, 10 * n, 10 * n))
    ledger.end("send", None, mark(500, 50_000, 50_000))
    assert 50_000 == pytest.approx(ledger.result("send").totals[0], rel=0.02)
