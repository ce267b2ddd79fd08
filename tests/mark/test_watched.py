# SPDX-License-Identifier: Apache-2.0
"""
Calls of marked functions, seen from outside, against what was planted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import documents
import pytest
from beams_run import build, dist_pair, require, start_beam
from mark_run import HERE, folder, mark, run

from scope_ebpf.beam.code.functions import parse
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.capture.marked import MarkedCalls
from scope_ebpf.capture.reader import Capture
from scope_ebpf.daemon.readings import marks as readings
from scope_ebpf.daemon.readings.marks import MarkedSight
from scope_ebpf.errors import NothingToAttachError, UsageError
from scope_ebpf.kernel.cost import GUESS
from scope_ebpf.runs import mark_everything
from scope_ebpf.runs.mark_run import MarkOptions
from scope_ebpf.runs.marks import watch

SCOPE_TRACE = (sys.executable, "-m", "scope_ebpf.cli.main")
EVERYTHING = float("inf")
KINDS = {f"kind_{n}": 3 * n for n in range(1, 24)}


@pytest.fixture(scope="module", params=["stock25", "trixie27", "sid29"])
def beam(request):
    """
    A VM with a marked server.
    """
    require(os.geteuid() == 0, "seeing marks takes root")
    kind, modules = request.param, folder("scope-counted-")
    shutil.copy(HERE / "counted.erl", modules)
    run(kind, [*build(kind).erlc, "-o", "{}", "{}/counted.erl"], modules)
    done = mark(modules / "counted.beam", "--profile", "all", "--format", "json")
    with start_beam(kind, "-s", "counted", "main", module_dir=modules) as running:
        running.expect("ready")
        running.marked = json.loads(done.stdout)["totals"]["functions"]
        running.kind, running.modules = kind, modules
        yield running


@pytest.fixture(scope="module")
def seen(beam):
    """
    What a run sees that counts everything of what is planted, by function.
    """

    def plant():
        beam.send("go")
        beam.expect("done")

    options = MarkOptions(0.5, "all", EVERYTHING)
    marks, error = watch(inspect(beam.pid), [parse("counted:*")], options, plant)
    assert error is None
    document = documents.validated(marks.as_json())
    return document, {f"{f['function']}/{f['arity']}": f for f in document["functions"]}


def test_every_call_of_a_callback_is_counted(beam, seen):
    """
    Calls, failures and what is under way are exact, of processes that ended as well.
    """
    document, found = seen
    counts = {
        name: (f["calls"], f["failures"], f["running"], f["timed"])
        for name, f in found.items()
        if f["class"] == "callback"
    }
    calls = sum(KINDS.values()) + 1
    assert counts == {
        "init/1": (48, 0, 0, 48),
        "handle_call/3": (calls + 24, 24, 0, calls),
        "handle_cast/2": (1778, 0, 1, 1777),
        "handle_info/2": (46, 23, 0, 23),
        "terminate/2": (47, 0, 0, 47),
    }
    assert (document["lost"], document["others"], document["collided"]) == (0, 0, [])
    assert document["marked"] == {
        "modules": 1,
        "functions": beam.marked,
        "profile": "all",
    }


def test_messages_and_results_are_told_apart(seen):
    """
    The first atom of a message, of 23 kinds and others, and of what a callback returned.
    """
    _, found = seen
    call, cast = found["handle_call/3"], found["handle_cast/2"]
    most = sorted(KINDS, key=lambda name: -KINDS[name])
    tags = dict(call["tags"])
    # Twenty are distinguished; of two that are as frequent either may be.
    assert sum(tags.values()) == call["calls"]
    assert all(tags.pop(name) == KINDS[name] for name in most[:15])
    assert tags.pop("crash") == 24
    assert call["returned"] == {"reply": sum(KINDS.values()), "noreply": 1}
    assert (cast["tags"], cast["returned"]) == ({"late": 1777, "wait": 1}, {"noreply": 1777})
    assert found["handle_info/2"]["tags"] == {"": 23, "crash": 23}


def test_callers_are_where_calls_return_to(seen):
    """
    Of functions that call each other, and of callbacks.
    """
    _, found = seen
    ((caller, calls),) = found["handle_cast/2"]["callers"].items()
    assert re.fullmatch(r"gen_server:try_(dispatch/4|handle_cast/3)", caller)
    assert calls == 1778
    assert found["noreply/1"]["callers"] == {"counted:handle_cast/2": 1777}
    deep = dict(found["deep/1"]["callers"])
    assert deep.pop("counted:deep/1") == 23 * 40
    assert [*deep.values()] == [23]  # the comprehension that begins


def test_callers_are_right_where_the_vm_keeps_frame_pointers(beam, monkeypatch):
    """
    Each address of a stack has a frame pointer beneath it then; depths and ends are as without.
    """
    monkeypatch.setattr(
        mark_everything, "_LAST", 60.0
    )  # all lines are reported, however slow this machine is
    flags = ("+JPperf", "map" if beam.kind == "stock25" else "fp")
    lines = []

    def plant():
        linked.send("go")
        linked.expect("done")

    with start_beam(beam.kind, *flags, "-s", "counted", "main", module_dir=beam.modules) as linked:
        linked.expect("ready")
        options = MarkOptions(0.2, "all", EVERYTHING)
        patterns = [parse("counted:noreply"), parse("counted:deep"), parse("counted:handle_call")]
        marks, error = watch(inspect(linked.pid), patterns, options, plant, lines.append)
        Path(f"/tmp/perf-{linked.pid}.map").unlink(missing_ok=True)
    assert error is None
    found = {one.function: one for one in marks.functions}
    assert found["noreply"].callers == {"counted:handle_cast/2": 1777}
    assert found["deep"].callers is not None
    assert found["deep"].callers["counted:deep/1"] == 23 * 40
    call = found["handle_call"]
    assert (call.failures, call.running, call.timed) == (24, 0, call.calls - 24)
    ours = [one for one in lines if one.function == "counted:noreply/1"]
    assert {one.caller for one in ours} == {"counted:handle_cast/2"}
    text = (HERE / "counted.erl").read_text().split("\nnoreply(")[0]
    assert {(one.location or "").rpartition("/")[2] for one in ours} == {
        f"counted.erl:{text.count(chr(10)) + 2}"
    }


def test_functions_that_end_in_a_tail_call_have_no_duration(seen):
    """
    All calls are counted, however deep; a duration is that of a call that returned itself.
    """
    _, found = seen
    counts = {
        name: (found[name]["calls"], found[name]["timed"], found[name]["failures"])
        for name in ("deep/1", "hand_over/1", "taken_over/1", "leaf/1")
    }
    deep, timed, failures = counts.pop("deep/1")
    assert (deep, failures) == (23 * 41, None)
    assert 0 < timed < deep  # sixteen calls of a process are followed at a time
    assert counts == {
        "hand_over/1": (230, 0, None),
        "taken_over/1": (230, 230, None),
        "leaf/1": (2300, 2300, None),
    }


def test_the_command_counts_what_is_asked_for(beam):
    """
    A pattern, a document on one line, and a line on standard error when counting has begun.
    """
    patterns = ["counted:handle_cast", "counted:guarded"]  # which is no callback, but a handler
    words = ["marks", str(beam.pid), *patterns, "--budget", "none", "-d", "30s"]
    with subprocess.Popen(
        [*SCOPE_TRACE, *words, "-f", "jsonl", "--max-cost", "100%"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stderr is not None
        assert "watching process" in command.stderr.readline()
        beam.send("go")
        beam.expect("done")
        command.send_signal(2)
        output, _ = command.communicate(timeout=120)
    (document,) = documents.load_lines(output)
    (row,) = document["functions"]
    assert (row["function"], row["calls"], row["running"]) == ("handle_cast", 1778, 1)


def test_a_stream_has_a_line_for_each_call(beam):
    """
    Arguments, results, ends and callers of all planted calls, and the line of the function.
    """
    words = ["marks", str(beam.pid), "counted:handle_*", "counted:leaf", "--class", "all"]
    with subprocess.Popen(
        [*SCOPE_TRACE, *words, "--stream", "-f", "jsonl", "-d", "90s", "--max-cost", "100%"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stderr is not None
        assert "watching process" in command.stderr.readline()
        beam.send("go")
        beam.expect("done")
        # What is planted ends with the last of 46 of these; an interrupted run drops the rest.
        assert command.stdout is not None
        output, ends = "", 0
        while ends < 46:
            output += (read := command.stdout.readline())
            assert read
            ends += json.loads(read)["function"] == "counted:handle_info/2"
        command.send_signal(2)
        output += command.stdout.read()
    *lines, document = documents.load_lines(output)
    assert not [note for note in document["notes"] if "no room" in note]
    calls = [one for one in lines if one["function"] == "counted:handle_call/3"]
    tags = Counter(one["arguments"][0] for one in calls)
    assert {f"{{{kind},x}}": count for kind, count in KINDS.items()} == {
        tag: count for tag, count in tags.items() if tag.startswith("{kind_")
    }
    assert (tags["crash"], sum(tags.values())) == (24, sum(KINDS.values()) + 25)
    ends = Counter((one["arguments"][0] == "crash", one["end"], one["returned"]) for one in calls)
    assert ends == {
        (True, "failed", None): 24,
        (False, "returned", "{reply,ok,[]}"): sum(KINDS.values()),
        (False, "returned", "{noreply,[]}"): 1,
    }
    assert all((one["duration_seconds"] is None) == (one["end"] == "failed") for one in calls)
    text = (HERE / "counted.erl").read_text().split("\nhandle_call(")[0]
    assert {one["location"].rpartition("/")[2] for one in calls} == {
        f"counted.erl:{text.count(chr(10)) + 2}"
    }
    assert {one["caller"] for one in calls} == {"gen_server:try_handle_call/4"}
    leaves = [one for one in lines if one["function"] == "counted:leaf/1"]
    assert sorted(int(one["arguments"][0]) for one in leaves) == list(range(1, 2301))
    casts = Counter(one["end"] for one in lines if one["function"] == "counted:handle_cast/2")
    assert casts == {"returned": 1777, "running": 1}


def test_markers_that_no_pattern_fits_take_time_and_end_calls(beam):
    """
    What they took is taken off, and a handler ends the call whose exception it caught.
    """

    def plant():
        beam.send("go")
        beam.expect("done")

    options = MarkOptions(0.1, "all", EVERYTHING)
    patterns = [parse("counted:functions/0"), parse("counted:handle_info/2")]
    marks, _ = watch(inspect(beam.pid), patterns, options, plant)
    found = {one.function: one for one in marks.functions}
    info, functions = found["handle_info"], found["functions"]
    assert (info.calls, info.failures, info.running) == (46, 23, 0)
    assert (functions.calls, functions.timed) == (1, 1)
    # The call has thousands of hits, of which each takes a good part of a microsecond.
    assert functions.durations.carried > 1e-3


def test_a_window_of_the_daemon_has_the_calls_within_it(beam, monkeypatch):
    """
    Of callbacks, those that were planted in it; a second one has nothing of the first.
    """
    resources = SimpleNamespace(attacher=None, cost=GUESS)
    with closing(MarkedSight(inspect(beam.pid), SimpleNamespace(resources=resources))) as sight:
        assert sight.refresh(room=True)
        planted = []

        def plant(_seconds: float) -> None:
            beam.send("go")
            planted.append(beam.expect("done"))

        # The window ends when all is planted.
        clock = SimpleNamespace(
            sleep=plant, monotonic_ns=lambda: time.monotonic_ns() + 600 * 10**9 * bool(planted)
        )
        monkeypatch.setattr(readings, "time", clock)
        for _ in range(2):
            planted.clear()
            window = sight.window(600.0, 1 << 40)
            counts = {
                name.partition(":")[2]: (calls.calls, calls.failures, calls.timed)
                for name, calls in window.calls.items()
                if name and calls.calls
            }
            calls = sum(KINDS.values()) + 1
            assert counts == {
                "init/1": (48, 0, 48),
                "handle_call/3": (calls + 24, 24, calls),
                "handle_cast/2": (1778, 0, 1777),
                "handle_info/2": (46, 23, 23),
                "terminate/2": (47, 0, 47),
            }
            assert window.hits > 2 * 1778


def test_what_is_not_marked_is_refused(beam):
    """
    A pattern without marked functions is named; so is how to mark, where nothing is marked.
    """
    options = MarkOptions(1, budget=EVERYTHING)
    with pytest.raises(UsageError, match=r"nothing that fits lists:map/2 is in the 1 marked"):
        watch(inspect(beam.pid), [parse("lists:map/2")], options, lambda: None)
    with start_beam("stock25", "-eval", 'io:format("ready~n").') as plain:
        plain.expect("ready")
        with pytest.raises(NothingToAttachError, match="scope-mark DIR --profile callbacks"):
            watch(inspect(plain.pid), [], options, lambda: None)


def test_of_a_cluster_one_node_is_marked():
    """
    Marked and plain code call each other; calls are counted where the server's code is marked.
    """
    require(os.geteuid() == 0, "seeing marks takes root")
    plain, marked = folder("scope-plain-"), folder("scope-marked-")
    shutil.copy(HERE / "counted.erl", plain)
    run("stock25", [*build("stock25").erlc, "-o", "{}", "{}/counted.erl"], plain)
    shutil.copy(plain / "counted.beam", marked)
    mark(marked / "counted.beam", "--profile", "callbacks")
    folders = [("-pa", str(one)) for one in (marked, plain)]
    options = MarkOptions(0.1, budget=EVERYTHING)
    with dist_pair("stock25", *folders[0], peer=folders[1], module="counted") as (one, other):

        def call() -> None:
            assert other.ask("remote watched@127.0.0.1 23") == "remoted 23"
            assert one.ask("remote peer@127.0.0.2 29") == "remoted 29"

        marks, _ = watch(inspect(one.pid), [parse("counted:handle_call/3")], options, call)
        with pytest.raises(NothingToAttachError, match="scope-mark DIR --profile callbacks"):
            watch(inspect(other.pid), [], options, call)
    (row,) = marks.as_json()["functions"]
    assert (row["calls"], row["failures"], row["running"]) == (23, 0, 0)
    assert row["tags"] == {"work": 23}


def test_two_functions_with_one_id_are_left_out(beam, monkeypatch):
    """
    Their calls cannot be distinguished: both are named, and neither is counted.
    """
    from scope_ebpf.beam.marks import marked

    monkeypatch.setattr(marked, "id_of", lambda one: hash(one.function[:7]) & ((1 << 52) - 1))
    options = MarkOptions(0.1, budget=EVERYTHING)
    marks, _ = watch(inspect(beam.pid), [parse("counted:*")], options, lambda: None)
    names = {"counted:handle_call/3", "counted:handle_cast/2", "counted:handle_info/2"}
    assert names <= set(marks.collided)
    assert "their ids are the same" in json.dumps(marks.notes)


def test_a_budget_gives_rates_with_their_error(beam):
    """
    Under the load of one caller, the estimate is what was served, within five standard errors.
    """
    beam.send("load")
    beam.expect("loaded")

    def served():
        beam.send("served")
        return int(beam.readline().split()[1])

    before = 0

    def begin():
        nonlocal before
        before = served()

    options = MarkOptions(5, "callbacks", 1.0)
    marks, error = watch(inspect(beam.pid), [parse("counted:handle_call")], options, begin)
    truth = served() - before
    beam.send("rest")
    beam.expect("resting")
    assert error is None
    document = documents.validated(marks.as_json())
    (row,) = document["functions"]
    assert (row["failures"], row["running"]) == (None, None)
    assert 0 < document["sampling_ratio"] < 1
    assert 0 < row["error_ratio"] <= 1
    # What begins and ends the run takes time on a busy machine.
    assert abs(row["calls"] - truth) <= (5 * row["error_ratio"] + 0.3) * truth
    assert re.search(r"seen in \d+ windows", document["notes"][0])


@pytest.fixture(scope="module")
def recorded(beam, tmp_path_factory):
    """
    A capture of markers alone while everything is planted, and what the recording said of it.
    """
    path = tmp_path_factory.mktemp("recorded") / "run.scope"
    words = ["record", str(beam.pid), "-o", str(path), "-d", "90s", "--max-cost", "100%"]
    with subprocess.Popen(
        [*SCOPE_TRACE, *words, "--events", "exit,mark_callback,mark_function"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stderr is not None
        while "tracing process" not in (line := command.stderr.readline()):
            assert line
        beam.send("go")
        beam.expect("done")
        command.send_signal(2)
        command.communicate(timeout=120)
    return path


def test_a_capture_has_every_call(recorded):
    """
    Paired when it is read: calls, failures and what is under way are those that were planted.
    """
    capture = Capture(recorded)
    contents, calls = capture.contents(), MarkedCalls()
    ended = [call for batch in capture.batches() for call in calls.records(batch)]
    found = Counter(
        (contents.marked[call.function], call.end)
        for call in (*ended, *calls.running())
        if not contents.marked[call.function].startswith("counted:calls")
    )
    # Where a stripped build hides exits, the end of a process is not seen.
    exits = any(item.event == "exit" and item.attachments for item in contents.head.plan.items)
    kinds = sum(KINDS.values()) + 1
    planted = {
        ("init/1", "returned"): 48,
        ("handle_call/3", "returned"): kinds,
        ("handle_call/3", "failed" if exits else "running"): 24,
        ("handle_cast/2", "returned"): 1777,
        ("handle_cast/2", "running"): 1,
        ("handle_info/2", "returned"): 23,
        ("handle_info/2", "failed"): 23,
        ("terminate/2", "returned"): 47,
        ("leaf/1", "returned"): 2300,
        ("taken_over/1", "returned"): 230,
        ("hand_over/1", "left"): 230,
        ("deep/1", "returned"): 23 * 41,
    }
    assert planted == {(name, end): found[f"counted:{name}", end] for name, end in planted}
    nested = {call.number: call for call in ended}
    parents = Counter(
        contents.marked[nested[call.parent].function]
        for call in ended
        if contents.marked[call.function] == "counted:deep/1" and call.parent in nested
    )
    assert parents["counted:deep/1"] == 23 * 40
    events = contents.summary().events
    assert contents.losses[-1][1] == {}
    assert events["mark_callback"].by_class["entry"] == sum(
        count
        for (name, _), count in found.items()
        if re.search(r":(init|handle_\w+|terminate)/", name)
    )
