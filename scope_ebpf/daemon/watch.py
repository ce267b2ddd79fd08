# SPDX-License-Identifier: Apache-2.0
"""
One target under observation: its hooks, its budget, its counters.

Driven by the daemon's loop with :meth:`Watch.tick` about once a second,
:meth:`Watch.turn` when :meth:`Watch.next_turn` says so, and :meth:`Watch.rang` when an
allowance was spent. What a scrape shows is the last :attr:`Watch.reading`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.constants import kernel_constants, known, symbol_values
from scope_ebpf.beam.counters import CounterReader
from scope_ebpf.daemon.process import cgroup_of, read_process
from scope_ebpf.errors import NothingToAttachError, ReadRefusedError
from scope_ebpf.governor import Action, Governor
from scope_ebpf.kernel.governed import GovernedSession
from scope_ebpf.metrics.reading import COUNTS, SLOTS, WIDTH, EventReading, Reading
from scope_ebpf.metrics.scaling import Estimate
from scope_ebpf.plan import DEFAULT_EVENTS, Item, make_plan

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from numpy.typing import NDArray

    from scope_ebpf.beam.counters import Counters
    from scope_ebpf.beam.discover import Target
    from scope_ebpf.daemon.threads import WatchedThreads
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.metrics.reading import ProcessReading
    from scope_ebpf.metrics.snapshot import SnapshotReading

#: Which of the VM's counters goes along with an event; the others go along with reductions, because
#: how many messages a program sends for each of its calls does not change when hooks slow it down.
_MEASURES = {
    "spawn": "spawned",
    "exit": "spawned",
    "gc": "collections",
    "schedule": "context_switches",
}
#: Seconds that the programs run by which hits are measured, and runs that tell more of another.
_MEASURED_RUN, _ENOUGH_RUNS = 0.1e-6, 1000
#: The part of a window's measure of which it may be unclear whether it was in the window.
_DOUBT = 0.1
#: Ticks from one look at the kernel's statistics to the next.
_PRICE_TICKS = 5
_RETURNS = {h.program for way in events.WAYS for h in way.hooks if h.returns}


@dataclass(slots=True)
class _Window:
    """A window that is open."""

    event: str
    closes: float
    opened_ns: int
    #: The measure, read just before its gate was opened and just after.
    before: float
    after: float
    cost: float


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
        workers: ThreadPoolExecutor,
        *,
        threads: WatchedThreads | None = None,
    ) -> None:
        self.target, self.node = target, node
        self.notes: list[str] = []
        #: The last snapshot of the process table; whoever takes snapshots puts it here.
        self.snapshot: SnapshotReading | None = None
        self._cost = cost
        self._threads = threads
        self._cgroup = cgroup_of(target.pid)
        self._counters = self._make_counters()
        self._spawned = (self._counters.read().spawned, 0) if self._counters else (0, 0)
        self._limits = self._counters.limits() if self._counters else None
        settings, refused = kernel_constants(target)
        self.notes += refused
        self.plan = make_plan(target.binary, target.flavor, DEFAULT_EVENTS, "auto", known(settings))
        if not self.plan.attachments:
            raise NothingToAttachError(f"process {target.pid} has no hook that can be attached")
        names = {g.symbol for a in self.plan.attachments for g in a.arguments if g.symbol}
        self.session = GovernedSession(
            self.plan,
            target.pid,
            target.base,
            settings,
            workers=workers,
            addresses=symbol_values(target, names),
        )
        self._items = {item.event: item for item in self.plan.items}
        on = [item for item in self.plan.items if item.attachments]
        self._programs = {item.event: {a.program for a in item.attachments} for item in on}
        self._prices = {
            a.program: cost.returns if a.program in _RETURNS else cost.entry
            for a in self.plan.attachments
        }
        costs = {item.event: self._mean_cost(item) for item in on}
        self._governor = Governor(costs, time.monotonic(), budget=budget)
        self._estimates = {event: Estimate(WIDTH, COUNTS) for event in costs}
        self._seen = {event: np.zeros(WIDTH) for event in costs}
        self._measured: dict[str, float] = {}
        self._window: _Window | None = None
        self.trips = self.windows = 0
        self._failed: dict[str, str] = {}
        self.session.__enter__()
        self._lost = self._refused = self._ticks = 0
        self._stats = self.session.program_stats()
        process = read_process(target.pid, self._cgroup)
        self.reading = self._read(self._take_counters(), process, 0.0)

    def _make_counters(self) -> CounterReader | None:
        try:
            return CounterReader(self.target)
        except ReadRefusedError as error:
            self.notes.append(str(error))
            return None

    def _mean_cost(self, item: Item) -> float:
        """Seconds that a hit of one of the event's hooks costs, on average."""
        return sum(self._prices[a.program] for a in item.attachments) / len(item.attachments)

    # What the loop calls ---------------------------------------------------------------------

    def tick(self) -> None:
        """Take stock: counts, costs, allowances. NoSuchProcessError if the target has ended."""
        now = time.monotonic()
        self._listen(now)
        counters = self._take_counters()
        process = read_process(self.target.pid, self._cgroup)
        if self._threads:
            self._threads.tick()
        self._account(counters)
        self._ticks += 1
        if self._ticks % _PRICE_TICKS == 0:
            self._price()
        spent = self._spent()
        for action in self._governor.tick(now, process.cpu_seconds, spent):
            self._act(action, now, counters)
        self.reading = self._read(counters, process, sum(spent.values()))

    def turn(self) -> None:
        """Close the window that is over, open the one that is due."""
        now = time.monotonic()
        if self._window and now >= self._window.closes:
            self._close_window(now)
        if self._window is None:
            action = self._governor.due(now)
            if action:
                self._act(action, now, None)

    def next_turn(self) -> float | None:
        """When :meth:`turn` has something to do, monotonic seconds; None if it does not know."""
        return self._window.closes if self._window else self._governor.next_due()

    def rang(self) -> None:
        """An allowance was spent: take out what spent it."""
        self.session.quiet()
        self._listen(time.monotonic())

    def close(self) -> None:
        """Take everything out of the target and the kernel."""
        self.session.close()
        if self._threads:
            self._threads.close()

    # Switching -------------------------------------------------------------------------------

    def _listen(self, now: float) -> None:
        for event in [e for e in self.session.attached if self.session.tripped(e)]:
            if self._window and self._window.event == event:
                self._close_window(now)
                continue
            self.session.release(event)
            self.trips += 1
            self._governor.tripped(event, now)
            self._tripped(event)

    def _tripped(self, event: str) -> None:
        """What was counted until now is exact, and the best that is known of what follows."""
        news, estimate = self._news(event), self._estimates[event]
        measure = self._measure(event, self._take_counters())
        estimate.exact(news)
        estimate.begin(news, measure - self._measured.get(event, measure))
        self._measured[event] = measure

    def _act(self, action: Action, now: float, counters: Counters | None) -> None:
        event = action.event
        if action.what == "refill":
            self.session.refill(event, action.hits)
            return
        if not self.session.attach(event):
            self._failed[event] = self.session.failures[-1].reason
            self._governor.failed(event)
            return
        if action.what == "window" or counters is None:
            counters = self._take_counters()
        opened = self.session.open_gate(event, action.hits)
        if action.what == "window":
            self.windows += 1
            after = self._measure(event, self._take_counters())
            closes = max(time.monotonic(), now) + action.length
            before = self._measure(event, counters)
            self._window = _Window(event, closes, opened, before, after, self._spent_on(event))
        else:
            self._measured[event] = self._measure(event, counters)

    def _close_window(self, now: float) -> None:
        window = self._window
        assert window is not None  # noqa: S101 - the callers look
        self._window = None
        before = self._measure(window.event, self._take_counters())
        tripped = self.session.tripped(window.event)
        read_ns = time.monotonic_ns()
        closed_ns = self.session.close_gate(window.event)
        after = self._measure(window.event, self._take_counters())
        self.session.release(window.event)
        seconds = max(0, closed_ns - window.opened_ns) / 1e9
        if tripped:  # it closed before we read the measure
            after = before
        doubt = (after - before) + (window.after - window.before)
        measure = (after + before - window.after - window.before) / 2
        if tripped:
            measure *= min(1.0, (tripped - window.opened_ns) / max(1, read_ns - window.opened_ns))
        news = self._news(window.event)
        # Who was kept from running between two of our readings does not know what belongs together.
        if doubt <= _DOUBT * measure or not measure:
            self._estimates[window.event].window(news, measure)
        cost = self._spent_on(window.event) - window.cost
        self._governor.closed(window.event, now, seconds, cost)

    # Counting --------------------------------------------------------------------------------

    def _account(self, counters: Counters | None) -> None:
        """Bring every event's totals up to now."""
        modes, every = self._governor.modes(), self.session.kinds()
        self._lost, self._refused = (int(every[0][name].sum()) for name in ("lost", "refused"))
        for event, estimate in self._estimates.items():
            measure = self._measure(event, counters)
            if event in self.session.attached and modes.get(event) == "always":
                number = events.KINDS[event].id
                estimate.exact(self._news(event, (every[0][number], every[1][number])))
                self._measured[event] = measure
            elif estimate.advance(measure - self._measured.setdefault(event, measure)):
                self._measured[event] = measure

    def _news(
        self, event: str, totals: tuple[NDArray[np.void], NDArray[np.void]] | None = None
    ) -> NDArray[np.float64]:
        """What the kernel counted of *event* since it was last asked."""
        tallies, durations = totals or self.session.kind(event)
        now = np.zeros(WIDTH)
        now[:COUNTS] = tallies["count"]
        by_class = now[COUNTS:].reshape(events.CLASSES, 1 + SLOTS)
        by_class[:, 0] = durations["total_ns"]
        by_class[:, 1:] = durations["slots"]
        news = now - self._seen[event]
        self._seen[event] = now
        return news

    def _take_counters(self) -> Counters | None:
        if self._counters is None:
            return None
        try:
            counters = self._counters.read()
        except ReadRefusedError:
            return None
        last, total = self._spawned
        total += (counters.spawned - last) % 2**32
        self._spawned = (counters.spawned, total)
        return replace(counters, spawned=total)

    @staticmethod
    def _measure(event: str, counters: Counters | None) -> float:
        if counters is None:
            return time.monotonic()
        return float(getattr(counters, _MEASURES.get(event, "reductions")))

    def _spent_on(self, event: str, hits: dict[str, int] | None = None) -> float:
        hits = self.session.hits() if hits is None else hits
        wanted = self._programs[event]
        return sum(hits[program] * self._prices[program] for program in wanted)

    def _spent(self) -> dict[str, float]:
        hits = self.session.hits()
        spent = {event: self._spent_on(event, hits) for event in self._programs}
        if self._threads:
            spent["threads"] = self._threads.spent()
        return spent

    def _price(self) -> None:
        """Correct what a hit costs by the run time that the kernel measures."""
        stats = self._stats = self.session.program_stats()
        for event, programs in self._programs.items():
            for program in programs:
                runs, seconds = stats[program]
                base = self._cost.returns if program in _RETURNS else self._cost.entry
                if runs >= _ENOUGH_RUNS:
                    self._prices[program] = base + max(0.0, seconds / runs - _MEASURED_RUN)
            self._governor.price(event, self._mean_cost(self._items[event]))

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
        }
        return Reading(
            node=self.node,
            info=info,
            schedulers=target.schedulers,
            process=process,
            events={event: self._event(event, item) for event, item in self._items.items()},
            counters=counters,
            limits=self._limits,
            budget=self._governor.budget,
            overhead=self._governor.overhead_ratio(),
            hook_seconds=spent,
            trips=self.trips,
            windows=self.windows,
            lost=self._lost,
            refused_kernel=self._refused,
            refused_user=target.memory.failures,
            threads=self._threads.totals if self._threads else None,
            snapshot=self.snapshot,
            programs={p: (s.runs, s.seconds) for p, s in self._stats.items()},
        )

    def _event(self, event: str, item: Item) -> EventReading:
        mode = self._governor.modes().get(event, "off")
        if mode == "off":
            reason = self._failed.get(event, item.reason)
            return EventReading(np.zeros(WIDTH), mode, item.via, reason, 0.0, 1.0)
        estimate = self._estimates[event]
        return EventReading(
            totals=estimate.total.copy(),
            mode=mode,
            via=item.via,
            reason=item.reason,
            sampling_ratio=self._governor.sampling_ratio(event),
            error_ratio=0.0 if mode == "always" else estimate.error_ratio(),
        )
