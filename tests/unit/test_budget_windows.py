# SPDX-License-Identifier: Apache-2.0
"""
Between which readings of its measure a window lies.
"""

import pytest

from scope_ebpf.budget.reference_counters import Mark
from scope_ebpf.budget.windows import bounds

OPENED, CLOSING, UNTIL = Mark(100, 1), Mark(1100, 9), 1000


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        ((50, 0), (1001, 8), ((50, 0), (1001, 8))),  # the hits were nearer to both edges
        ((500, 4), (1500, 99), ((100, 1), (1100, 9))),  # we were
        (None, None, ((100, 1), (1100, 9))),  # nothing was hit
        ((50, 0), (700, 6), ((50, 0), (700, 6))),  # its allowance was spent
    ],
)
def test_the_reading_nearer_to_the_edge_is_taken(begin, end, expected):
    """
    Of the reading of a hit and ours, between which nothing counts, the nearer to the edge is taken.
    """
    marks = tuple(Mark(*edge) if edge else None for edge in (begin, end))
    found = bounds(OPENED, CLOSING, marks, UNTIL)
    assert expected == tuple((reading.time_ns, reading.measure) for reading in found)
