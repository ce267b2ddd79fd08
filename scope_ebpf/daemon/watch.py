# SPDX-License-Identifier: Apache-2.0
"""
One target under observation: its hooks, its budget, its counters.

Driven by the daemon's loop with :meth:`Watch.tick` when :attr:`Watch.next_tick` says so,
:meth:`Watch.turn` when :meth:`Watch.next_turn` says so, and :meth:`Watch.rang` when an
allowance was spent. What a scrape shows is the last :attr:`Watch.reading`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.budget import totals
from scope_ebpf.budget.governor import OFTEN, OTHERS, Governor
from scope_ebpf.budget.hit_costs import Prices
from scope_ebpf.budget.hooks import GovernedHooks
from scope_ebpf.cgroups import Throttling
from scope_ebpf.daemon.looks.owners import ROOT, Owner
from scope_ebpf.daemon.looks.prepare import Prepared, prepare
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.process import cgroup_of, read_process, user_of
from scope_ebpf.kernel.attach.leftovers import heal
from scope_ebpf.metrics.reading import EventReading, Reading
from scope_ebpf.planning.planner import semaphores
from scope_ebpf.sessions import open_governed_session

if TYPE_CHECKING:
    from scope_ebpf.attach.plan import Item
    from scope_ebpf.beam.vm.counters import Counters
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.readings.threads import WatchedThreads
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.kernel.attach.uprobes import Attacher
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.kernel.observers.program_pool import Spares
    from scope_ebpf.metrics.reading import MemoryReading, ProcessReading
    from scope_ebpf.metrics.snapshot import SnapshotReading

#: Ticks from one look at the kernel's statistics to the next.
_PRICE_TICKS = 5
#: The weight of the newest stocktaking in what one takes of our CPU.
_NEW = 0.3


class Watch:
    """
    Observes *target* under the label *node* for at most the share *budget* of its CPU.

    Raises NothingToAttachError, HostError and NoSuchProcessError.
    """

    def __init__(
        self,
        target: Target,
        node: str,
        budget: float,
        cost: HitCost,
        attacher: Attacher,
        *,
        spares: Spares,
        threads: WatchedThreads | None = None,
        prepared: Prepared | None = None,
        owner: Owner = ROOT,
    ) -> None:
        self.target, self.node, self.owner = target, node, owner
        target.identity.check()
        #: The last snapshot of the process table; whoever takes snapshots puts it here.
        self.snapshot: SnapshotReading | None = None
        #: The same of the VM's own memory.
        self.memory: MemoryReading | None = None
        #: What another thread found out about it, for which it is to be let go.
        self.trouble: ScopeError | None = None
        self._threads = threads
        self._throttling = Throttling(target.pid)
        # Read once: who may move a VM among cgroups of its own must not make series without end.
        self._owner = {"uid": user_of(target.pid), "cgroup": cgroup_of(target.pid)}
        prepared = prepared or prepare(target)
        self._measures, self.plan = prepared.measures, prepared.planned.plan
        self.notes = list(prepared.notes)
        self.session = open_governed_session(target, prepared.planned, attacher, spares)
        self._items = {item.event: item for item in self.plan.items}
        self._prices = Prices(self.plan, cost)
        costs = self._prices.hit_costs()
        self._governor = Governor(costs, time.monotonic(), budget=budget)
        self._totals = totals.Totals(costs, self._measures.passed)
        self._hooks = GovernedHooks(
            self.session,
            self._measures,
            self._prices,
            self._governor,
            books=self._totals,
            failed=self._failed,
        )
        #: When :meth:`tick` is due, and when it was done, monotonic seconds.
        self.next_tick = self.ticked = 0.0
        #: What it takes of our CPU, of late, in seconds.
        self._stocktaking = 0.0
        #: Events whose hooks the kernel refused, and why.
        self.failed: dict[str, str] = {}
        self._ticks = 0
        read = target.memory.read
        healed = heal(target.identity, semaphores(target.binary), attacher, read=read)
        if healed:
            say(logging.WARNING, "breakpoints of nobody go out", pid=target.pid, count=healed)
        self.session.__enter__()
        try:
            self._hooks.tell_measures()
            self.program_stats = self.session.program_stats()
            process = read_process(target.pid, self._throttling)
            self.reading = self._read(self._measures.read(), process, 0.0)
            target.identity.check()
        except BaseException:
            self.session.close()  # a target may end at any moment
            raise

    # What the loop calls ---------------------------------------------------------------------

    def tick(self) -> None:
        """
        Take stock: counts, costs, allowances.

        NoSuchProcessError if the target has ended, or is another by now; then nothing of what
        was read is told. Raises :attr:`trouble`, too.
        """
        if self.trouble:
            raise self.trouble
        now, began = time.monotonic(), cpu_seconds()
        self._hooks.listen(now)
        counters = self._measures.read()
        process = read_process(self.target.pid, self._throttling)
        if self._threads:
            self._threads.tick()
        self._ticks += 1
        if self._ticks % _PRICE_TICKS == 0:
            self._correct_prices()
        others = {"threads": self._threads.spent()} if self._threads else {}
        spent = self._hooks.tick(now, process.cpu_seconds, others)
        self.target.identity.check()
        self.reading = self._read(counters, process, spent)
        took = cpu_seconds() - began
        self._stocktaking += (took - self._stocktaking) * (_NEW if self._stocktaking else 1.0)
        self.ticked, self.next_tick = now, now + self._governor.pause(self._stocktaking)

    def debt(self) -> tuple[float, float]:
        """What its threads took beyond their part of the budget, and that part of a second."""
        return self._governor.debt, OTHERS * self._governor.income

    def resumed(self) -> None:
        """The scheduler's tracepoints were out for a while."""
        if self._threads:
            self._threads.resumed()

    def unwatch_threads(self, why: str) -> None:
        """The scheduler's tracepoints are refused by now."""
        if self._threads:
            self._threads.go_without(why)

    def turn(self) -> None:
        """Close the window that is over, open the one that is due."""
        self._hooks.turn()

    def next_turn(self) -> float | None:
        """When :meth:`turn` has something to do, monotonic seconds; None if it does not know."""
        return self._hooks.next_turn()

    def rang(self) -> None:
        """An allowance was spent: take out what spent it."""
        self.next_tick = min(self.next_tick, time.monotonic() + OFTEN)
        self._hooks.rang()

    def rename(self, node: str) -> None:
        """Let all that is told of the target be told of *node* from now on."""
        self.node, self.reading = node, replace(self.reading, node=node)

    def close(self) -> None:
        """Take everything out of the target and the kernel."""
        self.session.close()
        if self._threads:
            self._threads.close()

    def _failed(self, event: str, why: str) -> None:
        self.failed[event] = why
        say(logging.WARNING, "hook off", pid=self.target.pid, hook=event, why=why)

    def _correct_prices(self) -> None:
        self.program_stats = self.session.program_stats()
        self._prices.correct(self.program_stats)
        for event, cost in self._prices.hit_costs().items():
            self._governor.price(event, cost)

    # Telling ---------------------------------------------------------------------------------

    def _read(self, counters: Counters | None, process: ProcessReading, spent: float) -> Reading:
        target = self.target
        info = {
            "pid": str(target.pid),
            "otp_release": target.otp_release,
            "erts_version": target.erts_version,
            "flavor": target.flavor,
            "hooks": "usdt" if target.usdt else "symbol",
            "exe": target.exe,
            **self._owner,
        }
        return Reading(
            node=self.node,
            info=info,
            schedulers=target.schedulers,
            process=process,
            events=self._events(),
            counters=counters,
            limits=self._measures.limits,
            budget=self._governor.budget,
            overhead=self._governor.overhead_ratio(),
            hook_seconds=spent,
            trips=self._hooks.trips,
            windows=self._hooks.windows,
            lost=self._hooks.lost + sum(stats.missed for stats in self.program_stats.values()),
            refused_kernel=self._hooks.refused,
            refused_user=target.memory.failures,
            threads=self._threads.totals if self._threads else None,
            books=self._threads.books if self._threads else None,
            memory=self.memory,
            snapshot=self.snapshot,
        )

    def _events(self) -> dict[str, EventReading]:
        modes = self._governor.modes()
        return {
            event: self._event(item, modes.get(event, "off")) for event, item in self._items.items()
        }

    def _event(self, item: Item, mode: str) -> EventReading:
        if mode == "off":
            return totals.off(item, self.failed.get(item.event, item.reason))
        ratio = self._governor.sampling_ratio(item.event)
        return self._totals.reading(item.event, item, mode, ratio)
