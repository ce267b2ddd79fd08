# SPDX-License-Identifier: Apache-2.0
"""
Totals from windows, held against totals that are known.
"""

import numpy as np
import pytest

from scope_ebpf.budget.estimate import WINDOWS, Estimate, PartTime
from scope_ebpf.budget.fits import quantile

#: Seeds of the simulated minutes.
SEEDS = range(600)


def minute(seed: int) -> tuple[float, float, float]:
    """
    A minute of bursts at a rate that wanders, seen in 40 windows of 10 ms: estimate, truth, error.
    """
    rng = np.random.default_rng(seed)
    switches = rng.gamma(2.0, 1000.0, 6000)  # context switches in each 10 ms
    sends = rng.poisson(switches * rng.gamma(20.0, 0.1, 6000))
    estimate = Estimate(1, 1)
    for index in rng.choice(6000, WINDOWS, replace=False):
        estimate.window(np.array([float(sends[index])]), switches[index], 0.01)
    estimate.advance(float(switches.sum()), 60.0)
    return float(estimate.total[0]), float(sends.sum()), estimate.error_ratio()


def test_totals_are_within_their_stated_error():
    """
    In 95 of 100 simulated minutes the truth is where the stated error says it is.

    Of so many that may be less by three times their scatter, which is 0.9 %.
    """
    minutes = [minute(seed) for seed in SEEDS]
    within = [abs(found - truth) <= error * found for found, truth, error in minutes]
    assert sum(within) >= 0.923 * len(SEEDS)
    assert np.median([error for _, _, error in minutes]) < 0.12


def test_a_slow_window_is_no_lower_rate():
    """
    Hooks that halve the target's speed in a window halve the growth of its counter too.
    """
    estimate = Estimate(1, 1)
    for slowness in (0.5, 0.8, 0.6):
        estimate.window(np.array([1000.0 * slowness]), 2000.0 * slowness, 1.0)
    assert estimate.advance(60_000.0, 60.0)
    assert estimate.total[0] == pytest.approx(30_000)


def test_what_is_always_counted_is_exact():
    """
    Counts of an event that is always on are added as they are.
    """
    estimate = Estimate(3, 2)
    estimate.exact(np.array([1.0, 2.0, 0.5]))
    estimate.exact(np.array([1.0, 0.0, 0.5]))
    assert [2.0, 2.0, 1.0] == estimate.total.tolist()


def test_nothing_is_made_up_before_the_first_window():
    """
    Without a window there is no rate: nothing is added, and the result says so.
    """
    estimate = Estimate(1, 1)
    assert not estimate.advance(1000.0, 1.0)
    assert [0.0] == estimate.total.tolist()
    assert estimate.error_ratio() == 1.0


def test_the_first_window_stands_for_the_time_before_it():
    """
    What was seen before the hooks came out is too little to go by; the next window is not.
    """
    estimate = Estimate(1, 1)
    estimate.begin(np.array([50.0]), 100.0)
    assert not estimate.advance(1000.0, 1.0)
    estimate.window(np.array([10.0]), 10.0, 0.01)
    assert estimate.advance(1000.0, 1.0)
    assert [1000.0] == estimate.total.tolist()


def test_a_burst_that_is_over_is_not_forgotten():
    """
    Where nothing happens any more, the rate before the hooks came out is all that is known.
    """
    estimate = Estimate(1, 1)
    estimate.begin(np.array([50.0]), 100.0)
    for _ in range(3):
        estimate.window(np.array([0.0]), 0.0, 0.01)
    assert estimate.advance(1000.0, 1.0)
    assert [500.0] == estimate.total.tolist()


def test_too_few_windows_have_an_error_of_one():
    """
    Two windows say nothing about how windows differ.
    """
    estimate = Estimate(1, 1)
    for _ in range(2):
        estimate.window(np.array([100.0]), 10.0, 0.01)
    assert estimate.error_ratio() == 1.0
    estimate.window(np.array([100.0]), 10.0, 0.01)
    assert estimate.error_ratio() < 1.0


def test_one_window_with_events_among_empty_ones_has_an_error_of_one():
    """
    Beside hogs the VM may do nothing in most windows: without the one in which it did, there is no
    rate.
    """
    estimate = Estimate(1, 1)
    for growth in (0.0, 100.0, 0.0):
        estimate.window(np.array([growth]), growth, 0.01)
    assert estimate.advance(1000.0, 1.0)
    assert estimate.total[0] > 0
    assert estimate.error_ratio() == 1.0


def test_more_windows_never_make_the_quantile_larger():
    """
    The quantile falls with the number of windows, and stays above that of a normal spread.
    """
    values = [quantile(freedom) for freedom in range(1, 200)]
    assert values == sorted(values, reverse=True)
    assert values[-1] > 1.96


@pytest.mark.parametrize(("known", "low"), [(True, False), (False, True)])
def test_slow_windows_count_for_the_time_that_they_stand_for(known, low):
    """
    Half of the time has events, and its windows are slowed down to a quarter: with the rate of the
    counter before them the total is right, and without it too low.
    """
    estimate = Estimate(1, 1)
    for number in range(WINDOWS):
        busy = number % 2
        growth = 250.0 if busy else 1000.0
        seen = np.array([0.1 * growth * busy])
        estimate.window(seen, growth, 0.01, 100_000.0 if known else None)
    assert estimate.advance(1_000_000.0, 10.0)
    assert (estimate.total[0] < 25_000) == low
    if known:
        assert estimate.total[0] == pytest.approx(50_000)
        assert estimate.error_ratio() < 0.5


def seen(*counts: int) -> np.ndarray:
    return np.array(counts, np.uint64)


def test_what_is_counted_all_the_time_is_exact():
    """
    Nothing is added to what was seen, and what is less for a moment is no fall.
    """
    totals = PartTime((2,), 5.0, 105.0)
    for second, counts in enumerate(((3, 1), (10, 0), (17, 9)), 1):
        totals.add(seen(*counts), 5.0 + second, 105.0 + second)
    assert [17, 9] == totals.total.tolist()


def test_totals_grow_at_their_last_rate_while_nothing_is_counted():
    """
    A pause of eight seconds has four times what was seen in the two before it; what is seen after
    it counts as it is.
    """
    totals = PartTime((1,), 0.0, 0.0)
    totals.add(seen(20), 2.0, 2.0)
    for now in (3.0, 6.0, 10.0):
        totals.add(seen(20), 2.0, now)
    assert [100] == totals.total.tolist()
    totals.add(seen(27), 3.0, 11.0)
    assert [107] == totals.total.tolist()


def test_a_rate_of_half_a_reading_holds_for_its_other_half():
    """
    Counting ended within the reading: its rate is that of the time in which it was counted.
    """
    totals = PartTime((1,), 0.0, 0.0)
    totals.add(seen(10), 1.0, 2.0)
    assert [20] == totals.total.tolist()


def test_one_short_reading_does_not_decide_how_it_goes_on():
    """
    Of two seconds each part counts for as much as it is long.
    """
    totals = PartTime((1,), 0.0, 0.0)
    for quarter in range(1, 9):
        counts = 25 * quarter - (25 if quarter == 8 else 0)  # the last is not counted yet
        totals.add(seen(counts), quarter / 4, quarter / 4)
    totals.add(seen(175), 2.0, 12.0)
    assert totals.total.tolist() == pytest.approx([175 + 875])
