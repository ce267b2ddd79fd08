# SPDX-License-Identifier: Apache-2.0
"""
Process tables of real VMs as the daemon exports them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import beams_run

from scope_ebpf.beam.discover import inspect
from scope_ebpf.daemon.snapshots import Table
from scope_ebpf.metrics.snapshot import MAILBOX_STEPS

#: A registered process that reads nothing, with this many messages, among this many others.
WAITING, OTHERS = 2300, 20_000
CROWD = (
    "spawn(fun() -> Wait = fun(F) -> receive never -> F(F) end end, "
    f"[spawn(fun() -> Wait(Wait) end) || _ <- lists:seq(1, {OTHERS})], "
    "Deaf = spawn(fun() -> register(deaf, self()), Wait(Wait) end), "
    f"[Deaf ! I || I <- lists:seq(1, {WAITING})], "
    'io:format("ready~n"), Wait(Wait) end).'
)


@pytest.mark.parametrize("kind", ["stock25", "trixie27"])
def test_a_growing_mailbox_is_seen_with_its_name(kind):
    """
    Among twenty thousand processes the one that does not read is found, by its registered name.
    """
    with beams_run.start_beam(kind, "+S", "2:2", eval=CROWD) as beam:
        beam.expect("ready")
        reading = Table(inspect(beam.pid)).read(5, lambda _seconds: None)
    counts = dict(zip(MAILBOX_STEPS, reading.mailbox_counts.tolist(), strict=True))
    assert reading.read >= OTHERS
    assert reading.messages >= WAITING
    assert counts[1000] == 1
    assert reading.mailboxes[0].value == WAITING
    assert reading.names[reading.mailboxes[0].pid] == "deaf"
