# SPDX-License-Identifier: Apache-2.0
"""
Profiles of real VMs whose CPU time and waiting were planted, and measured by the VM itself.
"""

from __future__ import annotations

import collections
import json
import math
import os
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from beams_run import WORKLOADS, start_beam
from tracing import (
    SCOPE_TRACE,
    Run,
    in_kernel,
    nothing_left,
    require_root,
    scope_trace,
    wait_until,
)

#: What was planted: the same work, so many times (split.erl).
PLANTED = {"split_a": 0.6, "split_b": 0.3, "split_c": 0.1}
#: Of a share that was counted and not sampled.
EXACT = 0.05
#: How many standard errors a sampled share may be wrong by.
ERRORS = 5


@contextmanager
def splitting(kind: str, *flags: str):
    """
    A VM that runs ``split.erl`` and has loaded its modules.
    """
    require_root()
    with start_beam(kind, *flags, "-s", "split") as beam:
        beam.expect("ready")
        beam.ask("run 1")
        yield beam


@contextmanager
def profiling(beam, *words: str):
    """
    A profile of a VM without an end, sampling.
    """
    command = ("profile", "--pid", str(beam.pid), "--duration", "0", *words)
    run = Run([*SCOPE_TRACE, *command], None)
    try:
        run.wait_for_counting()
        yield run
    finally:
        run.close()


def profiled(beam, tmp_path: Path, *words: str, seconds: int, workload: str) -> tuple[dict, list]:
    """
    Profile while *workload* runs; the document and what the VM answered.
    """
    output = tmp_path / "out.speedscope.json"
    with profiling(beam, *words, "-o", str(output)) as run:
        beam.send(f"{workload} {seconds}")
        answer = beam.readline()
        outcome = run.stop()
    assert 0 == outcome.code, outcome.errors
    return json.loads(output.read_text()), [int(n) for n in answer.split()[2:]]


def stacks(document: dict) -> list[tuple[list[dict], int]]:
    frames = document["shared"]["frames"]
    whole = document["profiles"][0]
    pairs = zip(whole["samples"], whole["weights"], strict=True)
    return [([frames[place] for place in stack], weight) for stack, weight in pairs]


def shares(document: dict, function: str) -> dict[str, float]:
    """
    The share of time beneath M:*function*, by module.
    """
    found = collections.Counter()
    for stack, weight in stacks(document):
        for module in PLANTED:
            if any(frame["name"] == f"{module}:{function}" for frame in stack):
                found[module] += weight
    return {module: found[module] / sum(found.values()) for module in PLANTED}


def line_of(module: str, text: str) -> int:
    lines = (WORKLOADS / f"{module}.erl").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("stock25", ()),
        ("stock25", ("+JPperf", "true")),
        ("trixie27", ()),
        ("trixie27", ("+JPperf", "true")),
        ("sid29", ()),
        ("sid29", ("+JPperf", "true")),
    ],
    ids=["25", "25-frame-pointers", "27", "27-frame-pointers", "29", "29-frame-pointers"],
)
def test_a_planted_split_of_cpu_time_is_found_with_whole_stacks_to_the_line(
    kind: str, flags: tuple[str, ...], tmp_path: Path
):
    """
    Three modules have the shares of the work that each does, and each stack leads from the
    process's first function down to the line that computes.
    """
    with splitting(kind, *flags) as beam:
        document, _ = profiled(beam, tmp_path, seconds=3, workload="run")
    found = shares(document, "work/1")
    spinning = [stack for stack, _ in stacks(document) if stack[-1]["name"].endswith(":spin/2")]
    assert len(spinning) > 30
    for module, share in PLANTED.items():
        error = math.sqrt(share * (1 - share) / len(spinning))
        assert found[module] == pytest.approx(share, abs=ERRORS * error), module
    odd = []
    for stack in spinning:
        names = [frame["name"] for frame in stack]
        # On a slow machine who ran may have ended before it was looked up.
        names[0] = names[0].removesuffix(" (ended)")
        module = names[-1].partition(":")[0]
        assert {f"{module}:spin/2", f"{module}:work/1", "split:turn/1"} <= set(names)
        outer = names[:4] == ["split:worker/2", "split:worker/2", "split:turns/2", "split:turn/1"]
        inner = names[4:] == [f"{module}:work/1"] * (len(names) - 5) + [f"{module}:spin/2"]
        if not (outer and inner):
            odd.append(names)
        line = stack[-1]["line"]
        assert line in (line_of(module, "spin(0, Sum)"), line_of(module, "spin(N, Sum)"))
        assert stack[-2]["line"] in (line_of(module, "Sum = spin"), line_of(module, "Sum + work"))
        assert stack[-1]["file"].endswith(f"{module}.erl")
    assert len(odd) < 0.05 * len(spinning), odd[0]


@pytest.mark.parametrize("kind", ["stock25", "trixie27"])
def test_planted_waits_are_named_and_as_long_as_they_were(kind: str, tmp_path: Path):
    """
    Two waits of one process, in two modules, have the time that the VM measured around them.
    """
    with splitting(kind) as beam:
        document, truth = profiled(beam, tmp_path, "--off-cpu", seconds=3, workload="waits")
    found = collections.Counter()
    for stack, weight in stacks(document):
        names = [frame["name"] for frame in stack]
        if "split:waiter/2" in names:
            assert "[waits for a message or a timeout]" == names[-1]
            found[names[-2]] += weight / 1000
    assert found["split_a:wait/1"] == pytest.approx(truth[0], rel=EXACT)
    assert found["split_b:wait/1"] == pytest.approx(truth[1], rel=EXACT)


def test_who_waits_all_the_time_is_shown_with_why_and_for_whom():
    """
    23 callers of one server, one process that another suspended, and one at a port that is busy.
    """
    require_root()
    with start_beam("stock25", "-s", "ailing") as beam:
        beam.expect("ready")
        for case in ("crowd", "suspended", "port"):
            beam.ask(f"plant {case}")
        words = ("profile", "--off-cpu", "--pid", str(beam.pid), "--duration", "1")
        lines = [line.strip() for line in scope_trace(*words).output.splitlines()]
    (head,) = [line for line in lines if line.startswith("all the time: ")]
    assert re.search(r"besides [1-9]\d* servers without a message", head)
    (callers,) = [line for line in lines if "for checkout" in line]
    assert callers.startswith(
        "23  ailing:caller/0: waits for a reply, for checkout, in gen:do_call"
    )
    (debugged,) = [line for line in lines if "debugged:" in line]
    assert debugged.startswith("1  debugged: suspended, in ailing:hold/0")
    (printer,) = [line for line in lines if "printer:" in line]
    assert printer.startswith("1  printer: suspended, in erts_internal:port_command/3")
    assert "called by erlang:port_command/2" in printer
    # Those that others hold up come before those that merely wait.
    waits = [line for line in lines if "waits for a message or a timeout, in " in line]
    assert max(map(lines.index, (callers, debugged, printer))) < lines.index(waits[0])


def test_an_interpreter_shows_processes_and_no_erlang_functions(tmp_path: Path):
    """
    What it runs is in its registers; the word that it left in the process is of another time.
    """
    with splitting("emu25") as beam:
        document, _ = profiled(beam, tmp_path, seconds=1, workload="run 2")
    # The first frame is the process, by its initial call.
    assert "split:worker/2" in {stack[0]["name"] for stack, _ in stacks(document)}
    kinds = {frame["name"] for stack, _ in stacks(document) for frame in stack[1:]}
    assert "process_main" in kinds
    assert not [name for name in kinds if name.startswith(("split", "erlang:", "lists:"))]


def test_code_that_is_loaded_meanwhile_has_its_names(tmp_path: Path):
    """
    A module that comes after the profile began is named like all others.
    """
    require_root()
    output = tmp_path / "out.folded"
    with start_beam("stock25", "-s", "split") as beam:
        beam.expect("ready")
        with profiling(beam, "-o", str(output)) as run:
            assert beam.ask("run 2").startswith("done run ")
            outcome = run.stop()
    assert 0 == outcome.code, outcome.errors
    lines = output.read_text().splitlines()
    worker = {x: int(x.rpartition(" ")[2]) for x in lines if "split:turn/1" in x}
    named = [time for line, time in worker.items() if re.search(r"split_[abc]:", line)]
    assert named
    assert sum(named) >= 0.99 * sum(worker.values())


#: Work outside of Erlang code, and how its stack reads: a BIF, a NIF of a library, one on a dirty
#: scheduler, and a garbage collection.
NATIVE = {
    "bif": (
        "L = lists:seq(1, 20000), spawn(fun F() -> lists:member(0, L), F() end)",
        r"erl_eval:do_apply/\d [^;]*;(beam_jit_call_bif;)?lists_member_2",
    ),
    "nif": (
        "B = binary:copy(<<1>>, 100000), spawn(fun F() -> crypto:hash(sha256, B), F() end)",
        r"crypto:hash_update_nif/2;beam_jit_call_nif;hash_update_nif;SHA256_Update",
    ),
    "dirty": (
        'spawn(fun F() -> file:read_file("/usr/bin/bash"), F() end)',
        r"^file_server_2;.*prim_file:read_file/1[^;]*;[^;]*;erts_call_dirty_nif;.*;do_readv_\[k\]",
    ),
    "gc": (
        "L = lists:seq(1, 500000), spawn(fun F() -> erlang:garbage_collect(), L, F() end)",
        r"erl_eval:do_apply/\d [^;]*;.*erts_garbage_collect\w*;beam.smp\+0x",
    ),
}


@pytest.mark.parametrize("what", NATIVE)
def test_native_code_stands_above_the_erlang_function_that_called_it(what: str, tmp_path: Path):
    """
    A BIF, a NIF, a dirty one and a collection have names of their own, each where it was called.
    """
    require_root()
    code, pattern = NATIVE[what]
    output = tmp_path / "out.folded"
    with start_beam("stock25", eval=f'{code}, io:format("ready~n")') as beam:
        beam.expect("ready")
        words = ("--pid", str(beam.pid), "--duration", "2", "-o", str(output))
        outcome = scope_trace("profile", *words)
    assert 0 == outcome.code, outcome.errors
    lines = output.read_text().splitlines()
    time = {line: int(line.rpartition(" ")[2]) for line in lines}
    found = sum(time[line] for line in lines if re.search(pattern, line))
    assert found > 0.2 * sum(time.values()), output.read_text()


def test_a_profile_of_a_vm_that_ends_is_written_and_says_so(tmp_path: Path):
    """
    What was seen until then is in the file, and the exit code says how it ended.
    """
    output = tmp_path / "out.folded"
    with splitting("stock25") as beam, profiling(beam, "-o", str(output)) as run:
        beam.send("run 20")
        time_for_samples(beam.pid)
        os.kill(beam.pid, signal.SIGKILL)
        outcome = run.wait()
    assert 9 == outcome.code
    assert "ended while it was profiled" in outcome.errors
    assert "split:" in output.read_text()


def time_for_samples(pid: int) -> None:
    """
    Return when a VM has used a second of CPU.
    """

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used()
    wait_until(lambda: used() > before + 1, "a second of CPU time")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--hz", "0"), 2, "--hz wants 1 to 999"),
        (("--hz", "100000"), 2, "--hz wants 1 to 999"),
        (("-o", "out.pdf"), 2, "its ending names no format"),
        (("-o", "/nonexistent/out.folded"), 10, "cannot write the output /nonexistent/out.folded"),
        (("--pid", "999999999"), 3, "there is no process 999999999"),
    ],
)
def test_a_mistake_is_said_in_one_line(stock, words: tuple[str, ...], code: int, said: str):
    """
    Nothing was started, and what to do is said.
    """
    outcome = scope_trace("profile", "--pid", str(stock.pid), "--duration", "1", *words)
    assert code == outcome.code
    (line,) = outcome.errors.splitlines()
    assert said in line


def test_waiting_cannot_be_seen_where_symbols_are_hidden(tmp_path: Path):
    """
    OTP 29 hides its functions: off-CPU is refused with that reason.
    """
    with splitting("sid29") as beam:
        outcome = scope_trace("profile", "--off-cpu", "--pid", str(beam.pid), "--duration", "1")
    assert 11 == outcome.code
    assert "waiting cannot be seen" in outcome.errors


def test_a_profile_leaves_nothing_behind(stock, tmp_path: Path):
    """
    Programs, maps and links are gone after the end, by Ctrl-C and by SIGKILL.
    """
    before = in_kernel()
    for number in (signal.SIGINT, signal.SIGKILL):
        for more in ((), ("--off-cpu",)):
            with profiling(stock, *more) as run:
                run.stop(number)
            nothing_left(before)
