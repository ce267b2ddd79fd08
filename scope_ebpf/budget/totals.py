# SPDX-License-Identifier: Apache-2.0
"""Growing totals of one target's events: exact while hooks are permanent, else from windows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.budget.estimate import Estimate
from scope_ebpf.budget.reference_counters import COUNTED_EVENTS
from scope_ebpf.metrics.columns import COUNTS, SLOTS, WIDTH, EventReading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Item
    from scope_ebpf.budget.hooks import Counted
    from scope_ebpf.budget.reference_counters import CounterSample
    from scope_ebpf.budget.windows import ClosedWindow

#: Windows after which the error of an event is computed again; fewer at first.
_ERROR_WINDOWS = 10


class Totals:
    """
    The totals of the events *names* (see ``hooks.EventTotals``).

    *growth* returns the growth of an event's reference counter between two values of it.
    """

    def __init__(self, names: Iterable[str], growth: Callable[[str, int, int], float]) -> None:
        self._estimates = {event: Estimate(WIDTH, COUNTS) for event in names}
        self._seen = {event: np.zeros(WIDTH) for event in self._estimates}
        self._growth = growth
        #: The moment up to which each total is complete.
        self._reached: dict[str, CounterSample] = {}
        #: Windows of each event; and its last error, with the number of windows at that time.
        self._windows: Counter[str] = Counter()
        self._errors: dict[str, tuple[int, float]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._estimates)

    def opened(self, event: str, now: CounterSample) -> None:
        """*event* is counted permanently, and nothing was counted up to *now*."""
        self._reached[event] = now

    def exact(self, event: str, counted: Counted, now: CounterSample) -> None:
        """*event* was counted permanently up to *now*."""
        self._estimates[event].exact(self._news(event, counted))
        self._reached[event] = now

    def estimated(self, event: str, now: CounterSample) -> None:
        """*event* was counted in windows up to *now*, if there were any."""
        since = self._reached.setdefault(event, now)
        seconds = (now.time_ns - since.time_ns) / 1e9
        growth = self._growth(event, since.value, now.value)
        second = None
        if since.second is not None and now.second is not None:
            second = float(now.second - since.second)
        if self._estimates[event].advance(growth, seconds, second):
            self._reached[event] = now

    def exhausted(self, event: str, counted: Counted, now: CounterSample) -> None:
        """*event* was counted permanently up to *now*, and is counted in windows from then on."""
        news, estimate = self._news(event, counted), self._estimates[event]
        since = self._reached.get(event, now)
        growth, seen = self._growth(event, since.value, now.value), float(news[:COUNTS].sum())
        if event in COUNTED_EVENTS and growth > seen:
            # The counter is exact for these events: the ones beyond those seen are still to come.
            growth, now = seen, now._replace(value=now.value - int(growth - seen))
        estimate.exact(news)
        estimate.begin(news, growth)
        self._windows[event] = 0
        self._errors.pop(event, None)
        self._reached[event] = now

    def window(self, event: str, counted: Counted, closed: ClosedWindow) -> None:
        """A window of *event* was closed."""
        news = self._news(event, counted)
        if closed.growth is not None:
            self._windows[event] += 1
            estimate = self._estimates[event]
            estimate.window(news, closed.growth, closed.seconds, closed.rate_before, closed.second)

    def reading(self, event: str, item: Item, mode: str, sampling_ratio: float) -> EventReading:
        """The figures of *event* that a scrape shows; *item* is its part of the plan."""
        estimate = self._estimates[event]
        error = self._error(event) if mode != "always" else 0.0
        if mode == "always" and sampling_ratio:  # else its hooks are not attached yet
            error = self._remaining_error(event)
        return EventReading(
            totals=estimate.total.copy(),
            mode=mode,
            via=item.via,
            reason=item.reason,
            sampling_ratio=sampling_ratio,
            error_ratio=error,
        )

    def _remaining_error(self, event: str) -> float:
        """
        The error of totals that grow exactly now, but contain estimates of earlier times.

        The classes of events in a burst are uncertain; unless the counter is exact for the event,
        so is their number.
        """
        estimate = self._estimates[event]
        everything = float(estimate.total[:COUNTS].sum())
        counted = min(float(self._seen[event][:COUNTS].sum()), everything)
        uncertain = 0.0 if event in COUNTED_EVENTS else estimate.uncertain
        estimated = everything - counted + uncertain
        return min(1.0, estimated / everything) if everything else 0.0

    def _error(self, event: str) -> float:
        """The error of an estimate; cached, since computing it is the slowest part of a window."""
        windows = self._windows[event]
        before, error = self._errors.get(event, (0, 1.0))
        if windows - before >= min(_ERROR_WINDOWS, 1 + before // 4):
            error = self._estimates[event].error_ratio()
            self._errors[event] = windows, error
        return error

    def _news(self, event: str, counted: Counted) -> NDArray[np.float64]:
        """Counts of *event* since the last call."""
        now = flat(counted)
        news = now - self._seen[event]
        self._seen[event] = now
        return news


def flat(counted: Counted) -> NDArray[np.float64]:
    """The kernel's maps of one event as one row of totals, shape ``(WIDTH,)``."""
    tallies, durations = counted
    columns = np.zeros(WIDTH)
    columns[:COUNTS] = tallies["count"]
    by_class = columns[COUNTS:].reshape(events.CLASSES, 1 + SLOTS)
    by_class[:, 0] = durations["total_ns"]
    by_class[:, 1:] = durations["slots"]
    return columns


def off(item: Item, reason: str) -> EventReading:
    """The reading of an event that is not observed, for *reason*."""
    return EventReading(np.zeros(WIDTH), "off", item.via, reason, 0.0, 1.0)
