# SPDX-License-Identifier: Apache-2.0
"""
Totals from windows.

An event is counted in short windows only, but something that goes along with it (a
measure: context switches, spawns, collections, reductions, or else time) is known for
all the time between. A window has a rate of events and a speed of its measure; what
the hooks slow down in it, they slow down alike. Through the rates of all windows, over
their speeds, goes a line; and since the speed is known at every moment, so is the rate
(a regression estimator, Cochran, Sampling Techniques, ch. 7). Where events follow the
measure the line leads to the origin, and it does not matter how slow a window was;
where a program does either this or that, the speed tells how much of which.

Then it does matter, since slow are those windows in which the event is frequent. How
fast the measure went just before a window, when no hook was in, tells by how much; but
the program may have turned to something else in between. So that is taken from windows
of alike ratios together, as their median.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Seconds of counting that tell a rate, and those without that are more than the reading took.
_TELLING, _PAUSE = 0.1, 0.01
#: Seconds of counting that decide how it goes on: in less, what is not counted yet is too much.
_ENOUGH = 2.0
#: Windows that are remembered: half a minute to a minute of them.
WINDOWS = 40
#: Windows in which nothing happens, after which the burst is over that took the hooks out.
_QUIET = 3
#: What nobody saw may be so many times as much as a burst left to be guessed: processes that are
#: spawned all at once end one after the other.
_GUESS = 10
#: Windows of which something can be said at least, and of which a line is drawn.
_FEW, _LINE = 3, 8
#: Windows of alike ratios are as slow as each other, in so many groups.
_ALIKE = 4
#: The spread of speeds, for their size, at which windows and origin decide alike about the slope.
_SPREAD = 0.05
#: Groups of windows that are left out in turn to see how much each decides (a jackknife).
_LEFT_OUT = 13
#: Two-sided 95 % quantiles of Student's t, by degrees of freedom. It would fall to 1.96; here it
#: stays, because the ratio of few windows is spread a little wider than the formula says.
_T95 = (0.0, 12.7, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)


@dataclass(slots=True)
class Estimate:
    """
    The growing totals of one event: counts of its classes, histogram slots, sums.

    *total* has as many columns as *width*; the first *counts* of them are counts,
    whose sum is what the error is stated for. It never falls.
    """

    width: int
    counts: int
    total: NDArray[np.float64] = field(init=False)
    #: The same as the line has it, which for a moment may fall.
    _level: NDArray[np.float64] = field(init=False)
    #: What was counted in each window.
    _seen: deque[NDArray[np.float64]] = field(init=False)
    #: Of each window its sum, measure, seconds, the speed before it, and what had passed by then.
    _windows: deque[tuple[float, ...]] = field(init=False)
    #: The measure and the seconds that have passed.
    _passed: tuple[float, float] = field(init=False, default=(0.0, 0.0))
    _hint: tuple[NDArray[np.float64], float] | None = field(init=False, default=None)
    #: How many more there may have been than the hint told: as many as the measure, at most.
    unsure: float = field(init=False, default=0.0)
    #: What the windows tell together, until there is another.
    _told: _Windows | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.width)
        self._level = np.zeros(self.width)
        self._seen = deque(maxlen=WINDOWS)
        self._windows = deque(maxlen=WINDOWS)

    def exact(self, seen: NDArray[np.float64]) -> None:
        """Add what was counted while the event was always counted."""
        self.total += seen
        self._level = self.total.copy()

    def window(
        self,
        seen: NDArray[np.float64],
        measure: float,
        seconds: float,
        speed: float | None = None,
    ) -> None:
        """
        Remember a window of *seconds*: what was counted in it, and how far the measure went.

        *speed* is how far the measure went in each second before the hooks came, if
        that is known.
        """
        seconds = max(seconds, 1e-9)
        measure = max(measure, 0.0)
        before = measure / seconds if speed is None else speed
        self._seen.append(seen)
        counts = float(seen[: self.counts].sum())
        self._windows.append((counts, measure, seconds, before, *self._passed))
        self._told = None

    def advance(self, measure: float, seconds: float) -> bool:
        """
        Add what must have happened in *seconds*, in which the measure went on by *measure*.

        False, and nothing added, where no window tells yet.
        """
        if self._told is None:
            self._told = _Windows(self._columns(), np.array(self._seen))
        if self._told.tell:
            self._level = self._level + self._told.total(measure, seconds)
        elif len(self._windows) >= _QUIET and self._hint:
            seen, over = self._hint
            more = seen * (measure / over)
            self._level = self._level + more
            guessed = float(more[: self.counts].sum())
            self.unsure += max(0.0, min(measure, _GUESS * guessed) - guessed)
        else:
            return False
        self.total = np.maximum(self.total, self._level)
        self._passed = self._passed[0] + measure, self._passed[1] + seconds
        return True

    def _columns(self) -> NDArray[np.float64]:
        """Sums, measures, seconds and speeds before of the windows, shape ``(4, n)``."""
        return np.array(self._windows, np.float64).reshape(-1, 6).T[:4]

    def begin(self, seen: NDArray[np.float64], measure: float) -> None:
        """
        From now on there are windows; those of former times do not count.

        The first tells of the time before it as well. *seen* while the measure went
        on by *measure* is believed only if nothing happens any more in the next few.
        """
        self._seen.clear()
        self._windows.clear()
        self._told = None
        self._hint = (seen, measure) if measure > 0 and seen.any() else None

    def error_ratio(self) -> float:
        """
        By which part the newest rate may be wrong, in 95 of 100 cases.

        1.0 where too little was seen to tell.
        """
        columns = self._columns()
        size, counts = columns.shape[1], float(columns[0].sum())
        if size < _FEW or not counts or not columns[1].any():
            return 1.0
        measure, seconds = (self._passed[n] - self._windows[0][4 + n] for n in (0, 1))
        if seconds <= 0:
            measure, seconds = float((columns[1] / columns[2]).mean()), 1.0
        found = float(_Windows(columns, columns[0]).total(measure, seconds))
        if found <= 0:
            return 1.0
        groups = min(size, _LEFT_OUT)
        # At random, since the program may have a rhythm that the windows fall in with.
        of = np.random.default_rng(size).permutation(size) % groups
        kept = [columns[:, of != group] for group in range(groups)]
        without = np.array([_Windows(some, some[0]).total(measure, seconds) for some in kept])
        variance = (groups - 1) / groups * float(((without - without.mean()) ** 2).sum())
        variance *= size / (size - 2)  # the line fits its windows better than others
        # Counting itself scatters too, which few windows may not show.
        variance = max(variance, found**2 / counts)
        return min(1.0, quantile(groups - 1) * float(np.sqrt(variance)) / found)


class _Windows:
    """
    What windows tell together of the time around them.

    *columns* are their sums, measures, seconds and speeds before, shape ``(4, n)``, and
    *seen* what was counted in each, shape ``(n, ...)``.
    """

    def __init__(self, columns: NDArray[np.float64], seen: NDArray[np.float64]) -> None:
        #: Whether they tell anything.
        self.tell = bool(columns[1].any())
        self._faster = _slowness(*columns) / columns[2] if columns.size else np.zeros(0)
        self._speeds = columns[1] * self._faster
        self._seen = seen

    def total(self, measure: float, seconds: float) -> NDArray[np.float64]:
        """What must have happened in *seconds*, in which the measure went on by *measure*."""
        weights = _line(self._speeds, measure, seconds) * self._faster
        found: NDArray[np.float64] = weights @ self._seen
        return found


def _slowness(
    counts: NDArray[np.float64],
    measures: NDArray[np.float64],
    lengths: NDArray[np.float64],
    before: NDArray[np.float64],
) -> NDArray[np.float64]:
    """By how much the hooks slowed the target down in each window."""
    size = len(counts)
    groups = min(_ALIKE, max(1, size // _FEW))
    went = np.maximum(measures, 1e-9)
    order = np.argsort(counts / went, kind="stable")
    # Where the measure stood still, the target had no CPU: that was not the hooks.
    slow = np.where(measures > 0, before * lengths / went, 1.0)
    found = np.empty(size)
    edges = [size * edge // groups for edge in range(groups + 1)]
    for first, last in pairwise(edges):
        group = order[first:last]
        found[group] = max(1.0, _median(slow[group]))
    return found


def _median(values: NDArray[np.float64]) -> float:
    """As numpy has it, which takes ten times as long for so few."""
    ordered, size = np.sort(values), len(values)
    return float(ordered[(size - 1) // 2] + ordered[size // 2]) / 2


def _line(speeds: NDArray[np.float64], measure: float, seconds: float) -> NDArray[np.float64]:
    """What the rate of each window counts for, by least squares; no further than the speeds go."""
    mean, size = float(speeds.mean()), len(speeds)
    if mean <= 0:
        return np.zeros(size)
    if size < _LINE or seconds <= 0:
        return np.full(size, measure / mean / size)
    speed, apart = measure / seconds, speeds - mean
    edge = min(max(speed, float(speeds.min())), float(speeds.max()))
    # Beyond the slowest and the fastest window it goes straight to and from the origin.
    scale = seconds if edge == speed or not edge else measure / edge
    # Speeds that are alike tell nothing of a slope: then it is that of the line to the origin.
    alike = _SPREAD * size * mean**2
    slopes = (apart + alike / (size * mean)) / (float(apart @ apart) + alike)
    line: NDArray[np.float64] = scale * (1 / size + (edge - mean) * slopes)
    return line


def quantile(freedom: int) -> float:
    """By how many standard errors an estimate is off, at most, in 95 of 100 cases."""
    return _T95[min(freedom, len(_T95) - 1)]


def share_error(found: int, samples: int) -> float:
    """By how much the share *found* of independent *samples* may be off, in 95 of 100 cases."""
    if samples <= 0:
        return 1.0
    # Wilson's interval is sound for few samples, and for a share of 0 or 1 too.
    z, share = 1.96, found / samples
    spread = share * (1 - share) / samples + (z / (2 * samples)) ** 2
    return min(1.0, z * float(np.sqrt(spread)) / (1 + z**2 / samples) + z**2 / (2 * samples))


class PartTime:
    """
    Growing totals of what is counted for a part of the time only, shape *shape*.

    Where nobody counts, it goes on as it went when somebody last did.
    """

    def __init__(self, shape: tuple[int, ...], counted: float, now: float) -> None:
        self.total = np.zeros(shape)
        self._seen = np.zeros(shape, np.uint64)
        self._rate = np.zeros(shape)
        self._counted, self._now = counted, now
        self._told = 0.0

    def add(self, seen: NDArray[np.uint64], counted: float, now: float) -> None:
        """
        Take in what was *seen* up to *now*, in the *counted* seconds in which it was counted.

        What is less than before for a moment is taken as it was before.
        """
        seen = np.maximum(seen, self._seen)
        more, while_counted, passed = seen - self._seen, counted - self._counted, now - self._now
        self._seen, self._counted, self._now = seen, counted, now
        if while_counted > _TELLING:
            self._told = min(self._told + while_counted, _ENOUGH)
            share = min(1.0, while_counted / self._told)
            self._rate = share * (more / while_counted) + (1 - share) * self._rate
        self.total += more
        if passed - while_counted > _PAUSE:
            self.total += self._rate * (passed - while_counted)
