# SPDX-License-Identifier: Apache-2.0
"""
Calls of functions in code of the JIT, held against what the module itself has counted.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import beams_run
import pytest
from calling import calling, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from beams_run import Beam

KINDS = ("stock25", "trixie27", "sid29")
#: Nanoseconds by which two readings of the time of day may differ.
CLOCKS = 1_000_000
WAYS = ("local", "external", "tail", "apply", "dynamic", "fun", "lambda", "spawn")


@pytest.fixture(scope="module", params=KINDS)
def beam(request: pytest.FixtureRequest) -> Iterator[Beam]:
    """
    A VM that runs ``called.erl``.
    """
    beams_run.require(os.geteuid() == 0, "breakpoints take root")
    with beams_run.start_beam(request.param, "-s", "called") as started:
        started.expect("ready")
        yield started


def test_every_kind_of_call_of_a_function_counts_once(beam: Beam):
    """
    Local, external, tail, by apply, by a fun or at the start of a process: a call is one call.
    """
    with calling(beam.pid, "called:target/2") as run:
        planted = {way: beam.plant(f"{way} 23") for way in WAYS}
        calls = run.stop().of("call")
    seen = Counter(call["arguments"][0] for call in calls)
    assert dict.fromkeys(WAYS, 23) == planted
    assert planted == {way: seen[way] for way in WAYS}
    assert {str(n) for n in range(1, 24)} == {call["arguments"][1] for call in calls}
    assert len(WAYS) * 23 == run.summary["calls"]


def test_a_caller_is_the_function_that_it_returns_to(beam: Beam):
    """
    The caller has a name and a line; a tail call returns to the caller before it.
    """
    with calling(beam.pid, "called:target/2", "called:loop/1") as run:
        beam.plant("local 23")
        beam.plant("loop 23")
        calls = run.stop().of("call")
    callers = Counter((call["function"], call["caller"]) for call in calls)
    assert {
        ("called:target/2", "called:-plant/3-fun-0-/1"): 23,
        ("called:loop/1", "called:command/2"): 24,
    } == callers
    assert all("called.erl:" in call["line"] for call in calls)


def test_a_process_that_is_preempted_at_its_entry_has_called_once(beam: Beam):
    """
    A loop of 23,000 calls is preempted every 4,000 of them and counts 23,001.
    """
    with calling(beam.pid, "called:loop/1", "--limit", "100000") as run:
        planted = beam.plant("loop 23000")
        assert planted == run.stop().summary["calls"]
    assert planted == 23001


def test_the_tracing_of_the_vm_itself_counts_the_same(beam: Beam):
    """
    erlang:trace counts calls with a breakpoint of its own in the same function; both agree.
    """
    with calling(beam.pid, "lists:droplast/1") as run:
        planted = beam.plant("traced 23")
        assert 46 == planted == run.stop().summary["calls"]


def test_a_native_function_is_counted_where_erlang_calls_it(beam: Beam):
    """
    A NIF has an Erlang stub that each call passes, so its calls are counted as any other's.
    """
    with calling(beam.pid, "prim_file:read_info_nif/2") as run:
        assert 23 == beam.plant("native 23") == run.stop().summary["calls"]


def test_the_shapes_of_arguments_are_what_was_called_with(beam: Beam):
    """
    Atoms, numbers, pids and keys are shown, texts by size, the ninth argument not at all.
    """
    with calling(beam.pid, "called:shapes/9") as run:
        beam.plant("shapes 23")
        calls = run.stop().of("call")
    assert 23 == len(calls)
    caller = calls[0]["pid"]
    assert {(call["pid"], tuple(call["arguments"])) for call in calls} == {
        (
            caller,
            (
                *("ok", str(n), f"{{add,{{1,[char]}},{caller}}}", f"[{{key,{n}}},b]"),
                *("#{name,on}", "#{40 keys}", "<<23 bytes>>", "1.5", "..."),
            ),
        )
        for n in range(1, 24)
    }


def test_calls_of_a_server_have_its_name(beam: Beam):
    """
    Who calls handle_call is the server, and its first argument is the request.
    """
    with calling(beam.pid, "called_server:handle_call") as run:
        beam.plant("server 23")
        calls = run.stop().of("call")
    assert [f"{{add,{n}}}" for n in range(23, 0, -1)] == [c["arguments"][0] for c in calls]
    assert {"called_server"} == {call["who"] for call in calls}


def test_the_limit_ends_the_run_and_the_cost(beam: Beam):
    """
    After the limit the breakpoints are out: 1,000 of 100,001 calls are counted, and it says so, and
    that there were more if it saw one before they were out.
    """
    with calling(beam.pid, "called:loop/1") as run:
        assert 100001 == beam.plant("loop 100000")
        summary = run.finish().summary
    assert 1000 == summary["calls"]
    assert "the limit of 1,000 calls was reached" == summary["stopped_because"]
    (function,) = summary["functions"]
    noted = any("beyond the limit" in note for note in summary["notes"])
    assert function["limit_reached"] == noted


@pytest.mark.parametrize("kind", ["stock25"])
def test_a_function_that_is_called_all_the_time_is_counted(kind: str):
    """
    What it is called before calls count does not use up what its breakpoint may take.
    """
    with beams_run.start_beam(kind, "-s", "called") as busy:
        busy.expect("ready")
        busy.send("loop 1000000000000")
        with calling(busy.pid, "called:loop/1", "--limit", "10") as run:
            assert 10 == run.finish().summary["calls"]


def test_a_duration_is_that_of_its_own_call(beam: Beam):
    """
    Calls that sleep for 2 ms last as long, and one that ended by an exception has no end.
    """
    with calling(beam.pid, "called:nap/1", "called:fail/1", "--durations") as run:
        planted = 0
        while not run.of("return"):  # until it is known where they return to
            planted += beam.plant("nap 23")
            for _ in range(23):
                run.wait_for(lambda event: event["event"] == "call")
        before = len(run.of("return"))
        planted += beam.plant("nap 23")
        beam.plant("fail 23")
        run.stop()
    returns = run.of("return")
    assert {"called:nap/1"} == {event["function"] for event in returns}
    assert 23 <= len(returns) <= planted
    assert before <= len(returns) - 23 + 1
    assert all(0.002 <= event["duration_seconds"] < 60 for event in returns)
    assert {"called:nap/1": planted, "called:fail/1": 23} == run.counts()


def test_each_level_of_a_recursion_has_its_own_duration(beam: Beam):
    """
    A function that calls itself returns once for each call, the inner one sooner than the outer.
    """
    with calling(beam.pid, "called:nest/1", "--durations") as run:
        while len(run.of("return")) < 22:  # until it is known where the inner ones return to, too
            beam.plant("nest 22")
            for _ in range(23):
                run.wait_for(lambda event: event["event"] == "call")
        beam.plant("nest 22")
        run.stop()
    calls = [index for index, event in enumerate(run.events) if event["event"] == "call"]
    last = [e for e in run.events[calls[-23] :] if e["event"] == "return"]
    durations = [event["duration_seconds"] for event in last]
    assert 23 == len(durations)
    assert sorted(durations) == durations


def test_a_code_upgrade_is_followed(beam: Beam):
    """
    After other code is loaded its calls are counted apart from those of the old.
    """
    with calling(beam.pid, "called_server:handle_call/3") as run:
        planted = beam.plant("server 23")
        for _ in range(2):
            beam.plant("reload 1")
            run.wait_for(lambda event: event["event"] == "code")
            planted += beam.plant("server 23")
        run.stop()
    assert 69 == planted == run.summary["calls"]
    assert len({call["version"] for call in run.of("call")}) > 1
    assert all(event["gap_seconds"] is not None for event in run.of("code"))


def shown(time: float) -> float:
    """
    The time of an event, in ns since 1970.
    """
    return time * 1e9


def test_every_call_that_is_missing_lies_in_a_reported_gap():
    """
    Twenty upgrades, three versions by turns: calls that are seen and calls in gaps are all calls.
    """
    with beams_run.start_beam("stock25", "-s", "upgrades") as beam:
        beam.expect("ready")
        with calling(beam.pid, "upgraded:work/1", "--limit", "100000") as run:
            made = beam.plant("run 20", 60)
            run.stop()
        # The last that the VM notes of a call is the time just before it.
        seen = {int(call["arguments"][0]) for call in run.of("call")}
        missing = set(range(1, made + 1)) - seen
        near = {n for call in missing for n in (call, call + 1) if n <= made}
        times = {call: int(beam.ask(f"when {call}").split()[1]) for call in sorted(near)}
    gaps = [(shown(e["time"] - (e["gap_seconds"] or 0)), shown(e["time"])) for e in run.of("code")]
    between = {call: (times[call], times.get(call + 1, times[call] + CLOCKS)) for call in missing}
    outside = {
        call: (since, until)
        for call, (since, until) in between.items()
        if not any(a - CLOCKS <= until and since <= b + CLOCKS for a, b in gaps)
    }
    assert (len(seen), {}) == (made - len(missing), outside)
    reported = [function["missing"] for function in run.summary["functions"]]
    about = sum(part["calls"] for part in reported)
    error = sum(part["error"] for part in reported)
    assert about - error <= len(missing) <= about + error
    assert len({call["version"] for call in run.of("call")}) > 2
    assert run.summary["calls"] == len(seen)


@pytest.mark.parametrize("beam", ["stock25"], indirect=True)
def test_what_cannot_be_watched_is_refused_with_a_reason(beam: Beam):
    """
    Too many functions, a C function, an unknown module: one line that says what to do.
    """
    cases = {
        "called:*": "functions fit",
        "erlang:send/2": "written in C",
        "caled:target/2": "did you mean called",
        "called:traget/2": "called:target/2",
        "called:target/3": "called:target/2",
        "nonsense": "names no function",
    }
    for pattern, part in cases.items():
        code, said = refused(beam.pid, pattern)
        assert (2, True) == (code, part in said), said


@pytest.mark.parametrize("beam", ["stock25"], indirect=True)
def test_a_kill_leaves_nothing_behind(beam: Beam):
    """
    While four functions are watched there is no register for a fifth; after SIGKILL all are free.
    """
    four = [f"called:{f}" for f in ("target/2", "loop/1", "nest/1", "nap/1")]
    with calling(beam.pid, *four) as run:
        code, said = refused(beam.pid, "called:fail/1", "--duration", "1ms")
        assert (11, True) == (code, "debug registers are taken" in said)
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
    with calling(beam.pid, *four) as run:
        assert 23 == beam.plant("local 23") == run.stop().summary["calls"]
