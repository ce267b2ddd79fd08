# SPDX-License-Identifier: Apache-2.0
"""
Fits of the windows of one event, by which its counts outside of windows are computed. Pure.

Each fit is linear in the counts: it gives every window a weight. *columns* of windows are their
counts, growths of the first reference counter, seconds, speeds of it before the hooks came, growths
of the second counter, and its speeds before (NaN where there is none), shape ``(6, n)``. *steps*
are parts of the time to be estimated: growth of the first counter, seconds, growth of the second,
shape ``(k, 3)``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Minimum number of windows for an estimate of the error, and for a line.
MIN_WINDOWS, _MIN_LINE_WINDOWS = 3, 8
#: Strata of windows by their ratio of events to counter; the windows of a stratum are assumed to be
#: slowed down equally.
_SLOWDOWN_STRATA = 4
#: Relative spread of speeds at which the windows and the origin weigh equally for the slope.
_SPREAD = 0.05
#: Spread of the kinds of work at which the windows and the first counter weigh equally for it.
_KIND_SPREAD = 0.02
#: How far a line of kinds is drawn beyond the windows, as a part of its length.
_NEAR = 0.1
#: Distance of kinds from which nothing is known of the events of the one by the other.
_OTHER_KIND = 0.1
#: Differences of the logarithm of both counters' ratio: those that do not matter, and those from
#: which the program did something else before a window.
_ALIKE, _OTHER_WORK = 0.02, 1.1
#: Windows that show that kinds are kept.
_MIN_ALIKE = 4
#: Two-sided 95 % quantile of a normal spread.
_NORMAL_95 = 1.96
#: Groups of windows of which one is left out at a time to estimate the error (a jackknife).
_JACKKNIFE_GROUPS = 13
#: Two-sided 95 % quantiles of Student's t, by degrees of freedom. Beyond the table it would fall to
#: 1.96; the last value is kept, because ratios of few windows scatter more than the formula says.
_T95 = (0.0, 12.7, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)


class Fit(Protocol):
    """A fit to windows."""

    #: False if the windows say nothing: their counters stood still.
    known: bool

    def __init__(self, columns: NDArray[np.float64]) -> None:
        """Fit *columns*, which are useful."""

    @staticmethod
    def useful(columns: NDArray[np.float64]) -> NDArray[np.bool_]:
        """The windows that matter."""

    def weights(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """By what the counts of each window are multiplied for the counts of *steps*."""

    def doubt(self, steps: NDArray[np.float64]) -> float:
        """Error in events because parts of *steps* are of a kind that no window had."""

    def unseen(self, steps: NDArray[np.float64]) -> float:
        """Error in events that windows do not show, because they are few or have bounds."""


class Found(NamedTuple):
    """
    The estimate of one event by one fit, in events.

    Attributes:
        total: the estimate.
        error: its error with 95 % confidence.
        doubt: the part of the error that comes from work of a kind that no window had.
    """

    total: float
    error: float
    doubt: float

    @property
    def known(self) -> bool:
        """Whether the error is less than the estimate."""
        return self.error < self.total


class Line:
    """
    The line through the rates of windows over the speeds of the first counter.

    Where events are proportional to the counter, it passes through the origin, and it does not
    matter how slow a window was. Where a program alternates between kinds of work, the speed shows
    how much of each it did.
    """

    def __init__(self, columns: NDArray[np.float64]) -> None:
        counts, growths, seconds, before = columns[:4]
        self.known = bool(growths.any())
        self._counts = counts
        self._faster = _slowness(counts, growths, seconds, before) / seconds
        self._speeds = growths * self._faster

    @staticmethod
    def useful(columns: NDArray[np.float64]) -> NDArray[np.bool_]:
        """See :class:`Fit`: all, since each says what happens in a time."""
        return np.ones(columns.shape[1], np.bool_)

    def weights(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """See :class:`Fit`; the line ends at the extreme speeds."""
        growth, seconds = float(steps[:, 0].sum()), float(steps[:, 1].sum())
        weights: NDArray[np.float64] = _weights(self._speeds, growth, seconds) * self._faster
        return weights

    def doubt(self, _steps: NDArray[np.float64]) -> float:
        """See :class:`Fit`; one counter does not show any."""
        return 0.0

    def unseen(self, steps: NDArray[np.float64]) -> float:
        """See :class:`Fit`; counts scatter by themselves."""
        scale = quantile(min(len(self._counts), _JACKKNIFE_GROUPS) - 1)
        found, seen = float(self.weights(steps) @ self._counts), float(self._counts.sum())
        return scale * found / float(np.sqrt(seen))


class Kinds:
    """
    The events per work over the kind of work, by two counters that only work lets grow.

    Work is the sum of both counters, as shares of their sums over the windows; its kind is the
    second counter's part of it, from 0 to 1. So events are a sum of a multiple of each counter, and
    how slow a window was matters little. Where the windows are all of one kind, the
    first counter decides.
    """

    def __init__(self, columns: NDArray[np.float64]) -> None:
        counts, growths, seconds, before, second, _ = columns
        self._scales = _slowness(counts, growths, seconds, before) / seconds
        parts = np.stack([growths, second]) * self._scales
        self._sums = np.maximum(parts.sum(axis=1, keepdims=True), 1e-9)
        self._work, self._kinds = self._of(parts)
        self._all = float(self._work.sum())
        self.known = self._all > 0
        self._mean = float(self._work @ self._kinds) / max(self._all, 1e-9)
        had = self._kinds[self._work > 0]
        #: The extreme kinds.
        self._bounds = (float(had.min()), float(had.max())) if self.known else (0.0, 0.0)
        # A process that has not been scheduled out yet may send without any growth.
        self._kinds[self._work <= 0] = self._mean
        prior = self._all * _KIND_SPREAD**2
        deviations = self._kinds - self._mean
        spread = max(float(self._work @ deviations**2) + prior, 1e-9)
        #: Of each window: its part of the slope, and of the mean.
        first = prior / max(self._all * (1 - self._mean), 1e-9)
        self._slopes = self._scales * (deviations - first) / spread
        self._means = self._scales / max(self._all, 1e-9)
        self._counts = counts

    @staticmethod
    def useful(columns: NDArray[np.float64]) -> NDArray[np.bool_]:
        """See :class:`Fit`: those in which the target did anything."""
        did: NDArray[np.bool_] = np.any(columns[[0, 1, 4]] > 0, axis=0)
        return did

    def _of(self, parts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Work and its kind, of the growths *parts* of both counters, shape ``(2, n)``."""
        shares = parts / self._sums
        work = shares.sum(axis=0)
        return work, shares[1] / np.maximum(work, 1e-12)

    def _nearest(
        self, steps: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Work and kind of *steps*, and the nearest kind that windows had."""
        work, kinds = self._of(steps[:, [0, 2]].T)
        return work, kinds, np.clip(kinds, *self._bounds)

    def weights(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """See :class:`Fit`; work of a kind that no window had counts as the nearest one."""
        if not self.known:
            return np.zeros(len(self._means))
        work, _, nearest = self._nearest(steps)
        lever = float(work @ (nearest - self._mean))
        weights: NDArray[np.float64] = float(work.sum()) * self._means + lever * self._slopes
        return weights

    def doubt(self, steps: NDArray[np.float64]) -> float:
        """
        See :class:`Fit`.

        Work that is little beyond the windows has the slope within them. Farther away it is
        anything between proportional to the first and to the second counter, or something else
        that may have no events, or twice as many.
        """
        if not self.known:
            return 0.0
        work, kinds, nearest = self._nearest(steps)
        slope = float(self._slopes @ self._counts)
        rate: NDArray[np.float64] = float(self._means @ self._counts) + slope * (
            nearest - self._mean
        )
        by_second = kinds / np.maximum(nearest, 1e-3)
        by_first = (1 - kinds) / np.maximum(1 - nearest, 1e-3)
        away = np.abs(kinds - nearest)
        other = np.minimum(away / _OTHER_KIND, 1.0)
        far = np.maximum(np.abs(by_second - by_first), other) * np.maximum(rate, 0.0)
        apart = np.where(
            away <= _NEAR * (self._bounds[1] - self._bounds[0]), abs(slope) * away, far
        )
        return float(work @ apart)

    def unseen(self, steps: NDArray[np.float64]) -> float:
        """
        See :class:`Fit`.

        The hit that opens a window may fall on either side of its bound, and work that is hardly
        ever done has no window: half of what one stands for is assumed.
        """
        weights = self.weights(steps)
        return float(np.abs(weights).sum() + weights @ self._counts / (2 * len(weights)))


class Second(Kinds):
    """Events in proportion to the second counter, for windows too few to show more."""

    def __init__(self, columns: NDArray[np.float64]) -> None:
        super().__init__(columns)
        self._slopes = self._means / max(self._mean, 1e-9)


def found_by(
    how: type[Line | Kinds], columns: NDArray[np.float64], steps: NDArray[np.float64]
) -> Found:
    """The estimate of *steps* by a fit to *columns*; its error is not less where it is unknown."""
    columns = columns[:, how.useful(columns)]
    size, counts = columns.shape[1], columns[0]
    if size < MIN_WINDOWS or not counts.any():
        return Found(0.0, 0.0, 0.0)
    fit = how(columns)
    found = float(fit.weights(steps) @ counts)
    if found <= 0:
        return Found(0.0, 0.0, 0.0)
    groups = min(size, _JACKKNIFE_GROUPS)
    # Random groups, since the program may have a rhythm with which windows coincide.
    of = np.random.default_rng(size).permutation(size) % groups
    kept = [columns[:, of != group] for group in range(groups)]
    without = np.array([how(some).weights(steps) @ some[0] for some in kept])
    variance = (groups - 1) / groups * float(((without - without.mean()) ** 2).sum())
    variance *= size / (size - 2)  # the line fits its windows better than others
    doubt = fit.doubt(steps)
    error = max(quantile(groups - 1) * variance**0.5, fit.unseen(steps))
    return Found(found, error + doubt, doubt)


def keeps_kinds(columns: NDArray[np.float64]) -> bool | None:
    """
    Whether work in the windows is of the kinds that it is of without hooks; None if that is open.

    Hooks slow a program down, and a process that is slow to wake up may handle more messages at
    once. Then windows in which there were events have nearly all more of one counter, or less, than
    just before they were opened.
    """
    counts, growths, _, before, second, second_before = columns
    usable = (counts > 0) & (growths > 0) & (before > 0) & (second > 0) & (second_before > 0)
    ratios = np.log(second[usable] * before[usable] / (growths[usable] * second_before[usable]))
    ratios = ratios[np.abs(ratios) < _OTHER_WORK]
    signs = np.sign(ratios) * (np.abs(ratios) > _ALIKE)
    size, alike = len(signs), int((signs == 0).sum())
    if abs(float(signs.sum())) > min(_NORMAL_95 * size**0.5, 0.9 * size):
        return False
    return True if alike >= _MIN_ALIKE and 2 * alike > size else None


def _slowness(
    counts: NDArray[np.float64],
    growths: NDArray[np.float64],
    lengths: NDArray[np.float64],
    before: NDArray[np.float64],
) -> NDArray[np.float64]:
    """
    The factor by which hooks slowed the target down in each window, at least 1.

    A window without events was slowed down by none.
    """
    found = np.ones(len(counts))
    hit = np.flatnonzero(counts > 0)
    counts, growths, slow = counts[hit], growths[hit], before[hit] * lengths[hit]
    size = len(hit)
    strata = min(_SLOWDOWN_STRATA, max(1, size // MIN_WINDOWS))
    positive = np.maximum(growths, 1e-9)
    order = np.argsort(counts / positive, kind="stable")
    # Where the counter stood still, the target had no CPU, which hooks do not cause.
    slow = np.where(growths > 0, slow / positive, 1.0)
    limits = [size * number // strata for number in range(strata + 1)] if size else []
    for first, last in pairwise(limits):
        stratum = order[first:last]
        found[hit[stratum]] = max(1.0, _median(slow[stratum]))
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
