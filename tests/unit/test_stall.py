# SPDX-License-Identifier: Apache-2.0
"""
When a flight recorder says that a VM stalls.
"""

from __future__ import annotations

import pytest

from scope_ebpf.runs.stall import Stall

SECOND = 10**9
TENTH = SECOND // 10


def stalls(looks: list[tuple[int, int, bool]]) -> list[int]:
    """
    The times of those *looks* (time, last schedule, whether work waits) at which a VM stalls that
    may have work wait for a second.
    """
    stall = Stall(1.0)
    return [now for now, scheduled, waits in looks if stall.lasts(now, scheduled, waits=waits)]


def test_work_that_waits_for_the_whole_time_is_a_stall():
    """
    It stalls from the first look that is a second after work was first seen.
    """
    looks = [(now, 0, True) for now in range(TENTH, 15 * TENTH, TENTH)]
    assert [11 * TENTH, 12 * TENTH, 13 * TENTH, 14 * TENTH] == stalls(looks)


@pytest.mark.parametrize("quiet", [SECOND, 3600 * SECOND])
def test_a_vm_that_wakes_after_a_quiet_time_does_not_stall(quiet: int):
    """
    Work that is seen before it is known that it was scheduled is not as old as the quiet time.
    """
    looks = [(now, 0, False) for now in range(0, quiet, quiet // 10)]
    assert [] == stalls([*looks, (quiet, 0, True), (quiet + TENTH, quiet, False)])


def test_work_that_comes_and_goes_is_no_stall():
    """
    One look at which nothing waits begins the time anew, though nothing was scheduled.
    """
    looks = [(now, 0, now % SECOND != 0) for now in range(0, 10 * SECOND, TENTH)]
    assert [] == stalls(looks)


def test_a_busy_vm_does_not_stall():
    """
    Where work waits at every look, something was scheduled since the one before.
    """
    looks = [(now, now - TENTH // 2, True) for now in range(0, 10 * SECOND, TENTH)]
    assert [] == stalls(looks)


def test_what_was_scheduled_meanwhile_ends_a_stall():
    """
    A look that is judged again, once more of the ring has been read, is none any more.
    """
    stall = Stall(1.0)
    assert not stall.lasts(SECOND, 0, waits=True)
    assert stall.lasts(2 * SECOND, 0, waits=True)
    assert not stall.lasts(2 * SECOND, SECOND + 1, waits=True)
    assert not stall.lasts(3 * SECOND - 1, SECOND + 1, waits=True)
    assert stall.lasts(3 * SECOND, SECOND + 1, waits=True)


def test_it_is_looked_at_ten_times_in_the_time_of_a_stall():
    """
    A longer stall is looked at less often.
    """
    stall = Stall(5.0)
    looked = [now for now in range(0, 5 * SECOND, TENTH // 10) if stall.is_due(now)]
    assert list(range(0, 5 * SECOND, SECOND // 2)) == looked
