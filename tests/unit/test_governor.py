# SPDX-License-Identifier: Apache-2.0
"""
The governor against simulated targets: steps, spikes, idleness, and every mixture of them.
"""

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scope_ebpf.budget.governor import DAEMON_POLICY, Governor, water_fill

HIT = 1e-6
#: How late hooks come out after their gate has closed, and how long they take to go in, seconds.
LAG = 0.002
STEP = 0.001
#: CPUs that a target counts as using at least.
FLOOR = 0.2
#: Seconds of budget that the first second may cost, whose CPU use is not known yet.
START = 0.001

Load = Callable[[float], float]


class Simulation:
    """
    A target whose events happen at given rates, and a kernel that counts down quotas.
    """

    def __init__(self, loads: dict[str, Load], cpus: Load, seed: int = 1) -> None:
        self.loads, self.cpus = loads, cpus
        self.governor = Governor(dict.fromkeys(loads, HIT), 0.0, rng=random.Random(seed))
        self.now = self.cpu = 0.0
        self.spent = dict.fromkeys(loads, 0.0)
        self.left: dict[str, float] = {}
        self.removed: dict[str, float] = {}
        self.window: tuple[str, float, float, float] | None = None
        self.worst = 0.0
        #: CPU of the observer for a window and for a tick, in seconds.
        self.own, self.tick_cpu = 0.0, 0.003
        self.ticks = [0.0]
        self.next_tick = 0.0
        #: Costs other than those of hooks, as a share of the target's CPU.
        self.others = 0.0
        self.cost_by_second: list[float] = []
        self.cpu_by_second: list[float] = []

    def run(self, seconds: float) -> None:
        for step in range(round(seconds / STEP)):
            if self.now >= self.next_tick:
                self._tick()
            if step % 1000 == 0:
                self.cost_by_second.append(0.0)
                self.cpu_by_second.append(0.0)
            self._step()

    def _tick(self) -> None:
        spent = {**self.spent, "others": self.others * self.cpu}
        for action in self.governor.tick(self.now, self.cpu, spent):
            self.left[action.event] = action.hits
        self.ticks.append(self.now)
        self.next_tick = self.now + self.governor.pause(self.tick_cpu)

    def _step(self) -> None:
        self.now += STEP
        used = self.cpus(self.now) * STEP
        self.cpu += used
        self.cpu_by_second[-1] += used
        for event, load in self.loads.items():
            if event in self.left or self.removed.get(event, 0.0) > self.now:
                hits = load(self.now) * STEP
                self.spent[event] += hits * HIT
                self.cost_by_second[-1] += hits * HIT
                if event in self.left:
                    self.left[event] -= hits
        self._switch()

    def _switch(self) -> None:
        for event in [e for e, left in self.left.items() if left <= 0]:
            if self.window and self.window[0] == event:
                self._close()
            else:
                self._remove(event)
                self.governor.exhausted(event, self.now)
                self.next_tick = min(self.next_tick, self.now + DAEMON_POLICY.min_tick)
        if self.window and self.now >= self.window[1]:
            self._close()
        if self.window is None:
            action = self.governor.due(self.now)
            if action:
                self.left[action.event] = action.hits
                opened = self.now, self.spent[action.event]
                self.window = (action.event, self.now + action.length, *opened)

    def _remove(self, event: str) -> None:
        del self.left[event]
        self.removed[event] = self.now + LAG

    def _close(self) -> None:
        assert self.window is not None
        event, _, opened, spent = self.window
        self.window = None
        self._remove(event)
        cost = self.spent[event] - spent
        self.governor.closed(event, self.now, self.now - opened, cost, self.own)

    def share(self, first: int = 0) -> float:
        """
        Cost over CPU from that second on.
        """
        return sum(self.cost_by_second[first:]) / sum(self.cpu_by_second[first:])


def constant(value: float) -> Load:
    return lambda _now: value


def step(at: float, before: float, after: float) -> Load:
    return lambda now: before if now < at else after


@pytest.mark.parametrize("rate", [10, 1_000, 20_000, 1_000_000])
def test_a_steady_target_costs_no_more_than_its_budget(rate):
    """
    Whatever the rate, after the first second the cost stays under one percent.
    """
    run = Simulation({"send": constant(rate), "receive": constant(rate)}, constant(2.0))
    run.run(60)
    assert run.share(1) <= 0.0102


def test_an_event_within_the_budget_has_permanent_hooks():
    """
    An event that costs a tenth of the budget is counted all the time.
    """
    run = Simulation({"gc": constant(2_000)}, constant(2.0))
    run.run(30)
    assert {"gc": "always"} == run.governor.modes()
    assert run.governor.sampling_ratio("gc") == 1.0


def test_a_burst_stays_in_the_sampling_ratio_for_a_minute():
    """
    Once permanent hooks are back after a burst, the ratio is below one for as long as the time in
    windows is part of the last minute, and one again behind it.
    """
    run = Simulation({"exit": lambda now: 1_000_000 if 5 <= now < 8 else 0}, constant(2.0))
    run.run(30)
    assert {"exit": "always"} == run.governor.modes()
    assert 0.5 < run.governor.sampling_ratio("exit") < 0.95
    run.run(90)
    assert 1.0 == run.governor.sampling_ratio("exit")


def test_frequent_events_share_what_rare_ones_leave():
    """
    Three frequent events get windows, and a rare one beside them has permanent hooks.
    """
    loads = {name: constant(500_000) for name in ("send", "receive", "schedule")}
    run = Simulation({**loads, "spawn": constant(100)}, constant(2.0))
    run.run(60)
    modes = run.governor.modes()
    assert modes["spawn"] == "always"
    assert {modes[name] for name in loads} == {"windows"}
    ratios = [run.governor.sampling_ratio(name) for name in loads]
    assert min(ratios) > 0.001
    assert max(ratios) < 3 * min(ratios)


def test_a_sudden_million_a_second_costs_no_more_than_the_second_had():
    """
    A rare event that becomes frequent between two ticks is detached before its budget is spent.
    """
    run = Simulation({"send": step(20.3, 100, 1_000_000)}, constant(2.0))
    run.run(30)
    lag = 1_000_000 * (LAG + STEP) * HIT  # after the quota was exhausted
    assert run.cost_by_second[20] <= 0.01 * 2.0 + lag + STEP
    assert sum(run.cost_by_second[20:]) <= 0.01 * sum(run.cpu_by_second[20:]) + lag
    assert run.governor.modes()["send"] == "windows"


def test_a_spike_that_has_passed_is_forgotten():
    """
    After a spike of two seconds the event is counted all the time again.
    """
    run = Simulation({"send": lambda now: 1_000_000 if 10 < now < 12 else 100}, constant(2.0))
    run.run(60)
    assert run.governor.modes()["send"] == "always"
    assert run.share(1) <= 0.01


def test_an_idle_target_is_observed_at_a_fixed_small_cost():
    """
    A target that uses no CPU has the budget of one that uses a fifth of a core.
    """
    run = Simulation({"gc": constant(50), "send": constant(200)}, constant(0.0))
    run.run(60)
    assert max(run.cost_by_second[1:]) <= 0.01 * FLOOR + START
    assert set(run.governor.modes().values()) == {"always"}


def test_hooks_that_were_detached_late_have_windows_again():
    """
    The cost of a moment in which the observer got no CPU is paid back, then windows go on.
    """
    governor = Governor({"send": HIT}, 0.0, rng=random.Random(1))
    governor.tick(0.0, 0.0, {"send": 0.0})
    governor.tick(1.0, 1.0, {"send": 0.0})
    governor.exhausted("send", 1.5)
    late = 20 * governor.income
    times = [second / 10 for second in range(20, 400)]
    opened = []
    for now in times:
        if now == int(now):
            governor.tick(now, now, {"send": late})
        if governor.due(now):
            opened.append(now)
            governor.closed("send", now, 0.01, 0.0)
    assert 15 < opened[0] < 30
    assert len(opened) >= 5  # they cost nothing, so it is always on again


def test_the_observers_cpu_for_windows_is_bounded():
    """
    Where opening and closing costs much, windows are rarer, but each event has some.
    """
    loads = {"send": constant(1e6), "receive": constant(1e6), "schedule": constant(1e6)}
    run = Simulation(loads, constant(1.0))
    run.own = 0.003
    run.run(120)
    opened = {name: run.governor._events[name].open_seconds for name in loads}
    late = [at for windows in opened.values() for at, _ in windows if at > 20]
    assert len(late) * run.own / 100 <= 1.2 * DAEMON_POLICY.self_cost_share * run.governor.budget
    assert all(len(windows) > 20 for windows in opened.values())


def test_ticks_are_as_frequent_as_the_target_is_busy():
    """
    They are rare for an idle target, and frequent for one of four CPUs or one whose events exhaust
    their quotas.
    """
    pauses = {}
    for name, cpus, rate in (("idle", 0.0, 0), ("busy", 4.0, 0), ("hot", 0.1, 1_000)):
        run = Simulation({"send": constant(rate)}, constant(cpus))
        run.run(60)
        pauses[name] = 60 / len(run.ticks)
    assert DAEMON_POLICY.max_tick >= pauses["idle"] > 3 * DAEMON_POLICY.min_tick
    assert pauses["busy"] == pytest.approx(DAEMON_POLICY.min_tick, rel=0.15)
    assert pauses["hot"] == pytest.approx(DAEMON_POLICY.min_tick, rel=0.15)


def test_hooks_have_their_share_whatever_other_costs_are():
    """
    Where other costs take three times the budget, rare events have permanent hooks, frequent ones
    have windows, and the excess is a debt; where they take little there is none.
    """
    run = Simulation({"send": constant(100_000), "exit": constant(50)}, constant(0.5))
    run.others = 0.03
    run.run(30)
    assert {"send": "windows", "exit": "always"} == run.governor.modes()
    assert run.governor.sampling_ratio("send") > 0.005
    assert run.share(1) < 0.01 * (1 - DAEMON_POLICY.other_cost_share)
    assert run.governor.debt > 10 * DAEMON_POLICY.other_cost_share * run.governor.income
    run = Simulation({"exit": constant(50)}, constant(0.5))
    run.others = 0.002
    run.run(30)
    assert run.governor.debt == pytest.approx(0.0, abs=1e-9)


def test_hooks_that_failed_stay_off():
    """
    Their cost is still reported with the others, which does not attach them again.
    """
    run = Simulation({"send": constant(10), "gc": constant(10)}, constant(1.0))
    run.governor.failed("gc")
    run.left.pop("gc", None)
    run.run(10)
    run.governor.set_hit_cost("gc", 2 * HIT)
    assert {"send": "always"} == run.governor.modes()
    assert 0.0 == run.governor.sampling_ratio("gc")


def test_windows_come_at_irregular_times():
    """
    No two pauses between windows are equal, so a periodic event cannot fall between them.
    """
    run = Simulation({"send": constant(1_000_000)}, constant(2.0))
    run.run(60)
    opened = [at for at, _ in run.governor._events["send"].open_seconds]
    pauses = {round(b - a, 2) for a, b in itertools.pairwise(opened)}
    assert len(opened) > 10
    assert len(pauses) > len(opened) / 2


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 6)), min_size=1, max_size=6),
    st.floats(0.1, 4),
    st.integers(0, 2**32),
)
def test_no_mixture_of_steps_breaks_the_budget(steps, cpus, seed):
    """
    Rates from one to a million a second in any order cost no more than budget, lag and start.
    """

    def load(now: float) -> float:
        return 10 ** next((e for at, e in sorted(steps, reverse=True) if now >= at), 0)

    run = Simulation({"send": load, "gc": constant(100)}, constant(cpus), seed)
    run.run(25)
    lags = len(steps) * 1_000_000 * (LAG + STEP) * HIT
    earned = 0.01 * sum(max(cpu, FLOOR) for cpu in run.cpu_by_second)
    assert sum(run.cost_by_second) <= earned + lags + START


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 100))
def test_shares_are_fair(demands, total):
    """
    No demand is exceeded, nothing is kept back, and a demand that is not met gets no less than any
    other.
    """
    shares = water_fill(demands, total)
    assert all(0 <= share <= demand for share, demand in zip(shares, demands, strict=True))
    assert sum(shares) == pytest.approx(min(total, sum(demands)))
    hungry = [s for s, d in zip(shares, demands, strict=True) if s < d]
    if hungry:
        assert min(hungry) >= max(shares) - 1e-9
