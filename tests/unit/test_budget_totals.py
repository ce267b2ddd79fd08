# SPDX-License-Identifier: Apache-2.0
"""
The error of an event's totals before, in and after a burst.
"""

from __future__ import annotations

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.attach.plan import Item
from scope_ebpf.budget.reference_counters import CounterSample
from scope_ebpf.budget.totals import Totals
from scope_ebpf.budget.windows import ClosedWindow
from scope_ebpf.metrics.columns import COUNTS

ITEM = Item("exit", "symbol", "", (), "")


def counted(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    """
    What the kernel has counted by now, by class.
    """
    tallies = np.zeros(events.CLASSES, events.COUNTERS)
    tallies["count"][: len(counts)] = counts
    return tallies, np.zeros(events.CLASSES, events.HISTOGRAM)


def test_the_error_of_a_burst_stays_when_everything_is_counted_again():
    """
    60 of 100 exits in a burst were counted; the classes of the others remain estimates.
    """
    totals = Totals(["exit"], lambda _, since, until: float(until - since))
    totals.opened("exit", CounterSample(0, 0))
    totals.exact("exit", counted(10), CounterSample(10**9, 10))
    reading = totals.reading("exit", ITEM, "always", 1.0)
    assert (1.0, 0.0) == (reading.sampling_ratio, reading.error_ratio)
    totals.exhausted("exit", counted(70), CounterSample(2 * 10**9, 70))
    for _ in range(3):  # nothing happens any more
        totals.window("exit", counted(70), ClosedWindow(0.01, 0.0, None))
    totals.estimated("exit", CounterSample(3 * 10**9, 110))
    totals.exact("exit", counted(70), CounterSample(4 * 10**9, 110))
    reading = totals.reading("exit", ITEM, "always", 1.0)
    assert 110 == pytest.approx(reading.totals[:COUNTS].sum())
    assert 40 / 110 == pytest.approx(reading.error_ratio)


def burst(event: str, seen: int, counted_by_vm: int, more: int) -> Totals:
    """
    Totals of *event* after a burst: *seen* until the hooks were detached, its counter having grown
    by *counted_by_vm*; it grew by *more* before the first of three windows, which are all empty.
    """
    totals = Totals([event], lambda _, since, until: float(until - since))
    totals.opened(event, CounterSample(0, 0))
    totals.exact(event, counted(0), CounterSample(10**9, 0))
    totals.exhausted(event, counted(seen), CounterSample(2 * 10**9, counted_by_vm))
    for _ in range(3):
        totals.window(event, counted(seen), ClosedWindow(0.01, 0.0, None))
    totals.estimated(event, CounterSample(3 * 10**9, counted_by_vm + more))
    return totals


def test_a_burst_of_an_event_that_the_vm_counts_is_exact_in_number():
    """
    Of 3,000 ports 63 were seen when the VM had counted 64: there were 3,000, and not 2,953.
    """
    totals = burst("port_open", 63, 64, 2936)
    reading = totals.reading("port_open", ITEM, "always", 1.0)
    assert 3000 == pytest.approx(reading.totals[:COUNTS].sum())
    assert 2937 / 3000 == pytest.approx(reading.error_ratio)


def test_a_burst_whose_counter_runs_ahead_is_uncertain():
    """
    3,500 processes of which 562 were spawned when 127 had ended: the estimate of 791 is uncertain.
    """
    totals = burst("exit", 127, 562, 2938)
    reading = totals.reading("exit", ITEM, "always", 1.0)
    assert 127 < reading.totals[:COUNTS].sum() < 1000
    assert 1.0 == reading.error_ratio
