# SPDX-License-Identifier: Apache-2.0
"""
Totals of an event that is counted in short windows only.

A reference counter that grows along with the event (context switches, spawns, collections,
reductions, or else time) is known for all times. A window gives a rate of events and a speed, which
is the growth of the counter per second; hooks slow both down alike. A line is fitted to the rates
of all windows over their speeds. Since the speed is known at every moment, so is the rate (a
regression estimator: Cochran, Sampling Techniques, ch. 7). Events with two counters have a second
fit, by both of them and without the time (``budget/fits.py``).

Where kinds of work alternate, slowness matters, since slow windows are those in which the event is
frequent. The speed just before a window, without hooks, shows how much slower the window was; but
the program may have changed its work in between. So the slowness is the median over windows of
similar ratio of events to counter.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.budget.fits import Found, Kinds, Line, Second, found_by, keeps_kinds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
#: Steps of time that are kept for the error: more than windows are kept for.
_STEPS = 1024


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
    #: Each window: its column for a fit, and the number of steps that came before it.
    _windows: deque[tuple[float, ...]] = field(init=False)
    #: Growth of the first counter, seconds, and growth of the second one, of each step.
    _steps: deque[tuple[float, float, float]] = field(init=False)
    #: Steps that there were.
    _passed: int = field(init=False, default=0)
    #: Counts and growth before the quota was exhausted.
    _burst: tuple[NDArray[np.float64], float] | None = field(init=False, default=None)
    uncertain: float = field(init=False, default=0.0)
    #: How windows are fitted, and the fit; None when a window was added since.
    _how: type[Line | Kinds] = field(init=False, default=Line)
    _fit: Line | Kinds | None = field(init=False, default=None)
    #: Of *_seen*, the windows that the fit uses.
    _fitted: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.width)
        self._level = np.zeros(self.width)
        self._seen = deque(maxlen=WINDOWS)
        self._windows = deque(maxlen=WINDOWS)
        self._steps = deque(maxlen=_STEPS)

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
        second: tuple[float, float] | None = None,
    ) -> None:
        """
        Add a window of *seconds*, in which *seen* was counted and the counter grew by *growth*.

        *rate_before* is the growth per second before the hooks were attached, if it is known.
        *second* are growth, and growth per second before, of the second counter, if there is one.
        """
        seconds = max(seconds, 1e-9)
        growth = max(growth, 0.0)
        before = growth / seconds if rate_before is None else rate_before
        self._seen.append(seen)
        counts = float(seen[: self.counts].sum())
        other = second or (np.nan, np.nan)
        self._windows.append((counts, growth, seconds, before, *other, self._passed))
        self._fit = None

    def advance(self, growth: float, seconds: float, second: float | None = None) -> bool:
        """
        Add the estimate of *seconds* in which the counter grew by *growth*, the other by *second*.

        False, and nothing added, where there are too few windows.
        """
        step = growth, seconds, np.nan if second is None else max(second, 0.0)
        self._keep([step])
        return self._add(np.array([step]))

    def settle(self, steps: Sequence[tuple[float, float, float | None]]) -> float | None:
        """
        Add the estimate of *steps*, as in :meth:`advance`, by the fit that is best for them.

        Returns its error ratio; None where there are too few windows.
        """
        some = [(growth, seconds, np.nan if s is None else s) for growth, seconds, s in steps]
        self._keep(some)
        error = self.error_ratio()
        return error if self._add(np.array(some)) else None

    def _keep(self, steps: list[tuple[float, float, float]]) -> None:
        self._steps.extend(steps)
        self._passed += len(steps)

    def _add(self, steps: NDArray[np.float64]) -> bool:
        if self._fit is None and self._windows:
            columns = self._columns()
            useful = self._how.useful(columns)
            self._fit, self._fitted = self._how(columns[:, useful]), np.array(self._seen)[useful]
        growth = float(steps[:, 0].sum())
        if self._fit and self._fit.known:
            self._level = self._level + self._fit.weights(steps) @ self._fitted
        elif len(self._windows) >= _EMPTY_WINDOWS and self._burst:
            seen, over = self._burst
            more = seen * (growth / over)
            self._level = self._level + more
            guessed = float(more[: self.counts].sum())
            self.uncertain += max(0.0, min(growth, _MAX_UNSEEN * guessed) - guessed)
        else:
            return False
        self.total = np.maximum(self.total, self._level)
        return True

    def _columns(self) -> NDArray[np.float64]:
        """The windows as columns of a fit, shape ``(6, n)``."""
        return np.array(self._windows, np.float64).reshape(-1, 7).T[:6]

    def begin(self, seen: NDArray[np.float64], growth: float) -> None:
        """
        Count in windows from now on; earlier windows are dropped.

        The first window also stands for the time before it. The rate of *seen*, while the counter
        grew by *growth*, is used only if the next few windows are empty.
        """
        self._seen.clear()
        self._windows.clear()
        self._how, self._fit = Line, None
        self._burst = (seen, growth) if growth > 0 and seen.any() else None

    def error_ratio(self) -> float:
        """
        Error of the newest rate with 95 % confidence, as a share of it; chooses how it is fitted.

        1.0 where too little was counted.
        """
        columns = self._columns()
        if not columns.size or not columns[1].any():
            return 1.0
        news = min(self._passed - int(self._windows[0][6]), len(self._steps))
        steps = np.array(list(self._steps)[len(self._steps) - news :]).reshape(-1, 3)
        if steps[:, 1].sum() <= 0:
            steps = np.array([[*(columns[[1, 4]] / columns[2]).mean(axis=1), 1.0]])[:, [0, 2, 1]]
        found: dict[type[Line | Kinds], Found] = {Line: found_by(Line, columns, steps)}
        if not np.isnan(columns[4:]).any() and not np.isnan(steps[:, 2]).any():
            found[Kinds] = found_by(Kinds, columns, steps)
            found[Second] = found_by(Second, columns, steps)
        how, error = _chosen(found, keeps_kinds=keeps_kinds(columns))
        if how is not self._how:
            self._how, self._fit = how, None
        return error


def _chosen(
    found: Mapping[type[Line | Kinds], Found], *, keeps_kinds: bool | None
) -> tuple[type[Line | Kinds], float]:
    """
    The fit with the smallest error, and its error ratio.

    Unless hooks are known to keep the kinds of work, one by both counters that contradicts the line
    is not used: the first counter grows along with the event however much hooks slow the target
    down. The error of the line covers the other estimate.
    """
    line, both = found[Line], _by_both(found)
    kinds, other = found.get(Kinds), found.get(both)
    best: type[Line | Kinds] = Line
    total, error, _ = line
    if other and other.known:
        apart = abs(line.total - other.total)
        against = line.known and apart > line.error + other.error
        if keeps_kinds is False or (against and keeps_kinds is None):
            error = max(error, apart + other.error)
        elif against or not line.known or other.error < error:
            best, (total, error, _) = both, other
        else:
            error = max(error, apart)
    if not total:
        return Line, 1.0
    ratio = error / total
    if best is Line and kinds and kinds.total:
        ratio += kinds.doubt / kinds.total
    return best, min(1.0, ratio)


def _by_both(found: Mapping[type[Line | Kinds], Found]) -> type[Kinds]:
    """The better fit by both counters; the simple one only where the other does not exclude it."""
    kinds, second = found.get(Kinds), found.get(Second)
    if not kinds or not second or not second.known or second.error >= kinds.error:
        return Kinds
    return Second if abs(kinds.total - second.total) <= kinds.error else Kinds


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
