# SPDX-License-Identifier: Apache-2.0
"""
What keeps the cost of observing one target under its budget.

Pure: times, CPU seconds and costs go in, what is to be switched comes out. The
caller keeps the clock, counts hits and attaches hooks.

The target earns a budget by the CPU it uses, and every hit spends of it. Events
whose hooks cost little stay in; the others share what is left, each in short
windows at irregular times. Whatever is in has an allowance that the kernel counts
down, and the allowances together are never more than what has been earned: so
a target that grows hot between two looks of ours is let go before its budget is
spent.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Seconds for which what was not spent is kept, unless a :class:`Pace` says otherwise.
BURST = 1.0
#: The share of the budget that is given out; the rest is for costs that no hit shows.
HEADROOM = 0.75
#: Seconds: no window is shorter, because attaching takes some milliseconds, or longer.
SHORTEST, LONGEST = 0.003, 0.1
#: Seconds between two windows of one event, at most and if its cost allows that.
SPACING = 1.0
#: The observer's own work on windows may take this part of the budget, besides what hits take;
#: where it takes more, windows are rarer, up to so many times, but for the first few.
OWN, RAREST, FIRST = 0.3, 10.0, 5
#: Taking stock may take this part of it, and is done that often, seconds.
STOCKTAKING, OFTEN, SELDOM = 0.25, 1.0, 4.0
#: What others than our hooks take of the target's CPU may have this part of the budget.
OTHERS = 0.4
#: Of the spacing, what passes from one window of an event to the next.
_FROM, _TO = 0.3, 1.0
#: Hooks that used up their allowance come back for good when they would take less than this part
#: of their share, in this many windows in a row.
CALM, CALM_WINDOWS = 0.5, 5
#: The weights of the newest reading in moving averages.
_NEW, _NEW_INCOME = 0.3, 0.6
#: Seconds over which ratios are told.
_MEMORY = 60.0


@dataclass(frozen=True, slots=True)
class Pace:
    """
    How a governor goes about it: the constants above, unless they are given.

    *floor* are the CPUs that a target counts as using at least, so that an idle one can be
    observed. *reserve* are seconds of what such a one earns that windows leave to what stays in.
    *least_own* is what our own work may take of each second in any case. *rarer* are events whose
    windows get a smaller part of the budget, and how much smaller.
    """

    floor: float = 0.2
    burst: float = BURST
    spacing: float = SPACING
    shortest: float = SHORTEST
    own: float = OWN
    least_own: float = 0.0
    often: float = OFTEN
    seldom: float = SELDOM
    reserve: float = 0.0
    rarer: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Action:
    """Something to switch: *hits* is the allowance; *length* that of a window in seconds."""

    what: Literal["attach", "window", "refill", "release"]
    event: str
    hits: int = 0
    length: float = 0.0


@dataclass(slots=True)
class _Event:
    """What is known of one event; costs in seconds of the target's CPU."""

    hit_cost: float
    mode: Literal["always", "windows"] = "always"
    attached: bool = False
    #: What its hooks would cost in a second if they were in; None before anything is known.
    demand: float | None = None
    share: float = 0.0
    #: The allowance that it has now.
    granted: float = 0.0
    #: Whether it spent nothing of that since.
    untouched: bool = False
    #: What a window cost lately, and how many there were since the allowance was spent.
    window_cost: float = 0.0
    windows: int = 0
    #: When the next window may be at the earliest, and what windows cost, of late.
    next_window: float = 0.0
    used: float = 0.0
    calm: int = 0
    spent: float = 0.0
    open_seconds: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=240))


class Governor:
    """
    Decides for one target.

    *hit_costs* gives the events and the seconds of CPU that a hit of each costs;
    *budget* is a share of the CPU that the target uses.
    """

    def __init__(
        self,
        hit_costs: Mapping[str, float],
        now: float,
        *,
        budget: float = 0.01,
        pace: Pace | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.budget = budget
        self._pace = pace or Pace()
        self._random = rng or random.Random()  # noqa: S311 - irregular, not secret
        self._events = {name: _Event(cost) for name, cost in hit_costs.items()}
        self._failed: set[str] = set()
        #: Costs that are not ours to switch, in all, and what they took beyond their part, seconds.
        self._others: dict[str, float] = {}
        self.debt = 0.0
        self._now = self._started = now
        self._cpu: float | None = None
        self.income = budget * self._pace.floor
        self.balance = self.income * self._pace.burst
        self._reserve = self.balance * self._pace.reserve / self._pace.burst
        self._retry = now
        #: The observer's CPU for one window, of late, in seconds.
        self._own = 0.0
        self._past: deque[tuple[float, float, float]] = deque(maxlen=240)

    def tick(self, now: float, cpu_seconds: float, spent: Mapping[str, float]) -> list[Action]:
        """
        Take stock, after :meth:`pause`.

        *cpu_seconds* that the target used and seconds that hits took of them, by
        event, both since they began to be counted. Other costs may be *spent* under
        names that are no event. Returns what to switch now.
        """
        passed = max(now - self._now, 1e-3)
        first = self._cpu is None
        used = max(0.0, cpu_seconds - (self._cpu or 0.0)) if not first else 0.0
        self._cpu, self._now = cpu_seconds, now
        earned = self.budget * max(used, self._pace.floor * passed)
        self.income += _NEW_INCOME * (earned / passed - self.income)
        self.balance += earned
        for name, total in spent.items():
            self._spend(name, total, passed)
        # Hooks must not pay for a moment in which others take much; on average they do not.
        paid = min(self.debt, OTHERS * earned)
        self.debt -= paid
        self.balance -= paid
        self.balance = min(self.balance, self.income * self._pace.burst)
        self._past.append((now, cpu_seconds, sum(spent.values())))
        for event in self._events.values():
            event.used *= max(0.0, 1 - passed / _MEMORY)
        self._share_out()
        return [] if first else self._refills()

    def pause(self, own: float) -> float:
        """
        Seconds from now to the next :meth:`tick`, which takes *own* seconds of the observer's CPU.

        As long as that is much beside what the target uses, and no longer than what is in has
        allowances for.
        """
        pause = own / (STOCKTAKING * self.income)
        for event in self._events.values():
            if event.mode == "always" and event.attached:
                if event.demand is None:
                    return self._pace.often
                if event.demand:
                    pause = min(pause, CALM * event.granted / event.demand)
        return min(max(pause, self._pace.often), self._pace.seldom)

    def _spend(self, name: str, total: float, passed: float) -> None:
        if name in self._failed:
            return
        event = self._events.get(name)
        if event is None:  # not ours to switch, but paid for
            self.debt += total - self._others.get(name, 0.0)
            self._others[name] = total
            return
        cost = total - event.spent
        event.spent = total
        event.untouched = event.attached and cost <= 0
        self.balance -= cost
        if event.attached and event.mode == "always":
            rate = cost / passed
            # Up at once, down slowly.
            known = event.demand or 0.0
            event.demand = rate if rate > known else known + _NEW * (rate - known)
        elif event.mode == "windows":
            event.window_cost += cost  # what was hit before and after the gate was open
            event.used += cost

    def _charge(self, event: _Event, cost: float) -> None:
        """Take *cost* from the balance now; the next tick finds it in what was spent."""
        self.balance -= cost
        event.spent += cost

    def _share_out(self) -> None:
        names = list(self._events)
        demands = [self._events[name].demand for name in names]
        shares = water_fill(
            [self.income if demand is None else demand for demand in demands],
            self.income * HEADROOM,
        )
        for name, share in zip(names, shares, strict=True):
            self._events[name].share = share

    def _refills(self) -> list[Action]:
        """Allowances for what stays in; together they are no more than the balance."""
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
            if event.untouched and abs(hits * event.hit_cost - event.granted) < event.granted / 4:
                continue  # it still has nearly what it would get
            if hits or event.attached:
                event.attached, event.granted = True, hits * event.hit_cost
                actions.append(Action(what, name, hits))
        return actions

    def tripped(self, event: str, now: float) -> list[Action]:
        """The allowance of *event* is spent: its hooks come out, and windows take their place."""
        state = self._events[event]
        if state.mode == "windows" or not state.attached:
            return []
        state.untouched = False
        state.mode, state.attached, state.calm, state.windows = "windows", False, 0, 0
        self._charge(state, state.granted)
        # The first window will tell how much it is.
        state.demand = max(state.demand or 0.0, self.income)
        others = [e.used for e in self._events.values() if e.mode == "windows" and e is not state]
        state.used = min(others, default=0.0)
        self._schedule(state, now)
        return [Action("release", event)]

    def begin_in_windows(self, event: str, demand: float, now: float) -> None:
        """Count *event* in windows from the start: its hooks would cost *demand* in a second."""
        state = self._events[event]
        state.mode, state.demand = "windows", demand
        state.next_window = now + self._pace.spacing * self._random.uniform(0.0, _FROM)

    def due(self, now: float) -> Action | None:
        """The window that is to be opened now, if one is."""
        ready = [n for n, e in self._events.items() if e.mode == "windows" and e.next_window <= now]
        if not ready or now < self._retry:
            return None
        name = min(ready, key=lambda of: self._events[of].used * self._pace.rarer.get(of, 1.0))
        event = self._events[name]
        # What a window cost may be more than is ever saved, if its hooks came out late.
        saved = max(0.0, self.income * self._pace.burst - max(self._granted(), self._reserve))
        cost = min(event.window_cost or self.income * self._pace.shortest, 0.9 * saved)
        earned = self.income * HEADROOM * min(now - self._now, self._pace.burst)
        free = self.balance - max(self._granted(), self._reserve) + earned
        if free < cost:
            wait = (cost - free) / (self.income * HEADROOM)
            self._retry = now + min(wait, self._pace.spacing) * self._random.uniform(1.0, 1.5)
            return None
        length = self._pace.shortest
        if event.demand:
            wanted = event.share * self._pace.spacing / event.demand
            length = min(max(wanted, self._pace.shortest), LONGEST)
        allowed = min(free, 3 * max(cost, event.share * self._pace.spacing))
        event.attached = True
        return Action("window", name, max(1, int(allowed / event.hit_cost)), length)

    def _granted(self) -> float:
        """What those that stay in may still spend."""
        return sum(e.granted for e in self._events.values() if e.mode == "always" and e.attached)

    def next_due(self) -> float | None:
        """When :meth:`due` should be asked again; None while there are no windows."""
        waiting = [e.next_window for e in self._events.values() if e.mode == "windows"]
        return max(min(waiting), self._retry) if waiting else None

    def closed(self, event: str, now: float, seconds: float, cost: float, own: float = 0.0) -> None:
        """
        A window was open for *seconds*, whose hits took *cost* seconds of the target's.

        *own* is what windows took of the observer's CPU since the last one closed, in seconds.
        What hits cost before the gate opened and after it closed comes in with
        the next :meth:`tick`.
        """
        state = self._events[event]
        self._own += (own - self._own) * (_NEW if self._own else 1.0)
        state.attached = False
        state.open_seconds.append((now, seconds))
        self._charge(state, cost)
        state.used += cost
        state.window_cost = max(cost, state.window_cost * (1 - _NEW))
        demand = cost / max(seconds, 1e-6)
        known = state.demand if state.windows and state.demand is not None else demand
        state.demand = known + _NEW * (demand - known)
        state.windows += 1
        state.calm = state.calm + 1 if max(demand, state.demand) < CALM * self._fair(state) else 0
        if state.calm >= CALM_WINDOWS:
            state.mode = "always"  # the next tick puts it in
        else:
            self._schedule(state, now)

    def _fair(self, event: _Event) -> float:
        """What *event* could have if the others kept what they have."""
        others = sum(e.share for e in self._events.values() if e is not event)
        return max(event.share, self.income * HEADROOM - others)

    def price(self, event: str, hit_cost: float) -> None:
        """A hit of *event* costs *hit_cost* seconds, it has turned out."""
        if event in self._events:
            self._events[event].hit_cost = hit_cost

    def failed(self, event: str) -> None:
        """The hooks of *event* cannot be attached: leave it alone from now on."""
        del self._events[event]
        self._failed.add(event)

    def _schedule(self, event: _Event, now: float) -> None:
        spacing = self._pace.spacing if event.windows < FIRST else self._spacing()
        event.next_window = now + spacing * self._random.uniform(_FROM, _TO)

    def _spacing(self) -> float:
        """Seconds from one window of an event to the next, at most."""
        windows = sum(event.mode == "windows" for event in self._events.values())
        may = max(self._pace.own * self.income, self._pace.least_own)
        wanted = windows * self._own / may / ((_FROM + _TO) / 2)
        spacing = self._pace.spacing
        return min(max(spacing, wanted), spacing * RAREST)

    def overhead_ratio(self) -> float:
        """The seconds that hits took, of those the target used, over the last minute."""
        past = [p for p in self._past if p[0] >= self._now - _MEMORY]
        if len(past) < 2:
            return 0.0
        (start, cpu, spent), (end, cpu_now, spent_now) = past[0], past[-1]
        used = max(cpu_now - cpu, self._pace.floor * (end - start))
        return (spent_now - spent) / used if used > 0 else 0.0

    def sampling_ratio(self, event: str) -> float:
        """The share of the last minute in which *event* was counted."""
        state = self._events.get(event)
        if state is None:
            return 0.0
        if state.mode == "always":
            return 1.0 if state.attached else 0.0
        since = max(self._started, self._now - _MEMORY)
        opened = sum(seconds for at, seconds in state.open_seconds if at >= since)
        # A window may have closed since the last stocktaking.
        return min(1.0, opened / max(self._now - since, 1e-3))

    def modes(self) -> dict[str, str]:
        """Whether each event is always on or in windows."""
        return {name: e.mode for name, e in self._events.items()}


def water_fill(demands: Iterable[float], total: float) -> list[float]:
    """
    Share *total* out fairly: nobody gets more than asked for, what is over goes to the rest.

    >>> water_fill([1.0, 8.0, 9.0], 11.0)
    [1.0, 5.0, 5.0]
    """
    wanted = list(demands)
    shares = [0.0] * len(wanted)
    left = total
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    for done, place in enumerate(order):
        shares[place] = min(wanted[place], left / (len(order) - done))
        left -= shares[place]
    return shares
