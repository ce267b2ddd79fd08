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

from scope_ebpf import events
from scope_ebpf.beam.memory import cpu_seconds
from scope_ebpf.daemon import totals
from scope_ebpf.daemon.measures import Mark
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.owners import ROOT, Owner
from scope_ebpf.daemon.prepare import Prepared, prepare
from scope_ebpf.daemon.prices import Prices
from scope_ebpf.daemon.process import cgroup_of, read_process, user_of
from scope_ebpf.daemon.throttling import Throttling
from scope_ebpf.daemon.windows import Approach, Window
from scope_ebpf.governor import OFTEN, OTHERS, Action, Governor
from scope_ebpf.kernel.governed import GovernedSession
from scope_ebpf.kernel.leftovers import heal
from scope_ebpf.metrics.reading import EventReading, Reading
from scope_ebpf.planning import semaphores

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.beam.counters import Counters
    from scope_ebpf.beam.target import Target
    from scope_ebpf.daemon.threads import WatchedThreads
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.kernel.programs import Spares
    from scope_ebpf.kernel.uprobes import Attacher
    from scope_ebpf.metrics.reading import MemoryReading, ProcessReading
    from scope_ebpf.metrics.snapshot import SnapshotReading
    from scope_ebpf.plan import Item

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
        self._measures, self.plan = prepared.measures, prepared.plan
        self.notes = list(prepared.notes)
        self.session = GovernedSession(
            self.plan,
            target.identity,
            target.base,
            prepared.settings,
            attacher=attacher,
            spares=spares,
            addresses=prepared.addresses,
        )
        self._items = {item.event: item for item in self.plan.items}
        self._prices = Prices(self.plan, cost)
        costs = self._prices.hit_costs()
        self._governor = Governor(costs, time.monotonic(), budget=budget)
        self._totals = totals.Totals(costs, self._measures.passed)
        self._approach: Approach | None = None
        self._window: Window | None = None
        self._spent_before = 0.0
        #: Our own CPU for windows since the last one closed, in seconds.
        self._worked = 0.0
        #: When :meth:`tick` is due, and when it was done, monotonic seconds.
        self.next_tick = self.ticked = 0.0
        #: What it takes of our CPU, of late, in seconds.
        self._stocktaking = 0.0
        self.trips = self.windows = 0
        #: Events whose hooks the kernel refused, and why.
        self.failed: dict[str, str] = {}
        self._hits: dict[str, int] = {}
        self._hit = False
        self._lost = self._refused = self._ticks = 0
        read = target.memory.read
        healed = heal(target.identity, semaphores(target.binary), attacher, read=read)
        if healed:
            say(logging.WARNING, "breakpoints of a killed tool are out", pid=target.pid, of=healed)
        self.session.__enter__()
        try:
            self._tell_measures(costs)
            self.program_stats = self.session.program_stats()
            process = read_process(target.pid, self._throttling)
            self.reading = self._read(self._measures.read(), process, 0.0)
            target.identity.check()
        except BaseException:
            self.session.close()  # a target may end at any moment
            raise

    def _tell_measures(self, names: Iterable[str]) -> None:
        """Programs read the measure of an event themselves at the edges of its windows."""
        for event in names:
            words = self._measures.words(event)
            if words:
                self.session.measure(event, words.address, words.stride, words.words)

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
        self._listen(now)
        counters = self._measures.read()
        process = read_process(self.target.pid, self._throttling)
        if self._threads:
            self._threads.tick()
        measures = self._measures.now()
        hits = self.session.hits()
        self._account(measures, hits)
        self._ticks += 1
        if self._ticks % _PRICE_TICKS == 0:
            self._correct_prices()
        spent = self._spent(hits)
        for action in self._governor.tick(now, process.cpu_seconds, spent):
            self._act(action, measures)
        self.target.identity.check()
        self.reading = self._read(counters, process, sum(spent.values()))
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
        began = cpu_seconds()
        self._turn(time.monotonic())
        self._worked += cpu_seconds() - began

    def _turn(self, now: float) -> None:
        if self._window and now >= self._window.closes:
            self._close_window(now)
        if self._approach and now >= self._approach.ready:
            approach, self._approach = self._approach, None
            self._open_window(approach)
        elif self._window is None and self._approach is None:
            action = self._governor.due(now)
            if action:
                self._approach = Approach(self._measures, action)

    def next_turn(self) -> float | None:
        """When :meth:`turn` has something to do, monotonic seconds; None if it does not know."""
        if self._approach:
            return self._approach.ready
        return self._window.closes if self._window else self._governor.next_due()

    def rang(self) -> None:
        """An allowance was spent: take out what spent it."""
        self.session.quiet()
        now = time.monotonic()
        self.next_tick = min(self.next_tick, now + OFTEN)
        self._listen(now)

    def rename(self, node: str) -> None:
        """Let all that is told of the target be told of *node* from now on."""
        self.node, self.reading = node, replace(self.reading, node=node)

    def close(self) -> None:
        """Take everything out of the target and the kernel."""
        self.session.close()
        if self._threads:
            self._threads.close()

    # Switching -------------------------------------------------------------------------------

    def _listen(self, now: float) -> None:
        for event in self.session.all_tripped():
            if self._window and self._window.event == event:
                self._close_window(now)
                continue
            self.session.release(event)
            self.trips += 1
            self._governor.tripped(event, now)
            end = self.session.edges(event).end
            reached = Mark(*end) if end else self._measures.reading(event)
            self._totals.tripped(event, self.session.kind(event), reached)

    def _act(self, action: Action, measures: dict[str, int]) -> None:
        event = action.event
        if action.what == "refill":
            self.session.refill(event, action.hits)
        elif self._attached(event):
            self.session.open_gate(event, action.hits)
            self._totals.opened(event, self._measures.reading(event, measures))

    def _attached(self, event: str) -> bool:
        """Put the hooks of *event* in; where that fails the event is off."""
        if self.session.attach(event):
            return True
        self.failed[event] = why = self.session.failures[-1].reason
        self._governor.failed(event)
        say(logging.WARNING, "hook off", pid=self.target.pid, hook=event, why=why)
        return False

    def _open_window(self, approach: Approach) -> None:
        action, speed = approach.action, approach.speed()
        if self._attached(action.event):
            self.windows += 1
            self._window = Window(self.session, self._measures, action, speed)
            self._spent_before = self._spent_on(action.event)

    def _close_window(self, now: float) -> None:
        window = self._window
        assert window is not None  # noqa: S101 - the callers look
        self._window = None
        closed = window.close()
        self.session.release(window.event)
        self._totals.window(window.event, self.session.kind(window.event), closed)
        cost = self._spent_on(window.event) - self._spent_before
        self._governor.closed(window.event, now, closed.seconds, cost, self._worked)
        self._worked = 0.0

    # Counting --------------------------------------------------------------------------------

    def _account(self, measures: dict[str, int], hits: dict[str, int]) -> None:
        """Bring every event's totals up to now; maps of events that were not hit are not read."""
        modes = self._governor.modes()
        counted, hit = None, hits != self._hits
        # A program that was under way at the last look had been hit, but had not counted yet.
        if hit or self._hit:
            counted, self._hits = self.session.kinds(), hits
            self._lost, self._refused = (int(counted[0][n].sum()) for n in ("lost", "refused"))
        self._hit = hit
        for event in self._totals:
            reached = self._measures.reading(event, measures)
            if event not in self.session.attached or modes.get(event) != "always":
                self._totals.estimated(event, reached)
            elif counted is None:
                self._totals.opened(event, reached)
            else:
                number = events.KINDS[event].id
                self._totals.exact(event, (counted[0][number], counted[1][number]), reached)

    def _spent_on(self, event: str) -> float:
        return self._prices.spent_on(event, self.session.hits())

    def _spent(self, hits: dict[str, int]) -> dict[str, float]:
        spent = self._prices.spent(hits)
        if self._threads:
            spent["threads"] = self._threads.spent()
        return spent

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
            trips=self.trips,
            windows=self.windows,
            lost=self._lost + sum(stats.missed for stats in self.program_stats.values()),
            refused_kernel=self._refused,
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
