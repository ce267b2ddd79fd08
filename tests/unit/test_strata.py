# SPDX-License-Identifier: Apache-2.0
"""
Counts of runs that were observed in part, against planted ones.
"""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest

from scope_ebpf.budget.strata import Estimate, Strata, Whole


def test_what_was_observed_in_full_is_exact():
    """
    No error, and a key that came later counts from then on.
    """
    strata = Strata()
    strata.census({b"a": 23}, 4.0, None)
    strata.census({b"a": 30, b"b": 7}, 6.0, None)
    assert {b"a": Estimate(30, 0), b"b": Estimate(7, 0)} == strata.estimates(Whole(10.0, None))
    assert 10.0 == strata.seconds


def test_time_that_nobody_observed_is_doubtful_in_whole():
    """
    What came in a gap is as the rest was, and the error is the part that it has.
    """
    strata = Strata()
    strata.census({b"a": 90}, 9.0, None)
    assert Estimate(100.0, pytest.approx(0.1)) == strata.estimates(Whole(10.0, None))[b"a"]


def test_windows_alone_are_scaled_up():
    """
    A count in one window only has an error of 100 %; one that never came is not there.
    """
    strata = Strata()
    for n in range(1, 6):
        strata.window({b"a": 10 * n, b"b": 5}, 1.0, None)
    found = strata.estimates(Whole(50.0, None))
    assert 500 == found[b"a"].number
    assert (0.9 / 50) ** 0.5 == pytest.approx(found[b"a"].error)
    assert Estimate(50.0, pytest.approx(0.9**0.5)) == found[b"b"]


def test_windows_beside_time_that_was_observed_in_full():
    """
    Only the time outside is estimated, and only its part is doubtful.
    """
    strata = Strata()
    strata.census({b"a": 1000}, 5.0, None)
    strata.window({b"a": 1100}, 0.5, None)
    strata.window({b"a": 1200}, 0.5, None)
    count, error = strata.estimates(Whole(10.0, None))[b"a"]
    assert 2000 == pytest.approx(count)
    assert 0.5 * (0.8 / 200) ** 0.5 == pytest.approx(error)


def test_a_count_that_falls_began_anew():
    """
    As one of a row that was removed meanwhile, in full and in windows: no estimate is below 0.
    """
    strata = Strata()
    strata.census({b"a": 10_000}, 5.0, None)
    strata = strata.following()
    strata.census({b"a": 23}, 5.0, None)
    assert Estimate(23, 0) == strata.estimates(Whole(5.0, None))[b"a"]
    strata = strata.following()
    strata.window({b"a": 7}, 1.0, None)
    strata.window({b"a": 19}, 1.0, None)
    assert Estimate(19, 0) == strata.estimates(Whole(2.0, None))[b"a"]


def test_what_windows_saw_nothing_of_is_no_exact_count():
    """
    One event in what was observed in full, none in windows of a tenth of the rest: there may be
    some in the other nine tenths, and none where windows were all of it.
    """
    strata = Strata()
    strata.census({b"a": 1, b"b": 1000}, 1.0, None)
    for _ in range(3):
        strata.window({b"a": 1, b"b": 1000}, 2.0, None)
    found = strata.estimates(Whole(61.0, None))
    assert Estimate(1, pytest.approx(10)) == found[b"a"]
    assert Estimate(1000, pytest.approx(0.01)) == found[b"b"]
    assert Estimate(1, 0) == strata.estimates(Whole(7.0, None))[b"a"]


def test_the_error_of_what_is_rare_reaches_the_truth():
    """
    Of 200 runs with twelve events in a minute, counted in full for a second and in windows of a
    tenth, the truth is within two errors in 180 and more.
    """
    draw, within, runs = random.Random(23), 0, 0
    while runs < 200:
        events = sorted(draw.uniform(0, 61) for _ in range(12))
        full = bisect_left(events, 1.0)
        if not full:
            continue
        strata, seen = Strata(), full
        strata.census({b"a": seen}, 1.0, None)
        for number in range(6):
            at = 1 + 10 * number + draw.uniform(0, 9)
            seen += bisect_left(events, at + 1) - bisect_left(events, at)
            strata.window({b"a": seen}, 1.0, None)
        count, error = strata.estimates(Whole(61.0, None))[b"a"]
        within += abs(count - len(events)) <= 2 * error * count
        runs += 1
    assert within >= 180


def test_hooks_that_slow_a_vm_down_are_scaled_by_its_work():
    """
    Half as many events in windows in which the VM worked half as fast are as many as outside.
    """
    strata = Strata()
    for n in range(1, 11):
        strata.window({b"a": 50 * n}, 1.0, 500.0)
    whole = Whole(100.0, 95_000.0)
    assert 5000 == strata.estimates(whole)[b"a"].number
    count, error = strata.estimates(whole, by_work=True)[b"a"]
    assert 9500 == pytest.approx(count)
    assert error > 0.2  # of 9,500 and 5,000 either may be right
    assert 0.9 < strata.estimates(Whole(100.0, None), by_work=True)[b"a"].error


def test_windows_that_came_when_the_vm_was_idle_are_scaled_by_its_work():
    """
    A burst uses the budget up, so windows come when it is over: time would give a fifth.
    """
    strata = Strata()
    strata.census({b"a": 150}, 1.5, 15e6)
    seen, windows = 150, 12
    for _ in range(windows):
        seen += 1
        strata.window({b"a": seen}, 1.0, 0.1e6)
    # 8 s of the burst were in no window: 700 events, and the work that they are.
    found = strata.estimates(Whole(1.5 + windows + 8.0, 15e6 + windows * 0.1e6 + 70e6))[b"a"]
    truth = 150 + windows + 700
    assert abs(found.number - truth) <= 2 * found.error * found.number
    assert found.number > truth / 2


@pytest.mark.parametrize("burst", [0.0, 0.8])
def test_the_error_says_how_far_estimates_are_from_the_truth(burst: float):
    """
    Of 200 runs with events in bursts or without, 190 or so are within two errors: more than 170.
    """
    draw, within = random.Random(23), 0
    for _ in range(200):
        events, now, end = [], 0.0, 100.0
        while now < end:
            now += draw.expovariate(4.0)
            many = 1 + (draw.randrange(10) if draw.random() < burst else 0)
            events += [now + draw.random() / 10 for _ in range(many)]
        events.sort()
        strata, at, seen = Strata(), 0.0, 0
        while at + 1 < end:
            at += draw.uniform(0.0, 6.0)
            seen += bisect_left(events, at + 1) - bisect_left(events, at)
            strata.window({b"a": seen}, 1.0, None)
            at += 1
        count, error = strata.estimates(Whole(at, None))[b"a"]
        within += abs(count - bisect_left(events, at)) <= 2 * error * count
    assert 170 < within < 200
