# SPDX-License-Identifier: Apache-2.0
"""
Stock OTP 29, which hides its functions: planted counts, and functions that are the wrong ones.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from tracing import scope_trace, trace

from scope_ebpf.beam.hidden import memory, shelf
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.daemon.hooks import HookResources, TargetHooks
from scope_ebpf.daemon.looks.prepare import prepare
from scope_ebpf.daemon.watch import Watch
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.kernel.cost import UNKNOWN
from scope_ebpf.kernel.observers.program_pool import ProgramPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import beams_run

#: Commands for planted.erl, and what they plant of each event.
PLANTED = (
    *("spawns 23", "exits killed 7", "exits error 5", "ports 23", "programs 5"),
    *("gc_minor 2300", "gc_major 1700"),
)
JUDGED = "spawn,exit,gc,port_open,port_close"
COUNTS = {"spawn": 35, "exit": 35, "port_open": 28, "port_close": 28}


@pytest.fixture
def stock29(vm: Callable[[str], beams_run.Beam]) -> beams_run.Beam:
    return vm("sid29")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    An empty folder of what was found before.
    """
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    monkeypatch.setenv("SCOPE_EBPF_CACHE", str(folder))
    return folder / "functions"


def nothing_inside(pid: int, places: dict[str, Any]) -> None:
    """
    The code of each of *places* is in the VM's memory as in its file.
    """
    target = inspect(pid)
    for start, size, *_ in places.values():
        found = target.memory.read(target.base + start, size)
        assert found == target.binary.read(start, size)


def kept(cache: Path) -> tuple[Path, dict[str, Any]]:
    (path,) = cache.iterdir()
    return path, json.loads(path.read_text())


def find(beam: beams_run.Beam, cache: Path) -> tuple[Path, dict[str, Any]]:
    """
    What is found in the VM's program, which nothing has proven yet.
    """
    scope_trace("doctor", str(beam.pid))
    return kept(cache)


def watch(beam: beams_run.Beam, events: str, *commands: str, more: tuple[str, ...] = ()) -> Any:
    with trace(beam.pid, "--events", events, *more) as run:
        for command in commands:
            beam.plant(command)
        return run.stop()


def counts(outcome: Any, events: dict[str, int]) -> dict[str, Any]:
    return {event: outcome.events[event]["count"] for event in events}


def test_planted_events_are_counted_without_symbols(stock29, cache):
    """
    Spawns, exits, ports and collections are exactly those that were planted, and are proven by it.
    """
    before = stock29.stats()["collections"]
    outcome = watch(stock29, JUDGED, *PLANTED)
    collected = stock29.stats()["collections"] - before
    assert COUNTS == counts(outcome, COUNTS)
    found = outcome.events["exit"]["by_class"]
    assert (23, 7, 5) == (found["normal"], found["killed"], found["error"])
    assert collected == pytest.approx(outcome.events["gc"]["count"], abs=4)
    _, entry = kept(cache)
    assert {"spawn", "exit", "gc", "port_open", "port_close"} == set(entry["proven"])
    nothing_inside(stock29.pid, entry["places"])


def test_wrong_functions_are_taken_out_and_named(stock29, cache):
    """
    A function that is called more often, one that is not called, and an address within a function
    give no figure but a reason, while the others count on; with a budget as well.
    """
    path, entry = find(stock29, cache)
    places = entry["places"]
    resume, queue = places.pop("erts_resume_processes"), places.pop("erts_queue_proc_message")
    places["erl_create_process"] = [*resume[:2], 990, 900]
    places["erts_do_exit_process"] = [*queue[:2], 990, 900]
    places["erts_deliver_port_exit"][0] += 5
    for more in ((), ("--budget", "1%")):
        path.write_text(json.dumps(entry))
        outcome = watch(stock29, JUDGED, "messages 3000", *PLANTED, more=more)
        reasons = {event: row.get("reason") for event, row in outcome.events.items()}
        # It is decided as soon as counts differ twice.
        for event in ("spawn", "exit"):
            assert re.fullmatch(rf"hook.{event}: counted \S+, the VM counted .*", reasons[event])
        assert "no function begins where it was found" in reasons["port_close"]
        assert 28 == outcome.events["port_open"]["count"]
        assert not {"spawn", "exit", "port_close"} & set(kept(cache)[1]["proven"])
    nothing_inside(stock29.pid, places)


def test_the_daemon_exports_nothing_of_a_wrong_function(stock29, cache):
    """
    It is off in every reading until its hook is taken out with the two counts, while exits, whose
    function is the right one, are counted.
    """
    path, entry = find(stock29, cache)
    resume = entry["places"].pop("erts_resume_processes")
    entry["places"]["erl_create_process"] = [*resume[:2], 990, 900]
    path.write_text(json.dumps(entry))
    target, pool = inspect(stock29.pid), ProgramPool(1, 0.1)
    with Attacher() as attacher:
        resources = HookResources(attacher, pool, UNKNOWN)
        watch = Watch(target, "node", TargetHooks(target, prepare(target), resources, 0.05))
        try:
            shown = [watch.reading.events["spawn"].mode]
            while "spawn" not in watch.failed or "always" != watch.reading.events["exit"].mode:
                stock29.plant("spawns 23")
                watch.tick()
                shown.append(watch.reading.events["spawn"].mode)
            before = watch.reading.events["exit"].totals.sum()
            stock29.plant("spawns 23")
            watch.tick()
            last, attached = watch.reading.events, watch.hooks.session.attached
        finally:
            watch.close()
            pool.expire(everything=True)
    assert {"off"} == {*shown, last["spawn"].mode}
    assert re.fullmatch(r"hook.spawn: counted \S+, the VM counted .*", watch.failed["spawn"])
    assert "spawn" not in attached
    assert 23 == last["exit"].totals.sum() - before
    nothing_inside(stock29.pid, entry["places"])


def test_a_stream_prints_nothing_that_is_not_proven(stock29, cache):
    """
    Before a stream the VM must have counted 20 events that agree; what has agreed is streamed.
    """
    outcome = scope_trace("--pid", str(stock29.pid), "--events", "spawn,exit", "--format", "jsonl")
    assert (11, "") == (outcome.code, outcome.output)
    assert "the VM has not counted 20 yet to compare it with" in outcome.errors
    watch(stock29, JUDGED, *PLANTED)
    with trace(stock29.pid, "--events", "spawn,exit", form="jsonl") as run:
        stock29.plant("spawns 23")
        lines = run.stop().lines
    kinds = [line["event"] for line in lines if "event" in line]
    assert (23, 23) == (kinds.count("spawn"), kinds.count("exit"))


def test_a_program_without_a_reference_says_how_to_make_one(stock29, tmp_path, monkeypatch):
    """
    Where no reference fits, each event says so in one line, and nothing is attached.
    """
    (tmp_path / "shelf").mkdir()
    monkeypatch.setenv(shelf.VARIABLE, str(tmp_path / "shelf"))
    outcome = scope_trace("--pid", str(stock29.pid), "--events", "spawn")
    assert 11 == outcome.code
    assert "`scope-trace learn` makes one" in outcome.errors
    assert 1 == len(outcome.errors.splitlines())


def test_another_file_has_its_own_entry(stock29, cache):
    """
    What is kept names the file by its whole contents.
    """
    path, entry = find(stock29, cache)
    assert os.environ["SCOPE_EBPF_CACHE"] == str(cache.parent)
    assert memory.recall(path.stem, cache) is not None
    assert memory.recall("0" * 64, cache) is None
    assert entry["file"] == path.stem
