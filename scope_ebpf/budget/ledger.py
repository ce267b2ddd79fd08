# SPDX-License-Identifier: Apache-2.0
"""
What one run has counted: of each event what is exact, what windows tell of the rest, its error.

The daemon's totals grow for months and tell the error of the newest rate; those of a run end
with it, and tell the error of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.budget.estimate import WINDOWS, Estimate
from scope_ebpf.budget.totals import flat
from scope_ebpf.metrics.reading import COUNTS, WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from scope_ebpf.budget.hooks import Counted
    from scope_ebpf.budget.reference_counters import Mark, Measures
    from scope_ebpf.budget.windows import Closed


#: What may be off by more is not told to be known at all.
_CERTAIN = 0.5


@dataclass(frozen=True, slots=True)
class Result:
    """
    One event of a run: its totals (``WIDTH`` columns), and how well they are known.

    *error_ratio* is the part by which their sum may be off, in 95 of 100 cases: 0.0 where all was
    counted, and 1.0 where too little was seen to tell. *sampling_ratio* is the part of the run in
    which the event was counted.
    """

    totals: NDArray[np.float64]
    error_ratio: float
    sampling_ratio: float


def _estimate() -> Estimate:
    return Estimate(WIDTH, COUNTS)


@dataclass(slots=True)
class _Entry:
    """One event; *at* is up to where it is told, and *windows_since* where windows began to."""

    at: Mark | None = None
    windows_since: Mark | None = None
    counted_seconds: float = 0.0
    exact: NDArray[np.float64] = field(default_factory=lambda: np.zeros(WIDTH))
    estimated: NDArray[np.float64] = field(default_factory=lambda: np.zeros(WIDTH))
    #: The sum of the squares of the errors of what is estimated, in events.
    variance: float = 0.0
    #: By the measure of the event, and by its second one.
    first: Estimate = field(default_factory=_estimate)
    second: Estimate = field(default_factory=_estimate)
    #: Windows since the last part of the run that is told.
    windows: int = 0
    #: Whether a part of the run was left to windows, and to none at all.
    sampled: bool = False
    unknown: bool = False
    #: What was counted since hooks came in to stay, and how far the measure went on meanwhile.
    lately: NDArray[np.float64] = field(default_factory=lambda: np.zeros(WIDTH))
    measured: float = 0.0


class Ledger:
    """The events *names* of one run; *measures* are those of its target."""

    def __init__(self, names: Iterable[str], measures: Measures) -> None:
        self._measures = measures
        self._entries = {name: _Entry() for name in names}
        self._seen = {name: np.zeros(WIDTH) for name in self._entries}
        self._began = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def begin(self, marks: dict[str, Mark], in_windows: Iterable[str]) -> None:
        """The run begins now, at *marks*; events *in_windows* are counted in windows."""
        for event, mark in marks.items():
            self._began, self._entries[event].at = mark.time_ns, mark
        for event in in_windows:
            self._entries[event].windows_since = marks[event]
            self._entries[event].sampled = True

    def forget(self, event: str) -> None:
        """No window before the run tells of *event*, all of which is counted from now on."""
        self._entries[event] = _Entry()

    def opened(self, event: str, now: Mark) -> None:
        """From *now* on *event* is always counted, or still is and was not hit."""
        entry = self._entries[event]
        if entry.windows_since is not None:
            self._conclude(event, entry, now)
            entry.windows_since, entry.measured, entry.lately = None, 0.0, np.zeros(WIDTH)
        else:
            self._reach(event, entry, now)
        entry.at = now

    def exact(self, event: str, counted: Counted, now: Mark) -> None:
        """All that happened up to *now* was counted."""
        entry, news = self._entries[event], self._news(event, counted)
        entry.exact += news
        entry.lately += news
        self._reach(event, entry, now)

    def estimated(self, event: str, now: Mark) -> None:
        """Windows tell what happened up to *now*, once there are as many as are remembered."""
        entry = self._entries[event]
        if entry.windows_since is not None and entry.windows >= WINDOWS:
            self._conclude(event, entry, now)
        entry.at = now

    def tripped(self, event: str, counted: Counted, now: Mark) -> None:
        """What was counted until now is exact, and from now on there are windows."""
        self.exact(event, counted, now)
        entry = self._entries[event]
        for estimate in (entry.first, entry.second):
            estimate.begin(entry.lately, 0.0)
        entry.windows_since, entry.windows, entry.sampled = now, 0, True

    def window(self, event: str, counted: Counted, closed: Closed) -> None:
        """A window of *event* was *closed*."""
        entry, news = self._entries[event], self._news(event, counted)
        if closed.measure is None:
            return  # what was counted in it belongs to no known time
        entry.windows += 1
        entry.counted_seconds += closed.seconds
        entry.first.window(news, closed.measure, closed.seconds, closed.speed)
        if closed.second is not None:
            entry.second.window(news, closed.second, closed.seconds, closed.second_speed)

    def end(self, event: str, counted: Counted | None, now: Mark | None) -> None:
        """The run has ended *now*; *counted* is None for an event that was in windows."""
        entry = self._entries[event]
        now = now or entry.at
        if now is None:
            return  # it never began
        if counted is not None and entry.windows_since is None:
            self.exact(event, counted, now)
        elif entry.windows_since is not None:
            self._conclude(event, entry, now)
        entry.at = now

    def result(self, event: str, known: int | None = None) -> Result:
        """
        What is known of *event*, after :meth:`end`.

        *known* is how many there were, where the VM tells it: then the windows tell the parts.
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
        return Result(totals, error if error < _CERTAIN else 1.0, sampled)

    def _reach(self, event: str, entry: _Entry, now: Mark) -> None:
        """The event was always counted until *now*."""
        if entry.at is not None:
            entry.counted_seconds += max(0, now.time_ns - entry.at.time_ns) / 1e9
            entry.measured += self._measures.passed(event, entry.at.measure, now.measure)
        entry.at = now

    def _conclude(self, event: str, entry: _Entry, now: Mark) -> None:
        """Add what windows tell of the time since the last part that was told."""
        since = entry.windows_since
        assert since is not None  # noqa: S101 - the callers look
        seconds = (now.time_ns - since.time_ns) / 1e9
        measure = self._measures.passed(event, since.measure, now.measure)
        found = [_advance(entry.first, measure, seconds)]
        if since.second is not None and now.second is not None:
            found.append(_advance(entry.second, float(now.second - since.second), seconds))
        told, error = _agreed([part for part in found if part is not None])
        if told is None:
            told, error = _as_before(entry, measure)
        entry.estimated += told
        entry.variance += error**2
        entry.windows_since, entry.windows = now, 0

    def _news(self, event: str, counted: Counted) -> NDArray[np.float64]:
        """What the kernel counted of *event* since it was last asked."""
        now = flat(counted)
        news = now - self._seen[event]
        self._seen[event] = now
        return news


#: What was found, and by how many events it may be off.
_Told = tuple["NDArray[np.float64]", float]


def _advance(estimate: Estimate, measure: float, seconds: float) -> _Told | None:
    """What *estimate* tells of *seconds* in which the measure went on by *measure*."""
    before = estimate.total.copy()
    if not estimate.advance(measure, seconds):
        return None
    told = estimate.total - before
    return told, estimate.error_ratio() * float(told[:COUNTS].sum())


def _agreed(found: list[_Told]) -> tuple[NDArray[np.float64] | None, float]:
    """
    The more certain of two estimates; where they contradict each other, the first, and by how much.

    The first measure goes along with the event however much hooks slow the target down.
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


def _as_before(entry: _Entry, measure: float) -> _Told:
    """Too few windows: that it went on as before is all that can be said, if there was a before."""
    if not entry.measured:
        entry.unknown = True
        return np.zeros(WIDTH), 0.0
    told = entry.lately * (measure / entry.measured)
    return told, float(told[:COUNTS].sum())
