# SPDX-License-Identifier: Apache-2.0
"""
Summaries of real VMs within a budget, and the brake of what counts everything.
"""

from __future__ import annotations

import re
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import beams_run
import documents
import numpy as np
import pytest
import windows_run
from tracing import (
    PATIENCE,
    breakpoints,
    hooked_addresses,
    require_root,
    scope_trace,
    starting,
    trace,
    wait_until,
)

from scope_ebpf.beam.vm import state as vm_state
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.budget import reference_counters
from scope_ebpf.cli import main as cli
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUDGET = ("--budget", "1%")
#: What an estimate may be off, in stated errors: 95 of 100 are within one, and here none may fail.
#: Besides the truth is asked for a little before and after.
ERRORS, EDGES = 3, 0.05


@pytest.fixture(scope="module")
def talkers() -> Iterator[beams_run.Beam]:
    """
    A VM on one scheduler that sends messages without end, and counts them.
    """
    require_root()
    with beams_run.start_beam("stock25", "+S", "1:1", "-s", "bursts") as beam:
        beam.expect("ready")
        assert "running" == beam.ask("run steady 8")
        yield beam


def test_what_is_rare_is_exact(stock: beams_run.Beam):
    """
    Of a VM that does little, every event is counted as it was planted, by hooks that were in all
    the time.
    """
    with trace(stock.pid, *BUDGET) as run:
        for _ in range(3):
            stock.plant("spawns 23")
            stock.plant("messages 50")
            stock.plant("ports 7")
            stock.plant("hibernates 5")
        outcome = run.stop()
    found = {name: event["count"] for name, event in outcome.events.items()}
    spawns = 3 * (23 + 1)
    assert (spawns, spawns) == (found["spawn"], found["exit"])
    assert (21, 21, 15) == tuple(found[e] for e in ("port_open", "port_close", "hibernate"))
    assert 3 * (50 + 5) == found["send"]
    assert {(0.0, 1.0)} == {
        (event["error_ratio"], event["sampling_ratio"]) for event in outcome.events.values()
    }


def test_summaries_follow_each_other(stock: beams_run.Beam):
    """
    With an interval and a count, as vmstat takes them, there are as many documents, each of its own
    time, and nothing is left in the VM behind the last.
    """
    done = scope_trace(str(stock.pid), "200ms", "3", "--format", "jsonl")
    documents = done.lines
    assert (0, ["duration"] * 3) == (done.code, [one["stopped_because"] for one in documents])
    assert [True] * 3 == [0.2 <= one["duration_seconds"] < PATIENCE for one in documents]
    assert {stock.pid} == {one["target"]["pid"] for one in documents}
    assert 0 == breakpoints(stock.pid, hooked_addresses(stock.pid))


def test_what_is_hot_is_estimated_within_its_error_and_its_budget(talkers: beams_run.Beam):
    """
    Messages without end have an error that holds, or are unknown; what the VM counts itself is
    exact, and all that takes about as much as it may.
    """
    stated, deadline = 0, time.monotonic() + PATIENCE
    while not stated:
        assert time.monotonic() < deadline, "no total of messages has an error"
        document, happened = _watched(talkers.pid)
        for name in ("send", "receive"):
            event = document["events"][name]
            assert 0 < event["error_ratio"]
            assert event["sampling_ratio"] < 1
            if event["error_ratio"] < 1:  # 1 is for what is not known
                stated += 1
                off = ERRORS * event["error_ratio"] + EDGES
                least, most = happened
                assert least * (1 - off) <= event["count"] <= most * (1 + off)


def _watched(pid: int) -> tuple[dict[str, Any], tuple[float, float]]:
    """
    What a run of 5 s reports, and the least and the most messages that there can have been in it.
    """
    switched, before = _switches(pid), time.monotonic()
    with _sampled(windows_run.Truth(pid)) as samples:
        with starting(pid, "--format", "json", "--duration", "5") as run:
            run.wait_for_counting()
            counting = time.monotonic()
            document = run.wait().document
        after = time.monotonic()
    schedule = document["events"]["schedule"]
    assert ("vm", 0.0) == (schedule["counted_by"], schedule["error_ratio"])
    assert 0 < schedule["count"] <= _switches(pid) - switched
    cost = document["cost"]
    used = cost["cpu_seconds"] / cost["share_of_target"]
    # What is there at the beginning may be spent, too, and others who run now cost us some.
    assert cost["cpu_seconds"] <= 0.02 * max(used, 0.2 * (after - before)) + 0.05
    assert document["state"]["utilization"]["normal"] > 0.5
    times, counts = zip(*samples, strict=True)
    # It began somewhere between its start and its word that it counts.
    began = np.linspace(before, counting, 1000)
    ended = np.interp(began + document["duration_seconds"], times, counts)
    happened = ended - np.interp(began, times, counts)
    return document, (float(happened.min()), float(happened.max()))


@contextmanager
def _sampled(truth: windows_run.Truth) -> Iterator[list[tuple[float, int]]]:
    """
    The time and what the VM had counted by then, every 20 ms and at both ends.
    """
    samples, done = [(time.monotonic(), truth())], threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            samples.append((time.monotonic(), truth()))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()
        samples.append((time.monotonic(), truth()))


def _switches(pid: int) -> int:
    return CounterReader(inspect(pid)).read().context_switches


def test_a_vm_that_becomes_hot_meanwhile(stock: beams_run.Beam):
    """
    A VM that goes from idle to full load is exact up to then and estimated from then on.
    """
    with trace(stock.pid, *BUDGET) as run:
        stock.plant("messages 23")
        assert "storming" == stock.ask("storm pingpong 4")
        before = _switches(stock.pid)
        wait_until(lambda: _switches(stock.pid) > before + 300_000, "a storm")
        count = int(stock.ask("stop").rpartition(" ")[2])
        outcome = run.stop()
    send = outcome.events["send"]
    assert 0 < send["sampling_ratio"] < 1
    off = ERRORS * send["error_ratio"] + EDGES
    assert count + 23 == pytest.approx(send["count"], rel=min(off, 2.0))


def test_counters_that_cannot_be_read(
    talkers: beams_run.Beam, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """
    Without the VM's counters hot events are estimated by the time alone, which is said.
    """

    def refuse(_target):
        raise ReadRefusedError("the counters are hidden")

    monkeypatch.setattr(reference_counters, "CounterReader", refuse)
    monkeypatch.setattr(vm_state, "CounterReader", refuse)
    output = tmp_path / "run.json"
    words = ("--pid", str(talkers.pid), "--duration", "3", "--format", "json")
    assert 0 == cli.main((*words, "--output", str(output)))
    document = documents.load(output.read_text())
    assert ["the counters are hidden: frequent events are estimated by the time alone"] == [
        note for note in document["notes"] if "hidden" in note
    ]
    assert {"hooks"} == {event["counted_by"] for event in document["events"].values()}
    assert document["events"]["schedule"]["count"] > 0
    assert document["events"]["schedule"]["sampling_ratio"] < 1
    assert document["state"]["utilization"] is None


def test_a_vm_that_is_stopped_and_one_that_ends():
    """
    A VM that stands still is reported as such, and what was seen of one that dies is kept.
    """
    with beams_run.planted("stock25") as beam:
        with trace(beam.pid, *BUDGET) as run:
            beam.plant("spawns 23")
            beam.freeze()
            stopped = run.stop().document
            beam.thaw()
        assert 23 == stopped["events"]["spawn"]["count"]
        with trace(beam.pid, *BUDGET, form="text") as run:
            beam.plant("spawns 29")
            beam.stop()
            outcome = run.wait()
    assert 9 == outcome.code
    assert "stopped: target ended" in outcome.output
    assert re.search(r"^spawn +29 ", outcome.output, re.MULTILINE)


def test_everything_is_counted_until_it_costs_too_much(talkers: beams_run.Beam):
    """
    --exact says before what it costs, and ends by itself; what was counted until then is exact.
    """
    words = ("--pid", str(talkers.pid), "--exact", "--format", "json", "--duration", "60")
    outcome = scope_trace(*words)
    document = outcome.document
    assert "cost" == document["stopped_because"]
    assert document["events"]["send"]["count"] > 0
    assert {(0.0, 1.0)} == {
        (event["error_ratio"], event["sampling_ratio"]) for event in document["events"].values()
    }
    before, started, after = outcome.errors.splitlines()
    assert before.startswith("scope-trace: this takes about ")
    assert before.endswith("it ends by itself above 20% (--max-cost)")
    assert started.startswith("scope-trace: tracing process ")
    assert "and --max-cost allows 20%: stopped; what was seen until now is kept" in after


@pytest.mark.parametrize(
    "command",
    [
        ("--events", "send", "--format", "jsonl"),
        ("record", "--events", "send"),
        ("profile", "--off-cpu"),
        ("calls", "bursts:volley/3", "--limit", "1000000"),
    ],
)
def test_all_that_costs_much_ends_by_itself(
    talkers: beams_run.Beam, tmp_path_factory: pytest.TempPathFactory, command: tuple[str, ...]
):
    """
    Streams, recordings, waits and calls of a busy VM end when they cost more than they may.
    """
    more = ("-o", str(tmp_path_factory.mktemp("out") / "x")) if command[0] == "record" else ()
    words = (*command, *more, "--pid", str(talkers.pid), "--duration", "60")
    outcome = scope_trace(*words, "--max-cost", "2%")
    assert 0 == outcome.code
    assert "and --max-cost allows 2%: stopped" in outcome.errors


def test_a_stream_has_no_budget(stock: beams_run.Beam):
    """
    A budget for a stream, which has every event, is refused before anything is looked at.
    """
    outcome = scope_trace("--pid", str(stock.pid), "--stream", *BUDGET)
    assert 2 == outcome.code
    assert "a stream has every event, so it keeps no --budget" in outcome.errors


def test_what_keeps_no_budget_is_refused_in_one_line(stock: beams_run.Beam):
    """
    Asked for alone it ends the command with the word that counts it; among others they go on.
    """
    outcome = scope_trace("--pid", str(stock.pid), "--events", "thread", *BUDGET)
    assert 11 == outcome.code, outcome.errors
    assert 1 == len(outcome.errors.splitlines())
    assert "--exact" in outcome.errors
    words = ("--pid", str(stock.pid), "--events", "all", "--duration", "0.5", "--format", "json")
    events = scope_trace(*words, *BUDGET).document["events"]
    off = {name: event["reason"] for name, event in events.items() if "reason" in event}
    assert ["thread", "mark_callback", "mark_function"] == list(off)
    assert "--exact" in off["thread"]
    assert "no code that it has loaded is marked" in off["mark_callback"]


def test_the_state_of_a_vm_is_what_it_is():
    """
    Processes, the longest mailbox and its owner are those of the VM; one that waits works little.
    """
    flags = ("-run", "crowd", "start", "300", "4711")
    with beams_run.start_beam("stock25", *flags) as beam:
        beam.expect("ready")
        words = ("--pid", str(beam.pid), "--duration", "1", "--format", "json")
        state = scope_trace(*words).document["state"]
    box = state["longest_mailbox"]
    assert ("deaf", 4711) == (box["who"], box["messages"])
    assert 300 < state["processes"] < 400
    assert state["utilization"]["normal"] < 0.5
    assert 0 < state["memory_bytes"] < 1e9
    assert {"reductions", "context_switches", "spawned", "exited"} <= state["counted"].keys()
