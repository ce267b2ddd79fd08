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


#: Steps that are kept of a run without windows; then they are joined in pairs.
_MAX_STEPS = 512
#: Growth of a counter, seconds, growth of the second counter.
_Step = tuple[float, float, float | None]
#: Divided by the number of windows that saw nothing: the largest share of the time in which there
#: was something, with 95 % confidence.
_NONE_SEEN = 3.0
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


@dataclass(slots=True)
class _Entry:
    """The state of one event."""

    #: The moment up to which it is accounted for.
    at: CounterSample | None = None
    #: Growth of the counter, seconds, and growth of the second counter, of each step that windows
    #: have not been evaluated for yet; None with permanent hooks.
    steps: list[_Step] | None = None
    counted_seconds: float = 0.0
    exact: NDArray[np.float64] = field(default_factory=lambda: np.zeros(WIDTH))
    estimated: NDArray[np.float64] = field(default_factory=lambda: np.zeros(WIDTH))
    #: Sum of the squared errors of estimates, in events.
    variance: float = 0.0
    estimate: Estimate = field(default_factory=lambda: Estimate(WIDTH, COUNTS))
    #: Windows since they were evaluated.
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
            self._entries[event].steps = []
            self._entries[event].sampled = True

    def forget(self, event: str) -> None:
        """Discard windows of *event* that were closed before the run."""
        self._entries[event] = _Entry()

    def opened(self, event: str, now: CounterSample) -> None:
        """*event* is counted permanently, and nothing was counted up to *now*."""
        entry = self._entries[event]
        if entry.steps is not None:
            self._evaluate(event, entry, now)
            entry.steps, entry.recent_growth = None, 0.0
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
        if entry.windows >= WINDOWS:
            self._evaluate(event, entry, now)
        else:
            self._step(event, entry, now)

    def exhausted(self, event: str, counted: Counted, now: CounterSample) -> None:
        """*event* was counted permanently up to *now*, and is counted in windows from then on."""
        self.exact(event, counted, now)
        entry = self._entries[event]
        entry.estimate.begin(entry.recent, 0.0)
        entry.steps, entry.windows, entry.sampled = [], 0, True

    def window(self, event: str, counted: Counted, closed: ClosedWindow) -> None:
        """A window of *event* was closed."""
        entry, news = self._entries[event], self._news(event, counted)
        if closed.growth is None:
            return  # the time in which it counted is not known
        entry.windows += 1
        entry.counted_seconds += closed.seconds
        entry.estimate.window(
            news, closed.growth, closed.seconds, closed.rate_before, closed.second
        )

    def end(self, event: str, counted: Counted | None, now: CounterSample | None) -> None:
        """The run ended at *now*; *counted* is None for an event that was counted in windows."""
        entry = self._entries[event]
        now = now or entry.at
        if now is None:
            return  # it never began
        if counted is not None and entry.steps is None:
            self.exact(event, counted, now)
        elif entry.steps is not None:
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

    def _step(self, event: str, entry: _Entry, now: CounterSample) -> None:
        """Add the time up to *now*, in which the event was counted in windows, if it was."""
        at, steps = entry.at, entry.steps
        entry.at = now
        if at is None or steps is None:
            return
        second = None
        if at.second is not None and now.second is not None:
            second = float(now.second - at.second)
        growth = self._counters.growth(event, at.value, now.value)
        steps.append((growth, (now.time_ns - at.time_ns) / 1e9, second))
        if len(steps) >= _MAX_STEPS:
            entry.steps = [_joined(*pair) for pair in zip(steps[::2], steps[1::2], strict=True)]

    def _evaluate(self, event: str, entry: _Entry, now: CounterSample) -> None:
        """Add the estimate of the time since windows were last evaluated."""
        self._step(event, entry, now)
        steps = entry.steps or []
        before = entry.estimate.total.copy()
        error = entry.estimate.settle(steps)
        more = entry.estimate.total - before
        wrong = (error or 0.0) * float(more[:COUNTS].sum())
        growth = sum(growth for growth, _, _ in steps)
        if error is None:
            more, wrong = _extrapolated(entry, growth)
        elif not more[:COUNTS].any() and entry.recent_growth:
            # Where windows saw none, a part of the time may still go on as before.
            wrong = min(1.0, _NONE_SEEN / max(1, entry.windows)) * _extrapolated(entry, growth)[1]
        entry.estimated += more
        entry.variance += wrong**2
        entry.steps, entry.windows = [], 0

    def _news(self, event: str, counted: Counted) -> NDArray[np.float64]:
        """Counts of *event* since the last call."""
        now = flat(counted)
        news = now - self._seen[event]
        self._seen[event] = now
        return news


def _joined(one: _Step, other: _Step) -> _Step:
    """Both steps as one."""
    second = None if one[2] is None or other[2] is None else one[2] + other[2]
    return one[0] + other[0], one[1] + other[1], second


def _extrapolated(entry: _Entry, growth: float) -> tuple[NDArray[np.float64], float]:
    """The rate of the time before, where there were too few windows; unknown if there was none."""
    if not entry.recent_growth:
        entry.unknown = True
        return np.zeros(WIDTH), 0.0
    more = entry.recent * (growth / entry.recent_growth)
    return more, float(more[:COUNTS].sum())
