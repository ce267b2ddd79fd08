# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import http.server
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import documents
import numpy as np
import pytest
from capture_fixtures import SECOND, head, maps, pid, story, write
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from perfetto_read import Read
from pyarrow import parquet as reading
from stream_fixtures import HOSTILE, record

from scope_ebpf.beam.processes.labels import Label
from scope_ebpf.capture.reader import Capture
from scope_ebpf.capture.store import FileStore
from scope_ebpf.capture.writer import Names, Writer
from scope_ebpf.cli.main import main
from scope_ebpf.sinks import parquet
from scope_ebpf.sinks.otlp import SPANS, Spans
from scope_ebpf.sinks.perfetto.timeline import Timeline

if TYPE_CHECKING:
    from pathlib import Path

#: When the story begins on Perfetto's clock, which counts from the boot.
AT = 11 * SECOND


def timeline(path: Path, busiest: int = 64) -> Read:
    capture, output = Capture(path), io.BytesIO()
    Timeline(capture, capture.contents(), output, busiest).write()
    return Read(output.getvalue(), AT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "run.scope")
    return tmp_path / "run.scope"


def test_each_scheduler_has_a_track_with_what_ran_on_it(path: Path):
    """
    A process is a slice on the scheduler that ran it, with its pid and reductions; a collection
    lies within.
    """
    read = timeline(path)
    ran = {"pid": "<0.1.0>", "reductions": 23}
    assert [(1000, 3000, "planted_main", ran)] == read.slices("scheduler 1")
    two = {"pid": "<0.2.0>"}
    assert [
        (2500, 3500, "<0.2.0>", two | {"reductions": 23}),
        (2900, 3100, "gc major", two | {"reclaimed_bytes": 40}),
    ] == read.slices("scheduler 2")
    (thread,) = (t.thread for t in read.tracks.values() if t.thread.thread_name == "scheduler 2")
    assert (4711, 102) == (thread.pid, thread.tid)


def test_a_busy_process_has_a_track_with_its_states(path: Path):
    """
    A process runs, waits until it is sent something, and is runnable when it was put back.
    """
    read = timeline(path)
    running = (1000, 3000, "running", {"on": "scheduler 1", "reductions": 23})
    assert [running, (3000, None, "waiting", {})] == read.slices("planted_main <0.1.0>")
    names = [(begin, end, name) for begin, end, name, _ in read.slices("<0.2.0>")]
    expected = [(2500, 3500, "running"), (2900, 3100, "gc major"), (3500, 3600, "runnable")]
    assert expected == names


def test_a_process_that_waits_is_runnable_once_it_is_sent_something(tmp_path: Path):
    """
    A message ends the waiting of its receiver, which then is runnable until it runs.
    """
    at, who = 10 * SECOND, {"process": pid(1), "tid": 101}
    write(
        tmp_path / "x",
        np.concatenate(
            [
                record(
                    "schedule",
                    time_ns=at + 100,
                    **who,
                    runnable=0,
                    duration_ns=50,
                    **{"class": "out"},
                ),
                record(
                    "send", time_ns=at + 300, process=pid(2), tid=102, receiver=pid(1), message=7
                ),
                record("schedule", time_ns=at + 450, **who, **{"class": "in"}),
            ]
        ),
    )
    found = [
        (b, e, name) for b, e, name, _ in timeline(tmp_path / "x").slices("planted_main <0.1.0>")
    ]
    assert [
        (50, 100, "running"),
        (100, 300, "waiting"),
        (300, 450, "runnable"),
        (450, None, "running"),
    ] == found


def test_messages_are_arrows_from_send_to_receive(path: Path):
    """
    A send and its receive have one number, and both say who is at the other end.
    """
    read = timeline(path)
    begun = {n: (e[1], e[4]["to"]) for e in read.events for n in e[3].flow_ids}
    ended = {n: (e[1], e[4]["from"]) for e in read.events for n in e[3].terminating_flow_ids}
    main = "planted_main <0.1.0>"
    assert {(main, "<0.2.0>"), (main, "<0.1.0>")} == set(begun.values())
    assert [("<0.2.0>", "<0.1.0>"), (main, "<0.1.0>")] == [ended[n] for n in sorted(ended)]
    assert set(begun) == set(ended)


def test_only_the_busiest_have_tracks(path: Path):
    """
    Beyond the bound processes have no track; their messages are on the track of their scheduler.
    """
    read = timeline(path, 1)
    tracks = {t.name for t in read.tracks.values()}
    assert ("planted_main <0.1.0>" in tracks, "<0.2.0>" in tracks) == (True, False)
    assert "receive" in {e[2] for e in read.events if e[1] == "scheduler 2"}


def test_lengths_of_queues_are_counters(path: Path):
    """
    What was read of run queues and mailboxes is a counter at that moment.
    """
    read = timeline(path)
    found = {
        (e[1], e[0]): e[3].counter_value for e in read.events if e[3].type == e[3].TYPE_COUNTER
    }
    assert {
        ("run queue 1", 500): 3,
        ("run queue 2", 500): 0,
        ("run queue dirty CPU", 500): 0,
        ("run queue dirty IO", 500): 0,
        ("mailbox of <0.2.0> <0.2.0>", 600): 23,
    } == found


def test_what_was_lost_is_seen(path: Path):
    """
    Lost records are a slice over the time in which they were lost, with how many of what.
    """
    lost = [s for s in timeline(path).slices("LOST RECORDS") if s[2]]
    assert [(0, SECOND, "1 records lost", {"spawn": 1})] == lost


def test_the_kernels_switches_are_its_own_events(tmp_path: Path):
    """
    The kernel's scheduling is written as the kernel's events, by CPU, each switch once.
    """
    at = 10 * SECOND
    write(
        tmp_path / "x",
        np.concatenate(
            [
                record("thread", time_ns=at + 1, tid=101, cpu=1, **{"class": "woken"}),
                record("thread", time_ns=at + 2, tid=101, cpu=1, other=999, **{"class": "on"}),
                record(
                    "thread", time_ns=at + 3, tid=101, cpu=1, other=102, state=1, **{"class": "off"}
                ),
                record("thread", time_ns=at + 3, tid=102, cpu=1, other=101, **{"class": "on"}),
                record("thread", time_ns=at + 4, tid=102, cpu=1, other=999, **{"class": "off"}),
            ]
        ),
    )
    read = timeline(tmp_path / "x")
    (bundle,) = (p.ftrace_events for p in read.packets if p.HasField("ftrace_events"))
    switches = [
        (
            e.timestamp - AT,
            e.sched_switch.prev_pid,
            e.sched_switch.next_pid,
            e.sched_switch.prev_state,
        )
        for e in bundle.event
        if e.HasField("sched_switch")
    ]
    assert (1, [(2, 0, 101, 0), (3, 101, 102, 1), (4, 102, 0, 0)]) == (bundle.cpu, switches)
    assert [101] == [e.sched_wakeup.pid for e in bundle.event if e.HasField("sched_wakeup")]


def test_a_port_is_busy_from_busy_to_not_busy(tmp_path: Path):
    """
    A port that is busy has a track, among those of busy ports, that says for how long; one that
    never was has none.
    """
    at, port = 10 * SECOND, 5 << 4 | 7
    events = [(10, "not_busy"), (20, "busy"), (25, "busy"), (40, "not_busy"), (50, "not_busy")]
    write(
        tmp_path / "x",
        np.concatenate(
            [
                record("port_busy", time_ns=at + time, process=pid(1), port=port, **{"class": name})
                for time, name in events
            ]
        ),
    )
    read = timeline(tmp_path / "x")
    assert [(20, 40, "busy", {"owner": "<0.1.0>"})] == read.slices("#Port<0.5>")
    (track,) = (track for track in read.tracks.values() if track.name == "#Port<0.5>")
    assert "busy ports" == read.name(track.parent_uuid)


def test_hostile_names_stay_within_their_tracks(tmp_path: Path):
    """
    Control characters of a VM's names do not reach a track's name.
    """
    store, names = FileStore((tmp_path / "x").open("wb", buffering=0)), Names()
    writer = Writer(store, names)
    writer.head(head())
    names.process(pid(1), Label("<0.1.0>", HOSTILE))
    writer.records(story())
    writer.maps(11 * SECOND, 1, *maps())
    store.close()
    read = timeline(tmp_path / "x")
    assert all(track.name.isprintable() for track in read.tracks.values())
    assert all(event[2].isprintable() for event in read.events)


@pytest.mark.parametrize("form", ["perfetto", "jsonl", "parquet", "otlp"])
def test_a_damaged_capture_ends_no_export(tmp_path: Path, form: str):
    """
    Whatever the numbers of a record are, each export has a field for it, or leaves it out.
    """
    random = np.random.default_rng(23)
    records = np.tile(story(), 60)
    extremes = np.array([0, 1, 1 << 31, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 2], "u8")
    wild = random.choice(extremes, (660, 4))
    records["body"] = np.where(random.random((660, 4)) < 0.3, wild, records["body"])
    records["time_ns"] += random.integers(0, 5000, 660).astype("u8")
    records["class"] = random.integers(0, 3, 660)
    write(tmp_path / "x", records)
    assert 0 == main(["export", str(tmp_path / "x"), "--to", form, "-o", str(tmp_path / "out")])
    assert (tmp_path / "out").stat().st_size > 0


def test_a_table_has_a_row_for_each_event(path: Path):
    """
    Every event is a row with its own fields in their units, and null for those it does not have.
    """
    output = io.BytesIO()
    capture = Capture(path)
    assert len(story()) == parquet.write(capture, capture.contents(), output)
    table = reading.read_table(output).drop_columns(["time", "time_ns"]).to_pylist()
    assert ["schedule", "send", "send", "receive"] == [row["event"] for row in table[:4]]
    send = {key: value for key, value in table[1].items() if value is not None}
    assert {
        "node": "shop@host",
        "event": "send",
        "tid": 101,
        "pid": "<0.1.0>",
        "who": "planted_main",
        "class": "local",
        "receiver": "<0.2.0>",
        "size_bytes": 0,
        "message": 0xA0,
    } == send
    (gc,) = (row for row in table if row["event"] == "gc")
    assert (2e-07, 40, 56) == (gc["duration_seconds"], gc["reclaimed_bytes"], gc["live_bytes"])
    assert "normal" == table[-1]["reason"]
    times = reading.read_table(output)
    assert 1_700_000_000 * SECOND + 1000 == times["time_ns"][0].as_py()
    assert 1_700_000_000 * 10**6 + 1 == times["time"].cast("int64")[0].as_py()
    # Spark has neither unsigned numbers nor nanoseconds.
    kinds = {str(field.type) for field in times.schema}
    assert not [kind for kind in kinds if kind.startswith("uint") or "[ns" in kind]


def parsed(request: dict) -> ExportTraceServiceRequest:
    """
    A request as OpenTelemetry's own schema reads it, whose JSON has ids in base64.
    """
    text = json.dumps(request)
    for span in request["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        for key in ("traceId", "spanId", "parentSpanId"):
            if key in span:
                span[key] = base64.b64encode(bytes.fromhex(span[key])).decode()
    assert documents.load(text)
    return json_format.ParseDict(request, ExportTraceServiceRequest())


def test_spans_are_schedules_and_collections(path: Path):
    """
    What took time is a span on its scheduler, a child of the one that stands for the whole capture.
    """
    capture = Capture(path)
    (request,) = Spans(capture, capture.contents()).requests()
    (resource,) = parsed(request).resource_spans
    facts = {a.key: a.value for a in resource.resource.attributes}
    assert ("shop@host", 4711) == (
        facts["service.name"].string_value,
        facts["process.pid"].int_value,
    )
    whole, *spans = resource.scope_spans[0].spans
    assert ["schedule", "schedule", "gc"] == [span.name for span in spans]
    assert {whole.span_id} == {span.parent_span_id for span in spans}
    assert {whole.trace_id} == {span.trace_id for span in spans}
    first = spans[0]
    assert (1_700_000_000 * SECOND + 1000, 2000) == (
        first.start_time_unix_nano,
        first.end_time_unix_nano - first.start_time_unix_nano,
    )
    attributes = {a.key: a.value for a in first.attributes}
    assert ("planted_main", "normal 1", 23) == (
        attributes["beam.process"].string_value,
        attributes["beam.scheduler"].string_value,
        attributes["beam.reductions"].int_value,
    )


@pytest.fixture
def collector():
    """
    A server that takes what is posted to it: its address, and the bodies.
    """
    bodies: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()

        def log_message(self, *_words: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


def test_spans_are_posted_to_a_collector(path: Path, collector, capsys: pytest.CaptureFixture):
    """
    With --endpoint the same spans that a file would have go to a collector, and no file is written.
    """
    url, bodies = collector
    capture = Capture(path)
    (request,) = Spans(capture, capture.contents()).requests()
    assert 0 == main(["export", str(path), "--to", "otlp", "--endpoint", f"{url}/v1/traces"])
    assert [request] == [documents.load(body) for body in bodies]
    assert ["run.scope"] == [each.name for each in path.parent.iterdir()]
    assert "4 spans" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://[", "http://localhost/\r\nX: y", "http://", "https://a:b"])
def test_an_endpoint_that_is_none_has_its_line(path: Path, url: str, capsys: pytest.CaptureFixture):
    """
    What looks like a URL and is none is said in one line; the capture is not blamed for it.
    """
    assert 10 == main(["export", str(path), "--to", "otlp", "--endpoint", url])
    said = capsys.readouterr().err
    assert "does not take the spans" in said
    assert 1 == said.count("\n")


def test_a_collector_that_refuses_is_named(path: Path, collector, capsys: pytest.CaptureFixture):
    """
    Where a collector does not take the spans, one line says which and why.
    """
    url, _ = collector
    assert 10 == main(["export", str(path), "--to", "otlp", "--endpoint", f"{url}/nowhere"])
    assert f"scope-trace: {url}/nowhere does not take the spans: HTTP Error 404" in (
        capsys.readouterr().err
    )


def test_a_disk_that_is_full_leaves_no_half_export(path: Path, capsys: pytest.CaptureFixture):
    """
    What cannot be written is said in one line.
    """
    assert 10 == main(["export", str(path), "--to", "perfetto", "-o", "/dev/full"])
    assert "No space left on device" in capsys.readouterr().err


def test_a_missing_package_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """
    Without its Python package an export says what to install, and leaves no file.
    """
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 21 == main(["export", str(path), "--to", "parquet"])
    assert "pip install pyarrow" in capsys.readouterr().err
    assert ["run.scope"] == [each.name for each in path.parent.iterdir()]


def test_long_calls_have_the_names_that_the_capture_has(tmp_path: Path):
    """
    In each format: the Erlang function that called, and the C function, where they were named.
    """
    path, (lines, table) = tmp_path / "run.scope", (tmp_path / "x.jsonl", tmp_path / "x.parquet")
    calls = record(
        "long_call", time_ns=10 * SECOND + 90, duration_ns=9, code=0x70, native=0x80, tid=101
    )
    others = record("long_call", time_ns=10 * SECOND + 95, duration_ns=9, code=0x71, native=0)
    write(path, np.concatenate([calls, others]), addresses={0x70: "shop:hash/1", 0x80: "md5"})
    assert 0 == main(["export", str(path), "--to", "jsonl", "-o", str(lines)])
    assert 0 == main(["export", str(path), "--to", "parquet", "-o", str(table)])
    named, nameless = [("shop:hash/1", "md5")], (None, None)
    for rows in (
        documents.load_lines(lines.read_text()),
        reading.read_table(table, columns=["function", "symbol", "code"]).to_pylist(),
    ):
        assert [*named, nameless] == [(row["function"], row["symbol"]) for row in rows]
        assert [0x70, 0x71] == [row["code"] for row in rows]
    slices = timeline(path).slices("scheduler 1")
    facts = [of for *_, of in slices if "function" in of]
    assert named == [(of["function"], of["symbol"]) for of in facts]
    capture = Capture(path)
    (request,) = Spans(capture, capture.contents()).requests()
    spans = [
        {a.key: a.value.string_value for a in span.attributes}
        for span in parsed(request).resource_spans[0].scope_spans[0].spans[1:]
    ]
    found = [(span.get("beam.function"), span.get("beam.symbol")) for span in spans]
    assert [*named, nameless] == found


def test_spans_come_in_bounded_requests(tmp_path: Path):
    """
    No request has more spans than the bound, and every span has an id of its own.
    """
    write(tmp_path / "x", *[story()] * 700)
    capture = Capture(tmp_path / "x")
    requests = list(Spans(capture, capture.contents()).requests())
    spans = [request["resourceSpans"][0]["scopeSpans"][0]["spans"] for request in requests]
    assert [SPANS, SPANS, 101] == [len(each) for each in spans]
    assert 2101 == len({span["spanId"] for each in spans for span in each})


def test_an_interrupt_ends_an_export_whose_reader_does_not_read(tmp_path: Path):
    """
    Once the pipe is full, one Ctrl-C is enough.
    """
    write(tmp_path / "run.scope", *[story()] * 200)
    command = [sys.executable, "-m", "scope_ebpf.cli.main", "export", str(tmp_path / "run.scope")]
    reading, writing = os.pipe()
    process = subprocess.Popen([*command, "--to", "jsonl", "-o", "-"], stdout=writing)
    try:
        room = select.poll()
        room.register(writing, select.POLLOUT)
        while room.poll(0):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert 130 == process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
