# SPDX-License-Identifier: Apache-2.0
"""
Totals from windows.

An event is counted in short windows only, but something that goes along with it (a
measure: context switches, spawns, collections, or else time) is known for all the
time between. The total is estimated by the ratio of the two in the last windows,
times the measure (a ratio estimator, Cochran, Sampling Techniques, ch. 6). Where
the hooks slow the target down in a window, both are slowed down alike, which
a rate per second would not survive.
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
    _windows: deque[tuple[NDArray[np.float64], float]] = field(init=False)
    _hint: list[tuple[NDArray[np.float64], float]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.width)
        self._windows = deque(maxlen=WINDOWS)

    def exact(self, seen: NDArray[np.float64]) -> None:
        """Add what was counted while the event was always counted."""
        self.total += seen

    def window(self, seen: NDArray[np.float64], measure: float) -> None:
        """Remember a window: what was counted in it, and how far the measure went."""
        self._windows.append((seen, max(measure, 0.0)))

    def advance(self, measure: float) -> bool:
        """
        Add what must have happened while the measure went on by *measure*.

        False, and nothing added, where no window tells yet.
        """
        windows = [w for w in self._windows if w[1] > 0]
        if not windows and len(self._windows) >= _QUIET:
            windows = self._hint
        if not windows:
            return False
        self.total += sum(s for s, _ in windows) * (measure / sum(m for _, m in windows))
        return True

    def begin(self, seen: NDArray[np.float64], measure: float) -> None:
        """
        From now on there are windows; those of former times do not count.

        The first tells of the time before it as well. *seen* while the measure went
        on by *measure* is believed only if nothing happens any more in the next few.
        """
        self._windows.clear()
        self._hint = [(seen, measure)] if measure > 0 and seen.any() else []

    def error_ratio(self) -> float:
        """
        By which part the newest rate may be wrong, in 95 of 100 cases.

        1.0 where too little was seen to tell.
        """
        windows = [(float(s[: self.counts].sum()), m) for s, m in self._windows if m > 0]
        if len(windows) < 3:
            return 1.0
        counts, measures = np.array(windows).T
        if not counts.sum():
            return 1.0
        ratio = float(counts.sum() / measures.sum())
        # The jackknife: how much each window decides. It errs on the high side.
        without = (counts.sum() - counts) / (measures.sum() - measures)
        size = len(windows)
        variance = (size - 1) / size * float(((without - without.mean()) ** 2).sum())
        # Counting itself scatters too, which few windows may not show.
        variance = max(variance, ratio**2 / float(counts.sum()))
        return min(1.0, quantile(size - 1) * float(np.sqrt(variance)) / ratio)


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
