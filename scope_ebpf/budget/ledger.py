# SPDX-License-Identifier: Apache-2.0
"""
The counts of one run: for each event an exact part, an estimate from windows, and its error.

The daemon's totals grow for months, and their error is that of the newest rate. The totals of a
run end with it, and their error is that of the whole run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.budget.estimate import WINDOWS, Estimate
from scope_ebpf.budget.totals import flat
from scope_ebpf.metrics.columns import COUNTS, WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from scope_ebpf.budget.hooks import Counted
    from scope_ebpf.budget.reference_counters import CounterSample, ReferenceCounters
    from scope_ebpf.budget.windows import ClosedWindow


#: Maximum error ratio of an estimate; a larger one is reported as 1, which is unknown.
_MAX_ERROR = 0.5


class Result(NamedTuple):
    """
    One event of a run.

    Attributes:
        totals: ``WIDTH`` columns (``metrics.columns``).
        error_ratio: error of the sum of counts with 95 % confidence, as a share of it: 0.0 where
            everything was counted, 1.0 where too little was.
        sampling_ratio: share of the run in which the event was counted.
    """

    totals: NDArray[np.float64]
    error_ratio: float
    sampling_ratio: float


def _estimate() -> Estimate:
    return Estimate(WIDTH, COUNTS)


@dataclass(slots=True)
class _Entry:
    """The state of one event."""

    #: The moment up to which it is accounted for.
    at: CounterSample | None = None
    #: The moment from which windows have not been evaluated yet; None with permanent hooks.
    windows_since: CounterSample | None = None
    counted_seconds: float = 0.0
    exact: NDArray[np.float64] = field(default_factory=lambda: np.zeros(WIDTH))
    estimated: NDArray[np.float64] = field(default_factory=lambda: np.zeros(WIDTH))
    #: Sum of the squared errors of estimates, in events.
    variance: float = 0.0
    #: The estimate by the first reference counter of the event, and by the second one.
    first: Estimate = field(default_factory=_estimate)
    second: Estimate = field(default_factory=_estimate)
    #: Windows since *windows_since*.
    windows: int = 0
    #: True if a part of the run was counted in windows, and if a part was not counted at all.
    sampled: bool = False
    unknown: bool = False
    #: Counts since hooks became permanent, and growth of the reference counter meanwhile.
    recent: NDArray[np.float64] = field(default_factory=lambda: np.zeros(WIDTH))
    recent_growth: float = 0.0


class Ledger:
    """
    The counts of the events *names* in one run (see ``hooks.EventTotals``).

    *counters* are the reference counters of its target.
    """

    def __init__(self, names: Iterable[str], counters: ReferenceCounters) -> None:
        self._counters = counters
        self._entries = {name: _Entry() for name in names}
        self._seen = {name: np.zeros(WIDTH) for name in self._entries}
        self._began = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def begin(self, samples: dict[str, CounterSample], in_windows: Iterable[str]) -> None:
        """Begin the run now, at *samples*; events *in_windows* are counted in windows."""
        for event, sample in samples.items():
            self._began, self._entries[event].at = sample.time_ns, sample
        for event in in_windows:
            self._entries[event].windows_since = samples[event]
            self._entries[event].sampled = True

    def forget(self, event: str) -> None:
        """Discard windows of *event* that were closed before the run."""
        self._entries[event] = _Entry()

    def opened(self, event: str, now: CounterSample) -> None:
        """*event* is counted permanently, and nothing was counted up to *now*."""
        entry = self._entries[event]
        if entry.windows_since is not None:
            self._evaluate(event, entry, now)
            entry.windows_since, entry.recent_growth = None, 0.0
            entry.recent = np.zeros(WIDTH)
        else:
            self._advance_exact(event, entry, now)
        entry.at = now

    def exact(self, event: str, counted: Counted, now: CounterSample) -> None:
        """*event* was counted permanently up to *now*."""
        entry, news = self._entries[event], self._news(event, counted)
        entry.exact += news
        entry.recent += news
        self._advance_exact(event, entry, now)

    def estimated(self, event: str, now: CounterSample) -> None:
        """*event* was counted in windows up to *now*; evaluates them once there are ``WINDOWS``."""
        entry = self._entries[event]
        if entry.windows_since is not None and entry.windows >= WINDOWS:
            self._evaluate(event, entry, now)
        entry.at = now

    def exhausted(self, event: str, counted: Counted, now: CounterSample) -> None:
        """*event* was counted permanently up to *now*, and is counted in windows from then on."""
        self.exact(event, counted, now)
        entry = self._entries[event]
        for estimate in (entry.first, entry.second):
            estimate.begin(entry.recent, 0.0)
        entry.windows_since, entry.windows, entry.sampled = now, 0, True

    def window(self, event: str, counted: Counted, closed: ClosedWindow) -> None:
        """A window of *event* was closed."""
        entry, news = self._entries[event], self._news(event, counted)
        if closed.growth is None:
            return  # the time in which it counted is not known
        entry.windows += 1
        entry.counted_seconds += closed.seconds
        entry.first.window(news, closed.growth, closed.seconds, closed.rate_before)
        if closed.second_growth is not None:
            growth, before = closed.second_growth, closed.second_rate_before
            entry.second.window(news, growth, closed.seconds, before)

    def end(self, event: str, counted: Counted | None, now: CounterSample | None) -> None:
        """The run ended at *now*; *counted* is None for an event that was counted in windows."""
        entry = self._entries[event]
        now = now or entry.at
        if now is None:
            return  # it never began
        if counted is not None and entry.windows_since is None:
            self.exact(event, counted, now)
        elif entry.windows_since is not None:
            self._evaluate(event, entry, now)
        entry.at = now

    def result(self, event: str, known: int | None = None) -> Result:
        """
        The result of *event*, after :meth:`end`.

        *known* is the number of events where the VM counts them: then windows give only the shares
        of classes.
        """
        entry = self._entries[event]
        totals = entry.exact + entry.estimated
        if not entry.sampled:
            return Result(totals, 0.0, 1.0)
        ended, counts = entry.at, float(totals[:COUNTS].sum())
        seconds = (ended.time_ns - self._began) / 1e9 if ended else 0.0
        sampled = min(1.0, entry.counted_seconds / seconds) if seconds > 0 else 0.0
        if known is not None:
            kind = events.KINDS[event]
            part = totals[kind.classes.index(kind.counted)] if kind.counted else counts
            return Result(totals * (known / part if part else 1.0), 0.0, sampled)
        if entry.unknown or not counts:
            return Result(totals, 1.0, sampled)
        error = math.sqrt(entry.variance) / counts
        return Result(totals, error if error < _MAX_ERROR else 1.0, sampled)

    def _advance_exact(self, event: str, entry: _Entry, now: CounterSample) -> None:
        """Account for the time up to *now*, in which the event was counted permanently."""
        if entry.at is not None:
            entry.counted_seconds += max(0, now.time_ns - entry.at.time_ns) / 1e9
            entry.recent_growth += self._counters.growth(event, entry.at.value, now.value)
        entry.at = now

    def _evaluate(self, event: str, entry: _Entry, now: CounterSample) -> None:
        """Add the estimate of the time since windows were last evaluated."""
        since = entry.windows_since
        assert since is not None  # noqa: S101 - the callers look
        seconds = (now.time_ns - since.time_ns) / 1e9
        growth = self._counters.growth(event, since.value, now.value)
        found = [_advance(entry.first, growth, seconds)]
        if since.second is not None and now.second is not None:
            found.append(_advance(entry.second, float(now.second - since.second), seconds))
        estimated, error = _combined([part for part in found if part is not None])
        if estimated is None:
            estimated, error = _extrapolated(entry, growth)
        entry.estimated += estimated
        entry.variance += error**2
        entry.windows_since, entry.windows = now, 0

    def _news(self, event: str, counted: Counted) -> NDArray[np.float64]:
        """Counts of *event* since the last call."""
        now = flat(counted)
        news = now - self._seen[event]
        self._seen[event] = now
        return news


#: An estimate of totals, and its error in events.
_Estimated = tuple["NDArray[np.float64]", float]


def _advance(estimate: Estimate, growth: float, seconds: float) -> _Estimated | None:
    """Estimate of *seconds* in which the counter grew by *growth*; None without windows."""
    before = estimate.total.copy()
    if not estimate.advance(growth, seconds):
        return None
    more = estimate.total - before
    return more, estimate.error_ratio() * float(more[:COUNTS].sum())


def _combined(found: list[_Estimated]) -> tuple[NDArray[np.float64] | None, float]:
    """
    The estimate with the smaller error; the first one where the two contradict each other.

    The error is then their difference. The first reference counter grows along with the event
    however much hooks slow the target down.
    """
    if not found:
        return None, 0.0
    first, *others = found
    for other in others:
        apart = abs(float((first[0] - other[0])[:COUNTS].sum()))
        if apart > first[1] + other[1]:
            return first[0], max(first[1], apart)
        if other[1] < first[1]:
            return other
    return first


def _extrapolated(entry: _Entry, growth: float) -> _Estimated:
    """The rate of the time before, where there were too few windows; unknown if there was none."""
    if not entry.recent_growth:
        entry.unknown = True
        return np.zeros(WIDTH), 0.0
    more = entry.recent * (growth / entry.recent_growth)
    return more, float(more[:COUNTS].sum())
