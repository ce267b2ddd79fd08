# SPDX-License-Identifier: Apache-2.0
"""
Counts of a whole run, of which a part was observed in full and the rest in windows.

The time in which everything was observed is one stratum: what was counted there is exact. All other
time is the second stratum, of which windows were observed: its counts are scaled up. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

#: Sums that are kept for each key: of its counts n in windows, n * n, n * size, both sizes; and the
#: number of windows in which there was one.
_SUMS = 5
#: Windows are uneven where by time and by work they are parts of the rest that differ by so much.
_UNEVEN = 2.0


class Estimate(NamedTuple):
    """
    A count of the whole run, and its standard error as a part of it: 0 where it is exact.

    It is more than 1 where little was counted in full and windows, which saw none, are few.
    """

    number: float
    error: float


class Whole(NamedTuple):
    """A run: seconds, and the VM's reductions in it; None where those are not known."""

    seconds: float
    work: float | None


class Strata:
    """
    Counts by key, which grow from one reading to the next.

    Memory is bounded by the number of keys, whatever the number of windows.
    """

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}
        self._census: dict[bytes, int] = {}
        self._sums: dict[bytes, NDArray[np.float64]] = {}
        #: Of time and of work: the sum over all windows, and of squares.
        self._sizes = np.zeros((2, 2))
        self._has_work = True
        self._in_census = Whole(0.0, 0.0)
        self.windows = 0

    @property
    def seconds(self) -> float:
        """How long everything was observed, or windows were."""
        return self._in_census.seconds + float(self._sizes[0, 0])

    def census(self, counts: Mapping[bytes, int], seconds: float, work: float | None) -> None:
        """Everything was observed for *seconds* before *counts* were read."""
        for key, news in self._news(counts):
            self._census[key] = self._census.get(key, 0) + news
        before = self._in_census
        total = None if work is None or before.work is None else before.work + work
        self._in_census = Whole(before.seconds + seconds, total)

    def window(self, counts: Mapping[bytes, int], seconds: float, work: float | None) -> None:
        """A window of *seconds* was observed before *counts* were read."""
        self.windows += 1
        self._has_work &= work is not None
        size = np.array([seconds, work or 0.0])
        self._sizes += np.stack([size, size**2], axis=1)
        for key, n in self._news(counts):
            sums = self._sums.setdefault(key, np.zeros(_SUMS))
            sums += (n, n * n, n * seconds, n * (work or 0.0), n > 0)

    def _news(self, counts: Mapping[bytes, int]) -> list[tuple[bytes, int]]:
        """What has come of each key; a count that has fallen began anew."""
        before = [self._seen.get(key, 0) for key in counts]
        news = [
            (key, n - old if n >= old else n)
            for (key, n), old in zip(counts.items(), before, strict=True)
        ]
        self._seen |= counts
        return [(key, n) for key, n in news if n > 0]

    def following(self, gone: Collection[bytes] = ()) -> Strata:
        """Return a run behind this one: counts grow on, those of the keys *gone* begin anew."""
        strata = Strata()
        strata._seen = {key: n for key, n in self._seen.items() if key not in gone}
        return strata

    def estimates(self, whole: Whole, *, by_work: bool = False) -> dict[bytes, Estimate]:
        """
        The count of each key in the *whole* run.

        *by_work* where hooks slow down what they observe: then not time, but the VM's reductions
        say which part of its work was in windows. They do, too, where windows came mostly while
        the VM did less than otherwise, as after a burst that has used up the budget, or more.
        """
        known = self._knows_work(whole)
        by_work = by_work or (known and self._is_uneven(whole))
        # Without the VM's work only its time is known, which is not how much it did.
        rest, inside, doubt = self._rest(whole, by_work=by_work and known)
        doubt, by_work = (doubt, by_work) if known or not by_work else (1.0, False)
        found = {}
        for key in self._seen:
            census, sampled = self._census.get(key, 0), 0.0
            variance = 0.0
            sums = self._sums.get(key)
            if inside and sums is not None:
                sampled = float(sums[0]) * rest / inside
                error = min(1.0, max(self._error(sums, by_work=by_work), doubt))
                variance = (error * sampled) ** 2 * max(0.0, 1 - inside / rest)
            elif inside:
                variance = self._unseen(rest, inside)
            elif rest:
                # Nothing is known of the rest but that it follows what was observed.
                sampled = census * rest / max(self._in_census.seconds, 1e-9)
                variance = sampled**2
            count = census + sampled
            found[key] = Estimate(count, variance**0.5 / count if count else 0.0)
        return found

    @staticmethod
    def _unseen(rest: float, inside: float) -> float:
        """
        The variance of a count of which windows saw none, *inside* of them being of *rest*.

        One event, such as windows of the rest would have seen, stands for so many.
        """
        return (rest / inside) ** 2 if inside < rest else 0.0

    def _knows_work(self, whole: Whole) -> bool:
        known = self._has_work and None not in (whole.work, self._in_census.work)
        return known and bool(self._sizes[1, 0] > 0)

    def _is_uneven(self, whole: Whole) -> bool:
        """Whether the VM did much more or less in windows than in the rest of that stratum."""
        by_time, by_work = (self._rest(whole, by_work=how)[:2] for how in (False, True))
        scales = by_time[0] / by_time[1], by_work[0] / by_work[1]
        return max(scales) > _UNEVEN * min(scales)

    def _rest(self, whole: Whole, *, by_work: bool) -> tuple[float, float, float]:
        """The size of the second stratum, that of the windows in it, and how doubtful both are."""
        inside = float(self._sizes[0, 0])
        rest = max(whole.seconds - self._in_census.seconds, inside)
        if not by_work or not inside:
            return rest, inside, 0.0
        worked = float(self._sizes[1, 0])
        work = max((whole.work or 0.0) - (self._in_census.work or 0.0), worked)
        scales = work / worked, rest / inside
        return work, worked, abs(scales[0] - scales[1]) / (2 * max(scales))

    def _error(self, sums: NDArray[np.float64], *, by_work: bool) -> float:
        """
        The standard error of a rate, as a part of it.

        It is that of the ratio of sums over windows, and at least that of a count of what is
        independent; 1 where one window alone has seen anything.
        """
        n, squares, by_time, by_reductions, windows = (float(value) for value in sums)
        if windows < 2:
            return 1.0
        size, size_squares = (float(value) for value in self._sizes[int(by_work)])
        rate, product = n / size, by_reductions if by_work else by_time
        spread = max(0.0, squares - 2 * rate * product + rate**2 * size_squares)
        between = (spread * self.windows / (self.windows - 1)) ** 0.5 / n
        return float(max(between, n**-0.5))
