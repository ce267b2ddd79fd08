# SPDX-License-Identifier: Apache-2.0
"""
When a run ends by itself because it costs too much, and what is said of that before.
"""

from __future__ import annotations

import pytest

from scope_ebpf.budget.brake import FLOOR, SPAN, Brake
from scope_ebpf.budget.forecast import Forecast, rounded


def ended(brake: Brake, cost: float, cpus: float, seconds: float = 10.0) -> float | None:
    """
    When *brake* ends a run that takes *cost* seconds of *cpus* in each second; None if never.
    """
    for step in range(round(seconds * 10) + 1):
        now = step / 10
        if brake.look(now, cost * now, cpus * now):
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
        (0.2, 0.19 * FLOOR, 0.001, None),  # of an idle VM any hit is a large part
        (0.2, 0.21 * FLOOR, 0.001, SPAN),
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
    assert not any(brake.look(step / 10, spent, step / 10) for step, spent in enumerate(cost))


def test_a_cost_that_comes_later_is_seen_within_a_second_and_a_bit():
    """
    After ten quiet seconds a cost of half the CPU ends it in less than a second and a half.
    """
    brake = Brake(0.2)
    assert not any(brake.look(step / 10, 0.0, step / 10) for step in range(100))
    looks = [(10 + step / 10, step / 20) for step in range(15)]
    assert any(brake.look(now, spent, now) for now, spent in looks)


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
    The sentence that a person reads; no share is more than all.
    """
    said = "about 41% of the target's CPU: 610,000 hits a second"
    assert said == str(Forecast(0.412, 614_732))
    assert str(Forecast(1.7, 10)).startswith("about 100% of")
