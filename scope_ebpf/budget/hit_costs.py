# SPDX-License-Identifier: Apache-2.0
"""What the hooks of one target cost it: hits, times what a hit takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.attach.plan import Plan
    from scope_ebpf.kernel.bpf.stats import ProgramStats
    from scope_ebpf.kernel.cost import HitCost

#: Seconds that the programs run by which hits are measured, and runs that tell more of another.
_MEASURED_RUN, _ENOUGH_RUNS = 0.1e-6, 1000
_RETURNS = {h.program for variant in events.VARIANTS for h in variant.hooks if h.returns}


class Bill:
    """What counts have cost, each at the price of its time, so that this only grows as they do."""

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    def total(self, name: str, count: float, price: float) -> float:
        """Seconds for *count* of *name*, those since the last time at *price*."""
        more = count - self._counts.get(name, 0)
        self._counts[name] = count
        self._seconds[name] = self._seconds.get(name, 0.0) + more * price
        return self._seconds[name]


class Prices:
    """The price of a hit of each program of *plan*, at first what *cost* measured on ourselves."""

    def __init__(self, plan: Plan, cost: HitCost) -> None:
        self._all = {a.program for a in plan.attachments}
        self.rebase(cost)
        self._bill = Bill()
        self._hooks = {
            item.event: [a.program for a in item.attachments]
            for item in plan.items
            if item.attachments
        }
        self._programs = {event: set(programs) for event, programs in self._hooks.items()}

    def rebase(self, cost: HitCost) -> None:
        """A hit costs what *cost* has measured on ourselves, from now on."""
        self._base = {
            program: cost.returns if program in _RETURNS else cost.entry for program in self._all
        }
        self._prices = dict(self._base)

    def hits_of(self, event: str) -> int:
        """How many programs an event of this kind hits."""
        return len(self._programs[event])

    def hit_costs(self) -> dict[str, float]:
        """Seconds that a hit of one of an event's hooks costs, on average, by event."""
        return {
            event: sum(self._prices[program] for program in hooks) / len(hooks)
            for event, hooks in self._hooks.items()
        }

    def spent(self, hits: Mapping[str, int]) -> dict[str, float]:
        """Seconds of the target's CPU that *hits*, by program, took, by event."""
        return {event: self.spent_on(event, hits) for event in self._programs}

    def spent_on(self, event: str, hits: Mapping[str, int]) -> float:
        """The same of one event."""
        return sum(
            self._bill.total(program, hits[program], self._prices[program])
            for program in self._programs[event]
        )

    def correct(self, stats: Mapping[str, ProgramStats]) -> None:
        """Believe the kernel, which measures how long each program runs."""
        for program, ran in stats.items():
            if ran.runs >= _ENOUGH_RUNS:
                more = max(0.0, ran.seconds / ran.runs - _MEASURED_RUN)
                self._prices[program] = self._base[program] + more
