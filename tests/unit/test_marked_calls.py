# SPDX-License-Identifier: Apache-2.0
"""
Calls of marked functions in captures: pairs of markers, and what exports make of them.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import documents
import numpy as np
from capture_fixtures import ATOM, SECOND, pid, write
from perfetto_read import Read
from pyarrow import parquet as reading
from stream_fixtures import record

from scope_ebpf import events
from scope_ebpf.capture import marked
from scope_ebpf.capture.marked import MarkedCalls
from scope_ebpf.capture.reader import Capture
from scope_ebpf.cli.main import main
from scope_ebpf.sinks.otlp import Spans
from scope_ebpf.sinks.perfetto.timeline import Timeline

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

AT = 10 * SECOND
NAMES = {7: "shop:handle_call/3", 8: "shop:add/1", 9: "shop:init/0"}
CALL, ADD, INIT = NAMES


def marker(
    at: int, how: str, function: int, depth: int, process: int = 1, *, kind="function", **more
) -> np.ndarray:
    """
    The record of one marker.
    """
    fields = {"class": how, "function": function, "depth": depth, "process": pid(process)}
    return record(f"mark_{kind}", time_ns=AT + at, tid=101, **fields | more)


def callback(at: int, how: str, function: int, depth: int, process: int = 1, **more) -> np.ndarray:
    return marker(at, how, function, depth, process, kind="callback", **more)


def story() -> np.ndarray:
    """
    A callback that calls a function twice, the second time in a tail call, and one that crashes.
    """
    return np.concatenate(
        [
            callback(100, "entry", CALL, 64, tag=ATOM, caller=0x70),
            marker(200, "entry", ADD, 128),
            marker(300, "return", ADD, 128),
            callback(400, "return", CALL, 64, tag=ATOM),
            callback(500, "entry", CALL, 64),
            marker(600, "entry", ADD, 128),
            marker(650, "entry", ADD, 192),
            callback(700, "caught", INIT, 32),
            callback(800, "entry", INIT, 32, tag=ATOM),
        ]
    )


def pairs(*records: np.ndarray) -> list[tuple[int, str, int, int]]:
    """
    Function, end, begin and end of each call in the order of the ends; last those that run.
    """
    calls = MarkedCalls()
    found = list(calls.records(np.concatenate(records)))
    return [
        (call.function, call.end, call.began_ns - AT, call.ended_ns - AT if call.ended_ns else 0)
        for call in (*found, *calls.running())
    ]


def test_a_call_ends_with_its_return_or_a_handler_further_out():
    """
    Of what a handler ends, callbacks have failed; of others the way is not known.
    """
    assert [
        (ADD, "returned", 200, 300),
        (CALL, "returned", 100, 400),
        (ADD, "left", 650, 700),
        (ADD, "left", 600, 700),
        (CALL, "failed", 500, 700),
        (INIT, "running", 800, 0),
    ] == pairs(story())


def test_calls_of_processes_are_apart():
    """
    The same depth in another process is another call; the end of a process ends its calls.
    """
    assert [
        (CALL, "returned", 1, 3),
        (CALL, "failed", 2, 9),
    ] == pairs(
        callback(1, "entry", CALL, 64, 1),
        callback(2, "entry", CALL, 64, 2),
        callback(3, "return", CALL, 64, 1),
        record("exit", time_ns=AT + 9, process=pid(2), **{"class": "error"}),
    )


def test_a_tail_call_ends_what_hands_over():
    """
    A callback has a marker there; another function ends where the next one enters at its depth.
    """
    assert [
        (CALL, "handed over", 1, 2),
        (ADD, "left", 2, 4),
        (INIT, "returned", 4, 5),
    ] == pairs(
        callback(1, "entry", CALL, 64),
        callback(2, "tail", CALL, 64),
        marker(2, "entry", ADD, 64),
        marker(4, "entry", INIT, 64),
        marker(5, "return", INIT, 64),
        marker(6, "return", ADD, 64),  # of a call from before the capture
    )


def test_a_return_of_another_function_ends_what_was_called():
    """
    What returns at the depth of a call is what that call handed over to.
    """
    assert [(ADD, "left", 1, 2)] == pairs(
        marker(1, "entry", ADD, 64), marker(2, "return", CALL, 64)
    )


def test_open_calls_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """
    Of the oldest process beyond the bound no end is seen, and its calls are counted.
    """
    monkeypatch.setattr(marked, "_MOST", 3)
    calls = MarkedCalls()
    entries = [callback(n, "entry", CALL, 64 * n, 1 + n // 3) for n in range(5)]
    assert [] == list(calls.records(np.concatenate(entries)))
    assert (3, 2) == (calls.dropped, len(list(calls.running())))


def test_exports_have_nested_calls(tmp_path: Path):
    """
    Slices below the process's track, spans within spans, and rows with names.
    """
    path = tmp_path / "run.scope"
    write(path, story(), addresses={0x70: "gen_server:loop/7"}, marked=NAMES)
    capture, output = Capture(path), io.BytesIO()
    Timeline(capture, capture.contents(), output).write()
    read = Read(output.getvalue(), 11 * SECOND)
    (track,) = (t for t in read.tracks.values() if t.name == "marked calls")
    assert "planted_main <0.1.0>" == read.tracks[track.parent_uuid].name
    own = {"caller": "gen_server:loop/7", "tag": "normal", "returned": "normal"}
    assert [
        (100, 400, "shop:handle_call/3", {"end": "returned"} | own),
        (200, 300, "shop:add/1", {"end": "returned"}),
        (500, 700, "shop:handle_call/3", {"end": "failed"}),
        (600, 700, "shop:add/1", {"end": "left"}),
        (650, 700, "shop:add/1", {"end": "left"}),
        (800, None, "shop:init/0", {"end": "running"}),
    ] == read.slices("marked calls")
    (request,) = Spans(capture, capture.contents()).requests()
    spans = request["resourceSpans"][0]["scopeSpans"][0]["spans"]
    by_id = {span["spanId"]: span for span in spans}
    assert [
        ("shop:add/1", "shop:handle_call/3"),
        ("shop:handle_call/3", "scope-trace record"),
        ("shop:add/1", "shop:add/1"),
        ("shop:add/1", "shop:handle_call/3"),
        ("shop:handle_call/3", "scope-trace record"),
    ] == [(span["name"], by_id[span["parentSpanId"]]["name"]) for span in spans[1:]]
    lines, table = tmp_path / "x.jsonl", tmp_path / "x.parquet"
    assert 0 == main(["export", str(path), "--to", "jsonl", "-o", str(lines)])
    assert 0 == main(["export", str(path), "--to", "parquet", "-o", str(table)])
    for rows in (
        documents.load_lines(lines.read_text()),
        reading.read_table(table).to_pylist(),
    ):
        assert ["entry", "shop:handle_call/3", "normal", "gen_server:loop/7"] == [
            rows[0][name] for name in ("class", "function", "tag", "called_from")
        ]
        # The register of the first argument has anything, where there is none.
        assert ("shop:init/0", None) == (rows[-1]["function"], rows[-1]["tag"])


def test_the_kinds_have_the_markers_in_one_order():
    """
    The programs number classes by the kind of marker.
    """
    kinds = [events.KINDS[name].classes for name in ("mark_callback", "mark_function")]
    assert [("entry", "return", "caught", "catch", "tail"), ("entry", "return")] == kinds
