# SPDX-License-Identifier: Apache-2.0
"""
One window: an event counts from one moment to another, and its measure is read at both.

The kernel decides when it ends, and its programs read the measure at the first hit in
it and at the first hit after it, in the same run in which they let that hit count or
not. So what was counted and how far the measure went on belong together, however long
we wait for a CPU. We read the measure as well, once after the window was opened and
once before it is closed. Before the first hit and after the end nothing counts, so of
two readings there the one nearer to the edge is taken: were it always that of the hit,
windows would tend to begin where an event happens.

Hooks slow the target down where the event is frequent, and a spent allowance ends a
window early there. Each window by itself has the right ratio; but together they would
make too little of the times when the event is frequent. So it is told how fast the
measure went just before the hooks came (``budget/estimate.py``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scope_ebpf.budget.reference_counters import TIME, Mark

if TYPE_CHECKING:
    from scope_ebpf.budget.governor import Action
    from scope_ebpf.budget.reference_counters import Measures
    from scope_ebpf.kernel.observers.governed import GovernedSession

#: The part of a window by which an edge may be off.
_DOUBT = 0.1
#: Seconds for which the measure is looked at before a window: about as long as the window.
_SHORTEST, _LONGEST = 0.005, 0.02


@dataclass(frozen=True, slots=True)
class Closed:
    """
    How long a window was open, and how far the measure went on; None if that is not known.

    *speed* is how far it went in each second before there were hooks. The same of the second
    measure, where the event has one.
    """

    seconds: float
    measure: float | None
    speed: float | None
    second: float | None = None
    second_speed: float | None = None


class Approach:
    """The time before a window: how fast the measure goes while no hook is in."""

    def __init__(self, measures: Measures, action: Action) -> None:
        self.action = action
        self._measures = measures
        self._first = self.read()
        #: When the window may be opened, monotonic seconds.
        self.ready = time.monotonic() + min(max(action.length, _SHORTEST), _LONGEST)

    def read(self) -> Mark:
        """The measure as it is now."""
        found = self._measures.now()
        return replace(
            self._measures.reading(self.action.event, found), time_ns=time.monotonic_ns()
        )

    def speed(self) -> float:
        """The measure in each second since the beginning."""
        return self.speeds()[0]

    def speeds(self) -> tuple[float, float | None]:
        """The same, and that of the second measure, where the event has one."""
        last = self.read()
        seconds = max(1e-9, (last.time_ns - self._first.time_ns) / 1e9)
        passed = self._measures.passed(self.action.event, self._first.measure, last.measure)
        if last.second is None or self._first.second is None:
            return passed / seconds, None
        return passed / seconds, (last.second - self._first.second) / seconds


class Window:
    """A window of an event whose hooks are in; the loop closes it after :attr:`closes`."""

    def __init__(
        self,
        session: GovernedSession,
        measures: Measures,
        action: Action,
        speed: float,
        second_speed: float | None = None,
    ) -> None:
        self.event = action.event
        self._session, self._measures = session, measures
        self._speed, self._second_speed = speed, second_speed
        self._since, self._until = session.open_window(action.event, action.hits, action.length)
        #: Monotonic seconds.
        self.closes = self._until / 1e9
        self._opened = self._read()

    def close(self) -> Closed:
        """Close its gate, if the kernel has not. Raises ReadRefusedError."""
        closing = self._read()
        stopped = self._session.close_gate(self.event)
        seconds = max(0, min(stopped, self._until) - self._since) / 1e9
        if self._measures.of(self.event) == TIME:
            late = (self._opened.time_ns - self._since) / 1e9
            return Closed(seconds, seconds * 1e9 if late <= _DOUBT * seconds else None, None)
        edges = self._session.edges(self.event)
        marks = self._mark(edges.begin), self._mark(edges.end)
        begin, end = bounds(self._opened, closing, marks, self._until)
        # Whose allowance was spent may have been preempted before it read the measure.
        late = (end.time_ns - stopped) / 1e9 if stopped < self._until else 0.0
        if begin.time_ns > end.time_ns or late > _DOUBT * seconds:
            return Closed(seconds, None, None)
        measure = self._measures.passed(self.event, begin.measure, end.measure)
        # If nothing was hit after the end until we came, the window was as long as that.
        seconds = (end.time_ns - begin.time_ns) / 1e9
        second = None
        if begin.second is not None and end.second is not None:
            second = float(end.second - begin.second)
        return Closed(seconds, measure, self._speed, second, self._second_speed)

    def _mark(self, edge: tuple[int, int, int] | None) -> Mark | None:
        return self._measures.mark(self.event, edge) if edge else None

    def _read(self) -> Mark:
        found = self._measures.now()
        return replace(self._measures.reading(self.event, found), time_ns=time.monotonic_ns())


def bounds(
    opened: Mark, closing: Mark, edges: tuple[Mark | None, Mark | None], until: int
) -> tuple[Mark, Mark]:
    """
    The readings between which a window lies that ended at *until*, or when it tripped.

    *opened* and *closing* are ours, with the time at which they were complete; *edges* are those
    of the first hit and of the hit after the end, if there were any.
    """
    begin, end = edges
    if begin is None or opened.time_ns < begin.time_ns:
        begin = opened
    if end is None or until < closing.time_ns < end.time_ns:
        end = closing
    return begin, end
