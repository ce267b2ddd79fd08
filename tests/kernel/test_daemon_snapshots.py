# SPDX-License-Identifier: Apache-2.0
"""
Process tables of real VMs as the daemon exports them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import beams_run

from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.daemon.readings.snapshots import Table
from scope_ebpf.metrics.snapshot import MAILBOX_STEPS, SnapshotReading

#: A registered process that reads nothing, with this many messages, among this many others.
WAITING, OTHERS = 2300, 20_000
CROWD = ("-run", "crowd", "start", str(OTHERS), str(WAITING))


@pytest.mark.parametrize("kind", ["stock25", "trixie27"])
def test_a_growing_mailbox_is_seen_with_its_name(kind):
    """
    Among twenty thousand processes the one that does not read is found, by its registered name.
    """
    with beams_run.start_beam(kind, "+S", "2:2", *CROWD) as beam:
        beam.expect("ready")
        reading = Table(inspect(beam.pid)).read(5, lambda _seconds: None)
    counts = dict(zip(MAILBOX_STEPS, reading.mailbox_counts.tolist(), strict=True))
    assert reading.read >= OTHERS
    assert reading.messages >= WAITING
    assert counts[1000] == 1
    assert reading.mailboxes[0].value == WAITING
    assert reading.names[reading.mailboxes[0].pid] == "deaf"


#: One process that works without end, and others by the thousand when they are asked for.
GROWING = (
    "spawn(fun() -> Wait = fun(F) -> receive never -> F(F) end end, "
    "Work = fun(F) -> lists:seq(1, 100), F(F) end, "
    "spawn(fun() -> register(busy, self()), Work(Work) end), "
    'io:format("ready~n"), io:get_line(""), '
    f"[spawn(fun() -> Wait(Wait) end) || _ <- lists:seq(1, {OTHERS})], "
    'io:format("grown~n"), Wait(Wait) end).'
)


def with_busy(table: Table) -> tuple[SnapshotReading, int]:
    """
    Read until the busy process has left its scheduler since the reading before; in how many parts.
    """
    end = time.monotonic() + beams_run.PATIENCE
    while time.monotonic() < end:
        pauses: list[float] = []
        reading = table.read(5, pauses.append)
        assert all(one.value < 10**10 for one in reading.rates)
        if "busy" in {reading.names.get(one.pid) for one in reading.rates}:
            return reading, len(pauses)
    raise AssertionError("the busy process has no rate")


def test_rates_go_on_while_a_small_table_grows():
    """
    A hundred processes are read at once, twenty thousand in parts; both show the busy one.
    """
    # -noshell takes back that nothing is read.
    with beams_run.start_beam("stock25", "+S", "2:2", "-noshell", eval=GROWING) as beam:
        beam.expect("ready")
        table = Table(inspect(beam.pid))
        small, parts = with_busy(table)
        assert (1, True) == (parts, small.read < OTHERS)
        assert "grown" == beam.ask("grow")
        large, parts = with_busy(table)
        assert (8, True) == (parts, large.read >= OTHERS)
