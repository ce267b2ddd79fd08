# SPDX-License-Identifier: Apache-2.0
"""
What all packets of a link say about two clocks, in the few of them that bound it most.

A line below all points touches only the corners of their lower hull, so the others are not kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Parts of the time of some packets, of each of which the fastest packet is looked at first.
_PARTS = 64


class Bounds:
    """The lower hull of the times of packets, at their source and behind it at their target, ns."""

    def __init__(self) -> None:
        #: Times at the source and at the target, shape ``(n, 2)``, in the order of the source's.
        self.corners: NDArray[np.int64] = np.zeros((0, 2), np.int64)

    def add(self, sent: NDArray[np.int64], received: NDArray[np.int64]) -> None:
        """Add some packets."""
        points = np.stack([sent, received], axis=1)
        for _ in range(2):
            points = points[_below(points, self.corners)]
            if len(points) <= _PARTS:
                break
            self.corners = _hull(np.concatenate([self.corners, _fastest(points)]))
        if len(points):
            self.corners = _hull(np.concatenate([self.corners, points]))


def _late(points: NDArray[np.int64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = points[:, 1] - points[:, 0]
    return found


def _below(points: NDArray[np.int64], corners: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which points are below the hull or beside it."""
    if len(corners) < 2:
        return np.ones(len(points), np.bool_)
    base = corners[0]
    delay = int(base[1] - base[0])
    line = np.interp(points[:, 0] - base[0], corners[:, 0] - base[0], _late(corners) - delay)
    beside = (points[:, 0] < corners[0, 0]) | (points[:, 0] > corners[-1, 0])
    found: NDArray[np.bool_] = beside | (_late(points) - delay < line)
    return found


def _fastest(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fastest packet of each part of the time, the first and the last one."""
    order = np.lexsort((_late(points), points[:, 0]))
    points = points[order]
    chosen = {0, len(points) - 1}
    for part in np.array_split(np.arange(len(points)), _PARTS):
        chosen.add(int(part[_late(points[part]).argmin()]))
    return points[sorted(chosen)]


def _hull(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """The corners of the lower hull."""
    points = points[np.lexsort((_late(points), points[:, 0]))]
    _, first = np.unique(points[:, 0], return_index=True)
    rows = list(zip(points[first, 0].tolist(), _late(points)[first].tolist(), strict=True))
    kept: list[tuple[int, int]] = []
    for x, y in rows:
        while len(kept) > 1 and (kept[-1][0] - kept[-2][0]) * (y - kept[-2][1]) <= (
            kept[-1][1] - kept[-2][1]
        ) * (x - kept[-2][0]):
            kept.pop()
        kept.append((x, y))
    made = np.array(kept, np.int64)
    made[:, 1] += made[:, 0]
    return made
