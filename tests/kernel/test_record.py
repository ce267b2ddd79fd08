# SPDX-License-Identifier: Apache-2.0
"""
Recordings of real VMs, read back.
"""

from __future__ import annotations

import collections
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from beams_run import native_functions, planted, start_beam
from perfetto_sql import ask
from recording import record
from tracing import SCOPE_TRACE, Run, require_root, scope_trace, trace, wait_until

from scope_ebpf import events
from scope_ebpf.capture.reader import Capture

N = 23


def rows(path: Path, name: str) -> np.ndarray:
    """
    All records of one kind in a capture.
    """
    batches = [b[b["kind"] == events.KINDS[name].id] for b in Capture(path).batches()]
    return np.concatenate(batches).view(events.RECORDS[name])


@pytest.fixture(scope="module", params=["stock25", "trixie27"])
def ring(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """
    A recorded ring: the capture, the pids in their order, and where each message was handled.
    """
    require_root()
    path = tmp_path_factory.mktemp("ring") / "run.scope"
    with start_beam(request.param, "+S", "2", "-s", "ring") as beam:
        beam.expect("ready")
        made = beam.ask(f"make {N}").split()[1:]
        with record(beam.pid, path) as run:
            assert N * N == beam.plant("go")
            outcome = run.stop()
        assert 0 == outcome.code, outcome.errors
        where = beam.ask("report").split()[1]
    handled = {pid: where[n * N : (n + 1) * N] for n, pid in enumerate(made)}
    return path, outcome, handled


#: Every arrow, by the pids that are noted at both of its ends.
FLOWS = """
    select extract_arg(a.arg_set_id, 'debug.to') as receiver,
           extract_arg(b.arg_set_id, 'debug.from') as sender,
           a.ts as sent, b.ts as received
    from flow join slice a on flow.slice_out = a.id join slice b on flow.slice_in = b.id
    order by b.ts"""


@pytest.mark.parametrize("kind", ["stock25", "trixie27"])
def test_a_call_of_a_server_is_two_arrows(kind: str, tmp_path: Path):
    """
    Of 23 gen_server:calls every request is an arrow, and so is every reply, which goes to an alias.
    """
    require_root()
    path, target = tmp_path / "run.scope", tmp_path / "run.pftrace"
    with start_beam(kind, "-s", "asking") as beam:
        beam.expect("ready")
        with record(beam.pid, path) as run:
            client, server = beam.ask(f"calls {N}").split()[2:]
            assert 0 == run.stop().code
    said = scope_trace("export", str(path), "--to", "perfetto", "-o", str(target))
    assert 0 == said.code, said.errors
    (flows,) = ask(target, FLOWS)
    passed = collections.Counter((flow["sender"], flow["receiver"]) for flow in flows)
    assert N == passed[client, server]
    assert N == passed[server, client]


#: Every time that a process ran, by the thread on whose track it is.
RAN = """
    select thread.name as thread, extract_arg(slice.arg_set_id, 'debug.pid') as pid,
           extract_arg(slice.arg_set_id, 'debug.reductions') as reductions,
           slice.ts as begin, slice.ts + slice.dur as end
    from slice join thread_track on slice.track_id = thread_track.id join thread using (utid)
    where thread.name glob 'scheduler *' and slice.dur > 0 and slice.name not glob 'gc *'
    order by slice.ts"""
#: What each process with a track of its own did, and for how long.
DID = """
    select process_track.name as track, slice.name as what, slice.ts as begin, slice.dur as dur
    from slice join process_track on slice.track_id = process_track.id
    where slice.name in ('running', 'runnable', 'waiting') order by slice.ts"""
SCHED = """
    select thread.name as thread, sched.ts as begin, sched.ts + sched.dur as end
    from sched join thread using (utid) where thread.name glob 'scheduler *'"""
BROKEN = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"


def test_a_ring_of_processes_in_perfetto(ring, tmp_path: Path):
    """
    Of 23 processes that pass 23 messages each, Perfetto shows every message as an arrow from its
    sender to its receiver, and every message handled on the scheduler that the process says.
    """
    path, _, handled = ring
    target = tmp_path / "run.pftrace"
    said = scope_trace("export", str(path), "--to", "perfetto", "-o", str(target))
    assert 0 == said.code, said.errors
    flows, ran, did, sched, broken = ask(target, FLOWS, RAN, DID, SCHED, BROKEN)
    pids = list(handled)
    following = dict(zip(pids, pids[1:] + pids[:1], strict=True))
    passed = collections.Counter(
        (flow["sender"], flow["receiver"]) for flow in flows if flow["sender"] in handled
    )
    assert dict.fromkeys(following.items(), N) == passed
    assert all(flow["sent"] < flow["received"] for flow in flows)
    places: dict[str, str] = collections.defaultdict(str)
    for flow in flows:
        if flow["sender"] in handled:
            (thread,) = (
                span["thread"]
                for span in ran
                if span["pid"] == flow["receiver"]
                and span["begin"] <= flow["received"] <= span["end"]
            )
            places[flow["receiver"]] += thread.removeprefix("scheduler ")
    assert handled == places
    assert {"1", "2"} <= set("".join(places.values()))
    consistent(path, ran, did)
    assert {"scheduler 1", "scheduler 2"} <= {s["thread"] for s in sched}
    # The kernel does not report every single switch.
    assert {"mismatched_sched_switch_tids"} >= {row["name"] for row in broken}


def consistent(path: Path, ran: list[dict], did: list[dict]) -> None:
    """
    Slices, their lengths and reductions are those of the records, and none overlaps another.
    """
    schedules = rows(path, "schedule")
    outs = schedules[schedules["class"] == 1]
    ended = [span for span in ran if span["reductions"] is not None]
    assert len(outs) == len(ended)
    assert int(outs["reductions"].sum()) == sum(span["reductions"] for span in ended)
    timed = outs[outs["duration_ns"] != 0xFFFFFFFFFFFFFFFF]
    assert len(timed) >= N
    lengths = collections.Counter(span["end"] - span["begin"] for span in ended)
    assert collections.Counter(timed["duration_ns"].tolist()) <= lengths
    last: dict[str, int] = {}
    for span in ran:
        assert last.get(span["thread"], 0) <= span["begin"]
        last[span["thread"]] = span["end"]
    until: dict[str, int] = {}
    for state in did:
        assert until.get(state["track"], 0) <= state["begin"]
        until[state["track"]] = state["begin"] + state["dur"]


def test_the_summary_of_a_capture_is_that_of_its_trace(ring):
    """
    What `summary` prints of a capture is, to the letter, what the trace printed when it ended.
    """
    path, outcome, _ = ring
    assert outcome.output == scope_trace("summary", str(path)).output
    document = json.loads(scope_trace("summary", str(path), "--format", "json").output)
    assert 0 == document["lost_total"]
    assert len(rows(path, "send")) == document["events"]["send"]["count"]


def test_lines_of_a_capture_are_those_of_the_stream(tmp_path: Path):
    """
    The JSON lines of a capture have the same fields and facts as those of a live trace.
    """
    require_root()
    path = tmp_path / "run.scope"
    with planted("stock25") as beam:
        _, main, partner = beam.ask("who").split()
        with record(beam.pid, path, "--events", "send,spawn,exit") as run:
            beam.plant(f"exits other {N}")
            beam.plant(f"messages {N}")
            run.stop()
        with trace(beam.pid, "--events", "send,spawn,exit", form="jsonl") as run:
            beam.plant(f"exits other {N}")
            beam.plant(f"messages {N}")
            live = run.stop().lines
    lines = scope_trace("export", str(path), "--to", "jsonl", "-o", "-").lines

    def facts(found: list[dict]) -> collections.Counter:
        # Who ended before anybody looked has no name.
        varying = ("time", "tid", "message", "who")
        pids = {line["pid"] for line in found} - {main, partner}
        return collections.Counter(
            tuple(
                (key, "a pid" if value in pids else value)
                for key, value in line.items()
                if key not in varying
            )
            for line in found
        )

    assert facts(live) == facts(lines)
    for found in (live, lines):
        assert {"planted_main"} == {x["who"] for x in found if x["pid"] == main}
        assert {None, "planted:leave/1"} >= {x["who"] for x in found if x["pid"] != main}
    assert {"planted"} == {x["reason"] for x in lines if x["event"] == "exit"}


def test_long_calls_of_a_capture_are_named_without_the_vm(tmp_path: Path):
    """
    What ran for 20 ms was ``names_spin``, called by ``names_nif:spin/1``: the capture knows it.
    """
    require_root()
    path, environment = tmp_path / "run.scope", native_functions(tmp_path)
    with start_beam("stock25", "-s", "witness", env=environment) as beam:
        beam.expect("ready")
        with record(beam.pid, path, "--events", "long_call", "--slow-call", "10") as run:
            assert beam.ask("spin spin 3 20") == "done spin 3"
            run.stop()
    lines = scope_trace("export", str(path), "--to", "jsonl", "-o", "-").lines
    found = [(x["function"], x["symbol"]) for x in lines if x["class"] == "nif"]
    assert [("names_nif:spin/1", "names_spin")] * 3 == found


def test_a_capture_says_when_it_is_full(tmp_path: Path):
    """
    A file that reaches its bound has no more bytes than that, says so, and is whole.
    """
    require_root()
    path = tmp_path / "run.scope"
    with planted("stock25") as beam, record(beam.pid, path, "--max-size", "200K") as run:
        beam.send("storm pingpong 2")
        outcome = run.wait()
    assert 0 == outcome.code
    assert "stopped: the capture reached --max-size" in outcome.output
    assert "events found no room in it" in outcome.errors
    assert path.stat().st_size <= 200 << 10
    assert outcome.output == scope_trace("summary", str(path)).output


def test_a_full_disk_ends_a_recording_well(tmp_path: Path):
    """
    Without room on the disk the recording ends with one line, and what is there can be read.
    """
    require_root()
    with planted("stock25") as beam:
        words = ("record", "--pid", str(beam.pid), "--duration", "0", "-o", str(tmp_path / "f"))
        script = (
            f'mount -t tmpfs -o size=256k x {tmp_path} && "$@"; code=$?'
            f"; cp {tmp_path}/f {tmp_path}.copy; exit $code"
        )
        run = Run(["unshare", "--mount", "sh", "-c", script, "sh", *SCOPE_TRACE, *words], None)
        try:
            run.wait_for_counting()
            beam.send("storm pingpong 2")
            outcome = run.wait()
        finally:
            run.close()
    assert 10 == outcome.code
    assert "No space left on device" in outcome.errors
    contents = Capture(f"{tmp_path}.copy").contents()
    assert "" == contents.damage
    assert contents.records > 1000


def test_a_vm_that_is_killed_leaves_its_last_events(tmp_path: Path):
    """
    A VM that is killed while it is recorded is read to its last event, and the exit code says so.
    """
    require_root()
    path = tmp_path / "run.scope"
    with planted("stock25") as beam, record(beam.pid, path) as run:
        beam.plant(f"hibernates {N}")
        os.kill(beam.pid, signal.SIGKILL)
        outcome = run.wait()
    assert 9 == outcome.code
    assert N == len(rows(path, "hibernate"))
    contents = Capture(path).contents()
    assert ("", "target ended") == (contents.damage, contents.end.stopped_because)
    assert outcome.output == scope_trace("summary", str(path)).output


def test_a_recording_that_is_killed_can_be_read_to_its_last_block(tmp_path: Path):
    """
    A recorder that is killed leaves a capture without an end, which is read as far as it goes.
    """
    require_root()
    path = tmp_path / "run.scope"
    with planted("stock25") as beam, record(beam.pid, path) as run:
        beam.plant(f"hibernates {N}")

        def written() -> bool:
            return len(rows(path, "hibernate")) == N

        wait_until(lambda: any(len(b) for b in Capture(path).batches()) and written(), "a block")
        run.send(signal.SIGKILL)
        run.process.wait()
    summary = scope_trace("summary", str(path))
    assert 0 == summary.code
    assert "the capture has no end" in summary.output


def test_a_flight_recorder_writes_when_the_vm_dies(tmp_path: Path):
    """
    A flight recorder's file holds what happened last before its VM was killed, in bounded memory.
    """
    require_root()
    path = tmp_path / "run.scope"
    with planted("stock25") as beam, record(beam.pid, path, "--ring", "300K") as run:
        beam.plant("messages 100000")
        assert not path.exists()
        beam.plant(f"hibernates {N}")
        os.kill(beam.pid, signal.SIGKILL)
        outcome = run.wait()
    assert 9 == outcome.code
    assert path.stat().st_size < 400 << 10
    contents = Capture(path).contents()
    assert N == len(rows(path, "hibernate"))
    assert contents.records < 2 * 100_000
    assert contents.last_ns - contents.first_ns < 60e9
    assert any("flight recorder" in note for note in contents.end.notes)
    assert "planted_main" in {name.name for name in contents.processes.values()}


def test_a_flight_recorder_writes_when_it_is_asked_and_goes_on(tmp_path: Path):
    """
    SIGUSR1 has a file written, another one a second file, and the end a last one.
    """
    require_root()
    path = tmp_path / "run.scope"
    with planted("stock25") as beam, record(beam.pid, path, "--ring", "64MB") as run:
        for number, name in enumerate(("run.scope", "run.2.scope"), 1):
            beam.plant(f"hibernates {N}")
            run.send(signal.SIGUSR1)
            wait_until((tmp_path / name).exists, name)
            assert number * N == len(rows(tmp_path / name, "hibernate"))
        outcome = run.stop()
    assert 0 == outcome.code
    assert "SIGUSR1 asked for it" in outcome.errors
    assert 2 * N == len(rows(tmp_path / "run.3.scope", "hibernate"))


def test_a_flight_recorder_writes_when_the_vm_stalls(tmp_path: Path):
    """
    A VM that is stopped is noticed, once, and what it did before is in the file.
    """
    require_root()
    path = tmp_path / "run.scope"
    words = ("--ring", "64MB", "--stall", "1")
    with planted("stock25") as beam, record(beam.pid, path, *words) as run:
        beam.plant(f"hibernates {N}")
        beam.freeze()
        wait_until(path.exists, "the capture of a stall")
        beam.thaw()
        beam.plant(f"hibernates {N}")
        outcome = run.stop()
    assert N == len(rows(path, "hibernate"))
    assert "the VM is stopped" in Capture(path).contents().end.stopped_because
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.2.scope", "run.scope"]
    assert 0 == outcome.code


def switches(pid: int) -> int:
    """
    How often the threads of a process gave up their CPU, as the kernel counts it.
    """
    total = 0
    for folder in Path(f"/proc/{pid}/task").iterdir():
        found = re.findall(r"ctxt_switches:\s*(\d+)", (folder / "status").read_text())
        total += sum(map(int, found))
    return total


def test_the_kernels_switches_are_those_that_it_counts(tmp_path: Path):
    """
    As many threads leave a CPU in a capture as the kernel itself has counted meanwhile.
    """
    require_root()
    path = tmp_path / "run.scope"
    with planted("stock25") as beam:
        outer = switches(beam.pid)
        with record(beam.pid, path, "--events", "thread") as run:
            inner = switches(beam.pid)
            for _ in range(N):
                beam.plant("messages 1000")
            inner = switches(beam.pid) - inner
            run.stop()
        outer = switches(beam.pid) - outer
    seen = int((rows(path, "thread")["class"] == 1).sum())
    # The kernel does not report every single switch.
    assert inner * 0.97 <= seen <= outer
