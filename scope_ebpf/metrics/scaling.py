# SPDX-License-Identifier: Apache-2.0
"""
Totals from windows.

An event is counted in short windows only, but something that goes along with it (a
measure: context switches, spawns, collections, or else time) is known for all the
time between. The total is estimated by the ratio of the two in the last windows,
times the measure (a ratio estimator, Cochran, Sampling Techniques, ch. 6). Where
the hooks slow the target down in a window, both are slowed down alike, which
a rate per second would not survive.

But slow windows would count for less than the time that they stand for, and slow are
those in which the event is frequent. So windows are put together by strata of alike
ratios, and each stratum weighs what the measure did just before its windows, when no
hook was in (a separate ratio estimator, as there).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Windows that are remembered: half a minute to a minute of them.
WINDOWS = 40
#: Windows in which nothing happens, after which the burst is over that took the hooks out.
_QUIET = 3
#: Windows of which something can be said at least, and strata at most.
_FEW, _STRATA = 3, 4
#: Two-sided 95 % quantiles of Student's t, by degrees of freedom. It would fall to 1.96; here it
#: stays, because the ratio of few windows is spread a little wider than the formula says.
_T95 = (0.0, 12.7, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)


@dataclass(slots=True)
class Estimate:
    """
    The growing totals of one event: counts of its classes, histogram slots, sums.

    *total* has as many columns as *width*; the first *counts* of them are counts,
    whose sum is what the error is stated for.
    """

    width: int
    counts: int
    total: NDArray[np.float64] = field(init=False)
    #: Of each window what was counted, its measure, and the speed of that before.
    _windows: deque[tuple[NDArray[np.float64], float, float]] = field(init=False)
    _hint: tuple[NDArray[np.float64], float] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.width)
        self._windows = deque(maxlen=WINDOWS)

    def exact(self, seen: NDArray[np.float64]) -> None:
        """Add what was counted while the event was always counted."""
        self.total += seen

    def window(self, seen: NDArray[np.float64], measure: float, speed: float | None = None) -> None:
        """
        Remember a window: what was counted in it, and how far the measure went.

        *speed* is how far the measure went in each second before the hooks came;
        either all windows have it or none.
        """
        measure = max(measure, 0.0)
        self._windows.append((seen, measure, measure if speed is None else speed))

    def advance(self, measure: float) -> bool:
        """
        Add what must have happened while the measure went on by *measure*.

        False, and nothing added, where no window tells yet.
        """
        windows = [w for w in self._windows if w[1] > 0]
        if windows and any(speed for _, _, speed in windows):
            rows = np.array([seen for seen, _, _ in windows])
            self.total += _Strata(*self._columns()).weights @ rows * measure
        elif len(self._windows) >= _QUIET and self._hint:
            seen, over = self._hint
            self.total += seen * (measure / over)
        else:
            return False
        return True

    def _columns(self) -> NDArray[np.float64]:
        """Counts, measures and speeds of the windows in which the measure went on."""
        rows = [(float(s[: self.counts].sum()), m, v) for s, m, v in self._windows if m > 0]
        return np.array(rows, np.float64).reshape(-1, 3).T

    def begin(self, seen: NDArray[np.float64], measure: float) -> None:
        """
        From now on there are windows; those of former times do not count.

        The first tells of the time before it as well. *seen* while the measure went
        on by *measure* is believed only if nothing happens any more in the next few.
        """
        self._windows.clear()
        self._hint = (seen, measure) if measure > 0 and seen.any() else None

    def error_ratio(self) -> float:
        """
        By which part the newest rate may be wrong, in 95 of 100 cases.

        1.0 where too little was seen to tell.
        """
        columns = self._columns()
        counts, size = float(columns[0].sum()), columns.shape[1]
        if size < _FEW or not counts or not columns[2].any():
            return 1.0
        strata = _Strata(*columns)
        without = strata.without_each()
        variance = (size - 1) / size * float(((without - without.mean()) ** 2).sum())
        # Counting itself scatters too, which few windows may not show.
        variance = max(variance, strata.ratio**2 / counts)
        return min(1.0, quantile(size - 1) * float(np.sqrt(variance)) / max(strata.ratio, 1e-300))


class _Strata:
    """Windows by their ratio of count to measure; all arguments of shape ``(n,)``."""

    def __init__(
        self,
        counts: NDArray[np.float64],
        measures: NDArray[np.float64],
        speeds: NDArray[np.float64],
    ) -> None:
        self._rows = np.array([counts, measures, speeds])
        strata = min(_STRATA, max(1, len(counts) // _FEW))
        order = np.argsort(counts / measures, kind="stable")
        self._of = np.empty(len(counts), np.int64)
        self._of[order] = np.arange(len(counts)) * strata // len(counts)
        sums = np.array([np.bincount(self._of, row, strata) for row in self._rows])
        self._sums = sums
        #: What each window's counts are multiplied by, for one unit of measure.
        self.weights = (sums[2] / sums[1] / sums[2].sum())[self._of]
        self.ratio = float(self.weights @ counts)

    def without_each(self) -> NDArray[np.float64]:
        """The ratio as it would be without each of the windows: the jackknife."""
        whole = self._sums[:, self._of]
        less = whole - self._rows
        all_speed = self._sums[2].sum()
        share = whole[0] / whole[1] * whole[2]
        new = less[0] / np.maximum(less[1], 1e-300) * less[2]
        rest = np.maximum(all_speed - self._rows[2], 1e-300)
        found: NDArray[np.float64] = (self.ratio * all_speed - share + new) / rest
        return found


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
