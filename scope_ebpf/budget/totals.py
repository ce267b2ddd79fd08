# SPDX-License-Identifier: Apache-2.0
"""The growing totals of one target's events, exact while always counted, else from windows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.budget.estimate import Estimate
from scope_ebpf.budget.reference_counters import COUNTED
from scope_ebpf.metrics.reading import COUNTS, SLOTS, WIDTH, EventReading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Item
    from scope_ebpf.budget.hooks import Counted
    from scope_ebpf.budget.reference_counters import Mark
    from scope_ebpf.budget.windows import Closed


#: An error is told anew after so many windows, at first after fewer.
_ANEW = 10


class Totals:
    """
    The totals of *names*; what is *counted* are the kernel's maps, which only grow.

    *passed* tells how far the measure of an event goes from one reading to another.
    """

    def __init__(self, names: Iterable[str], passed: Callable[[str, int, int], float]) -> None:
        self._estimates = {event: Estimate(WIDTH, COUNTS) for event in names}
        self._seen = {event: np.zeros(WIDTH) for event in self._estimates}
        self._passed = passed
        #: Up to where the totals reach.
        self._reached: dict[str, Mark] = {}
        #: Windows of each event, and how many there were when its error was told, with that.
        self._windows: Counter[str] = Counter()
        self._errors: dict[str, tuple[int, float]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._estimates)

    def opened(self, event: str, now: Mark) -> None:
        """From *now* on *event* is always counted."""
        self._reached[event] = now

    def exact(self, event: str, counted: Counted, now: Mark) -> None:
        """All that happened up to *now* was counted."""
        self._estimates[event].exact(self._news(event, counted))
        self._reached[event] = now

    def estimated(self, event: str, now: Mark) -> None:
        """Windows tell what happened up to *now*, if there were any."""
        since = self._reached.setdefault(event, now)
        seconds = (now.time_ns - since.time_ns) / 1e9
        if self._estimates[event].advance(self._passed(event, since.measure, now.measure), seconds):
            self._reached[event] = now

    def tripped(self, event: str, counted: Counted, now: Mark) -> None:
        """What was counted until now is exact, and the best that is known of what follows."""
        news, estimate = self._news(event, counted), self._estimates[event]
        since = self._reached.get(event, now)
        passed, seen = self._passed(event, since.measure, now.measure), float(news[:COUNTS].sum())
        if event in COUNTED and passed > seen:
            # What the measure counts itself has happened as often as that says, whatever was seen.
            passed, now = seen, replace(now, measure=now.measure - int(passed - seen))
        estimate.exact(news)
        estimate.begin(news, passed)
        self._windows[event] = 0
        self._errors.pop(event, None)
        self._reached[event] = now

    def window(self, event: str, counted: Counted, closed: Closed) -> None:
        """A window of *event* was *closed*."""
        news = self._news(event, counted)
        if closed.measure is not None:
            self._windows[event] += 1
            self._estimates[event].window(news, closed.measure, closed.seconds, closed.speed)

    def reading(self, event: str, item: Item, mode: str, sampling_ratio: float) -> EventReading:
        """What a scrape shows of *event*, seen as *item* says."""
        estimate = self._estimates[event]
        error = self._error(event) if mode != "always" else 0.0
        if mode == "always" and sampling_ratio:  # else its hooks are still to come
            error = self._left(event)
        return EventReading(
            totals=estimate.total.copy(),
            mode=mode,
            via=item.via,
            reason=item.reason,
            sampling_ratio=sampling_ratio,
            error_ratio=error,
        )

    def _left(self, event: str) -> float:
        """
        The error of totals that grow exactly by now, which what was estimated before stays in.

        Of a burst it is hardly known of which class it was, and where its measure only goes along
        with it, how much of it there was.
        """
        estimate = self._estimates[event]
        everything = float(estimate.total[:COUNTS].sum())
        counted = min(float(self._seen[event][:COUNTS].sum()), everything)
        unsure = 0.0 if event in COUNTED else estimate.unsure
        estimated = everything - counted + unsure
        return min(1.0, estimated / everything) if everything else 0.0

    def _error(self, event: str) -> float:
        """The error of an estimate; to find out takes longer than all else in a window."""
        windows = self._windows[event]
        before, error = self._errors.get(event, (0, 1.0))
        if windows - before >= min(_ANEW, 1 + before // 4):
            error = self._estimates[event].error_ratio()
            self._errors[event] = windows, error
        return error

    def _news(self, event: str, counted: Counted) -> NDArray[np.float64]:
        """What the kernel counted of *event* since it was last asked."""
        now = flat(counted)
        news = now - self._seen[event]
        self._seen[event] = now
        return news


def flat(counted: Counted) -> NDArray[np.float64]:
    """The maps of one event as columns, shape ``(WIDTH,)``."""
    tallies, durations = counted
    columns = np.zeros(WIDTH)
    columns[:COUNTS] = tallies["count"]
    by_class = columns[COUNTS:].reshape(events.CLASSES, 1 + SLOTS)
    by_class[:, 0] = durations["total_ns"]
    by_class[:, 1:] = durations["slots"]
    return columns


def off(item: Item, reason: str) -> EventReading:
    """An event that is not seen, and why."""
    return EventReading(np.zeros(WIDTH), "off", item.via, reason, 0.0, 1.0)
