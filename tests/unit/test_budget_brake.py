# SPDX-License-Identifier: Apache-2.0
"""
When a run ends by itself because it costs too much, and what is said of that before.
"""

from __future__ import annotations

from functools import partial
from operator import mul

import pytest

from scope_ebpf.budget.brake import MIN_CPUS, SPAN, Brake, share_of
from scope_ebpf.budget.forecast import Forecast, Span, expected, rounded


def ended(brake: Brake, cost: float, cpus: float, seconds: float = 10.0) -> float | None:
    """
    When *brake* ends a run that takes *cost* seconds of *cpus* in each second; None if never.
    """
    for step in range(round(seconds * 10) + 1):
        now = step / 10
        if brake.add(now, partial(mul, cost, now), cpus * now):
            return now
    return None


@pytest.mark.parametrize(
    ("most", "cost", "cpus", "expected"),
    [
        (0.2, 0.19, 1.0, None),
        (0.2, 0.21, 1.0, SPAN),
        (0.2, 0.79, 4.0, None),
        (0.2, 0.81, 4.0, SPAN),
        (None, 9.0, 1.0, None),
        (0.2, 0.19 * MIN_CPUS, 0.001, None),  # of an idle VM any hit is a large part
        (0.2, 0.21 * MIN_CPUS, 0.001, SPAN),
    ],
)
def test_a_run_ends_when_it_costs_more_than_it_may(most, cost, cpus, expected):
    """
    A run ends a second after its cost passes its bound, which is a part of the CPU that the VM
    uses, and never below.
    """
    assert expected == pytest.approx(ended(Brake(most), cost, cpus))


def test_a_short_burst_ends_nothing():
    """
    What costs too much for less than a second, and little over the second, goes on.
    """
    brake = Brake(0.2)
    cost = [0.0, 0.1, *[0.15] * 40]
    assert not any(
        brake.add(step / 10, partial(float, spent), step / 10) for step, spent in enumerate(cost)
    )


def test_a_cost_that_comes_later_is_seen_within_a_second_and_a_bit():
    """
    After ten quiet seconds a cost of half the CPU ends it in less than a second and a half.
    """
    brake = Brake(0.2)
    assert not any(brake.add(step / 10, float, step / 10) for step in range(100))
    looks = [(10 + step / 10, step / 20) for step in range(15)]
    assert any(brake.add(now, partial(float, spent), now) for now, spent in looks)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, 0), (0.4, 0), (7.4, 7), (123, 120), (614_732, 610_000), (999_999, 1_000_000)],
)
def test_a_forecast_has_two_digits(number: float, expected: int):
    """
    What is said before is no more exact than it can be.
    """
    assert expected == rounded(number)


def test_a_forecast_says_share_and_hits():
    """
    The sentence that a person reads.
    """
    said = "about 41% of the target's CPU: 610,000 hits a second"
    assert said == str(Forecast(0.412, 614_732))


@pytest.mark.parametrize(
    ("cost", "used", "expected"),
    [(0.0, 1.0, 0.0), (0.25, 0.5, 0.5), (0.9, 0.5, 1.0), (0.0, 0.0, 0.0), (0.1, 0.0, 0.0)],
)
def test_a_cost_is_a_part_of_what_the_target_used(cost: float, used: float, expected: float):
    """
    No share is more than all of it, and of nothing there is none.
    """
    assert expected == share_of(cost, used)


#: Seconds that a hit takes, of which an event of a made-up target has two that its counters show,
#: and three that they do not.
_HIT = 2e-6


def spans(events: int, work: float, *, seen: int) -> tuple[Span, Span, float]:
    """
    A target that does *work* seconds for an event: alone, then *seen* of them with hooks, and what
    these take in truth.
    """
    alone = Span(1.0, events * work, events * 2 * _HIT, events * 2)
    each = work + 5 * _HIT
    counted, cost = seen * 2 * _HIT, seen * 5 * _HIT
    hooked = Span(0.1, seen * each, counted, seen * 2, cost, seen * 5)
    return alone, hooked, 5 * _HIT / each


@pytest.mark.parametrize("work", [1e-6, 10e-6, 200e-6])
@pytest.mark.parametrize("events", [100, 5_000])
def test_a_forecast_is_what_it_comes_to(events: int, work: float):
    """
    Of a steady target the share is exact, from light to heavy, though counters show two hits in
    five only.
    """
    alone, hooked, truth = spans(events, work, seen=events // 10 * 3)
    found = expected(alone, hooked)
    assert truth == pytest.approx(found.share)
    assert hooked.hits / hooked.seconds == pytest.approx(found.hits)


def test_a_forecast_of_a_short_look_leans_on_the_long_one():
    """
    Where the hooked span has half of the events that belong to its CPU, the error is a third, not a
    half.
    """
    alone, hooked, truth = spans(5_000, 40e-6, seen=300)
    hooked = hooked._replace(used=hooked.used * 2)
    assert truth * 3 / 4 == pytest.approx(expected(alone, hooked).share)


def test_a_target_that_rests_in_the_short_look_is_not_cheap():
    """
    Without hits while hooks are in, the counters show the share before.
    """
    alone, _, _ = spans(5_000, 10e-6, seen=0)
    found = expected(alone, Span(0.1, 0.001, 0.0, 0))
    assert 4 / 14 == pytest.approx(found.share)
    assert 10_000 * 10 / 14 == pytest.approx(found.hits)


def test_a_target_that_wakes_in_the_short_look_is_not_cheap_either():
    """
    Without events before, the span with hooks decides.
    """
    _, hooked, truth = spans(0, 10e-6, seen=500)
    assert truth == pytest.approx(expected(Span(1.0, 0.001, 0.0, 0), hooked).share)


def test_a_hit_cost_that_is_too_high_makes_no_share_above_one():
    """
    Hits that seem to take more than the CPU that was used take all of it at most.
    """
    alone, hooked, _ = spans(5_000, 1e-6, seen=500)
    found = expected(alone, hooked._replace(cost=hooked.used * 2))
    assert found.share <= 1


def test_the_share_of_an_idle_target_is_that_of_its_own_cpu():
    """
    The limit of an idle target is that of a minimum CPU, while the share is that of its own.
    """
    brake = Brake(0.2)
    assert not brake.add(0.0, float, 0.0)
    assert not brake.add(SPAN, lambda: 0.01, 0.02)
    assert pytest.approx(0.5) == brake.share
