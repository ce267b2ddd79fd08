# SPDX-License-Identifier: Apache-2.0
"""
One run within a budget: hooks of what is rare stay in, what is hot is counted in windows.

Before any hook is in, the VM's own counters tell what is hot; an allowance of the governor tells
the rest within a few hundred hits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scope_ebpf.budget.fold import fold
from scope_ebpf.budget.governor import HEADROOM, Governor, Pace, water_fill
from scope_ebpf.budget.hit_costs import Prices
from scope_ebpf.budget.hooks import GovernedHooks
from scope_ebpf.budget.ledger import Ledger
from scope_ebpf.budget.reference_counters import TOLD_BY, Measures, Rates, cpu_clock
from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.sessions import open_governed_session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.budget.hooks import Finished
    from scope_ebpf.kernel.attach.uprobes import Attacher
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.kernel.observers.governed import GovernedSession
    from scope_ebpf.results.summary import EventSummary
    from scope_ebpf.sessions import Planned

#: A run is seconds, so it takes stock often and has windows as often as the budget allows. What
#: it may spend at once is a seventh of a second's work at most, by all events together; what is
#: there at the beginning is for bursts of what is rare. Of what the VM counts, windows tell the
#: parts only.
PACE = Pace(
    burst=15.0,
    reserve=15.0,
    spacing=0.25,
    shortest=0.0015,
    own=1.5,
    least_own=0.015,
    often=0.1,
    seldom=0.2,
    rarer=dict.fromkeys(TOLD_BY, 4.0),
)
#: What may be hot without being told, mostly where context switches are: a message wakes somebody.
#: Their hooks go in last, since a hit costs before it counts.
_UNTOLD = ("send", "receive")
#: Hits and seconds that tell whether they are.
_PROBE_HITS, _PROBE_SECONDS = 2048, 0.0015
#: Seconds between two looks that tell a rate, at least.
_FIRST_LOOK = 0.005


class BudgetedRun:
    """
    Counts the events that are *planned* on *target* for at most the share *budget* of its CPU.

    A context manager: at its beginning programs are loaded and no hook is in. *cost* is of a hit.
    """

    def __init__(
        self,
        target: Target,
        planned: Planned,
        attacher: Attacher,
        cost: HitCost,
        *,
        budget: float,
    ) -> None:
        self.plan = planned.plan
        self._pid = target.pid
        self._budget = budget
        self.measures = Measures(target)
        self._before = self._look()
        self._prices = Prices(planned.plan, cost)
        costs = self._prices.hit_costs()
        costs = dict(sorted(costs.items(), key=lambda item: item[0] in _UNTOLD))
        self._governor = Governor(costs, time.monotonic(), budget=budget, pace=PACE)
        self.ledger = Ledger(costs, self.measures)
        self._session = open_governed_session(target, planned, attacher)
        self._hooks = GovernedHooks(
            self._session,
            self.measures,
            self._prices,
            self._governor,
            books=self.ledger,
            failed=self._failed,
        )
        self._failures: dict[str, str] = {}
        self.next_tick = 0.0
        self._finished: Finished | None = None

    def __enter__(self) -> GovernedSession:
        return self._session.__enter__()

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def begin(self) -> None:
        """Put in what is to stay, and count from now on: all events from one moment."""
        self._hooks.tell_measures()
        hot = self._hot()  # with the gate open, which the session leaves it
        now = time.monotonic()
        for event, demand in hot.items():
            self._governor.begin_in_windows(event, demand, now)
        self._session.count(on=False)
        for _ in range(2):  # the first look only tells from where on is counted
            self._hooks.tick(time.monotonic(), cpu_clock(self._pid), {})
        if len(self._failures) == len(self._prices.hit_costs()):
            raise NothingToAttachError(f"no hook could be attached: {self._first_failure()}")
        found = self.measures.now()
        self._session.count(on=True)
        marks = {event: self.measures.reading(event, found) for event in self.ledger}
        self.ledger.begin(marks, hot)
        self.next_tick = time.monotonic() + PACE.often

    def _first_failure(self) -> str:
        return next(iter(self._failures.values()), "")

    def _failed(self, event: str, why: str) -> None:
        self._failures[event] = why

    def _look(self) -> Rates:
        return Rates(time.monotonic(), cpu_clock(self._pid), self.measures.now())

    def _hot(self) -> dict[str, float]:
        """Events that would cost too much all the time, and what they would: seconds a second."""
        before, now = self._before, self._look()
        passed = max(now.at - before.at, _FIRST_LOOK)
        used = (now.cpu_seconds - before.cpu_seconds) / passed
        income = self._budget * max(used, PACE.floor)
        costs = self._prices.hit_costs()
        demands = {}
        for event, name in TOLD_BY.items():
            if event in costs and name in now.measures:
                rate = (now.measures[name] - before.measures[name]) % 2**32 / passed
                demands[event] = rate * costs[event] * self._prices.hits_of(event)
        if not _too_much(demands, income):
            return {}
        for event in _UNTOLD:
            if event in costs:
                demands[event] = self._hooks.probe(event, _PROBE_HITS, _PROBE_SECONDS)
        hot = _too_much(demands, income)
        for event in set(_UNTOLD) & costs.keys() - hot.keys():
            self.ledger.forget(event)
        return hot

    def price(self, cost: HitCost) -> None:
        """A hit costs that, it has turned out."""
        self._prices.rebase(cost)
        for event, price in self._prices.hit_costs().items():
            self._governor.price(event, price)

    def fileno(self) -> int:
        """Readable when an allowance was spent: then :meth:`rang`."""
        return self._session.fileno()

    def rang(self) -> None:
        """Take out what has spent its allowance."""
        self._hooks.rang()

    def turn(self) -> None:
        """Do what is due: windows and stocktaking. Raises ReadRefusedError, OSError."""
        self._hooks.turn()
        now = time.monotonic()
        if now >= self.next_tick:
            self._hooks.listen(now)
            self._hooks.tick(now, cpu_clock(self._pid), {})
            self.next_tick = time.monotonic() + PACE.often

    def next_turn(self) -> float:
        """When :meth:`turn` has something to do, monotonic seconds."""
        due = self._hooks.next_turn()
        return self.next_tick if due is None else min(due, self.next_tick)

    def finish(self) -> None:
        """Count no longer, and take everything out."""
        finished = self._finished = self._hooks.finish()
        for event in self.ledger:
            self.ledger.end(event, finished.always.get(event), finished.marks.get(event))
        reasons = {
            attachment: self._failures[item.event]
            for item in self.plan.items
            for attachment in item.attachments
            if item.event in self._failures
        }
        self.plan = self.plan.without(reasons)

    @property
    def windows(self) -> int:
        """How many windows there were."""
        return self._hooks.windows

    def hits(self) -> dict[str, int]:
        """How often each program ran, after :meth:`finish`."""
        return self._finished.hits if self._finished else self._session.hits()

    def events(self, counted: Mapping[str, int]) -> dict[str, EventSummary]:
        """What was seen, after :meth:`finish`; *counted* is what the VM has counted itself."""
        assert self._finished is not None  # noqa: S101 - as it says
        return fold(self.plan, self.ledger, self._finished.tallies, counted)


def _too_much(demands: Mapping[str, float], income: float) -> dict[str, float]:
    """Those of *demands* that are more than their share of what is earned."""
    shares = water_fill(demands.values(), income * HEADROOM)
    return {
        event: demand
        for (event, demand), share in zip(demands.items(), shares, strict=True)
        if share < demand
    }
