# SPDX-License-Identifier: Apache-2.0
"""
One sampling window: an event is counted for some milliseconds, with its reference counter.

The kernel decides when the window ends. Its programs read the reference counter at the first hit
in the window and at the first hit after it, in the same run in which they decide whether that hit
counts. So the number of events and the growth of the counter belong together, however long this
process waits for a CPU. This process reads the counter as well: once after it opened the window and
once before it closes it. No event happens before the first hit and after the end, so of the two
readings at each bound the one nearer to the bound is used. If the reading of the hit were always
used, windows would tend to begin where an event happens.

Hooks slow the target down where the event is frequent, and an exhausted quota ends a window early
there. Each window has the right ratio, but all windows together would underestimate the times when
the event is frequent. Therefore the rate of the counter just before the hooks were attached is
measured too (``budget/estimate.py``).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.budget.reference_counters import TIME, CounterSample

if TYPE_CHECKING:
    from scope_ebpf.budget.governor import Action
    from scope_ebpf.budget.reference_counters import ReferenceCounters
    from scope_ebpf.kernel.observers.governed import GovernedSession

#: Maximum error of a bound, as a share of the window's length.
_TOLERANCE = 0.1
#: Seconds for which the counter is watched before a window: about the length of the window.
_MIN_BASELINE, _MAX_BASELINE = 0.005, 0.02


class ClosedWindow(NamedTuple):
    """
    What one window says of the reference counters of its event.

    Attributes:
        seconds: length of the window.
        growth: growth of the counter in it; None if that is not known.
        rate_before: growth per second before the hooks were attached; None if not known.
        second_growth: growth of the second counter; None where the event has none.
        second_rate_before: the second counter's growth per second before.
    """

    seconds: float
    growth: float | None
    rate_before: float | None
    second_growth: float | None = None
    second_rate_before: float | None = None

    @property
    def second(self) -> tuple[float, float] | None:
        """Growth of the second counter, and its growth per second before; None if not known."""
        if self.second_growth is None or self.second_rate_before is None:
            return None
        return max(0.0, self.second_growth), self.second_rate_before


class Baseline:
    """
    The time before a window of *action*: the rate of the counter while no hook is attached.

    Attributes:
        action: the window to be opened.
        ready: when it may be opened, monotonic seconds.
    """

    def __init__(self, counters: ReferenceCounters, action: Action) -> None:
        self.action = action
        self._counters = counters
        self._first = _read(counters, action.event)
        length = min(max(action.length, _MIN_BASELINE), _MAX_BASELINE)
        self.ready = time.monotonic() + length

    def rates(self) -> tuple[float, float | None]:
        """Growth per second of the counter since the beginning, and of the second one, if any."""
        first, last = self._first, _read(self._counters, self.action.event)
        seconds = max(1e-9, (last.time_ns - first.time_ns) / 1e9)
        growth = self._counters.growth(self.action.event, first.value, last.value)
        if last.second is None or first.second is None:
            return growth / seconds, None
        return growth / seconds, (last.second - first.second) / seconds


class Window:
    """
    A window of an event whose hooks are attached; it opens at once.

    *rate_before* and *second_rate_before* are those of a :class:`Baseline`.

    Attributes:
        event: the event that is counted.
        closes: when :meth:`close` is due, monotonic seconds.
    """

    def __init__(
        self,
        session: GovernedSession,
        counters: ReferenceCounters,
        action: Action,
        rate_before: float,
        second_rate_before: float | None = None,
    ) -> None:
        self.event = action.event
        self._session, self._counters = session, counters
        self._rates_before = rate_before, second_rate_before
        self._since, self._until = session.open_window(action.event, action.hits, action.length)
        self.closes = self._until / 1e9
        self._opened = _read(counters, action.event)

    def close(self) -> ClosedWindow:
        """Stop counting, if the kernel has not. Raises ReadRefusedError."""
        closing = _read(self._counters, self.event)
        stopped = self._session.disable(self.event)
        seconds = max(0, min(stopped, self._until) - self._since) / 1e9
        if self._counters.name_of(self.event) == TIME:
            late = (self._opened.time_ns - self._since) / 1e9
            growth = seconds * 1e9 if late <= _TOLERANCE * seconds else None
            return ClosedWindow(seconds, growth, None)
        edges = self._session.window_bounds(self.event)
        hits = self._sample(edges.begin), self._sample(edges.end)
        begin, end = bounds(self._opened, closing, hits, self._until)
        # A hit that exhausted the quota may have been preempted before it read the counter.
        late = (end.time_ns - stopped) / 1e9 if stopped < self._until else 0.0
        if begin.time_ns > end.time_ns or late > _TOLERANCE * seconds:
            return ClosedWindow(seconds, None, None)
        return self._between(begin, end)

    def _between(self, begin: CounterSample, end: CounterSample) -> ClosedWindow:
        growth = self._counters.growth(self.event, begin.value, end.value)
        # Without a hit after the end, the window lasted until this process closed it.
        seconds = (end.time_ns - begin.time_ns) / 1e9
        second = None
        if begin.second is not None and end.second is not None:
            second = float(end.second - begin.second)
        rate_before, second_rate_before = self._rates_before
        return ClosedWindow(seconds, growth, rate_before, second, second_rate_before)

    def _sample(self, read: tuple[int, int, int] | None) -> CounterSample | None:
        return self._counters.sample_of_hit(self.event, read) if read else None


def _read(counters: ReferenceCounters, event: str) -> CounterSample:
    """The counter of *event* now, with the time at which the reading was complete."""
    values = counters.now()
    return counters.sample(event, values)._replace(time_ns=time.monotonic_ns())


def bounds(
    opened: CounterSample,
    closing: CounterSample,
    hits: tuple[CounterSample | None, CounterSample | None],
    until: int,
) -> tuple[CounterSample, CounterSample]:
    """
    The samples at the beginning and the end of a window that ended at *until* (ns) or earlier.

    *opened* and *closing* were read by this process, with the time at which each reading was
    complete. *hits* are the samples of the first hit in the window and of the first hit after it;
    None where there was none.
    """
    begin, end = hits
    if begin is None or opened.time_ns < begin.time_ns:
        begin = opened
    if end is None or until < closing.time_ns < end.time_ns:
        end = closing
    return begin, end
