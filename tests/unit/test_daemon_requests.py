# SPDX-License-Identifier: Apache-2.0
"""
What other threads and signal handlers request from the daemon's loop.
"""

from __future__ import annotations

import select
import signal
import threading

from scope_ebpf.daemon.requests import Requests


def wakes(requests: Requests) -> bool:
    return bool(select.select([requests], [], [], 0)[0])


def test_a_signal_wakes_the_loop_until_it_is_drained():
    """
    It is pending until it is taken, and taken once.
    """
    requests = Requests()
    assert not wakes(requests)
    requests.add_signal(signal.SIGHUP)
    assert wakes(requests)
    requests.drain()
    assert not wakes(requests)
    assert requests.pending({signal.SIGHUP})
    assert not requests.pending({signal.SIGTERM})
    assert [True, False] == [requests.take_signal(signal.SIGHUP) for _ in range(2)]


def test_a_refresh_returns_when_the_readings_are_fresh():
    """
    It wakes the loop, and the thread that waits goes on when the loop says so.
    """
    requests, returned = Requests(), threading.Event()

    def refresh() -> None:
        requests.refresh(60.0)
        returned.set()

    assert not requests.take_refresh()
    thread = threading.Thread(target=refresh, daemon=True)
    thread.start()
    assert select.select([requests], [], [], 60)[0]
    assert not returned.is_set()
    assert [True, False] == [requests.take_refresh() for _ in range(2)]
    requests.refreshed()
    assert returned.wait(60)


def test_many_wake_ups_do_not_block():
    """
    A full pipe is enough of a wake-up.
    """
    requests = Requests()
    for _ in range(70_000):
        requests.wake()
    assert wakes(requests)
