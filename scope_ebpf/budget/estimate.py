# SPDX-License-Identifier: Apache-2.0
"""
Totals of an event that is counted in short windows only.

A reference counter that grows along with the event (context switches, spawns, collections,
reductions, or else time) is known for all times. A window gives a rate of events and a speed, which
is the growth of the counter per second; hooks slow both down alike. A line is fitted to the rates
of all windows over their speeds. Since the speed is known at every moment, so is the rate (a
regression estimator: Cochran, Sampling Techniques, ch. 7). Where events are proportional to the
counter, the line passes through the origin, and it does not matter how slow a window was. Where a
program alternates between kinds of work, the speed shows how much of each it did.

In the second case the slowness matters, since slow windows are those in which the event is
frequent. The speed just before a window, without hooks, shows how much slower the window was; but
the program may have changed its work in between. So the slowness is the median over windows of
similar ratio of events to counter.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Minimum seconds of counting from which :class:`PartTime` computes a rate, and minimum seconds
#: without counting that it fills in: less is the time that a reading takes.
_MIN_RATE_SECONDS, _MIN_GAP = 0.1, 0.01
#: Seconds of counting over which that rate is averaged: in less, too much is not counted yet.
_RATE_SECONDS = 2.0
#: Windows that are kept: half a minute to a minute of them.
WINDOWS = 40
#: Empty windows after which the burst that exhausted the quota is over.
_EMPTY_WINDOWS = 3
#: Upper limit of unseen events, as a multiple of the guess for a burst: processes that are spawned
#: all at once end one after the other.
_MAX_UNSEEN = 10
#: Minimum number of windows for an estimate of the error, and for a line.
_MIN_WINDOWS, _MIN_LINE_WINDOWS = 3, 8
#: Strata of windows by their ratio of events to counter; the windows of a stratum are assumed to be
#: slowed down equally.
_SLOWDOWN_STRATA = 4
#: Relative spread of speeds at which the windows and the origin weigh equally for the slope.
_SPREAD = 0.05
#: Groups of windows of which one is left out at a time to estimate the error (a jackknife).
_JACKKNIFE_GROUPS = 13
#: Two-sided 95 % quantiles of Student's t, by degrees of freedom. Beyond the table it would fall to
#: 1.96; the last value is kept, because ratios of few windows scatter more than the formula says.
_T95 = (0.0, 12.7, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)


@dataclass(slots=True)
class Estimate:
    """
    The growing totals of one event: counts of its classes, histogram slots, sums.

    Attributes:
        width: number of columns.
        counts: number of leading columns that are counts; the error is that of their sum.
        total: the totals, shape ``(width,)``; they never fall.
        uncertain: events by which the guess for a burst may be too low.
    """

    width: int
    counts: int
    total: NDArray[np.float64] = field(init=False)
    #: The totals of the line, which may fall for a moment.
    _level: NDArray[np.float64] = field(init=False)
    #: Columns that were counted in each window.
    _seen: deque[NDArray[np.float64]] = field(init=False)
    #: Each window: sum of counts, growth, seconds, speed before, and *_passed* at that time.
    _windows: deque[tuple[float, ...]] = field(init=False)
    #: Growth and seconds that :meth:`advance` has added up.
    _passed: tuple[float, float] = field(init=False, default=(0.0, 0.0))
    #: Counts and growth before the quota was exhausted.
    _burst: tuple[NDArray[np.float64], float] | None = field(init=False, default=None)
    uncertain: float = field(init=False, default=0.0)
    #: The line through the windows; None when a window was added since.
    _line: _Line | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.width)
        self._level = np.zeros(self.width)
        self._seen = deque(maxlen=WINDOWS)
        self._windows = deque(maxlen=WINDOWS)

    def exact(self, seen: NDArray[np.float64]) -> None:
        """Add *seen*, which was counted by permanent hooks."""
        self.total += seen
        self._level = self.total.copy()

    def window(
        self,
        seen: NDArray[np.float64],
        growth: float,
        seconds: float,
        rate_before: float | None = None,
    ) -> None:
        """
        Add a window of *seconds*, in which *seen* was counted and the counter grew by *growth*.

        *rate_before* is the growth per second before the hooks were attached, if it is known.
        """
        seconds = max(seconds, 1e-9)
        growth = max(growth, 0.0)
        before = growth / seconds if rate_before is None else rate_before
        self._seen.append(seen)
        counts = float(seen[: self.counts].sum())
        self._windows.append((counts, growth, seconds, before, *self._passed))
        self._line = None

    def advance(self, growth: float, seconds: float) -> bool:
        """
        Add the estimate of *seconds* in which the counter grew by *growth*.

        False, and nothing added, where there are too few windows.
        """
        if self._line is None:
            self._line = _Line(self._columns(), np.array(self._seen))
        if self._line.known:
            self._level = self._level + self._line.total(growth, seconds)
        elif len(self._windows) >= _EMPTY_WINDOWS and self._burst:
            seen, over = self._burst
            more = seen * (growth / over)
            self._level = self._level + more
            guessed = float(more[: self.counts].sum())
            self.uncertain += max(0.0, min(growth, _MAX_UNSEEN * guessed) - guessed)
        else:
            return False
        self.total = np.maximum(self.total, self._level)
        self._passed = self._passed[0] + growth, self._passed[1] + seconds
        return True

    def _columns(self) -> NDArray[np.float64]:
        """Sums of counts, growths, seconds and speeds before of the windows, shape ``(4, n)``."""
        return np.array(self._windows, np.float64).reshape(-1, 6).T[:4]

    def begin(self, seen: NDArray[np.float64], growth: float) -> None:
        """
        Count in windows from now on; earlier windows are dropped.

        The first window also stands for the time before it. The rate of *seen*, while the counter
        grew by *growth*, is used only if the next few windows are empty.
        """
        self._seen.clear()
        self._windows.clear()
        self._line = None
        self._burst = (seen, growth) if growth > 0 and seen.any() else None

    def error_ratio(self) -> float:
        """
        Error of the newest rate with 95 % confidence, as a share of it.

        1.0 where too little was counted.
        """
        columns = self._columns()
        size, counts = columns.shape[1], float(columns[0].sum())
        if size < _MIN_WINDOWS or not counts or not columns[1].any():
            return 1.0
        growth, seconds = (self._passed[n] - self._windows[0][4 + n] for n in (0, 1))
        if seconds <= 0:
            growth, seconds = float((columns[1] / columns[2]).mean()), 1.0
        found = float(_Line(columns, columns[0]).total(growth, seconds))
        if found <= 0:
            return 1.0
        groups = min(size, _JACKKNIFE_GROUPS)
        # Random groups, since the program may have a rhythm with which windows coincide.
        of = np.random.default_rng(size).permutation(size) % groups
        kept = [columns[:, of != group] for group in range(groups)]
        without = np.array([_Line(some, some[0]).total(growth, seconds) for some in kept])
        variance = (groups - 1) / groups * float(((without - without.mean()) ** 2).sum())
        variance *= size / (size - 2)  # the line fits its windows better than others
        # Counts scatter by themselves too, which few windows may not show.
        variance = max(variance, found**2 / counts)
        return min(1.0, quantile(groups - 1) * float(np.sqrt(variance)) / found)


class _Line:
    """
    The line through the rates of windows over their speeds.

    *columns* are their sums of counts, growths, seconds and speeds before, shape ``(4, n)``;
    *seen* are the counts of each, shape ``(n, ...)``.
    """

    def __init__(self, columns: NDArray[np.float64], seen: NDArray[np.float64]) -> None:
        #: False if the counter stood still in all windows.
        self.known = bool(columns[1].any())
        self._faster = _slowness(*columns) / columns[2] if columns.size else np.zeros(0)
        self._speeds = columns[1] * self._faster
        self._seen = seen

    def total(self, growth: float, seconds: float) -> NDArray[np.float64]:
        """Estimated counts of *seconds* in which the counter grew by *growth*."""
        weights = _weights(self._speeds, growth, seconds) * self._faster
        found: NDArray[np.float64] = weights @ self._seen
        return found


def _slowness(
    counts: NDArray[np.float64],
    growths: NDArray[np.float64],
    lengths: NDArray[np.float64],
    before: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The factor by which hooks slowed the target down in each window, at least 1."""
    size = len(counts)
    strata = min(_SLOWDOWN_STRATA, max(1, size // _MIN_WINDOWS))
    positive = np.maximum(growths, 1e-9)
    order = np.argsort(counts / positive, kind="stable")
    # Where the counter stood still, the target had no CPU, which hooks do not cause.
    slow = np.where(growths > 0, before * lengths / positive, 1.0)
    found = np.empty(size)
    limits = [size * number // strata for number in range(strata + 1)]
    for first, last in pairwise(limits):
        stratum = order[first:last]
        found[stratum] = max(1.0, _median(slow[stratum]))
    return found


def _median(values: NDArray[np.float64]) -> float:
    """The median; ``numpy.median`` takes ten times as long for so few values."""
    ordered, size = np.sort(values), len(values)
    return float(ordered[(size - 1) // 2] + ordered[size // 2]) / 2


def _weights(speeds: NDArray[np.float64], growth: float, seconds: float) -> NDArray[np.float64]:
    """The least-squares weight of each window's rate; the line ends at the extreme speeds."""
    mean, size = float(speeds.mean()), len(speeds)
    if mean <= 0:
        return np.zeros(size)
    if size < _MIN_LINE_WINDOWS or seconds <= 0:
        return np.full(size, growth / mean / size)
    speed, deviations = growth / seconds, speeds - mean
    nearest = min(max(speed, float(speeds.min())), float(speeds.max()))
    # Beyond the slowest and the fastest window the rate is proportional to the speed.
    scale = seconds if nearest == speed or not nearest else growth / nearest
    # Similar speeds do not determine a slope: then it is that of the line through the origin.
    prior = _SPREAD * size * mean**2
    slopes = (deviations + prior / (size * mean)) / (float(deviations @ deviations) + prior)
    weights: NDArray[np.float64] = scale * (1 / size + (nearest - mean) * slopes)
    return weights


def quantile(freedom: int) -> float:
    """Standard errors of a 95 % confidence interval, by degrees of freedom."""
    return _T95[min(freedom, len(_T95) - 1)]


def share_error(found: int, samples: int) -> float:
    """Error with 95 % confidence of the share of *found* in independent *samples*: 0 to 1."""
    if samples <= 0:
        return 1.0
    # Wilson's interval also holds for few samples, and for shares of 0 and 1.
    z, share = 1.96, found / samples
    spread = share * (1 - share) / samples + (z / (2 * samples)) ** 2
    return min(1.0, z * float(np.sqrt(spread)) / (1 + z**2 / samples) + z**2 / (2 * samples))


class PartTime:
    """
    Growing totals of values that are counted only at times.

    While they are not counted, they grow at their last known rate. *counted* are the seconds in
    which they were counted up to *now*.

    Attributes:
        total: the totals, shape *shape*.
    """

    def __init__(self, shape: tuple[int, ...], counted: float, now: float) -> None:
        self.total = np.zeros(shape)
        self._seen = np.zeros(shape, np.uint64)
        self._rate = np.zeros(shape)
        self._counted, self._now = counted, now
        self._averaged = 0.0

    def add(self, seen: NDArray[np.uint64], counted: float, now: float) -> None:
        """
        Add the values *seen* up to *now*, after *counted* seconds of counting.

        A value that is lower than before for a moment counts as unchanged.
        """
        seen = np.maximum(seen, self._seen)
        more, while_counted, passed = seen - self._seen, counted - self._counted, now - self._now
        self._seen, self._counted, self._now = seen, counted, now
        if while_counted > _MIN_RATE_SECONDS:
            self._averaged = min(self._averaged + while_counted, _RATE_SECONDS)
            share = min(1.0, while_counted / self._averaged)
            self._rate = share * (more / while_counted) + (1 - share) * self._rate
        self.total += more
        if passed - while_counted > _MIN_GAP:
            self.total += self._rate * (passed - while_counted)
