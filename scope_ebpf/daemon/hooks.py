# SPDX-License-Identifier: Apache-2.0
"""The hooks of one target with its budget: programs, costs, governor and totals."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_ebpf.beam.hidden.resolve import hidden_of
from scope_ebpf.budget import totals
from scope_ebpf.budget.governor import DAEMON_POLICY, Governor
from scope_ebpf.budget.hit_costs import HitCosts
from scope_ebpf.budget.hooks import GovernedHooks
from scope_ebpf.budget.judge import Judge
from scope_ebpf.daemon.notify import say
from scope_ebpf.kernel.attach.leftovers import heal
from scope_ebpf.metrics.reading import HooksReading
from scope_ebpf.planning.planner import semaphores
from scope_ebpf.sessions import open_governed_session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.attach.plan import Item
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.looks.prepare import Prepared
    from scope_ebpf.kernel.attach.uprobes import Attacher
    from scope_ebpf.kernel.bpf.stats import ProgramStats
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.kernel.observers.program_pool import ProgramPool
    from scope_ebpf.metrics.columns import EventReading

#: Ticks between two readings of the kernel's statistics of programs.
_STATS_TICKS = 5


@dataclass(frozen=True, slots=True)
class HookResources:
    """What the hooks of all targets share."""

    #: The process that holds the breakpoints.
    attacher: Attacher
    #: Loaded programs for the next target.
    pool: ProgramPool
    #: Seconds of CPU that one hit costs.
    cost: HitCost


class TargetHooks:
    """
    The hooks of *target*, for at most the share *budget* of its CPU.

    No program is loaded before :meth:`open`.

    Attributes:
        plan: what is attached for each event.
        counters: the VM's own counters.
        session: the programs and maps.
        resources: what the hooks of all targets share.
        budget: the share of the target's CPU.
        failed: events whose hooks the kernel refused, with the reason.
        program_stats: runs of each program, at the last reading.
    """

    def __init__(
        self, target: Target, prepared: Prepared, resources: HookResources, budget: float
    ) -> None:
        self.plan, self.counters = prepared.planned.plan, prepared.counters
        self.failed: dict[str, str] = {}
        self.program_stats: dict[str, ProgramStats] = {}
        self._target, self._attacher = target, resources.attacher
        self.resources, self.budget = resources, budget
        self.session = open_governed_session(
            target, prepared.planned, resources.attacher, resources.pool
        )
        self._costs = HitCosts(self.plan, resources.cost)
        costs = self._costs.by_event()
        self._governor = Governor(costs, time.monotonic(), budget=budget)
        self._totals = totals.Totals(costs, self.counters.growth)
        self._judge = Judge(
            self.plan,
            hidden_of(target.binary).proven,
            self.counters.names(),
            self.counters.schedulers(),
        )
        self.failed |= self._judge.refused
        for event in self._judge.refused:
            self._governor.failed(event)
        self._hooks = GovernedHooks(
            self.session,
            self.counters,
            self._costs,
            self._governor,
            totals=self._totals,
            failed=self._failed,
            judge=self._judge,
        )
        self._ticks = 0

    def open(self) -> None:
        """
        Load the programs, after removing breakpoints that an earlier process left in the target.

        Raises NothingToAttachError, HostError and NoSuchProcessError; call :meth:`close` then, too.
        """
        target = self._target
        left = semaphores(target.binary)
        healed = heal(target.identity, left, self._attacher, read=target.memory.read)
        if healed:
            say(logging.WARNING, "breakpoints of nobody go out", pid=target.pid, count=healed)
        self.session.__enter__()
        self._hooks.configure_counters()
        self.program_stats = self.session.program_stats()

    def close(self) -> None:
        """Detach all hooks and release the programs."""
        self.session.close()

    def tick(self, now: float, cpu_seconds: float, others: Mapping[str, float]) -> float:
        """As :meth:`GovernedHooks.tick`, with hit costs that follow the kernel's statistics."""
        self._ticks += 1
        if self._ticks % _STATS_TICKS == 0:
            self._update_costs()
        return self._hooks.tick(now, cpu_seconds, others)

    def detach_exhausted(self, now: float) -> None:
        """Detach the hooks of events whose quota is exhausted."""
        self._hooks.detach_exhausted(now)

    def on_exhausted(self) -> None:
        """Handle the wake-up of an exhausted quota."""
        self._hooks.on_exhausted()

    def run_windows(self) -> None:
        """Close the window that is over, and open the one that is due."""
        self._hooks.run_windows()

    def next_window(self) -> float | None:
        """When :meth:`run_windows` is due, monotonic seconds; None if no event has windows."""
        return self._hooks.next_window()

    def pause(self, tick_cpu: float) -> float:
        """Seconds to the next :meth:`tick`, which takes *tick_cpu* seconds of our CPU."""
        return self._governor.pause(tick_cpu)

    @property
    def income(self) -> float:
        """Seconds of CPU a second that observing the target may cost."""
        return self._governor.income

    def debt(self) -> tuple[float, float]:
        """Seconds by which other costs exceed their share of the budget, and that share of 1 s."""
        governor = self._governor
        return governor.debt, DAEMON_POLICY.other_cost_share * governor.income

    def reading(self, spent: float) -> HooksReading:
        """The figures of the hooks; *spent* are the seconds of CPU that observing took so far."""
        counts, governor = self._hooks.counts, self._governor
        missed = sum(stats.missed for stats in self.program_stats.values())
        return HooksReading(
            budget=governor.budget,
            overhead=governor.overhead_ratio(),
            seconds=spent,
            exhausted=counts.exhausted,
            windows=counts.windows,
            lost=counts.lost + missed,
            refused=counts.refused,
        )

    def events(self) -> dict[str, EventReading]:
        """The figures of each event of the plan."""
        modes = self._governor.modes()
        return {
            item.event: self._event(item, modes.get(item.event, "off")) for item in self.plan.items
        }

    def _event(self, item: Item, mode: str) -> EventReading:
        if mode == "off":
            return totals.off(item, self.failed.get(item.event, item.reason))
        if item.event in self._judge.withheld():
            return totals.off(item, self._judge.why_pending(item.event))
        ratio = self._governor.sampling_ratio(item.event)
        return self._totals.reading(item.event, item, mode, ratio)

    def _failed(self, event: str, why: str) -> None:
        self.failed[event] = why
        say(logging.WARNING, "hook off", pid=self._target.pid, hook=event, why=why)

    def _update_costs(self) -> None:
        self.program_stats = self.session.program_stats()
        self._costs.update(self.program_stats)
        for event, cost in self._costs.by_event().items():
            self._governor.set_hit_cost(event, cost)
