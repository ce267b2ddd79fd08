# SPDX-License-Identifier: Apache-2.0
"""
Estimates of calls that nothing counted.
"""

from __future__ import annotations

import random

import pytest

from scope_ebpf.results.call_gaps import SPAN, Gap, Gaps, Missing, estimate

_MS = 1_000_000
_AT = 10 * SPAN


def missing_in(calls: list[int], gap: Gap, *, until: int = _AT + SPAN) -> Missing:
    """
    The estimate of *gap*, with *calls* at these times.
    """
    gaps = Gaps()
    for at in (at for at in calls if at < gap.end_ns):
        gaps.called("m:f/1", at)
    gaps.add(gap)
    assert not gaps.close(gap.end_ns + gap.span_ns - 1)
    for at in (at for at in calls if gap.end_ns <= at < until):
        gaps.called("m:f/1", at)
    ((of, missing),) = gaps.close(until, last=until < gap.end_ns + gap.span_ns)
    assert gap == of
    return missing


def gap_of(milliseconds: int) -> Gap:
    """
    A gap of the second version that ends at ``_AT``.
    """
    return Gap("m:f/1", 2, _AT, milliseconds * _MS)


def test_a_steady_function_is_missed_as_often_as_its_pace_says():
    """
    A call each millisecond: of a gap of 4 ms, four calls or fewer are missing.
    """
    calls = [at for at in range(_AT - SPAN - 4 * _MS, _AT + SPAN, _MS) if not 0 < _AT - at <= 4e6]
    assert Missing(4, 4) == missing_in(calls, gap_of(4))


def test_what_two_gaps_share_is_missing_once():
    """
    Two versions in one gap, and a third whose gap begins in it: 4 ms and 2 ms more are missing.
    """
    gaps = Gaps()
    for at in range(_AT - 2 * SPAN, _AT - 4 * _MS, _MS):
        gaps.called("m:f/1", at)
    for version, end, most in ((2, 0, 4), (3, 0, 4), (4, 2, 5)):
        gaps.add(Gap("m:f/1", version, _AT + end * _MS, most * _MS))
    found = gaps.close(0, last=True)
    assert [(2, 4 * _MS), (4, 2 * _MS)] == [(gap.version, gap.most_ns) for gap, _ in found]
    assert 6 == sum(missing.calls for _, missing in found)
    gaps.add(Gap("m:g/1", 2, _AT, 4 * _MS))
    assert 1 == len(gaps.close(0, last=True))


@pytest.mark.parametrize("side", [-1, 1])
def test_the_busier_side_of_a_gap_counts(side: int):
    """
    A function whose calls began or ended in the gap may have calls in it.
    """
    calls = [_AT + side * (5 * _MS + n * _MS) for n in range(90)]
    assert missing_in(sorted(calls), gap_of(4)).calls >= 3


def test_a_burst_may_have_fallen_into_a_gap():
    """
    A function that was called 60 times in 30 ms long before a gap of 20 ms may have been in it.
    """
    missing = missing_in([_AT - 30 * SPAN + n * _MS // 2 for n in range(60)], gap_of(20))
    assert 40 <= missing.calls + missing.error <= 60


def test_one_call_may_be_missing_of_what_nobody_calls():
    """
    Without calls beside it a gap has none, but for one that came in it.
    """
    assert Missing(0, 1) == missing_in([], gap_of(40))


def test_a_run_that_ends_soon_after_a_gap_tells_what_it_knows():
    """
    At the end of a run the calls until then are taken.
    """
    calls = [_AT + n * _MS for n in range(20)]
    assert missing_in(calls, gap_of(4), until=_AT + 20 * _MS).calls >= 3


def test_what_is_missing_is_told_with_its_error():
    """
    Of calls at random times in gaps that are shorter than what is known of them, 19 of 20 at least
    are within.
    """
    rng = random.Random(1)
    within = 0
    for _ in range(400):
        rate, most = rng.uniform(10, 3000), rng.uniform(0.0005, 0.01)
        in_truth = rng.uniform(0, most)
        count = sum(rng.random() < rate * in_truth / 1000 for _ in range(1000))
        found = estimate(most, rate)
        within += abs(found.calls - count) <= found.error
    assert within >= 380


def test_long_runs_keep_no_calls_of_long_ago():
    """
    Of 200,000 calls some thousands are kept, and the pace before a gap is known all the same.
    """
    gaps = Gaps()
    for number in range(200_000):
        gaps.called("m:f/1", number * _MS)
    assert sum(map(len, gaps._calls.values())) < 3000
    gaps.add(Gap("m:f/1", 2, 200_004 * _MS, 4 * _MS))
    assert [Missing(4, 4)] == [missing for _, missing in gaps.close(0, last=True)]
