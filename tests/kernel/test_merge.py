# SPDX-License-Identifier: Apache-2.0
"""
Captures of planted calls: on one node, and of two nodes that call each other.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from beams_run import dist_pair, start_beam
from recording import record
from tracing import require_root

from scope_ebpf import events
from scope_ebpf.capture.calls import Calls
from scope_ebpf.capture.reader import Capture

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module", params=["stock25", "trixie27"])
def capture(request, tmp_path_factory) -> Path:
    """
    A capture of planted calls and casts.
    """
    require_root()
    path = tmp_path_factory.mktemp("calls") / "calls.scope"
    with start_beam(request.param, "-s", "rpc_calls") as beam:
        beam.expect("ready")
        with record(beam.pid, path, "--events", "send,receive") as run:
            for command in ("calls 23", "forever 29", "cast 31", "late 5", "dead 3"):
                beam.plant(command)
            run.stop()
    return path


def test_calls_of_a_capture_pair_exactly(capture):
    """
    All planted calls pair with their answers or exits, those that came too late with none.
    """
    calls, ended, casts = Calls(), [], 0
    for batch in Capture(capture).batches():
        ended += calls.records(batch)
        sends = batch[batch["kind"] == events.KINDS["send"].id]
        casts += int((sends["body"][:, 3] >> np.uint64(56) == events.FORM_CAST).sum())
    # Of the casts and of the late calls, one call more waits until all are done.
    answered = Counter(call.down for call in ended)
    assert {False: 23 + 29 + 2, True: 3} == answered
    assert 5 == len(calls.open())
    assert 31 == casts
    for call in ended:
        times = [call.sent_ns, call.taken_ns, call.replied_ns or call.taken_ns, call.ended_ns]
        assert sorted(times) == times
        assert 0 not in times
    # The server was at work for 20 ms of each late call, and it took all of them.
    assert all(call.taken_ns and not call.replied_ns for call in calls.open())


@pytest.fixture(
    scope="module", params=[("stock25", None), ("trixie27", None), ("stock25", "trixie27")]
)
def captures(request, tmp_path_factory) -> tuple[Path, Path, int]:
    """
    Captures of two nodes that call each other, and microseconds that 101 calls took.
    """
    require_root()
    folder = tmp_path_factory.mktemp("merge")
    paths = folder / "a.scope", folder / "b.scope"
    kind, peer_kind = request.param
    with dist_pair(kind, module="rpc_calls", peer_kind=peer_kind) as (a, b):
        with record(a.pid, paths[0]) as one, record(b.pid, paths[1]) as other:
            took = a.ask("over peer@127.0.0.2 101")
            b.ask("over watched@127.0.0.1 57")
            one.stop()
            other.stop()
    return *paths, int(took.split()[1])


def rows_of(path: Path, name: str) -> np.ndarray:
    """
    The records of one kind in a capture.
    """
    rows = np.concatenate(list(Capture(path).batches()))
    return rows[rows["kind"] == events.KINDS[name].id].view(events.RECORDS[name])


def test_packets_sent_are_packets_received(captures):
    """
    Both nodes count the same packets, with the same ends, in each direction.
    """
    for source, target in (captures[:2], captures[1::-1]):
        out, received = rows_of(source, "dist_out"), rows_of(target, "dist_in")
        received = received[received["number"] != 0]
        assert out["number"].tolist() == received["number"].tolist() == list(range(1, len(out) + 1))
        assert out["check"].tolist() == received["check"].tolist()
    named = rows_of(captures[0], "dist_out")
    messages = events.KINDS["dist_out"].classes.index("message")
    # Each call is a message to a name (operation 6), each answer one to an alias (33).
    operations = Counter(named["operation"][named["class"] == messages].tolist())
    assert (101, 57) == (operations[6], operations[33])
    assert (named["process"][named["class"] == messages] != 0).all()
