# SPDX-License-Identifier: Apache-2.0
"""
The clock of one host against that of another, from packets that both have seen.

No packet arrives before it is sent. So each packet from A to B bounds the difference of the
clocks (B - A) from above, each one from B to A from below. The line with most room between both
bounds is the estimate; how far other lines that fit are from it is its error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Clocks of computers drift by less, which short or one-sided traffic could not show.
MOST_DRIFT = 200e-6
#: Halvings of the range of drifts: of 400 ppm to less than a thousandth of a ppm.
_STEPS = 60
#: Drifts at which the possible lines are looked at.
_GRID = 257


@dataclass(frozen=True, slots=True)
class Alignment:
    """The difference of two clocks at time t of the first: *offset* + *drift* x (t - *origin*)."""

    #: ns of the first clock.
    origin: int
    #: ns.
    offset: float
    drift: float
    #: The largest error of the difference during the packets, ns.
    error: float

    def difference(self, time: NDArray[np.int64]) -> NDArray[np.int64]:
        """The difference at each *time* of the first clock, ns."""
        return np.round(self.offset + self.drift * (time - self.origin)).astype(np.int64)


def align(there: NDArray[np.int64], back: NDArray[np.int64]) -> Alignment | None:
    """
    Align the clock of B with that of A.

    *there* has the time on A's clock and on B's of each packet from A to B, ns, shape ``(n, 2)``;
    *back* the same of packets from B to A. None if there are none one way, or if no line fits: a
    clock was set meanwhile.
    """
    if not len(there) or not len(back):
        return None
    origin, base = int(there[0, 0]), int(there[0, 1] - there[0, 0])
    upper = _points(there, origin, base)
    lower = _points(back, origin, base)
    low, high = -MOST_DRIFT, MOST_DRIFT
    for _ in range(_STEPS):  # the room is a concave function of the drift
        third = (high - low) / 3
        if _room(upper, lower, low + third) < _room(upper, lower, high - third):
            low += third
        else:
            high -= third
    drift = (low + high) / 2
    if _room(upper, lower, 0.0) > _room(upper, lower, drift) / 2:
        drift = 0.0  # the packets do not distinguish it from none
    least, most = _range(upper, lower, drift)
    if most < least:
        return None
    offset = (least + most) / 2
    ends = np.array([min(upper[0].min(), lower[0].min()), max(upper[0].max(), lower[0].max())])
    return Alignment(origin, base + offset, drift, _error(upper, lower, offset, drift, ends))


_Points = tuple["NDArray[np.float64]", "NDArray[np.float64]"]


def _points(pairs: NDArray[np.int64], origin: int, base: int) -> _Points:
    """Times since *origin*, and differences of the clocks beyond *base*, ns."""
    return (
        (pairs[:, 0] - origin).astype(np.float64),
        (pairs[:, 1] - pairs[:, 0] - base).astype(np.float64),
    )


def _range(upper: _Points, lower: _Points, drift: float) -> tuple[float, float]:
    """The least and the largest offset that fit *drift*."""
    least = float((lower[1] - drift * lower[0]).max())
    return least, float((upper[1] - drift * upper[0]).min())


def _room(upper: _Points, lower: _Points, drift: float) -> float:
    least, most = _range(upper, lower, drift)
    return most - least


def _error(
    upper: _Points, lower: _Points, offset: float, drift: float, times: NDArray[np.float64]
) -> float:
    """How far other lines that fit are from this one at *times*, at most."""
    furthest = 0.0
    edges = (_edge(upper, lower, drift, -MOST_DRIFT), _edge(upper, lower, drift, MOST_DRIFT))
    for other in np.linspace(*edges, _GRID).tolist():
        for end in _range(upper, lower, other):
            away = np.abs((end - offset) + (other - drift) * times)
            furthest = max(furthest, float(away.max()))
    return furthest


def _edge(upper: _Points, lower: _Points, inside: float, outside: float) -> float:
    """The last drift towards *outside* that a line can have."""
    if _room(upper, lower, outside) >= 0:
        return outside
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if _room(upper, lower, middle) >= 0:
            inside = middle
        else:
            outside = middle
    return inside
