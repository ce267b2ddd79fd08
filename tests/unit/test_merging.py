# SPDX-License-Identifier: Apache-2.0
"""
Clocks from packets, and packets from two captures, on planted numbers.
"""

from __future__ import annotations

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.capture.clocks import align
from scope_ebpf.capture.merging import Link, Node, _paired, links
from scope_ebpf.errors import CaptureError

US = 1000
SECOND = 10**9


def traffic(offset: float, drift: float, seconds: float, count: int = 4000):
    """
    Packets both ways, of 20 us and some more, as two clocks see them.
    """
    random = np.random.default_rng(23)
    start = 1_796_000_000 * SECOND
    times = np.sort(random.integers(0, int(seconds * SECOND), (2, count)), axis=1) + start
    delays = 20 * US + random.exponential(100 * US, (2, count)).astype(np.int64)

    def other(time: np.ndarray) -> np.ndarray:
        return time + np.round(offset + drift * (time - start)).astype(np.int64)

    there = np.stack([times[0], other(times[0] + delays[0])], axis=1)
    back = np.stack([times[1] + delays[1], other(times[1])], axis=1)
    return there, back, start


@pytest.mark.parametrize("offset", [0, 250e6, -81 * SECOND, 100 * SECOND])
@pytest.mark.parametrize("drift", [0, 37.5e-6, -100e-6])
def test_a_planted_clock_is_found_within_its_error(offset: float, drift: float):
    """
    The difference is right at all times to within what is stated, and that is below 100 us.
    """
    there, back, start = traffic(offset, drift, 10)
    found = align(there, back)
    assert found is not None
    moments = start + np.linspace(0, 10 * SECOND, 50).astype(np.int64)
    truth = offset + drift * (moments - start)
    assert np.abs(found.difference(moments) - truth).max() <= found.error + 1
    assert found.error < 100 * US
    # Nothing arrives before it is sent.
    assert (there[:, 1] - found.difference(there[:, 0]) >= there[:, 0]).all()


def test_a_clock_that_was_set_meanwhile_is_not_aligned():
    """
    No line fits packets before and after a jump of a second; nor is there one for one way only.
    """
    there, back, start = traffic(0, 0, 10)
    for pairs in (there, back):
        pairs[pairs[:, 0] > start + 5 * SECOND, 1] += SECOND
    assert align(there, back) is None
    assert align(there, back[:0]) is None


def packets(kind: str, numbers: range, checks: list[int]) -> np.ndarray:
    """
    Records of packets with these numbers and ends.
    """
    made = np.zeros(len(numbers), events.RECORDS[kind])
    made["number"], made["check"] = numbers, checks
    return made


def pair(out: np.ndarray, received: np.ndarray) -> Link:
    """
    What is paired of them; nodes matter to nobody here.
    """
    node = Node(None, None, "")
    return _paired(node, node, out, received)


def test_what_was_lost_moves_no_other_pair():
    """
    With captures that begin at other packets, and records lost on both sides, the rest is right.
    """
    checks = np.random.default_rng(23).integers(1, 1 << 32, 200).tolist()
    out = packets("dist_out", range(1, 201), checks)
    received = packets("dist_in", range(1, 171), checks[30:])
    link = pair(np.delete(out, [50, 51, 120]), np.delete(received, [5, 100]))
    assert "" == link.refused
    assert link.out["check"].tolist() == link.received["check"].tolist()
    assert 170 - 3 - 2 == len(link.out)


def test_equal_ends_pair_with_the_help_of_others():
    """
    A thousand packets with the same end are paired by those that have ends of their own.
    """
    checks = [7] * 1000
    checks[400], checks[700] = 8, 9
    link = pair(
        packets("dist_out", range(1, 1001), checks), packets("dist_in", range(11, 1011), checks)
    )
    assert 1000 == len(link.out)


def test_what_does_not_agree_is_not_paired():
    """
    Other ends at the same numbers, and ends that are all alike, are refused with the reason.
    """
    checks = list(range(1, 101))
    wrong = [*checks[:50], 999, *checks[51:]]
    out = packets("dist_out", range(1, 101), checks)
    link = pair(out, packets("dist_in", range(1, 101), wrong))
    assert ("packets with the same number have different ends", 0) == (link.refused, len(link.out))
    same = pair(packets("dist_out", range(1, 9), [7] * 8), packets("dist_in", range(1, 9), [7] * 8))
    assert "too few packets have an end of their own" == same.refused


def test_one_node_twice_is_refused():
    """
    Two captures of one node are no cluster.
    """
    with pytest.raises(CaptureError, match="two captures are of the node a@h"):
        links([Node(None, None, "a@h"), Node(None, None, "a@h")])
