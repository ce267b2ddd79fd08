# SPDX-License-Identifier: Apache-2.0
"""
One run within a budget: rare events have permanent hooks, frequent ones are counted in windows.

The VM's own counters show which events are frequent before any hook is attached. For the others an
exhausted quota of the governor shows it, within a few hundred hits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scope_ebpf.beam.hidden.resolve import hidden_of, prove
from scope_ebpf.budget.fold import fold
from scope_ebpf.budget.governor import BudgetPolicy, Governor, water_fill
from scope_ebpf.budget.hit_costs import HitCosts
from scope_ebpf.budget.hooks import GovernedHooks
from scope_ebpf.budget.judge import Judge
from scope_ebpf.budget.ledger import Ledger
from scope_ebpf.budget.reference_counters import (
    RATE_COUNTERS,
    CounterSnapshot,
    ReferenceCounters,
    cpu_clock,
)
from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.sessions import open_governed_session

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.budget.hooks import Finished
    from scope_ebpf.kernel.attach.uprobes import Attacher
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.kernel.observers.governed import GovernedSession
    from scope_ebpf.kernel.observers.program_pool import ProgramPool
    from scope_ebpf.results.summary import EventSummary
    from scope_ebpf.sessions import Planned

#: A run lasts seconds, so it ticks often and has windows as often as the budget allows. All events
#: together may spend at once what a seventh of a second's work costs. The initial balance is for
#: bursts of rare events. Events that the VM counts itself need windows for their classes only.
RUN_POLICY = BudgetPolicy(
    burst_seconds=15.0,
    reserve_seconds=15.0,
    window_spacing=0.25,
    min_window=0.0015,
    self_cost_share=1.5,
    min_self_cost=0.015,
    min_tick=0.1,
    max_tick=0.2,
    window_divisors=dict.fromkeys(RATE_COUNTERS, 4.0),
)
#: Events that may be frequent without a counter that shows it; mostly where context switches are
#: frequent, since a message wakes a process. They are attached last: a hit costs before it counts.
_UNCOUNTED = ("send", "receive")
#: The window that shows whether they are: maximum number of hits, and seconds.
_PROBE_HITS, _PROBE_SECONDS = 2048, 0.0015
#: Minimum seconds between two snapshots of counters from which a rate is computed.
_MIN_RATE_SECONDS = 0.005


class BudgetedRun:
    """
    Counts the events that are *planned* on *target* for at most the share *budget* of its CPU.

    A context manager, which loads programs when it is entered and attaches no hook. *cost* is
    that of one hit; programs come from *pool*, and go back to it, if there is one.

    Attributes:
        plan: the plan; after :meth:`finish` without what could not be attached.
        counters: the VM's own counters.
        ledger: what was counted, by event.
        next_tick: when counts are to be read next, monotonic seconds.
    """

    def __init__(
        self,
        target: Target,
        planned: Planned,
        attacher: Attacher,
        cost: HitCost,
        *,
        budget: float,
        pool: ProgramPool | None = None,
    ) -> None:
        self.plan = planned.plan
        self._pid = target.pid
        self._budget = budget
        self.counters = ReferenceCounters(target)
        self._before = self._snapshot()
        self._costs = HitCosts(planned.plan, cost)
        costs = self._costs.by_event()
        costs = dict(sorted(costs.items(), key=lambda item: item[0] in _UNCOUNTED))
        self._governor = Governor(costs, time.monotonic(), budget=budget, policy=RUN_POLICY)
        self.ledger = Ledger(costs, self.counters)
        self._session = open_governed_session(target, planned, attacher, pool)
        self._hidden = hidden_of(target.binary)
        known, schedulers = self._before.counters, self.counters.schedulers()
        self.judge = Judge(planned.plan, self._hidden.proven, known, schedulers)
        self._hooks = GovernedHooks(
            self._session,
            self.counters,
            self._costs,
            self._governor,
            totals=self.ledger,
            failed=self._failed,
            judge=self.judge,
        )
        self._failures: dict[str, str] = dict(self.judge.refused)
        for event in self.judge.refused:
            self._governor.failed(event)
        self.next_tick = 0.0
        self._finished: Finished | None = None

    def __enter__(self) -> GovernedSession:
        return self._session.__enter__()

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def begin(self) -> None:
        """
        Attach permanent hooks and begin to count all events at one moment.

        Raises NothingToAttachError where no hook can be attached, ReadRefusedError, OSError.
        """
        self._hooks.configure_counters()
        hot = self._hot()  # while counting is on, as the session begins
        now = time.monotonic()
        for event, demand in hot.items():
            self._governor.begin_in_windows(event, demand, now)
        self._session.count(on=False)
        for _ in range(2):  # the first tick only sets the values from which costs are counted
            self._hooks.tick(time.monotonic(), cpu_clock(self._pid), {})
        if len(self._failures) == len(self._costs.by_event()):
            raise NothingToAttachError(f"no hook could be attached: {self._first_failure()}")
        values = self.counters.now()
        self._session.count(on=True)
        self._hooks.compare_from_now()
        samples = {event: self.counters.sample(event, values) for event in self.ledger}
        self.ledger.begin(samples, hot)
        self.next_tick = time.monotonic() + RUN_POLICY.min_tick

    def _first_failure(self) -> str:
        return next(iter(self._failures.values()), "")

    def _failed(self, event: str, why: str) -> None:
        self._failures[event] = why

    def _snapshot(self) -> CounterSnapshot:
        return CounterSnapshot(time.monotonic(), cpu_clock(self._pid), self.counters.now())

    def _hot(self) -> dict[str, float]:
        """Events whose permanent hooks would cost too much, and their cost per second."""
        before, now = self._before, self._snapshot()
        passed = max(now.at - before.at, _MIN_RATE_SECONDS)
        used = (now.cpu_seconds - before.cpu_seconds) / passed
        income = self._budget * max(used, RUN_POLICY.min_cpus)
        costs = self._costs.by_event()
        demands = {}
        for event, name in RATE_COUNTERS.items():
            if event in costs and name in now.counters:
                rate = (now.counters[name] - before.counters[name]) % 2**32 / passed
                demands[event] = rate * costs[event] * self._costs.programs_of(event)
        if not _too_much(demands, income):
            return {}
        for event in _UNCOUNTED:
            if event in costs:
                demand = self._hooks.measure_demand(event, _PROBE_HITS, _PROBE_SECONDS)
                demands[event] = demand
        hot = _too_much(demands, income)
        if "schedule" in hot:
            # They may only pause now: a message wakes a process. Where there are none, a few
            # windows show it.
            for event in set(_UNCOUNTED) & costs.keys() - hot.keys():
                hot[event] = demands["schedule"]
        for event in set(_UNCOUNTED) & costs.keys() - hot.keys():
            self.ledger.forget(event)
        return hot

    def set_hit_cost(self, cost: HitCost) -> None:
        """Replace the assumed cost of a hit by *cost*."""
        self._costs.reset(cost)
        for event, seconds in self._costs.by_event().items():
            self._governor.set_hit_cost(event, seconds)

    def fileno(self) -> int:
        """Readable when a quota was exhausted: then call :meth:`on_exhausted`."""
        return self._session.fileno()

    def on_exhausted(self) -> None:
        """Detach the hooks of events whose quota is exhausted."""
        self._hooks.on_exhausted()

    def run_once(self) -> None:
        """Do what is due: windows, and a tick. Raises ReadRefusedError, OSError."""
        self._hooks.run_windows()
        now = time.monotonic()
        if now >= self.next_tick:
            self._hooks.detach_exhausted(now)
            self._hooks.tick(now, cpu_clock(self._pid), {})
            self.next_tick = time.monotonic() + RUN_POLICY.min_tick

    def next_due(self) -> float:
        """When :meth:`run_once` is due, monotonic seconds."""
        due = self._hooks.next_window()
        return self.next_tick if due is None else min(due, self.next_tick)

    @property
    def in_window(self) -> bool:
        """Whether a window is open, or about to be."""
        return self._hooks.in_window

    def finish(self) -> None:
        """Stop counting, and detach all hooks."""
        finished = self._finished = self._hooks.finish()
        self.judge.finish()
        self._failures |= self.judge.refused
        prove(self._hidden, self.judge.agreed)
        for event in self.ledger:
            self.ledger.end(event, finished.permanent.get(event), finished.samples.get(event))
        reasons = {
            attachment: self._failures[item.event]
            for item in self.plan.items
            for attachment in item.attachments
            if item.event in self._failures.keys() - self.judge.refused.keys()
        }
        self.plan = self.plan.refuse(self.judge.refused).without(reasons)

    @property
    def windows(self) -> int:
        """Number of windows that were opened."""
        return self._hooks.counts.windows

    def hits(self) -> dict[str, int]:
        """Number of runs of each program."""
        return self._finished.hits if self._finished else self._session.hits()

    def crashes(self) -> list[tuple[NDArray[np.void], int]] | None:
        """Groups of crashes that were seen, after :meth:`finish`; None if exits had no hook."""
        seen = any(item.event == "exit" and item.attachments for item in self.plan.items)
        return self._session.crashes() if seen else None

    def events(self, counted: Mapping[str, int]) -> dict[str, EventSummary]:
        """Summary of each event, after :meth:`finish`; *counted* are counts of the VM itself."""
        assert self._finished is not None  # noqa: S101 - the docstring says so
        return fold(self.plan, self.ledger, self._finished.tallies, counted)


def _too_much(demands: Mapping[str, float], income: float) -> dict[str, float]:
    """Those of *demands* that exceed their share of *income*."""
    shares = water_fill(demands.values(), income * RUN_POLICY.event_share)
    return {
        event: demand
        for (event, demand), share in zip(demands.items(), shares, strict=True)
        if share < demand
    }
