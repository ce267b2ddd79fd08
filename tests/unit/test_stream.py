# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import time

import documents
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_fixtures import HOSTILE, UNKNOWN, Terms, record

from scope_ebpf import events
from scope_ebpf.errors import HostError
from scope_ebpf.sinks import stream
from scope_ebpf.sinks.stream import Stream

#: 2023-11-14 22:13:20 UTC, and when that was on the monotonic clock.
BEGIN = 1_700_000_000
OFFSET = BEGIN * 10**9


@pytest.fixture(autouse=True)
def fixed_clock(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "wall_offset_ns", lambda: OFFSET)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    stream._clock.cache_clear()
    yield
    monkeypatch.undo()
    time.tzset()


def written(style: stream.Style, *records: np.ndarray, terms: Terms | None = None) -> str:
    output = io.StringIO()
    Stream(output, terms or Terms(), style).write(np.concatenate(records))
    return output.getvalue()


def test_an_event_is_one_json_line():
    """
    A line is one JSON object: time of day in seconds, event, thread, and the event's own fields.
    """
    one = record("spawn", time_ns=1_500, tid=77, process=3, parent=5, module=0, function=9)
    assert (
        '{"time":1700000000.000001500,"event":"spawn","tid":77,'
        '"pid":"t3","parent":"t5","module":null,"function":"t9"}\n'
    ) == written("jsonl", one)


def test_a_kind_that_is_not_known_is_an_error_and_no_line():
    """
    Only objects of another build write such a record, so that is said.
    """
    odd = record("spawn")
    odd["kind"] = len(events.KINDS)
    with pytest.raises(HostError, match="of different builds"):
        written("jsonl", odd)


def test_units_and_absent_values_are_as_in_the_columns():
    """
    In JSON a duration is in seconds, a size in bytes, and what is not known is null.
    """
    one = record(
        "gc", process=3, duration_ns=2_500, reclaimed=UNKNOWN, live=2, **{"class": "minor"}
    )
    expected = {
        "time": BEGIN,
        "event": "gc",
        "tid": 0,
        "pid": "t3",
        "class": "minor",
        "duration_seconds": 2.5e-06,
        "reclaimed_bytes": None,
        "live_bytes": 16,
    }
    assert expected == documents.load(written("jsonl", one))


def test_lines_are_in_the_order_of_time():
    """
    Events of several kinds and CPUs come out oldest first, and equal times keep their order.
    """
    batch = [
        record("exit", time_ns=30, process=1),
        record("spawn", time_ns=10, process=2),
        record("gc", time_ns=20, process=3),
        record("spawn", time_ns=20, process=4),
        record("exit", time_ns=5, process=5),
    ]
    lines = [documents.load(line) for line in written("jsonl", *batch).splitlines()]
    assert ["t5", "t2", "t3", "t4", "t1"] == [line["pid"] for line in lines]
    assert ["exit", "spawn", "gc", "spawn", "exit"] == [line["event"] for line in lines]


def test_an_empty_batch_writes_nothing():
    """
    No event makes no line, not even an empty one.
    """
    output = io.StringIO()
    Stream(output, Terms(), "jsonl").write(record("spawn")[:0])
    assert "" == output.getvalue()


def test_hostile_text_stays_within_its_json_string():
    """
    Quotes, newlines and control characters of an atom come back as they were, on one line.
    """
    text = written("jsonl", record("code_load", process=3, module=9), terms=Terms({9: HOSTILE}))
    assert (1, True) == (text.count("\n"), text.isascii())
    assert HOSTILE == documents.load(text)["module"]


@given(st.text(max_size=40), st.binary(max_size=24))
def test_any_text_survives_json(atom: str, name: bytes):
    """
    Whatever a VM calls its atoms and ports, a line parses and says the same.
    """
    output = io.StringIO()
    terms = Terms({3: atom})
    Stream(output, terms, "jsonl").write(record("port_open", process=3, port=4, name=name))
    line = documents.load(output.getvalue())
    assert (atom, name.rstrip(b"\0").decode("latin-1")) == (line["pid"], line["name"])
    assert 1 == output.getvalue().count("\n")


def test_text_is_for_people():
    """
    A text line has the time of day, who, what with its class, and what is known, in its units.
    """
    batch = [
        record("spawn", time_ns=1_234_567_891, process=3, parent=5),
        record(
            "gc",
            time_ns=2_000_000_000,
            process=3,
            duration_ns=24_186,
            reclaimed=7102,
            live=1,
            **{"class": "major"},
        ),
        record("hibernate", time_ns=3_000_000_000),
    ]
    assert (
        "22:13:21.234567 t3             spawn            parent=t5\n"
        "22:13:22.000000 t3             gc/major         "
        "duration=24.2us reclaimed=56.8kB live=8B\n"
        "22:13:23.000000 -              hibernate\n"
    ) == written("text", *batch)


def test_no_control_character_reaches_a_terminal():
    """
    In text every character of a name that is not printable is a question mark.
    """
    text = written("text", record("code_load", process=3, module=9), terms=Terms({9: HOSTILE}))
    assert (
        '22:13:20.000000 t3             code_load        module=?[2J"?\\??%s {"a":1}??\n'
    ) == text


@given(st.text(max_size=40))
def test_text_is_one_line_for_any_name(atom: str):
    """
    No name of a VM makes a second line or an escape sequence.
    """
    output = io.StringIO()
    Stream(output, Terms({3: atom}), "text").write(record("hibernate", process=3))
    text = output.getvalue()
    assert (True, "\n") == (text[:-1].isprintable(), text[-1])


def test_a_process_is_named_where_its_name_is_known():
    """
    The label of a process stands beside its pid; null where it is unknown.
    """
    output = io.StringIO()
    who = {3: "rabbit_event"}
    sink = Stream(output, Terms(), "jsonl", lambda words: {w: who.get(w) for w in words})
    sink.write(np.concatenate([record("hibernate", process=3), record("hibernate", process=4)]))
    lines = documents.load_lines(output.getvalue())
    assert [("t3", "rabbit_event"), ("t4", None)] == [(x["pid"], x["who"]) for x in lines]


def test_a_pid_that_came_as_text_is_not_looked_up():
    """
    The word of a USDT record is no term, and would name another process.
    """
    output = io.StringIO()
    sink = Stream(output, Terms(), "jsonl", lambda words: dict.fromkeys(words, "wrong"))
    sink.write(record("hibernate", process=3, flags=events.FLAG_TEXT_PID))
    assert None is documents.load(output.getvalue())["who"]
