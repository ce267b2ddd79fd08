# SPDX-License-Identifier: Apache-2.0
"""
However scope-trace ends, nothing of it stays in the kernel or in the VM.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
import pytest
from tracing import (
    SCOPE_TRACE,
    Run,
    breakpoints,
    holdings,
    hooked_addresses,
    in_kernel,
    is_full,
    nothing_left,
    starting,
    trace,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def beam(private_emulator: Path) -> Iterator[beams_run.Beam]:
    """
    A VM that runs from a file of its own, so that every breakpoint in it is ours.
    """
    with beams_run.planted("usdt25", env={"BINDIR": str(private_emulator)}) as beam:
        assert str(private_emulator) in str(Path(f"/proc/{beam.pid}/exe").readlink())
        yield beam


@pytest.fixture(scope="module")
def places(beam: beams_run.Beam) -> dict[int, int]:
    return hooked_addresses(beam.pid)


@pytest.fixture
def clean(beam: beams_run.Beam, places: dict[int, int]) -> Iterator[None]:
    """
    The test begins with nothing attached, and ends so: no breakpoint, no program, no map, no link,
    and a VM that goes on.
    """
    wait_until(lambda: breakpoints(beam.pid, places) == 0, "a VM without breakpoints")
    before = in_kernel()
    yield
    nothing_left(before)
    wait_until(lambda: breakpoints(beam.pid, places) == 0, "the end of all breakpoints")
    reductions = beam.stats()["reductions"]
    assert 23 == beam.plant("spawns 23")
    assert reductions < beam.stats()["reductions"]


def has(run: Run, what: str) -> bool:
    """
    Whether a run that still lives holds something of a kind; fails if it ended meanwhile.
    """
    assert run.process.poll() is None, run.process.stderr.read()
    return bool(holdings(run.pid)[what])


def loading(run: Run) -> None:
    wait_until(lambda: has(run, "prog_id"), "the first program")


def attaching(run: Run) -> None:
    wait_until(lambda: has(run, "link_id"), "the first link")


def tracing(run: Run) -> None:
    run.wait_for_counting()


def detaching(run: Run) -> None:
    run.wait_for_counting()
    links = len(holdings(run.pid)["link_id"])
    run.send(signal.SIGINT)
    wait_until(lambda: len(holdings(run.pid)["link_id"]) < links, "the first link's end")


def starting_up(run: Run) -> None:
    wait_until(lambda: "libbpf" in Path(f"/proc/{run.pid}/maps").read_text(), "libbpf")


@contextmanager
def full_pipe() -> Iterator[int]:
    """
    A pipe without room for a byte: who writes its summary there does not end.
    """
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(mmap.PAGESIZE))
        os.set_blocking(writer, True)
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


#: The kernel gives up half-way when a signal cuts it short, which one kill in three does.
MOMENTS = [starting_up, loading, *[attaching] * 4, tracing, *[detaching] * 4]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_leaves_nothing(beam: beams_run.Beam, clean: None, moment):
    """
    Killed while it starts, loads, attaches, traces or detaches, it leaves nothing, and the VM goes
    on.
    """
    with full_pipe() as output, starting(beam.pid, "--events", "all", output=output) as run:
        moment(run)
        run.send(signal.SIGKILL)
        assert -signal.SIGKILL == run.process.wait()


def test_a_kill_in_full_flight_leaves_nothing(beam: beams_run.Beam, clean: None):
    """
    Killed while a storm of events goes through the ring, it leaves nothing, and the VM goes on.
    """
    with trace(beam.pid, "--events", "all", form="jsonl") as run:
        assert "storming" == beam.ask("storm spawn 2")
        wait_until(lambda: b'"spawn"' in run.so_far(), "a first event")
        run.send(signal.SIGKILL)
        run.process.wait()
        assert beam.ask("stop").startswith("done storm ")


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "terminated"),
        (signal.SIGHUP, "hung up"),
    ],
)
def test_a_signal_ends_it_with_the_summary(
    beam: beams_run.Beam, clean: None, number: signal.Signals, why: str
):
    """
    Ctrl-C, SIGTERM and the end of the terminal give the summary of what was seen, and say why.
    """
    with trace(beam.pid, "--events", "spawn") as run:
        beam.plant("spawns 23")
        document = run.stop(number).document
    assert (23, why) == (document["events"]["spawn"]["count"], document["stopped_because"])


def test_breakpoints_are_out_when_it_has_ended(
    beam: beams_run.Beam, clean: None, places: dict[int, int]
):
    """
    A trace puts breakpoints in and has taken all of them out by the time it ends.
    """
    with trace(beam.pid) as run:
        assert breakpoints(beam.pid, places) > 15
        run.stop()
    assert 0 == breakpoints(beam.pid, places)


def test_the_witness_sees_what_a_trace_holds(beam: beams_run.Beam, clean: None):
    """
    What the other tests look for afterwards is there while a trace runs: programs, maps and links.
    """
    before = in_kernel()
    with trace(beam.pid) as run:
        held = holdings(run.pid)
        now = in_kernel()
        assert {"prog_id", "map_id", "link_id"} == {kind for kind in held if held[kind]}
        assert [] == [kind for kind in held if not held[kind] <= now[kind] - before[kind]]
        run.stop()


def test_a_duration_ends_it(beam: beams_run.Beam, clean: None):
    """
    A trace with a duration ends on its own and says so.
    """
    with starting(beam.pid, "--format", "json", "--events", "spawn", "--duration", "0.1") as run:
        document = run.wait().document
    assert "duration" == document["stopped_because"]
    assert 0.1 <= document["duration_seconds"]


def test_a_closed_pipe_ends_it_with_the_summary(beam: beams_run.Beam, clean: None):
    """
    When the reader closes the stream, the trace ends well, with its report on stderr.
    """
    with trace(beam.pid, "--events", "spawn", form="jsonl", output=subprocess.PIPE) as run:
        beam.plant("spawns 23")
        assert run.process.stdout.readline().startswith(b'{"time":')
        run.process.stdout.close()
        beam.plant("spawns 1")  # of several, the first could show that the pipe is closed
        run.process.stdout = None
        outcome = run.wait()
    assert 0 == outcome.code
    assert (24, 0) == outcome.reported("spawn")
    assert "stopped: output closed, after" in outcome.errors
    assert "Error" not in outcome.errors


#: Commands that write without end while a VM spawns.
FLOODS = {
    "trace": ("trace", "--events", "spawn,exit", "--format", "jsonl"),
    "record": ("record", "--events", "spawn,exit", "-o", "/dev/stdout"),
    "calls": ("calls", "planted:leave", "--limit", "1000000", "--format", "jsonl"),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", FLOODS)
def test_a_reader_that_does_not_read_keeps_no_command(
    beam: beams_run.Beam, clean: None, what: str, number: signal.Signals
):
    """
    Once the pipe is full, one signal ends the command, and its hooks are out.
    """
    words = (*FLOODS[what], "--duration", "0", "--max-cost", "100%", "--pid", str(beam.pid))
    reading, writing = os.pipe()
    run = Run([*SCOPE_TRACE, *words], writing)
    try:
        assert "storming" == beam.ask("storm spawn 2")
        wait_until(lambda: is_full(writing), "a full pipe")
        run.send(number)
        code, said = run.process.wait(beams_run.PATIENCE), run.process.stderr.read()
        assert 0 == code, said
        assert b"nobody reads the output" in said
    finally:
        run.close()
        os.close(reading)
        os.close(writing)
        assert beam.ask("stop").startswith("done storm ")


def test_a_closed_pipe_behind_a_summary_is_quiet(beam: beams_run.Beam, clean: None):
    """
    A document that nobody reads any more is not written, and nobody is blamed.
    """
    with trace(beam.pid, "--events", "spawn", output=subprocess.PIPE) as run:
        run.process.stdout.close()
        run.process.stdout = None
        outcome = run.stop()
    assert (0, []) == (outcome.code, outcome.complaints)


def test_the_end_of_the_target_ends_it_with_the_summary(private_emulator: Path):
    """
    A VM that dies in the middle of a trace ends it with exit code 9, and what was seen is reported.
    """
    before = in_kernel()
    with beams_run.planted("usdt25", env={"BINDIR": str(private_emulator)}) as beam:
        pid = beam.pid
        with trace(pid, "--events", "spawn,exit", form="jsonl") as run:
            beam.plant("spawns 23")
            beam.stop()
            outcome = run.wait()
    assert 9 == outcome.code
    assert (46, (23, 0)) == (len(outcome.lines), outcome.reported("spawn"))
    assert "stopped: target ended, after" in outcome.errors
    assert f"scope-trace: process {pid} ended while it was traced" == outcome.complaints[-1]
    nothing_left(before)


def test_the_end_of_the_target_leaves_a_whole_document(private_emulator: Path):
    """
    The document of a trace whose target died is as whole as any, and says why it ended.
    """
    mortal = beams_run.planted("usdt25", env={"BINDIR": str(private_emulator)})
    with mortal as beam, trace(beam.pid, "--events", "spawn,exit") as run:
        beam.plant("spawns 23")
        beam.stop()
        outcome = run.wait()
    assert 9 == outcome.code
    assert '"stopped_because": "target ended"' in outcome.output
    assert outcome.output.endswith("}\n")


def test_another_vm_from_the_same_file_pays_nothing(
    beam: beams_run.Beam, clean: None, private_emulator: Path, places: dict[int, int]
):
    """
    Of two VMs that run from one file, only the traced one has breakpoints, and only its events
    count.
    """
    with beams_run.planted("usdt25", env={"BINDIR": str(private_emulator)}) as other:
        others = hooked_addresses(other.pid)
        with trace(beam.pid) as run:
            assert breakpoints(beam.pid, places) > 15
            assert 0 == breakpoints(other.pid, others)
            other.plant("spawns 1000")
            beam.plant("spawns 23")
            assert 0 == breakpoints(other.pid, others)
            assert 23 == run.stop().events["spawn"]["count"]
        assert 0 == breakpoints(other.pid, others)
