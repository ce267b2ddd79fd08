# SPDX-License-Identifier: Apache-2.0
"""
Captures of planted calls: on one node, and of two nodes that call each other.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from beams_run import dist_pair, start_beam
from perfetto_read import Read
from recording import record
from tracing import require_root, scope_trace

from scope_ebpf import events
from scope_ebpf.capture.calls import Calls
from scope_ebpf.capture.reader import Capture


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
    Captures of two nodes that call each other, and microseconds that 101 calls took.
    """
    require_root()
    folder = tmp_path_factory.mktemp("merge")
    paths = folder / "a.scope", folder / "b.scope"
    kind, peer_kind = request.param
    with dist_pair(kind, module="rpc_calls", peer_kind=peer_kind) as (a, b):
        a.ask("over peer@127.0.0.2 1")  # what waits for a handshake does not tell what it is
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


def test_packets_are_numbered_and_tell_what_they_are(captures):
    """
    No number is left out, and calls, answers and monitors are told apart, with their senders.
    """
    for path in captures[:2]:
        for kind in ("dist_out", "dist_in"):
            numbers = rows_of(path, kind)["number"]
            assert (np.diff(numbers[numbers != 0]) == 1).all()
    out = rows_of(captures[0], "dist_out")
    assert 101 <= (out["class"] == events.KINDS["dist_out"].classes.index("monitor")).sum()
    messages = out[out["class"] == events.KINDS["dist_out"].classes.index("message")]
    # Answers go to an alias (operation 33), requests to a name (6).
    operations = Counter(messages["operation"].tolist())
    assert 57 == operations[33]
    assert 101 <= operations[6]
    assert (messages["process"] != 0).all()
    sends = rows_of(captures[0], "send")
    remote = sends[sends["class"] == events.KINDS["send"].classes.index("remote")]
    forms = Counter((remote["form"] >> np.uint64(56)).tolist())
    assert (101, 57) == (forms[events.FORM_CALL], forms[events.FORM_REPLY])
    assert (remote["process"] != 0).all()


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
        assert 101 + 57 <= link["paired"] <= min(link["sent"], link["received"])
    (clock,) = [node["clock"] for node in merged["nodes"] if node["clock"]]
    assert abs(clock["offset_seconds"]) <= clock["error_seconds"]
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert there["paired"] + back["paired"] == len(rows)
    assert all(row["sent_ns"] <= row["received_ns"] for row in rows)
    # The caller waits for each answer: what is between its packets and theirs is in its own time.
    calls = [row for row in rows if row["to"] == "planted_server"]
    assert Counter({"peer@127.0.0.2": 101, "watched@127.0.0.1": 57}) == Counter(
        row["to_node"] for row in calls
    )
    assert {"rpc_calls:main/0"} == {row["from_who"] for row in calls}
    mine = [row["sent_ns"] for row in calls if row["to_node"] == "peer@127.0.0.2"]
    assert max(mine) - min(mine) <= captures[2] * 1000


def test_a_table_of_packets_answers_who_floods_whom(captures, tmp_path):
    """
    DuckDB reads the Parquet as it is, and its answer is that of the report.
    """
    import duckdb

    path = tmp_path / "packets.parquet"
    merged = scope_trace("merge", *map(str, captures[:2]), "-f", "json", "-o", str(path)).document
    page = (Path(__file__).parents[2] / "docs/fleet.md").read_text()
    answers = {}
    for query in re.findall(r"    select .*?(?=\n\n)", page, re.DOTALL):
        text = query.replace("packets/*.parquet", str(path))
        answers[query.split("\n")[0].strip()] = duckdb.sql(text).fetchall()
    links, floods, slow = answers.values()
    assert {(one["from"], one["to"]): (one["paired"], one["bytes"]) for one in merged["links"]} == {
        (source, target): (count, size) for source, target, count, size, _ in links
    }
    assert ("rpc_calls:main/0", "planted_server", 101 + 57) in [row[:3] for row in floods]
    slowest = max(one["delay_seconds"]["max"] for one in merged["links"])
    assert slow[0][-1] == pytest.approx(slowest * 1e3)
