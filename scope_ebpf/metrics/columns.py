# SPDX-License-Identifier: Apache-2.0
"""The figures of one event, and the columns of its totals."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf import events

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Columns of an event's totals: the counts of its classes, then for each class the sum of its
#: durations in ns and the slots of their histogram.
SLOTS = events.HISTOGRAM_SLOTS
COUNTS = events.CLASSES
WIDTH = COUNTS + events.CLASSES * (1 + SLOTS)


def sum_column(class_number: int) -> int:
    """The column of a class's sum of durations; its histogram slots follow."""
    return COUNTS + class_number * (1 + SLOTS)


class EventReading(NamedTuple):
    """The figures of one event."""

    #: ``WIDTH`` columns.
    totals: NDArray[np.float64]
    #: ``always``, ``windows`` or ``off``.
    mode: str
    #: How it is attached: ``usdt``, ``symbol`` and so on.
    via: str
    #: Why it is off, or a note; "" otherwise.
    reason: str
    #: Share of the last minute in which the event was counted, 0 to 1.
    sampling_ratio: float
    #: Error of the totals with 95 % confidence, as a share of them; 1 where it is unknown.
    error_ratio: float
