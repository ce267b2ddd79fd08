# SPDX-License-Identifier: Apache-2.0
"""
The hooks of one target, switched as its governor decides, and what they count, given to books.

Driven by a loop: :meth:`GovernedHooks.tick` now and then, :meth:`GovernedHooks.turn` when
:meth:`GovernedHooks.next_turn` says so, and :meth:`GovernedHooks.rang` when an allowance was spent.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scope_ebpf import events
from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.budget.governor import Action
from scope_ebpf.budget.windows import Approach, Window
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.budget.governor import Governor
    from scope_ebpf.budget.hit_costs import Prices
    from scope_ebpf.budget.reference_counters import Mark, Measures
    from scope_ebpf.budget.windows import Closed
    from scope_ebpf.kernel.observers.governed import GovernedSession

    #: Tallies and durations of one event, shape ``(classes,)`` each.
    Counted = tuple[NDArray[np.void], NDArray[np.void]]


#: Seconds between two looks at a window that is waited for.
_GLANCE = 0.0005


class Books(Protocol):
    """Whoever adds up what is counted: of each event, the kernel's maps, which only grow."""

    def __iter__(self) -> Iterator[str]:
        """The events."""

    def opened(self, event: str, now: Mark) -> None:
        """From *now* on *event* is always counted."""

    def exact(self, event: str, counted: Counted, now: Mark) -> None:
        """All that happened up to *now* was counted."""

    def estimated(self, event: str, now: Mark) -> None:
        """Windows tell what happened up to *now*, if there were any."""

    def tripped(self, event: str, counted: Counted, now: Mark) -> None:
        """What was counted until now is exact, and from now on there are windows."""

    def window(self, event: str, counted: Counted, closed: Closed) -> None:
        """A window of *event* was *closed*."""


class Finished(NamedTuple):
    """
    What is left when hooks are out: maps of events that were always counted, and where it ended.

    *tallies* are those of all kinds, shape ``(kinds, classes)``, *hits* those of each program.
    """

    always: dict[str, Counted]
    marks: dict[str, Mark]
    tallies: NDArray[np.void]
    hits: dict[str, int]


class GovernedHooks:
    """
    The hooks of *session*, switched as *governor* decides.

    *failed* is told of events whose hooks the kernel refuses, and why; they are off from then on.
    """

    def __init__(
        self,
        session: GovernedSession,
        measures: Measures,
        prices: Prices,
        governor: Governor,
        *,
        books: Books,
        failed: Callable[[str, str], None],
    ) -> None:
        self.session, self._measures, self._prices = session, measures, prices
        self._governor, self._books, self._failed = governor, books, failed
        self._approach: Approach | None = None
        self._window: Window | None = None
        self._spent_before = 0.0
        #: Our own CPU for windows since the last one closed, in seconds.
        self._worked = 0.0
        self.trips = self.windows = 0
        #: Records without room, and reads that failed, of all events.
        self.lost = self.refused = 0
        self._latest: dict[str, int] = {}
        self._hits: dict[str, int] = {}
        self._hit = False

    def tell_measures(self) -> None:
        """Let programs read the measure of an event themselves at the edges of its windows."""
        for event in self._books:
            words = self._measures.words(event)
            if words:
                self.session.measure(event, *words)

    # What a loop calls -----------------------------------------------------------------------

    def tick(self, now: float, cpu_seconds: float, others: Mapping[str, float]) -> float:
        """
        Take stock: counts, costs, allowances.

        *cpu_seconds* are those that the target has used, *others* what was spent of them on other
        things than hooks. Returns all that was spent. Raises ReadRefusedError.
        """
        measures = self._latest = self._measures.now()
        hits = self.session.hits()
        self._account(measures, hits)
        spent = self._prices.spent(hits) | dict(others)
        for action in self._governor.tick(now, cpu_seconds, spent):
            self._act(action, measures)
        return sum(spent.values())

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
        self.listen(time.monotonic())

    def listen(self, now: float) -> None:
        """Take out the hooks of events whose allowance is spent."""
        for event in self.session.all_tripped():
            if self._window and self._window.event == event:
                self._close_window(now)
                continue
            self.session.release(event)
            self.trips += 1
            self._governor.tripped(event, now)
            end = self.session.edges(event).end
            reached = self._measures.mark(event, end) if end else self._measures.reading(event)
            self._books.tripped(event, self.session.kind(event), reached)

    def probe(self, event: str, hits: int, seconds: float) -> float:
        """
        Open one window of *event* and wait for its end, before anything else is in.

        Returns what its hooks would cost in a second of that. Raises ReadRefusedError.
        """
        approach = Approach(self._measures, Action("window", event, hits, seconds))
        time.sleep(max(0.0, approach.ready - time.monotonic()))
        before = self._spent_on(event)
        self._open_window(approach)
        window = self._window
        if window is None:
            return 0.0
        while time.monotonic() < window.closes and not self.session.tripped(event):
            time.sleep(_GLANCE)
        self._window = None
        closed = self._end(window)
        return (self._spent_on(event) - before) / max(closed.seconds, _GLANCE)

    def finish(self) -> Finished:
        """
        Count no longer and take all hooks out: what was always counted, and the last measures.

        The measures are those of the last tick where the target has ended.
        """
        now = time.monotonic()
        try:
            if self._window:
                self._close_window(now)
            self.listen(now)
            self.session.count(on=False)
            measures = self._measures.now()
        except (ReadRefusedError, NoSuchProcessError):
            self.session.count(on=False)
            measures = self._latest
        modes, attached = self._governor.modes(), list(self.session.attached)
        # A program that passed the gate before it closed has ended once all are out.
        self.session.detach()
        counted = self.session.kinds()
        always = {
            event: (counted[0][events.KINDS[event].id], counted[1][events.KINDS[event].id])
            for event in attached
            if modes.get(event) == "always"
        }
        reading = self._measures.reading
        marks = {event: reading(event, measures) for event in self._books} if measures else {}
        return Finished(always, marks, counted[0], self.session.hits())

    # Switching -------------------------------------------------------------------------------

    def _act(self, action: Action, measures: dict[str, int]) -> None:
        event = action.event
        if action.what == "refill":
            self.session.refill(event, action.hits)
        elif self._attached(event):
            self.session.open_gate(event, action.hits)
            self._books.opened(event, self._measures.reading(event, measures))

    def _attached(self, event: str) -> bool:
        """Put the hooks of *event* in; where that fails the event is off."""
        if self.session.attach(event):
            return True
        self._governor.failed(event)
        self._failed(event, self.session.failures[-1].reason)
        return False

    def _open_window(self, approach: Approach) -> None:
        action, speeds = approach.action, approach.speeds()
        if self._attached(action.event):
            self.windows += 1
            self._window = Window(self.session, self._measures, action, *speeds)
            self._spent_before = self._spent_on(action.event)

    def _close_window(self, now: float) -> None:
        window = self._window
        assert window is not None  # noqa: S101 - the callers look
        self._window = None
        closed = self._end(window)
        cost = self._spent_on(window.event) - self._spent_before
        self._governor.closed(window.event, now, closed.seconds, cost, self._worked)
        self._worked = 0.0

    def _end(self, window: Window) -> Closed:
        """Close *window*, let its hooks go, and book what it has counted."""
        closed = window.close()
        self.session.release(window.event)
        self._books.window(window.event, self.session.kind(window.event), closed)
        return closed

    # Counting --------------------------------------------------------------------------------

    def _account(self, measures: dict[str, int], hits: dict[str, int]) -> None:
        """Bring every event's totals up to now; maps of events that were not hit are not read."""
        modes = self._governor.modes()
        counted, hit = None, hits != self._hits
        # A program that was under way at the last look had been hit, but had not counted yet.
        if hit or self._hit:
            counted, self._hits = self.session.kinds(), hits
            self.lost, self.refused = (int(counted[0][n].sum()) for n in ("lost", "refused"))
        self._hit = hit
        for event in self._books:
            reached = self._measures.reading(event, measures)
            if event not in self.session.attached or modes.get(event) != "always":
                self._books.estimated(event, reached)
            elif counted is None:
                self._books.opened(event, reached)
            else:
                number = events.KINDS[event].id
                self._books.exact(event, (counted[0][number], counted[1][number]), reached)

    def _spent_on(self, event: str) -> float:
        return self._prices.spent_on(event, self.session.hits())
