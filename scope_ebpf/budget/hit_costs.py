# SPDX-License-Identifier: Apache-2.0
"""The cost of one target's hooks: the number of hits times the cost of one hit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.attach.plan import Plan
    from scope_ebpf.kernel.bpf.stats import ProgramStats
    from scope_ebpf.kernel.cost import HitCost

#: Run time in seconds of the programs with which ``kernel.cost`` measures a hit.
_MEASURED_RUN = 0.1e-6
#: Minimum number of runs from which the run time of another program is taken.
_MIN_RUNS = 1000
_RETURNS = {h.program for variant in events.VARIANTS for h in variant.hooks if h.returns}


class CostLedger:
    """
    Seconds of CPU that growing counts have cost.

    Each count is charged at the unit cost that was valid when it came, so the totals never fall.
    """

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    def total(self, name: str, count: float, unit_cost: float) -> float:
        """Seconds for *count* of *name* so far; new ones are charged at *unit_cost* seconds."""
        more = count - self._counts.get(name, 0)
        self._counts[name] = count
        self._seconds[name] = self._seconds.get(name, 0.0) + more * unit_cost
        return self._seconds[name]


class HitCosts:
    """
    Seconds of CPU that a hit of each program of *plan* costs.

    The costs start as *cost*, which was measured on the observer itself, and follow the run times
    that the kernel measures.
    """

    def __init__(self, plan: Plan, cost: HitCost) -> None:
        self._all = {a.program for a in plan.attachments}
        self.reset(cost)
        self._ledger = CostLedger()
        self._hooks = {
            item.event: [a.program for a in item.attachments]
            for item in plan.items
            if item.attachments
        }
        self._programs = {event: set(programs) for event, programs in self._hooks.items()}

    def reset(self, cost: HitCost) -> None:
        """Replace all costs by *cost*, a new measurement."""
        self._base = {
            program: cost.returns if program in _RETURNS else cost.entry for program in self._all
        }
        self._costs = dict(self._base)

    def programs_of(self, event: str) -> int:
        """Number of programs that run for one event of this kind."""
        return len(self._programs[event])

    def by_event(self) -> dict[str, float]:
        """Mean seconds that one hit of an event's hooks costs, by event."""
        return {
            event: sum(self._costs[program] for program in hooks) / len(hooks)
            for event, hooks in self._hooks.items()
        }

    def spent(self, hits: Mapping[str, int]) -> dict[str, float]:
        """Seconds of the target's CPU that *hits*, by program, took; by event."""
        return {event: self.spent_on(event, hits) for event in self._programs}

    def spent_on(self, event: str, hits: Mapping[str, int]) -> float:
        """Seconds of the target's CPU that the hits of *event* took; *hits* is by program."""
        return sum(
            self._ledger.total(program, hits[program], self._costs[program])
            for program in self._programs[event]
        )

    def update(self, stats: Mapping[str, ProgramStats]) -> None:
        """Set costs from the run times that the kernel measured, by program."""
        for program, ran in stats.items():
            if ran.runs >= _MIN_RUNS:
                more = max(0.0, ran.seconds / ran.runs - _MEASURED_RUN)
                self._costs[program] = self._base[program] + more
