# SPDX-License-Identifier: Apache-2.0
"""
Keeps the cost of observing one target below its budget.

Pure: times, CPU seconds and costs go in, actions come out. The caller keeps the clock, counts
hits and attaches hooks.

The target earns a budget by the CPU that it uses, and every hit spends from it. Events whose hooks
cost little stay attached; the others share the rest, each in short sampling windows at irregular
times. Each attached event has a hit quota that the kernel counts down, and all quotas together
never exceed the balance. So the hooks of a target that becomes busy between two ticks stop
counting before its budget is spent.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class BudgetPolicy(NamedTuple):
    """
    How a governor spends a budget; the defaults are those of the daemon.

    Shares are from 0 to 1. *Income* is what the target earns: seconds of CPU in each second.
    """

    #: CPUs that a target is assumed to use at least, so that an idle one can be observed.
    min_cpus: float = 0.2
    #: Seconds of income that the balance may hold.
    burst_seconds: float = 1.0
    #: Share of the income that is distributed to events; the rest covers costs that no hit shows.
    event_share: float = 0.75
    #: Length of a window in seconds; attaching takes milliseconds, so it must not be shorter.
    min_window: float = 0.003
    max_window: float = 0.1
    #: Maximum seconds between two windows of one event, if its cost allows that.
    window_spacing: float = 1.0
    #: Range of the random factor of the spacing.
    jitter: tuple[float, float] = (0.3, 1.0)
    #: Share of the budget that the observer may spend on opening and closing windows, on top of
    #: the cost of hits, and the seconds of CPU per second that it may spend in any case.
    self_cost_share: float = 0.3
    min_self_cost: float = 0.0
    #: Above that share, windows are spaced up to this many times further apart, except the first
    #: *warmup_windows* of an event.
    max_spacing_factor: float = 10.0
    warmup_windows: int = 5
    #: Share of the budget that ticks may take of the observer's CPU.
    tick_cost_share: float = 0.25
    #: Seconds between two ticks.
    min_tick: float = 1.0
    max_tick: float = 4.0
    #: Share of the budget for costs other than hits, such as those of tracepoints.
    other_cost_share: float = 0.4
    #: An event returns from windows to permanent hooks when it would take less than this part of
    #: its share in this many consecutive windows.
    reattach_share: float = 0.5
    reattach_windows: int = 5
    #: Seconds of an idle target's income that windows leave to permanent hooks.
    reserve_seconds: float = 0.0
    #: Events whose windows get a smaller part of the budget, and the divisor of that part.
    window_divisors: Mapping[str, float] = MappingProxyType({})
    #: Weight of the newest value in moving averages: of costs, and of the income.
    smoothing: float = 0.3
    income_smoothing: float = 0.6
    #: Seconds over which ratios are computed.
    ratio_seconds: float = 60.0


#: The policy of the daemon.
DAEMON_POLICY = BudgetPolicy()


class Action(NamedTuple):
    """
    A change of the hooks of one event.

    ``attach`` attaches them permanently, ``window`` for one window, ``refill`` renews the quota
    of attached ones, ``release`` detaches them.
    """

    what: Literal["attach", "window", "refill", "release"]
    event: str
    #: The hit quota.
    hits: int = 0
    #: Length of the window in seconds.
    length: float = 0.0


@dataclass(slots=True)
class _Event:
    """State of one event; costs are in seconds of the target's CPU."""

    hit_cost: float
    mode: Literal["always", "windows"] = "always"
    attached: bool = False
    #: Cost per second of permanent hooks; None while it is unknown.
    demand: float | None = None
    #: Part of the income that the event may take.
    share: float = 0.0
    #: The present quota, as a cost.
    granted: float = 0.0
    #: True if nothing of the quota was spent since the last tick.
    unspent: bool = False
    #: Recent cost of one window, and the number of windows since the quota was exhausted.
    window_cost: float = 0.0
    windows: int = 0
    #: Earliest time of the next window, monotonic seconds.
    next_window: float = 0.0
    #: Recent cost of all windows; decays over ``ratio_seconds``.
    used: float = 0.0
    #: Consecutive windows whose cost was low enough for permanent hooks.
    cheap_windows: int = 0
    #: Cost since the target is observed.
    spent: float = 0.0
    #: Times at which windows closed, and their lengths in seconds.
    open_seconds: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=240))
    #: When windows last replaced permanent hooks, and when these were attached again.
    released: float = 0.0
    regained: float = 0.0


class Governor:
    """
    Decides which hooks of one target are attached, and for how long.

    *hit_costs* maps events to the seconds of CPU that one hit costs; *budget* is a share of the
    CPU that the target uses, 0 to 1. All times are monotonic seconds.

    Attributes:
        budget: the share given.
        income: seconds of CPU that observing may cost per second, now.
        balance: seconds of CPU that are earned and not spent.
        debt: seconds of CPU by which other costs exceeded their share of the budget.
    """

    def __init__(
        self,
        hit_costs: Mapping[str, float],
        now: float,
        *,
        budget: float = 0.01,
        policy: BudgetPolicy = DAEMON_POLICY,
        rng: random.Random | None = None,
    ) -> None:
        self.budget = budget
        self._policy = policy
        self._random = rng or random.Random()  # noqa: S311 - irregular, not secret
        self._events = {name: _Event(cost) for name, cost in hit_costs.items()}
        self._failed: set[str] = set()
        #: Costs other than hits since the start, by name, in seconds.
        self._others: dict[str, float] = {}
        self.debt = 0.0
        self._now = self._started = now
        self._cpu: float | None = None
        self.income = budget * policy.min_cpus
        self.balance = self.income * policy.burst_seconds
        self._reserve = self.income * policy.reserve_seconds
        self._retry = now
        #: Recent CPU of the observer for one window, in seconds.
        self._window_cpu = 0.0
        #: Time, CPU seconds of the target and cost at each tick.
        self._past: deque[tuple[float, float, float]] = deque(maxlen=240)

    def tick(self, now: float, cpu_seconds: float, spent: Mapping[str, float]) -> list[Action]:
        """
        Account for costs and renew quotas; due :meth:`pause` seconds after the last tick.

        *cpu_seconds* is the CPU that the target used, and *spent* the part of it that hits took,
        by event; both grow from one call to the next. Names in *spent* that are not events are
        other costs. Returns the actions to take now.
        """
        passed = max(now - self._now, 1e-3)
        first = self._cpu is None
        used = max(0.0, cpu_seconds - (self._cpu or 0.0)) if not first else 0.0
        self._cpu, self._now = cpu_seconds, now
        earned = self.budget * max(used, self._policy.min_cpus * passed)
        self.income += self._policy.income_smoothing * (earned / passed - self.income)
        self.balance += earned
        for name, total in spent.items():
            self._spend(name, total, passed)
        # A short peak of other costs must not take the budget of hooks: it is paid over time.
        paid = min(self.debt, self._policy.other_cost_share * earned)
        self.debt -= paid
        self.balance -= paid
        self.balance = min(self.balance, self.income * self._policy.burst_seconds)
        self._past.append((now, cpu_seconds, sum(spent.values())))
        for event in self._events.values():
            event.used *= max(0.0, 1 - passed / self._policy.ratio_seconds)
        self._distribute()
        return [] if first else self._refills()

    def pause(self, tick_cpu: float) -> float:
        """
        Seconds from now to the next :meth:`tick`, which takes *tick_cpu* seconds of our CPU.

        Longer where a tick is expensive beside the target's income, but not longer than the
        quotas of attached events last.
        """
        policy = self._policy
        pause = tick_cpu / (policy.tick_cost_share * self.income)
        for event in self._events.values():
            if event.mode == "always" and event.attached:
                if event.demand is None:
                    return policy.min_tick
                if event.demand:
                    pause = min(pause, policy.reattach_share * event.granted / event.demand)
        return min(max(pause, policy.min_tick), policy.max_tick)

    def _spend(self, name: str, total: float, passed: float) -> None:
        if name in self._failed:
            return
        event = self._events.get(name)
        if event is None:  # another cost, which no action changes
            self.debt += total - self._others.get(name, 0.0)
            self._others[name] = total
            return
        cost = total - event.spent
        event.spent = total
        event.unspent = event.attached and cost <= 0
        self.balance -= cost
        if event.attached and event.mode == "always":
            rate = cost / passed
            # It rises at once and falls slowly.
            known = event.demand or 0.0
            if rate <= known:
                rate = known + self._policy.smoothing * (rate - known)
            event.demand = rate
        elif event.mode == "windows":
            event.window_cost += cost  # hits before and after the window, while attached
            event.used += cost

    def _charge(self, event: _Event, cost: float) -> None:
        """Subtract *cost* from the balance now, so that the next tick does not do so again."""
        self.balance -= cost
        event.spent += cost

    def _distribute(self) -> None:
        names = list(self._events)
        demands = [self._events[name].demand for name in names]
        shares = water_fill(
            [self.income if demand is None else demand for demand in demands],
            self.income * self._policy.event_share,
        )
        for name, share in zip(names, shares, strict=True):
            self._events[name].share = share

    def _refills(self) -> list[Action]:
        """New quotas of permanent hooks; together they do not exceed the balance."""
        always = {n: e for n, e in self._events.items() if e.mode == "always"}
        least = self.income / (4 * max(1, len(self._events)))
        weights = {name: (e.demand or 0.0) + least for name, e in always.items()}
        total = sum(weights.values()) + sum(
            e.share for e in self._events.values() if e.mode == "windows"
        )
        actions = []
        for name, event in always.items():
            hits = int(max(0.0, self.balance) * weights[name] / total / event.hit_cost)
            what: Literal["refill", "attach"] = "refill" if event.attached else "attach"
            if event.unspent and abs(hits * event.hit_cost - event.granted) < event.granted / 4:
                continue  # the new quota would be nearly the present one
            if hits or event.attached:
                event.regained = event.regained if event.attached else self._now
                event.attached, event.granted = True, hits * event.hit_cost
                actions.append(Action(what, name, hits))
        return actions

    def exhausted(self, event: str, now: float) -> list[Action]:
        """Account for the exhausted quota of *event*: windows replace its permanent hooks."""
        state = self._events[event]
        if state.mode == "windows" or not state.attached:
            return []
        state.unspent = False
        state.mode, state.attached, state.released = "windows", False, now
        state.cheap_windows = state.windows = 0
        self._charge(state, state.granted)
        # A lower limit, until the first window measures it.
        state.demand = max(state.demand or 0.0, self.income)
        others = [e.used for e in self._events.values() if e.mode == "windows" and e is not state]
        state.used = min(others, default=0.0)
        self._schedule(state, now)
        return [Action("release", event)]

    def begin_in_windows(self, event: str, demand: float, now: float) -> None:
        """Count *event* in windows from the start; permanent hooks would cost *demand* a second."""
        state = self._events[event]
        state.mode, state.demand, state.released = "windows", demand, now
        first = self._random.uniform(0.0, self._policy.jitter[0])
        state.next_window = now + self._policy.window_spacing * first

    def due(self, now: float) -> Action | None:
        """The window to open now, or None."""
        policy = self._policy
        ready = [n for n, e in self._events.items() if e.mode == "windows" and e.next_window <= now]
        if not ready or now < self._retry:
            return None
        divisors = policy.window_divisors
        name = min(ready, key=lambda of: self._events[of].used * divisors.get(of, 1.0))
        event = self._events[name]
        kept = max(self._granted(), self._reserve)
        # A window whose hooks were detached late may have cost more than the balance can hold.
        most = max(0.0, self.income * policy.burst_seconds - kept)
        cost = min(event.window_cost or self.income * policy.min_window, 0.9 * most)
        earned = self.income * policy.event_share * min(now - self._now, policy.burst_seconds)
        free = self.balance - kept + earned
        if free < cost:
            wait = (cost - free) / (self.income * policy.event_share)
            self._retry = now + min(wait, policy.window_spacing) * self._random.uniform(1.0, 1.5)
            return None
        length = policy.min_window
        if event.demand:
            wanted = event.share * policy.window_spacing / event.demand
            length = min(max(wanted, policy.min_window), policy.max_window)
        allowed = min(free, 3 * max(cost, event.share * policy.window_spacing))
        event.attached = True
        return Action("window", name, max(1, int(allowed / event.hit_cost)), length)

    def _granted(self) -> float:
        """Quotas of permanent hooks, as a cost."""
        return sum(e.granted for e in self._events.values() if e.mode == "always" and e.attached)

    def next_due(self) -> float | None:
        """Time at which :meth:`due` may return a window; None while no event has windows."""
        waiting = [e.next_window for e in self._events.values() if e.mode == "windows"]
        return max(min(waiting), self._retry) if waiting else None

    def closed(
        self, event: str, now: float, seconds: float, cost: float, own_cpu: float = 0.0
    ) -> None:
        """
        Account for a window that was open for *seconds*; its hits took *cost* seconds of CPU.

        *own_cpu* is the observer's CPU for windows since the last one closed, in seconds. Hits
        before and after the window, while hooks were attached, are accounted by :meth:`tick`.
        """
        policy = self._policy
        state = self._events[event]
        weight = policy.smoothing if self._window_cpu else 1.0
        self._window_cpu += (own_cpu - self._window_cpu) * weight
        state.attached = False
        state.open_seconds.append((now, seconds))
        self._charge(state, cost)
        state.used += cost
        state.window_cost = max(cost, state.window_cost * (1 - policy.smoothing))
        demand = cost / max(seconds, 1e-6)
        known = state.demand if state.windows and state.demand is not None else demand
        state.demand = known + policy.smoothing * (demand - known)
        state.windows += 1
        cheap = max(demand, state.demand) < policy.reattach_share * self._available(state)
        state.cheap_windows = state.cheap_windows + 1 if cheap else 0
        if state.cheap_windows >= policy.reattach_windows:
            state.mode = "always"  # the next tick attaches it
        else:
            self._schedule(state, now)

    def _available(self, event: _Event) -> float:
        """The income that *event* could take if the others kept their shares."""
        others = sum(e.share for e in self._events.values() if e is not event)
        return max(event.share, self.income * self._policy.event_share - others)

    def set_hit_cost(self, event: str, hit_cost: float) -> None:
        """Assume from now on that a hit of *event* costs *hit_cost* seconds."""
        if event in self._events:
            self._events[event].hit_cost = hit_cost

    def failed(self, event: str) -> None:
        """Forget *event*, whose hooks cannot be attached."""
        del self._events[event]
        self._failed.add(event)

    def _schedule(self, event: _Event, now: float) -> None:
        policy = self._policy
        warm = event.windows >= policy.warmup_windows
        spacing = self._spacing() if warm else policy.window_spacing
        event.next_window = now + spacing * self._random.uniform(*policy.jitter)

    def _spacing(self) -> float:
        """Maximum seconds from one window of an event to the next."""
        policy = self._policy
        windows = sum(event.mode == "windows" for event in self._events.values())
        allowed = max(policy.self_cost_share * self.income, policy.min_self_cost)
        wanted = windows * self._window_cpu / allowed / (sum(policy.jitter) / 2)
        spacing = policy.window_spacing
        return min(max(spacing, wanted), spacing * policy.max_spacing_factor)

    def overhead_ratio(self) -> float:
        """Cost of observing as a share of the target's CPU, over the last minute."""
        past = [p for p in self._past if p[0] >= self._now - self._policy.ratio_seconds]
        if len(past) < 2:
            return 0.0
        (start, cpu, spent), (end, cpu_now, spent_now) = past[0], past[-1]
        used = max(cpu_now - cpu, self._policy.min_cpus * (end - start))
        return (spent_now - spent) / used if used > 0 else 0.0

    def sampling_ratio(self, event: str) -> float:
        """The share of the last minute in which *event* was counted."""
        state = self._events.get(event)
        if state is None:
            return 0.0
        if state.mode == "always" and not state.attached:
            return 0.0
        since = max(self._started, self._now - self._policy.ratio_seconds)
        passed = max(self._now - since, 1e-3)
        opened = sum(seconds for at, seconds in state.open_seconds if at >= since)
        if state.mode == "always":
            # Windows have counted until the hooks were attached again.
            in_windows = state.regained - max(state.released, since) if state.released else 0.0
            return 1.0 - min(1.0, max(0.0, in_windows - opened) / passed)
        # A window may have closed since the last tick.
        return min(1.0, opened / passed)

    def modes(self) -> dict[str, str]:
        """The mode of each event: ``always`` or ``windows``."""
        return {name: e.mode for name, e in self._events.items()}


def water_fill(demands: Iterable[float], total: float) -> list[float]:
    """
    Distribute *total* fairly: no demand is exceeded, and what one leaves is shared by the rest.

    >>> water_fill([1.0, 8.0, 9.0], 11.0)
    [1.0, 5.0, 5.0]
    """
    wanted = list(demands)
    shares = [0.0] * len(wanted)
    left = total
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for done, index in enumerate(order):
        shares[index] = min(wanted[index], left / (len(order) - done))
        left -= shares[index]
    return shares
