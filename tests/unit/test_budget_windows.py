# SPDX-License-Identifier: Apache-2.0
"""
The two samples of its reference counter that bound a window.
"""

import pytest

from scope_ebpf.budget.reference_counters import CounterSample
from scope_ebpf.budget.windows import bounds

OPENED, CLOSING, UNTIL = CounterSample(100, 1), CounterSample(1100, 9), 1000


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        ((50, 0), (1001, 8), ((50, 0), (1001, 8))),  # the hits were nearer to both bounds
        ((500, 4), (1500, 99), ((100, 1), (1100, 9))),  # we were
        (None, None, ((100, 1), (1100, 9))),  # nothing was hit
        ((50, 0), (700, 6), ((50, 0), (700, 6))),  # its quota was exhausted
    ],
)
def test_the_sample_nearer_to_the_bound_is_taken(begin, end, expected):
    """
    Nothing counts between the sample of a hit and our own one, and the nearer one is taken.
    """
    hits = tuple(CounterSample(*hit) if hit else None for hit in (begin, end))
    found = bounds(OPENED, CLOSING, hits, UNTIL)
    assert expected == tuple((reading.time_ns, reading.value) for reading in found)
