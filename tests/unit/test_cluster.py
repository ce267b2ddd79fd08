# SPDX-License-Identifier: Apache-2.0
"""
A cluster of planted calls: their legs, and what each export has of them.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import documents
import duckdb
import numpy as np
import pytest
from capture_fixtures import write
from cluster_fixtures import MOMENTS, planted
from perfetto_read import Read
from pyarrow import parquet

from scope_ebpf.capture import cluster, merging
from scope_ebpf.capture.legs import LEGS, RemoteCalls
from scope_ebpf.capture.reader import Capture
from scope_ebpf.cli.main import main
from scope_ebpf.sinks.fleet import Tables, _quoted
from scope_ebpf.sinks.messages import Reading
from scope_ebpf.sinks.perfetto.file import PerfettoFile
from scope_ebpf.sinks.perfetto.nodes import NodeFile
from scope_ebpf.sinks.perfetto.timeline import Timeline

CALLS = 50
#: Seconds of each leg.
PLANTED = dict(zip(LEGS, np.diff(MOMENTS) / 1e6, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """
    A folder with a.scope and b.scope, and with both in all.scope.
    """
    made = tmp_path_factory.mktemp("cluster")
    planted(made, CALLS)
    words = [str(made / name) for name in ("a.scope", "b.scope")]
    assert 0 == main(["merge", *words, "-o", str(made / "all.scope"), "-f", "json"])
    return made


def merged(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    """
    The summary of the cluster.
    """
    capsys.readouterr()
    assert 0 == main(["summary", str(folder / "all.scope"), "-f", "json"])
    return documents.validated(json.loads(capsys.readouterr().out), "merge")


def test_a_cluster_is_summed_up(folder: Path, capsys: pytest.CaptureFixture[str]):
    """
    Who sends how much to whom, and calls with their legs, right to within the error of the clocks.
    """
    found = merged(folder, capsys)
    flow, answers = sorted(found["flows"], key=lambda row: row["from"])
    assert (CALLS, None) == (answers["messages"], answers["receiver"])
    assert ("a@one", "planted_main", "b@two", "planted_server", CALLS, 100 * CALLS) == tuple(
        flow[name] for name in ("from", "sender", "to", "receiver", "messages", "bytes")
    )
    (calls,) = found["calls"]
    assert ("a@one", "b@two", "planted_server", CALLS, 0, CALLS) == tuple(
        calls[name] for name in ("from", "to", "server", "calls", "down", "legs_known")
    )
    assert calls["seconds"]["mean"] == pytest.approx(400e-6)
    (clock,) = [node["clock"] for node in found["nodes"] if node["clock"]]
    for leg, seconds in PLANTED.items():
        assert calls["legs"][leg] == pytest.approx(seconds, abs=clock["error_seconds"])
    assert sum(calls["legs"].values()) == pytest.approx(400e-6)
    assert 10 == len(found["slowest_calls"])


def test_a_report_of_a_cluster_says_where_calls_wait(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    """
    The text has each node, each link, the flow and the legs.
    """
    assert 0 == main(["summary", str(folder / "all.scope")])
    text = capsys.readouterr().out
    assert "a@one planted_main -> b@two planted_server: 50 messages, 5,000 bytes" in text
    assert "a@one calls planted_server on b@two: 50 calls; p50 400 us" in text
    assert "in the server 200 us" in text


def test_a_lost_packet_costs_its_own_call_alone(folder: Path):
    """
    Without one monitor's packet that call has no legs; all others have them.
    """
    nodes = merging.read_nodes(cluster.captures(folder / "all.scope"))
    reading = Reading(nodes, merging.merge(nodes))
    found = []
    calls = RemoteCalls(found.append)
    whole = calls.pairs

    def without(link, out, received):
        kept = out["number"] != 21 if len(out) == 2 * CALLS else np.ones(len(out), bool)
        whole(link, out[kept], received[kept])

    calls.pairs = without
    reading.traffic.remote = calls
    reading.read()
    assert CALLS == len(found)
    lost = [call for call in found if None in call.legs()]
    assert [7010] == [call.reference for call in lost]
    assert lost[0].legs()[:3] == (None, None, None)


def queries() -> dict[str, str]:
    """
    The queries of docs/fleet.md by the line above each.
    """
    page = (Path(__file__).parents[2] / "docs/fleet.md").read_text()
    return dict(re.findall(r"\n([^\n]+):\n\n((?:    [^\n]*\n)+)", page))


def test_tables_answer_the_questions_of_a_fleet(folder: Path, capsys: pytest.CaptureFixture[str]):
    """
    DuckDB reads the folders as they are: the slowest calls, who floods whom, and which link.
    """
    out = folder / "tables"
    assert 0 == main(["export", str(folder / "all.scope"), "--to", "parquet", "-o", str(out)])
    found = merged(folder, capsys)
    asked = {
        name: duckdb.sql(text.replace("fleet/", f"{out}/")).fetchall()
        for name, text in queries().items()
    }
    slowest = asked["The slowest calls over all nodes"]
    assert [row["seconds"] * 1e3 for row in found["slowest_calls"]] == pytest.approx(
        [row[-1] for row in slowest[:10]]
    )
    names = ("from", "sender", "to", "receiver", "messages", "bytes")
    assert {tuple(flow[name] for name in names) for flow in found["flows"]} == set(
        asked["Who floods whom"]
    )
    by_link = {(link["from"], link["to"]): link["by_class"]["message"] for link in found["links"]}
    assert by_link == {row[:2]: row[2] for row in asked["Which link carries how many messages"]}
    legs = asked["Where calls wait, in microseconds"][0]
    assert legs[3:] == pytest.approx([s * 1e6 for s in found["calls"][0]["legs"].values()])
    rows = duckdb.sql(f"select host, node, count(*) from '{out}/events/*/*/*.parquet' group by all")
    assert {("one", "a@one", 5 * CALLS), ("two", "b@two", 5 * CALLS)} == set(rows.fetchall())


def test_the_slowest_messages_have_who_was_ahead_of_them(tmp_path: Path):
    """
    Ten large messages are under way when three small ones are sent: they waited behind those.
    """
    times = [(number, 1000 + number, 9000 + number) for number in range(1, 15)]
    rows = [
        ("one", "a@one", "b@two", f"<0.{1 + number // 11}.0>", number, size, out, came)
        for (number, out, came), size in zip(times, [50_000] * 10 + [10] * 3 + [7], strict=True)
    ]
    # The last one is sent when all others have come in.
    rows[-1] = (*rows[-1][:-2], 9_500, 9_501)
    names = "host, node, to_node, from_pid, packet, bytes, out_ns, in_ns"
    duckdb.sql(
        f"copy (select *, null::varchar as from_who from (values {', '.join(map(str, rows))}) "
        f"t({names})) to '{tmp_path}/messages' (format parquet, partition_by (host, node))"
    )
    (query,) = [text for text in queries().values() if text.startswith("    with slow as")]
    large, small = duckdb.sql(query.replace("fleet/", f"{tmp_path}/")).fetchall()
    # Nine of the large ones waited behind some of the same, the small ones behind all of them.
    assert ("a@one", "b@two", "<0.1.0>", 12, (3 * 10 + 45) * 50_000 // 12) == large
    assert ("a@one", "b@two", "<0.2.0>", 2, (10 + 20) // 2) == small


def test_a_folder_of_tables_replaces_nothing(folder: Path, capsys: pytest.CaptureFixture[str]):
    """
    What is there stays, and nothing half done is left behind.
    """
    there = folder / "there"
    there.mkdir()
    assert 0 != main(["export", str(folder / "all.scope"), "--to", "parquet", "-o", str(there)])
    assert "no folder is replaced" in capsys.readouterr().err
    assert not list(there.iterdir())
    assert not list(folder.glob(".there*"))


def test_a_name_of_a_node_leads_to_no_other_folder():
    """
    Slashes, dots and signs of columns in a name are quoted.
    """
    assert ["a%40h".replace("%40", "@"), "..%2F..%2Fx%3Dy", "%2E%2E", ""] == [
        _quoted(text) for text in ("a@h", "../../x=y", "..", "")
    ]


def test_many_nodes_keep_fewer_rows_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    Of 100 nodes each keeps 1,024 rows in memory, and then writes them as a group.
    """
    facts = dict.fromkeys(("from_pid", "from_who", "to_node", "to_host", "to", "to_who"), "x")
    facts |= dict.fromkeys(("operation", "bytes", "packet", "sent_ns", "received_ns"), 23)
    row = facts | {"from_node": "n0@h", "class": "message"}

    def read(packets, _ended) -> None:
        for _ in range(8):
            packets([row] * 512)

    contents = SimpleNamespace(head=SimpleNamespace(host={"name": "h"}))
    nodes = [SimpleNamespace(name=f"n{number}@h", contents=contents) for number in range(100)]
    monkeypatch.setattr(Tables, "_events", lambda *_: None)
    reading = SimpleNamespace(nodes=nodes, read=read)
    Tables(reading, tmp_path, lambda path: path.open("wb")).write(lambda _: None)
    written = parquet.ParquetFile(tmp_path / "messages/host=h/node=n0@h/part-0.parquet").metadata
    groups = [written.row_group(each).num_rows for each in range(written.num_row_groups)]
    assert [1024] * 4 == [count for count in groups if count]


def test_a_timeline_of_a_cluster_has_arrows_between_its_nodes(folder: Path):
    """
    Each packet is an arrow from its sender to the other node; calls have their legs.
    """
    out = folder / "all.pftrace"
    assert 0 == main(["export", str(folder / "all.scope"), "--to", "perfetto", "-o", str(out)])
    read = Read(out.read_bytes())
    names = Counter(event[2] for event in read.events)
    kinds = ("packet out: monitor", "packet out: message", "packet in")
    assert (CALLS, 2 * CALLS, 3 * CALLS) == tuple(names[kind] for kind in kinds)
    begins = [flow for event in read.events for flow in event[3].flow_ids]
    ends = [flow for event in read.events for flow in event[3].terminating_flow_ids]
    assert 3 * CALLS == len(set(begins))
    assert set(begins) == set(ends)
    # A packet leaves from the track of its sender.
    assert {"planted_main <0.1.0>"} == {
        event[1] for event in read.events if event[2] == "packet out: monitor"
    }
    assert CALLS == names["over link"] == names["in server"] == names["to caller"]
    assert {"a@one", "b@two"} <= {str(track.process.process_name) for track in read.tracks.values()}


def spans(path: Path) -> list[dict]:
    """
    All spans of an export.
    """
    return [
        span
        for line in path.read_text().splitlines()
        for span in json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    ]


def test_both_hosts_make_the_same_ids(folder: Path):
    """
    Exported apart, each server's span is below the span of its client, in the same trace.
    """
    for name in "ab":
        words = [str(folder / f"{name}.scope"), "-o", str(folder / f"{name}.otlp")]
        assert 0 == main(["export", *words, "--to", "otlp"])
    clients = {
        (span["traceId"], span["spanId"]) for span in spans(folder / "a.otlp") if span["kind"] == 3
    }
    servers = {
        (span["traceId"], span["parentSpanId"])
        for span in spans(folder / "b.otlp")
        if span["kind"] == 2
    }
    assert CALLS == len(clients)
    assert clients == servers
    whole = folder / "all.otlp"
    assert 0 == main(["export", str(folder / "all.scope"), "--to", "otlp", "-o", str(whole)])
    found = {span["spanId"]: span for span in spans(whole) if span["kind"] in (2, 3)}
    for span in found.values():
        if span["kind"] == 2:
            client = found[span["parentSpanId"]]
            assert int(client["startTimeUnixNano"]) < int(span["startTimeUnixNano"])
            assert int(span["endTimeUnixNano"]) < int(client["endTimeUnixNano"])


def test_numbers_of_one_node_are_not_those_of_another(tmp_path: Path):
    """
    Two captures of one story in a timeline: twice the tracks, flows and processes, none shared.
    """
    write(tmp_path / "run.scope")
    capture = Capture(tmp_path / "run.scope")
    contents, output = capture.contents(), io.BytesIO()
    file = PerfettoFile(output, contents.head.clocks)
    for place in (1, 2):
        Timeline(capture, contents, NodeFile(file, place)).write()
    both = Read(output.getvalue())
    alone = io.BytesIO()
    Timeline(capture, contents, alone).write()
    one = Read(alone.getvalue())
    assert 2 * len(one.tracks) == len(both.tracks)
    assert 2 * len(flows(one)) == len(flows(both)) == 2 * 2
    assert 2 == len({track.process.pid for track in both.tracks.values()} - {0})


def flows(read: Read) -> set[int]:
    """
    The numbers of all arrows.
    """
    return {flow for event in read.events for flow in event[3].flow_ids}
