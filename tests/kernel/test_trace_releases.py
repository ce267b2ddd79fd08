# SPDX-License-Identifier: Apache-2.0
"""
Planted counts of every event on stock builds of other releases: OTP 27, and 29, which hides its
functions. Those of OTP 25 are in test_trace_counts.py, those between nodes in test_trace_dist.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import beams_run
import pytest
from tracing import scope_trace, trace

from scope_ebpf.beam.elf.binary import Binary

if TYPE_CHECKING:
    from collections.abc import Callable

RELEASES = ("trixie27", "sid29")
MINOR, MAJOR, BUSY = 2300, 1700, 3
#: What planted.erl does in one trace, and what of it is exact.
PLANTED = (
    *("spawns 23", "exits killed 7", "exits error 5", "ports 23", "programs 5"),
    *(f"gc_minor {MINOR}", f"gc_major {MAJOR}"),
)
COUNTS = {"spawn": 35, "exit": 35, "port_open": 28, "port_close": 28}
EXITS = {"normal": 23, "shutdown": 0, "killed": 7, "error": 5, "other": 0}


@pytest.fixture(scope="module", params=RELEASES)
def beam(request: pytest.FixtureRequest, vm: Callable[[str], beams_run.Beam]) -> beams_run.Beam:
    return vm(request.param)


def watch(beam: beams_run.Beam, events: str, *commands: str, more: tuple[str, ...] = ()) -> Any:
    """
    What a trace of *events* says of each of them while the VM carries out *commands*.
    """
    with trace(beam.pid, "--events", events, *more) as run:
        for command in commands:
            beam.plant(command)
        return run.stop().events


def counts(events: dict[str, Any], wanted: dict[str, int]) -> dict[str, Any]:
    return {event: events[event]["count"] for event in wanted}


def test_processes_ports_and_collections_are_counted(beam):
    """
    Spawns, exits by their class, ports and collections are those that were planted.
    """
    with trace(beam.pid, "--events", ",".join((*COUNTS, "gc"))) as run:
        before = beam.stats()["collections"]
        for command in PLANTED:
            beam.plant(command)
        collected = beam.stats()["collections"] - before
        events = run.stop().events
    assert COUNTS == counts(events, COUNTS)
    assert EXITS.items() <= events["exit"]["by_class"].items()
    found = events["gc"]["by_class"]
    assert collected == pytest.approx(found["minor"] + found["major"], abs=4)
    assert (MINOR, MAJOR) == (
        pytest.approx(found["minor"], abs=4),
        pytest.approx(found["major"], abs=4),
    )


def switches(pid: int) -> int:
    """
    How often the threads of a process gave up a CPU, by the kernel's own count.
    """
    lines = [
        line
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
    ]
    return sum(int(line.split()[1]) for line in lines if "voluntary_ctxt_switches" in line)


def test_messages_and_hibernations_are_counted(beam):
    """
    2,300 messages, and one that wakes from each hibernation, are as many sends and receives.
    """
    events = watch(beam, "send,receive,hibernate", "messages 2300", "hibernates 23")
    assert {"local": 2300 + 23, "remote": 0} == events["send"]["by_class"]
    # Each command is received as well.
    assert 2300 + 23 + 2 == events["receive"]["count"]
    assert 23 == events["hibernate"]["count"]


def test_schedules_are_counted(beam):
    """
    Schedules are the VM's context switches, those of its threads the kernel's.
    """
    threads = len(list(Path(f"/proc/{beam.pid}/task").iterdir()))
    outside = switches(beam.pid)
    with trace(beam.pid, "--events", "schedule,thread") as run:
        inside = switches(beam.pid)
        before = beam.stats()["context_switches"]
        beam.plant("messages 2300")
        switched = beam.stats()["context_switches"] - before
        inside = switches(beam.pid) - inside
        events = run.stop().events
    outside = switches(beam.pid) - outside
    found = events["schedule"]["by_class"]
    assert found["in"] == pytest.approx(found["out"], abs=2)
    # The VM counts those of dirty schedulers too, and leaves a few of its own out.
    assert switched == pytest.approx(found["in"], rel=0.01, abs=20)
    assert inside - threads <= events["thread"]["by_class"]["on"] <= outside + threads


def test_modules_and_busy_ports_are_counted(beam):
    """
    Modules that are loaded, and ports that become busy, are those that were planted.
    """
    events = watch(beam, "code_load,port_busy", "code_loads 23", *["busy_port 4"] * BUSY)
    assert {"code_load": 23, "port_busy": BUSY} == counts(
        events, {"code_load": 23, "port_busy": BUSY}
    )


def test_native_calls_are_counted_by_what_was_called(beam):
    """
    Calls of NIFs and BIFs, on normal and dirty schedulers, are those that were planted.
    """
    more = ("--slow-call", "0")
    every = watch(beam, "long_call", "gc_major 23", "dirty_calls 29", more=more)
    expected = {"nif": 2 * 29, "bif": 23, "dirty_nif": 29, "dirty_bif": 0}
    assert expected == every["long_call"]["by_class"]


def test_a_release_after_all_known_ones_with_other_structs_gets_no_hook(
    private_emulator: Path, tmp_path: Path
):
    """
    A VM that says it is OTP 30, with the structs of 25: one line each, and no breakpoint.
    """
    shutil.copytree(private_emulator, tmp_path, dirs_exist_ok=True)
    emulator = tmp_path / "beam.smp"
    binary, code = Binary.open(emulator), bytearray(emulator.read_bytes())
    for name, text in (("etp_otp_release", b"30"), ("etp_erts_version", b"18.0-r")):
        symbol = binary.symbol(name)
        at = binary.file_offset(symbol.address)
        code[at : at + symbol.size] = text.ljust(symbol.size, b"\0")
    emulator.write_bytes(code)
    with beams_run.planted("usdt25", env={"BINDIR": str(tmp_path)}) as beam:
        pid, record = str(beam.pid), ("record", "-o", str(tmp_path / "run.scope"))
        for words in ((), ("--exact", "--events", "spawn,exit"), ("--stream",), record):
            outcome = scope_trace(*words, "--pid", pid, "--duration", "1")
            assert 11 == outcome.code
            assert outcome.errors.startswith(
                f"scope-trace: process {pid} (OTP 30) has no hook for what was asked for (its "
                "release is not known here, and the layout of no other one passes the checks)"
            )
            assert 1 == len(outcome.errors.splitlines())
        examined = scope_trace("doctor", pid, "--format", "json").document
        for words in (("top", "-n", "1"), ("schedulers", "--once")):
            outcome = scope_trace(*words, "--pid", pid)
            assert (13, "", 1) == (
                outcome.code,
                outcome.output,
                len(outcome.errors.splitlines()),
            )
    assert ("30", "18.0-r") == tuple(
        examined["target"][name] for name in ("otp_release", "erts_version")
    )
    assert {"off"} == {hook["state"] for hook in examined["hooks"]}
