# SPDX-License-Identifier: Apache-2.0
"""
The hooks of one target, attached and detached as its governor decides, with what they count.

Driven by a loop: :meth:`GovernedHooks.tick` now and then, :meth:`GovernedHooks.run_windows` when
:meth:`GovernedHooks.next_window` is reached, and :meth:`GovernedHooks.on_exhausted` when a quota
was exhausted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scope_ebpf import events
from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.budget.comparisons import Comparisons
from scope_ebpf.budget.governor import Action
from scope_ebpf.budget.windows import Baseline, Window
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.budget.governor import Governor
    from scope_ebpf.budget.hit_costs import HitCosts
    from scope_ebpf.budget.judge import Judge
    from scope_ebpf.budget.reference_counters import CounterSample, ReferenceCounters
    from scope_ebpf.budget.windows import ClosedWindow
    from scope_ebpf.kernel.observers.governed import GovernedSession

    #: Counters and histograms of one event in the kernel's maps, shape ``(classes,)`` each.
    Counted = tuple[NDArray[np.void], NDArray[np.void]]


#: Seconds between two polls of a window that is waited for.
_POLL = 0.0005


class EventTotals(Protocol):
    """
    Adds up the counts of each event.

    *counted* are the kernel's maps of the event, whose values only grow; *now* is its reference
    counter.
    """

    def __iter__(self) -> Iterator[str]:
        """The events."""

    def opened(self, event: str, now: CounterSample) -> None:
        """*event* is counted permanently, and nothing was counted up to *now*."""

    def exact(self, event: str, counted: Counted, now: CounterSample) -> None:
        """*event* was counted permanently up to *now*."""

    def estimated(self, event: str, now: CounterSample) -> None:
        """*event* was counted in windows up to *now*, if there were any."""

    def exhausted(self, event: str, counted: Counted, now: CounterSample) -> None:
        """*event* was counted permanently up to *now*, and is counted in windows from then on."""

    def window(self, event: str, counted: Counted, closed: ClosedWindow) -> None:
        """A window of *event* was closed."""


class Finished(NamedTuple):
    """
    The last counts, after all hooks were detached.

    Attributes:
        permanent: maps of the events that were counted permanently.
        samples: the reference counter of each event at the end.
        tallies: counters of all events, shape ``(kinds, classes)``.
        hits: number of runs of each program.
    """

    permanent: dict[str, Counted]
    samples: dict[str, CounterSample]
    tallies: NDArray[np.void]
    hits: dict[str, int]


@dataclass(slots=True)
class HookCounts:
    """
    What happened to the hooks of one target since they were loaded.

    Attributes:
        exhausted: how often the quota of an event was exhausted.
        windows: windows that were opened.
        lost: records for which there was no room, of all events.
        refused: reads of the target's memory that failed in BPF programs, of all events.
    """

    exhausted: int = 0
    windows: int = 0
    lost: int = 0
    refused: int = 0


class GovernedHooks:
    """
    The hooks of *session*, attached and detached as *governor* decides.

    *failed* is called with an event and a reason where the kernel refuses the event's hooks, or
    *judge* finds that they are not the event's; the event is off from then on.

    Attributes:
        session: the programs and maps.
        counts: how often quotas were exhausted, windows opened, records lost, reads refused.
    """

    def __init__(
        self,
        session: GovernedSession,
        counters: ReferenceCounters,
        costs: HitCosts,
        governor: Governor,
        *,
        totals: EventTotals,
        failed: Callable[[str, str], None],
        judge: Judge,
    ) -> None:
        self.session, self._counters, self._costs = session, counters, costs
        self._comparisons = Comparisons(session, counters, judge)
        self._governor, self._totals, self._failed = governor, totals, failed
        self.counts = HookCounts()
        self._baseline: Baseline | None = None
        self._window: Window | None = None
        #: Cost of the window's event before the window opened, in seconds.
        self._spent_before = 0.0
        #: Our own CPU for windows since the last one closed, in seconds.
        self._own_cpu = 0.0
        #: Reference counters at the last tick.
        self._latest: dict[str, int] = {}
        self._hits: dict[str, int] = {}
        #: True if a hook was hit between the last two ticks.
        self._was_hit = False

    def configure_counters(self) -> None:
        """Set the addresses at which programs read the reference counter of each event."""
        for event in self._totals:
            ranges = self._counters.ranges(event)
            if ranges:
                self.session.set_reference_counters(event, *ranges)

    # Called by a loop ------------------------------------------------------------------------

    def tick(self, now: float, cpu_seconds: float, others: Mapping[str, float]) -> float:
        """
        Read counts, account for costs, renew quotas.

        *cpu_seconds* is the CPU that the target has used, *others* the seconds of it that were
        spent on other things than hooks, by name. Returns all seconds that were spent. Raises
        ReadRefusedError.
        """
        values = self._latest = self._counters.now()
        hits = self.session.hits()
        self._account(values, hits)
        spent = self._costs.spent(hits) | dict(others)
        for action in self._governor.tick(now, cpu_seconds, spent):
            self._act(action, values)
        return sum(spent.values())

    def run_windows(self) -> None:
        """Close the window that is over, and open the one that is due."""
        began = cpu_seconds()
        self._run_windows(time.monotonic())
        self._own_cpu += cpu_seconds() - began

    def _run_windows(self, now: float) -> None:
        if self._window and now >= self._window.closes:
            self._close_window(now)
        if self._baseline and now >= self._baseline.ready:
            baseline, self._baseline = self._baseline, None
            self._open_window(baseline)
        elif self._window is None and self._baseline is None:
            action = self._governor.due(now)
            if action:
                self._baseline = Baseline(self._counters, action)

    @property
    def in_window(self) -> bool:
        """Whether a window is open, or about to be."""
        return self._window is not None or self._baseline is not None

    def next_window(self) -> float | None:
        """When :meth:`run_windows` is due, monotonic seconds; None if no event has windows."""
        if self._baseline:
            return self._baseline.ready
        return self._window.closes if self._window else self._governor.next_due()

    def on_exhausted(self) -> None:
        """Handle the wake-up of an exhausted quota."""
        self.session.drain_wakeups()
        self.detach_exhausted(time.monotonic())

    def detach_exhausted(self, now: float) -> None:
        """Detach the hooks of events whose quota is exhausted."""
        for event in self.session.exhausted_events():
            if self._window and self._window.event == event:
                self._close_window(now)
                continue
            self.session.release(event)
            self._comparisons.forget(event)
            self.counts.exhausted += 1
            self._governor.exhausted(event, now)
            end = self.session.window_bounds(event).end
            counters = self._counters
            reached = counters.sample_of_hit(event, end) if end else counters.sample(event)
            self._totals.exhausted(event, self.session.kind(event), reached)

    def measure_demand(self, event: str, hits: int, seconds: float) -> float:
        """
        Open one window of *event* and wait for its end; no other hook may be attached.

        Returns the seconds of CPU that permanent hooks would cost per second. Raises
        ReadRefusedError.
        """
        baseline = Baseline(self._counters, Action("window", event, hits, seconds))
        time.sleep(max(0.0, baseline.ready - time.monotonic()))
        before = self._spent_on(event)
        self._open_window(baseline)
        window = self._window
        if window is None:
            return 0.0
        while time.monotonic() < window.closes and not self.session.exhausted_at(event):
            time.sleep(_POLL)
        self._window = None
        closed = self._end(window)
        return (self._spent_on(event) - before) / max(closed.seconds, _POLL)

    def finish(self) -> Finished:
        """
        Stop counting and detach all hooks; the last counts and reference counters.

        The counters are those of the last tick where the target has ended.
        """
        now = time.monotonic()
        try:
            if self._window:
                self._close_window(now)
            self.detach_exhausted(now)
            self.session.count(on=False)
            values = self._counters.now()
            if self._comparisons.running:  # none may have been made since the last tick, or ever
                self._comparisons.add(self.session.kinds()[0], values)
                self._take_out()
        except (ReadRefusedError, NoSuchProcessError):
            self.session.count(on=False)
            values = self._latest
        modes, attached = self._governor.modes(), list(self.session.attached)
        # Programs that began before counting stopped have ended once all hooks are detached.
        self.session.detach()
        counted = self.session.kinds()
        permanent = {
            event: (counted[0][events.KINDS[event].id], counted[1][events.KINDS[event].id])
            for event in attached
            if modes.get(event) == "always"
        }
        sample = self._counters.sample
        samples = {event: sample(event, values) for event in self._totals} if values else {}
        return Finished(permanent, samples, counted[0], self.session.hits())

    # Attaching -------------------------------------------------------------------------------

    def _act(self, action: Action, values: dict[str, int]) -> None:
        event = action.event
        if action.what == "refill":
            self.session.refill(event, action.hits)
        elif self._attach(event):
            self._comparisons.begin(event)
            self.session.enable(event, action.hits)
            self._totals.opened(event, self._counters.sample(event, values))

    def _attach(self, event: str) -> bool:
        """Attach the hooks of *event*; False where that failed, and the event is off."""
        if self.session.attach(event):
            return True
        self._governor.failed(event)
        self._failed(event, self.session.failures[-1].reason)
        return False

    def _open_window(self, baseline: Baseline) -> None:
        action, rates = baseline.action, baseline.rates()
        if self._attach(action.event):
            self.counts.windows += 1
            with self._comparisons.opening(action.event):
                self._window = Window(self.session, self._counters, action, *rates)
            self._spent_before = self._spent_on(action.event)

    def _close_window(self, now: float) -> None:
        window = self._window
        assert window is not None  # noqa: S101 - the callers look
        self._window = None
        closed = self._end(window)
        cost = self._spent_on(window.event) - self._spent_before
        self._governor.closed(window.event, now, closed.seconds, cost, self._own_cpu)
        self._take_out()
        self._own_cpu = 0.0

    def _end(self, window: Window) -> ClosedWindow:
        """Close *window*, detach its hooks, and add what it counted to the totals."""
        closed = self._comparisons.close(window)
        self.session.release(window.event)
        self._totals.window(window.event, self.session.kind(window.event), closed)
        return closed

    # Judging ---------------------------------------------------------------------------------

    def _take_out(self) -> None:
        """Remove the hooks of events that are newly refused."""
        for event, why in self._comparisons.newly_refused():
            self.session.release(event)
            self._governor.failed(event)
            self._failed(event, why)

    def compare_from_now(self) -> None:
        """Nothing was counted before now, whatever the VM counted. Raises ReadRefusedError."""
        self._comparisons.restart()

    # Counting --------------------------------------------------------------------------------

    def _account(self, values: dict[str, int], hits: dict[str, int]) -> None:
        """Bring the totals of every event up to now; maps are not read unless a hook was hit."""
        modes = self._governor.modes()
        counted, was_hit = None, hits != self._hits
        # A program that was running at the last tick was hit before it, and has counted after it.
        if was_hit or self._was_hit:
            counted, self._hits = self.session.kinds(), hits
            self.counts.lost = int(counted[0]["lost"].sum())
            self.counts.refused = int(counted[0]["refused"].sum())
        self._was_hit = was_hit
        if self._comparisons.pending:
            tallies = self.session.kinds()[0] if counted is None else counted[0]
            self._comparisons.add(tallies, values)
            self._take_out()
        for event in self._totals:
            reached = self._counters.sample(event, values)
            if event not in self.session.attached or modes.get(event) != "always":
                self._totals.estimated(event, reached)
            elif counted is None:
                self._totals.opened(event, reached)
            else:
                number = events.KINDS[event].id
                self._totals.exact(event, (counted[0][number], counted[1][number]), reached)

    def _spent_on(self, event: str) -> float:
        return self._costs.spent_on(event, self.session.hits())
