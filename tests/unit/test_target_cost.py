# SPDX-License-Identifier: Apache-2.0
"""
When a run ends itself because of what it costs its target.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from scope_ebpf.kernel.cost import GUESS, HitCost
from scope_ebpf.runs import target_cost
from scope_ebpf.runs.loop import Stop
from scope_ebpf.runs.target_cost import CostBrake, HitMeter

#: A program that is hit at entries.
PROGRAM = "send_entry"


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """
    A process that has used so many CPU seconds, and the hits of a session on it.
    """
    found = SimpleNamespace(used=0.0, hits=0, cost=None)
    monkeypatch.setattr(target_cost, "cpu_seconds", lambda _pid: found.used)
    return found


def looked_at(target: SimpleNamespace, stop: Stop, max_cost: float | None) -> HitMeter:
    """
    A meter that has looked each tenth of two seconds, in which the target was always busy and was
    hit 100,000 times.
    """
    session = SimpleNamespace(hits=lambda: {PROGRAM: int(target.hits)})
    meter = HitMeter(7, SimpleNamespace(cost=lambda _seconds=0.0: target.cost), max_cost, stop)
    meter.begin(session)
    for tenth in range(1, 21):
        target.used, target.hits = tenth / 10, 5000 * tenth
        meter.look(session, tenth / 10)
    meter.account(session)
    return meter


@pytest.mark.parametrize(
    ("max_cost", "reason"), [(None, ""), (0.9, ""), (0.2, "cost"), (0.01, "cost")]
)
def test_hits_that_cost_more_than_allowed_end_the_run(
    target: SimpleNamespace, max_cost: float | None, reason: str
):
    """
    100,000 hits of 5 us are 0.5 s of 2 s.
    """
    stop, target.cost = Stop(), HitCost(5e-6, 10e-6)
    meter = looked_at(target, stop, max_cost)
    assert meter.cost(0.0) == target.cost
    assert (reason, 0.25) == (stop.reason, pytest.approx(meter.share()))


def test_until_the_cost_of_a_hit_is_known_it_is_guessed(target: SimpleNamespace):
    """
    A guess ends a run as well, but no share is given by it.
    """
    stop = Stop()
    meter = looked_at(target, stop, 50_000 * GUESS.entry / 2)
    assert ("cost", None, None) == (stop.reason, meter.cost(0.0), meter.share())


@pytest.mark.parametrize(
    ("known", "entry", "tenths", "reason"), [(0.6, 5e-6, 11, "cost"), (1.6, 3.5e-6, 16, "")]
)
def test_a_cost_that_is_known_late_is_that_of_earlier_hits_too(
    target: SimpleNamespace, known: float, entry: float, tenths: int, reason: str
):
    """
    5,000 hits a tenth are 25 % after one second, and 17.5 % although they were guessed lower.
    """
    stop = Stop()
    session = SimpleNamespace(hits=lambda: {PROGRAM: int(target.hits)})
    measurement = SimpleNamespace(
        cost=lambda _=0.0: HitCost(entry, 2 * entry) if target.used >= known else None
    )
    meter = HitMeter(7, measurement, 0.2, stop)
    meter.begin(session)
    for tenth in range(1, tenths + 1):
        target.used, target.hits = tenth / 10, 5000 * tenth
        meter.look(session, tenth / 10)
    assert reason == stop.reason


@pytest.mark.parametrize(("max_cost", "limit"), [(None, None), (0.2, 0.2), (0.5, None)])
def test_a_forecast_says_the_limit_that_it_passes(
    target: SimpleNamespace, max_cost: float | None, limit: float | None
):
    """
    30 % of one CPU is above 20 %, and below 50 %.
    """
    assert limit == HitMeter(7, SimpleNamespace(), max_cost, Stop()).limit_of(0.3, 1.0)


def test_a_brake_looks_at_the_cost_ten_times_a_second(target: SimpleNamespace):
    """
    However often it is asked.
    """
    stop, looks = Stop(), []
    brake = CostBrake(7, 0.2, stop)

    def cost() -> float:
        looks.append(target.used)
        return target.used / 2

    for hundredth in range(1, 201):
        target.used = hundredth / 100
        brake.look(hundredth / 100, cost)
    assert "cost" == stop.reason
    assert 18 <= len(looks) <= 20


def test_a_target_that_has_ended_costs_nothing(monkeypatch: pytest.MonkeyPatch):
    """
    Its CPU time is not known any more, which ends no run by itself.
    """
    monkeypatch.setattr(target_cost, "cpu_seconds", lambda _pid: None)
    stop = Stop()
    CostBrake(7, 0.2, stop).look(1.0, lambda: 1.0)
    assert "" == stop.reason
