# SPDX-License-Identifier: Apache-2.0
"""
Captures of planted calls: on one node, and of two nodes that call each other.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from beams_run import dist_pair, start_beam
from perfetto_read import Read
from recording import record
from tracing import require_root, scope_trace

from scope_ebpf import events
from scope_ebpf.capture import merging
from scope_ebpf.capture.calls import Calls
from scope_ebpf.capture.merging import read_nodes
from scope_ebpf.capture.reader import Capture
from scope_ebpf.sinks import messages

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


def test_calls_are_shown_as_calls(capture, tmp_path):
    """
    Summary, timeline and spans have each planted call, with its time in the queue and the server.
    """
    (server, exited) = scope_trace("summary", str(capture), "-f", "json").document["calls"]
    assert ("planted_server", 59, 0, 5) == tuple(
        server[name] for name in ("server", "calls", "down", "unanswered")
    )
    assert (59, 54, 54) == tuple(
        server[f"{part}_seconds"]["count"] for part in ("queue", "service", "call")
    )
    assert (3, 3) == (exited["calls"], exited["down"])
    timeline, spans = tmp_path / "run.pftrace", tmp_path / "run.otlp.jsonl"
    scope_trace("export", str(capture), "--to", "perfetto", "-o", str(timeline))
    names = Counter(event[2] for event in Read(timeline.read_bytes()).events)
    assert (54, 57, 54) == (names["call planted_server"], names["queue"], names["service"])
    scope_trace("export", str(capture), "--to", "otlp", "-o", str(spans))
    assert 57 == spans.read_text().count('"kind":3')


@pytest.fixture(
    scope="module", params=[("stock25", None), ("trixie27", None), ("stock25", "trixie27")]
)
def captures(request, tmp_path_factory) -> tuple[Path, Path, int]:
    """
    Captures of two nodes that call each other, and microseconds that 1,000 calls took.
    """
    require_root()
    folder = tmp_path_factory.mktemp("merge")
    paths = folder / "a.scope", folder / "b.scope"
    kind, peer_kind = request.param
    with dist_pair(kind, module="rpc_calls", peer_kind=peer_kind) as (a, b):
        a.ask("over peer@127.0.0.2 1")  # what waits for a handshake does not say what it is
        with record(a.pid, paths[0]) as one, record(b.pid, paths[1]) as other:
            took = a.ask("over peer@127.0.0.2 1000")
            b.ask("over watched@127.0.0.1 57")
            a.ask("large peer@127.0.0.2 3")
            assert a.ask("down peer@127.0.0.2") == "down disconnect"
            one.stop()
            other.stop()
    return *paths, int(took.split()[1])


def rows_of(path: Path, name: str) -> np.ndarray:
    """
    The records of one kind in a capture.
    """
    rows = np.concatenate(list(Capture(path).batches()))
    return rows[rows["kind"] == events.KINDS[name].id].view(events.RECORDS[name])


def test_packets_are_numbered_and_tell_what_they_are(captures):
    """
    No number is left out, and calls, answers and monitors are distinguished, with their senders.
    """
    for path in captures[:2]:
        for kind in ("dist_out", "dist_in"):
            numbers = rows_of(path, kind)["number"]
            assert (np.diff(numbers[numbers != 0]) == 1).all()
    out = rows_of(captures[0], "dist_out")
    assert 1000 <= (out["class"] == events.KINDS["dist_out"].classes.index("monitor")).sum()
    messages = out[out["class"] == events.KINDS["dist_out"].classes.index("message")]
    # Answers go to an alias (operation 33), requests to a name (6).
    operations = Counter(messages["operation"].tolist())
    assert 57 == operations[33]
    assert 1000 <= operations[6]
    assert (messages["process"] != 0).all()
    sends = rows_of(captures[0], "send")
    remote = sends[sends["class"] == events.KINDS["send"].classes.index("remote")]
    forms = Counter((remote["form"] >> np.uint64(56)).tolist())
    assert (1000 + 4, 57) == (forms[events.FORM_CALL], forms[events.FORM_REPLY])
    assert (remote["process"] != 0).all()


def test_the_loss_of_a_connection_has_the_reason_that_the_node_gives(captures):
    """
    Each node's own: the one that disconnects says so, for the other the connection has ended.
    """
    for path, reason in zip(captures[:2], ("disconnect", "normal"), strict=True):
        contents = Capture(path).contents()
        (down,) = rows_of(path, "dist_down")
        assert contents.atoms[int(down["reason"])] == reason
        assert "@127.0.0." in contents.atoms[int(down["peer"])]


def test_merged_captures_have_every_packet_on_one_clock(captures, tmp_path):
    """
    All packets pair, none arrives before it is sent, and the host's one clock is found to be one.
    """
    lines = tmp_path / "packets.jsonl"
    words = ["merge", *map(str, captures[:2]), "-f", "json", "-o", str(lines)]
    merged = scope_trace(*words).document
    there, back = merged["links"]
    for link in (there, back):
        assert link["refused"] is None
        assert 1000 + 57 <= link["paired"] <= min(link["sent"], link["received"])
    (clock,) = [node["clock"] for node in merged["nodes"] if node["clock"]]
    assert abs(clock["offset_seconds"]) <= clock["error_seconds"]
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert there["paired"] + back["paired"] == len(rows)
    assert all(row["sent_ns"] <= row["received_ns"] for row in rows)
    # The caller waits for each answer: what is between its packets and theirs is in its own time.
    calls = [row for row in rows if row["to"] == "planted_server"]
    assert Counter({"peer@127.0.0.2": 1004, "watched@127.0.0.1": 57}) == Counter(
        row["to_node"] for row in calls if row["class"] == "message"
    )
    assert {"rpc_calls:main/0"} == {row["from_who"] for row in calls}
    mine = sorted(row["sent_ns"] for row in calls if row["to_node"] == "peer@127.0.0.2")
    assert mine[999] - mine[0] <= captures[2] * 1000
    # Fragments of large requests have the sender and the receiver of the message.
    large = [row for row in calls if row["class"] == "fragment"]
    assert len(large) >= 3 * (1_000_000 >> 16)
    assert sum(row["bytes"] for row in calls) > 3_000_000


def test_calls_from_node_to_node_have_seven_legs(captures):
    """
    All planted calls, none of their legs negative, and their sum is the time of the caller.
    """
    nodes = read_nodes([Capture(path) for path in captures[:2]])
    reading = messages.Reading(nodes, merging.merge(nodes))
    found = []
    reading.read(calls=found.append)
    # Two nodes may make the same references.
    own = {node.name: own_times(path) for node, path in zip(nodes, captures, strict=False)}
    assert 1000 + 57 + 4 == len(found) == sum(len(times) for times in own.values())
    for call in found:
        legs = call.legs()
        assert None not in legs
        assert min(legs) >= 0
        assert sum(legs) == pytest.approx(own[call.client.name][call.reference], rel=0.01)
    there, back = sorted(reading.document()["calls"], key=lambda row: -row["calls"])
    assert ("watched@127.0.0.1", "peer@127.0.0.2", "planted_server", 1004, 1004) == tuple(
        there[name] for name in ("from", "to", "server", "calls", "legs_known")
    )
    assert (57, 57) == (back["calls"], back["legs_known"])


def own_times(path: Path) -> dict[int, int]:
    """
    What calls to another node took by the capture of the caller alone, ns, by their references.
    """
    calls = Calls()
    ended = [call for batch in Capture(path).batches() for call in calls.records(batch)]
    return {call.reference: call.ended_ns - call.sent_ns for call in ended if call.remote}


#: Of a table of packets: each link, who floods whom, the slowest packets.
QUERIES = (
    """select from_node, to_node, count(*), sum(bytes)::bigint,
      quantile_cont((received_ns - sent_ns) / 1e6, 0.99) from '{path}' group by 1, 2""",
    """select coalesce(from_who, from_pid), "to", count(*), sum(bytes)
      from '{path}' where class = 'message' group by all order by 3 desc""",
    """select (received_ns - sent_ns) / 1e6 as ms from '{path}' order by ms desc limit 20""",
)


def test_a_table_of_packets_answers_who_floods_whom(captures, tmp_path):
    """
    DuckDB reads the Parquet as it is, and its answer is that of the report.
    """
    import duckdb

    path = tmp_path / "packets.parquet"
    merged = scope_trace("merge", *map(str, captures[:2]), "-f", "json", "-o", str(path)).document
    links, floods, slow = (duckdb.sql(query.format(path=path)).fetchall() for query in QUERIES)
    assert {(one["from"], one["to"]): (one["paired"], one["bytes"]) for one in merged["links"]} == {
        (source, target): (count, size) for source, target, count, size, _ in links
    }
    assert ("rpc_calls:main/0", "planted_server", 1004 + 57) in [row[:3] for row in floods]
    assert 1004 == merged["flows"][0]["messages"]
    slowest = max(one["delay_seconds"]["max"] for one in merged["links"])
    assert slow[0][-1] == pytest.approx(slowest * 1e3)
