# SPDX-License-Identifier: Apache-2.0
"""
How well the totals of an event are known, before, in and after a burst.
"""

from __future__ import annotations

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.budget.measures import Mark
from scope_ebpf.budget.totals import Totals
from scope_ebpf.budget.windows import Closed
from scope_ebpf.metrics.reading import COUNTS
from scope_ebpf.plan import Item

ITEM = Item("exit", "symbol", "", (), "")


def counted(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    """
    What the kernel has counted by now, by class.
    """
    tallies = np.zeros(events.CLASSES, events.TALLY)
    tallies["count"][: len(counts)] = counts
    return tallies, np.zeros(events.CLASSES, events.DURATIONS)


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
