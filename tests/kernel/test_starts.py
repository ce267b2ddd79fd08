# SPDX-License-Identifier: Apache-2.0
"""
Starts of VMs that the kernel reports: all of them, but of floods a bounded number a second.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest
from tracing import require_root

from scope_ebpf.kernel.observers.starts import Starts

if TYPE_CHECKING:
    from collections.abc import Iterator

#: As in starts.bpf.c, a second.
OF_USER, OF_HOST = 32, 128
#: Users that have no other processes.
FIRST_USER = 64_101
#: TIMES COUNT...: processes, as many of each user, that call a thread a scheduler, TIMES each, all
#: at the same moment; their numbers by user, and the seconds that it took.
_PLANT = """
import ctypes, json, os, sys, time
prctl = ctypes.CDLL(None).prctl
first, times, *counts = map(int, sys.argv[1:])
wait, go = os.pipe()
pids = [[] for _ in counts]
for number, count in enumerate(counts):
    user = first + number
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os.setresuid(user, user, user)
            os.close(go)
            os.read(wait, 1)
            for _ in range(times):
                prctl(15, b"1_scheduler")
            os._exit(0)
        pids[number].append(pid)
began = time.monotonic()
os.close(go)
for _ in range(sum(counts)):
    os.wait()
print(json.dumps([pids, time.monotonic() - began]))
"""


class Reported(NamedTuple):
    """
    How many starts were reported, by user, how many were not, and in how many seconds they were.
    """

    by_user: list[int]
    missed: int
    seconds: int


@pytest.fixture
def starts() -> Iterator[Starts]:
    require_root()
    starts = Starts()
    yield starts
    starts.close()


def plant(starts: Starts, *counts: int, times: int = 1) -> Reported:
    """
    Start so many of each user.
    """
    before = starts.missed()
    words = [sys.executable, "-I", "-S", "-c", _PLANT, *map(str, (FIRST_USER, times, *counts))]
    pids, seconds = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
    reported = [start.pid for start in starts.take()]  # others start VMs on this host, too
    by_user = [sum(pid in ours for pid in reported) for ours in pids]
    return Reported(by_user, starts.missed() - before, int(seconds) + 2)


def test_starts_of_a_few_are_all_told(starts: Starts):
    """
    As many as a user may have, of each of two.
    """
    assert [OF_USER, OF_USER] == plant(starts, OF_USER, OF_USER).by_user


def test_a_process_is_told_once_a_second(starts: Starts):
    """
    However often it calls a thread so.
    """
    reported = plant(starts, 3, times=3000)
    assert 3 <= reported.by_user[0] <= 3 * reported.seconds


def test_a_user_is_told_within_bounds_and_the_others_are(starts: Starts):
    """
    What is not reported of a flood is counted, and another user's starts are reported meanwhile.
    """
    reported = plant(starts, 300, 5)
    flood, few = reported.by_user
    assert OF_USER <= flood <= OF_USER * reported.seconds
    assert 300 - flood <= reported.missed
    assert 5 == few


def test_all_users_together_are_told_within_bounds(starts: Starts):
    """
    Of twenty users with as many starts as each may have.
    """
    reported = plant(starts, *[OF_USER] * 20)
    assert OF_USER < sum(reported.by_user) <= OF_HOST * reported.seconds
    assert 20 * OF_USER - sum(reported.by_user) <= reported.missed
