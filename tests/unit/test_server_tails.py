# SPDX-License-Identifier: Apache-2.0
"""
Durations of calls from looks at calls that are open, beside planted ones.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.results.server_events import Messages, ServerEvents, Times
from scope_ebpf.runs.server_tails import Tails

#: Seconds of a run, and calls a second.
RUN, RATE = 60.0, 100
SERVER = 99


def looked(draw: random.Random) -> tuple[Tails, list[float]]:
    """
    What looks at random times saw of calls: nine of ten take 20 ms, one takes 0.4 s to 1.2 s.
    """
    calls = []
    for number in range(int(RUN * RATE)):
        lasts = draw.uniform(0.4, 1.2) if number % 10 == 0 else 0.02
        began = draw.uniform(-2.0, RUN)
        calls.append((began, began + lasts, number))
    tails, now = Tails(), 0.0
    while now < RUN:
        # One in 20 callers changes while it is read: such a look does not see its call.
        waits = {
            caller: (SERVER, (0, caller))
            for began, until, caller in calls
            if began <= now < until and draw.random() > 0.05
        }
        tails.look(now, waits, lambda _: "slow")
        now += draw.uniform(0.025, 0.075)
    return tails, [until - began for began, until, _ in calls]


def events_of(calls: int, error: float) -> ServerEvents:
    """
    What windows of 0.2 s say of calls of which one in ten was cut off.
    """
    nothing = np.zeros(events.SERVER_BUCKETS, np.int64)
    ended, cut = nothing.copy(), nothing.copy()
    ended[100], cut[200] = 900, 100
    times = Times(ended, 18.0, cut, 0.2)
    messages = Messages(RUN, calls, 0, 0, times, times, times, None, None, None, (error, 0.0, 0.0))
    return ServerEvents({"slow": messages})


def test_looks_know_how_long_calls_take_that_windows_cut_off():
    """
    p99 and p95 are those of the planted calls; p50 is that of windows, which looks cannot know.
    """
    tails, planted = looked(random.Random(23))
    seen = events_of(len(planted), 0.02)
    before = seen.modules["slow"].call
    after = tails.add_to(seen).modules["slow"].call
    assert before.quantile(0.99) is None
    assert after.quantile(0.5) == before.quantile(0.5)
    for part in (0.95, 0.99):
        assert float(np.quantile(planted, part)) == pytest.approx(after.quantile(part), rel=0.1)


def test_looks_know_nothing_of_short_calls_nor_of_a_number_that_is_not_known():
    """
    A median of 20 ms is below the time between looks, and p95 needs the number of calls.
    """
    tails, planted = looked(random.Random(5))
    of = tails.of("slow", len(planted), 0.02)
    assert of is not None
    assert of.quantile(0.5) is None
    doubtful = tails.of("slow", len(planted), 0.9)
    assert doubtful is not None
    assert doubtful.quantile(0.95) is None
    assert tails.of("other", len(planted), 0.02) is None


def test_calls_from_other_nodes_are_not_short():
    """
    With nine times as many of them, which no look sees, p95 is still that of the planted calls.
    """
    tails, planted = looked(random.Random(23))
    seen = events_of(10 * len(planted), 0.02)
    seen.modules["slow"] = replace(seen.modules["slow"], followed=len(planted))
    found = tails.add_to(seen).modules["slow"].call.quantile(0.95)
    assert float(np.quantile(planted, 0.95)) == pytest.approx(found, rel=0.1)
