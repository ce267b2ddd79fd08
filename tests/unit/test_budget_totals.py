# SPDX-License-Identifier: Apache-2.0
"""
How well the totals of an event are known, before, in and after a burst.
"""

from __future__ import annotations

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.attach.plan import Item
from scope_ebpf.budget.reference_counters import Mark
from scope_ebpf.budget.totals import Totals
from scope_ebpf.budget.windows import Closed
from scope_ebpf.metrics.reading import COUNTS

ITEM = Item("exit", "symbol", "", (), "")


def counted(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    """
    What the kernel has counted by now, by class.
    """
    tallies = np.zeros(events.CLASSES, events.COUNTERS)
    tallies["count"][: len(counts)] = counts
    return tallies, np.zeros(events.CLASSES, events.HISTOGRAM)


def test_what_a_burst_left_to_be_estimated_is_told_when_all_is_counted_again():
    """
    Of 100 exits in a burst 60 were counted; that their classes are guesses stays to be told.
    """
    totals = Totals(["exit"], lambda _, since, until: float(until - since))
    totals.opened("exit", Mark(0, 0))
    totals.exact("exit", counted(10), Mark(10**9, 10))
    reading = totals.reading("exit", ITEM, "always", 1.0)
    assert (1.0, 0.0) == (reading.sampling_ratio, reading.error_ratio)
    totals.tripped("exit", counted(70), Mark(2 * 10**9, 70))
    for _ in range(3):  # nothing happens any more
        totals.window("exit", counted(70), Closed(0.01, 0.0, None))
    totals.estimated("exit", Mark(3 * 10**9, 110))
    totals.exact("exit", counted(70), Mark(4 * 10**9, 110))
    reading = totals.reading("exit", ITEM, "always", 1.0)
    assert 110 == pytest.approx(reading.totals[:COUNTS].sum())
    assert 40 / 110 == pytest.approx(reading.error_ratio)


def burst(event: str, seen: int, measured: int, more: int) -> Totals:
    """
    Totals of *event* after a burst: *seen* until the hooks went out, by when its measure had gone
    on by *measured*; and it went on by *more* before the first of three windows, all empty.
    """
    totals = Totals([event], lambda _, since, until: float(until - since))
    totals.opened(event, Mark(0, 0))
    totals.exact(event, counted(0), Mark(10**9, 0))
    totals.tripped(event, counted(seen), Mark(2 * 10**9, measured))
    for _ in range(3):
        totals.window(event, counted(seen), Closed(0.01, 0.0, None))
    totals.estimated(event, Mark(3 * 10**9, measured + more))
    return totals


def test_a_burst_of_what_the_vm_counts_is_told_by_that():
    """
    Of 3,000 ports 63 were seen when the VM had counted 64: there were 3,000, and not 2,953.
    """
    totals = burst("port_open", 63, 64, 2936)
    reading = totals.reading("port_open", ITEM, "always", 1.0)
    assert 3000 == pytest.approx(reading.totals[:COUNTS].sum())
    assert 2937 / 3000 == pytest.approx(reading.error_ratio)


def test_a_burst_whose_measure_runs_ahead_is_not_told_to_be_known():
    """
    3,500 processes of which 562 were spawned when 127 had ended: what seems to be 791 is not known.
    """
    totals = burst("exit", 127, 562, 2938)
    reading = totals.reading("exit", ITEM, "always", 1.0)
    assert 127 < reading.totals[:COUNTS].sum() < 1000
    assert 1.0 == reading.error_ratio
