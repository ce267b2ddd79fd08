# SPDX-License-Identifier: Apache-2.0
"""
Calls of functions in an interpreter with function probes, held against the module's own count.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import beams_run
import pytest
from calling import CALLS, calling, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from beams_run import Beam

WAYS = ("local", "external", "tail", "apply", "dynamic", "fun", "lambda", "spawn")


@pytest.fixture(scope="module")
def beam() -> Iterator[Beam]:
    """
    An interpreter that runs ``called.erl``.
    """
    beams_run.require(os.geteuid() == 0, "probes take root")
    with beams_run.start_beam("emu25", "-s", "called") as started:
        started.expect("ready")
        yield started


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_call_of_a_function_counts_once(beam: Beam, way: str):
    """
    Also by apply and at the start of a process, where the VM fires two probes for one call.
    """
    with calling(beam.pid, "called:target/2") as run:
        assert 23 == beam.plant(f"{way} 23")
        calls = run.stop().of("call")
    assert 23 == run.summary["calls"] == len(calls)
    assert {("?", "?")} == {tuple(call["arguments"]) for call in calls}
    assert {"?"} == {call["caller"] for call in calls}
    assert any("arguments and caller are ?" in note for note in run.summary["notes"])


def test_each_of_four_functions_has_its_own_count(beam: Beam):
    """
    Whether it calls itself, last or in between, ends by an exception, or is native.
    """
    functions = ("called:loop/1", "called:nest/1", "called:fail/1", "prim_file:read_info_nif/2")
    with calling(beam.pid, *functions) as run:
        planted = [beam.plant(f"{name} 23") for name in ("loop", "nest", "fail", "native")]
        counts = run.stop().counts()
    assert [24, 24, 23, 23] == planted == [counts[name] for name in functions]


def test_a_loop_that_is_preempted_is_counted_to_the_call(beam: Beam):
    """
    A loop of 23,001 calls is preempted every 4,000 of them, between probe and function.
    """
    with calling(beam.pid, "called:loop/1", "--limit", "100000") as run:
        planted = beam.plant("loop 23000")
        assert 23001 == planted == run.stop().summary["calls"]


def test_a_duration_is_that_of_its_own_call(beam: Beam):
    """
    Calls that sleep for 2 ms last as long; those that end by an exception have no end.
    """
    with calling(beam.pid, "called:nap/1", "called:fail/1", "--durations") as run:
        beam.plant("nap 23")
        beam.plant("fail 23")
        rows = {row["function"]: row for row in run.stop().summary["functions"]}
    assert [23, 0] == [rows[name]["measured"] for name in ("called:nap/1", "called:fail/1")]
    assert rows["called:nap/1"]["duration_seconds"]["p50"] >= 0.002
    assert 23 == len(run.of("return"))


def test_the_limit_ends_the_run(beam: Beam):
    """
    Of 100,001 calls 1,000 are counted, and it says so, and that there were more if it saw one; the
    VM goes on without us.
    """
    with calling(beam.pid, "called:loop/1") as run:
        assert 100001 == beam.plant("loop 100000")
        summary = run.finish().summary
    assert 1000 == summary["calls"]
    assert "the limit of 1,000 calls was reached" == summary["stopped_because"]
    (function,) = summary["functions"]
    noted = any("beyond the limit" in note for note in summary["notes"])
    assert function["limit_reached"] == noted


def test_calls_of_a_server_have_its_name(beam: Beam):
    """
    The process is known by its pid's text, and found in the table by it.
    """
    with calling(beam.pid, "called_server:handle_call") as run:
        beam.plant("server 23")
        calls = run.stop().of("call")
    assert ["called_server"] * 23 == [call["who"] for call in calls]


def test_the_cost_of_every_call_is_announced(beam: Beam):
    """
    All functions pass the probes, so the VM pays for each; how many did is told at the end.
    """
    command = [*CALLS, "called:nap/1", "--pid", str(beam.pid), "--duration", "100ms"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=beams_run.PATIENCE)
    assert "each call in the VM, of any function, costs it" in done.stderr
    assert "of other functions passed the same probes" in " ".join(done.stdout.split())


def test_a_function_in_c_is_refused(beam: Beam):
    """
    The interpreter's stub of a BIF is told from Erlang code; its calls pass no probe.
    """
    code, message = refused(beam.pid, "erlang:process_info/2")
    assert 2 == code
    assert "written in C" in message


def test_code_that_is_loaded_meanwhile_is_counted_too(beam: Beam):
    """
    The probes go by name, so both versions count together.
    """
    with calling(beam.pid, "called_server:handle_call/3") as run:
        beam.plant("server 23")
        assert 1 == beam.plant("reload 1")
        beam.plant("server 23")
        assert 46 == run.stop().summary["calls"]
