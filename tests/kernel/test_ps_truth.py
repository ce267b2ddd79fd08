# SPDX-License-Identifier: Apache-2.0
"""
What ``ps`` shows of processes that change while they are read, compared with the truth.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import beams_run
import numpy as np
import pytest
from moving_run import CALL, PREEMPTED, STACKS, ask

from scope_ebpf.beam.memory.moment import moments, reread, stood
from scope_ebpf.beam.processes.detail import FIELDS, find, frames
from scope_ebpf.beam.processes.sizes import LIMIT
from scope_ebpf.beam.processes.table import RUNNING
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.beam.vm.schedulers import running_nifs
from scope_ebpf.cli.process_text import lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scope_ebpf.beam.vm.target import Target

ANSWERS = 30


@pytest.fixture(scope="module")
def moving() -> Iterator[tuple[beams_run.Beam, Target]]:
    """
    A stock VM that runs ``moving.erl``.
    """
    beams_run.require(os.geteuid() == 0, "reading another process's memory takes root")
    with beams_run.start_beam("stock25", "-s", "moving") as beam:
        beam.expect("ready")
        yield beam, inspect(beam.pid)


@pytest.mark.parametrize("name", STACKS)
def test_no_frame_is_of_another_process(moving: tuple[beams_run.Beam, Target], name: str):
    """
    A process that runs every few milliseconds has its own frames alone, unless it is said to move.
    """
    still = _still(moving[1], name, "stack")
    seen = {tuple(frame["function"] for frame in answer["stack"]) for answer in still}
    assert seen <= STACKS[name]


def _still(target: Target, name: str, *parts: str) -> list[dict[str, Any]]:
    """
    As many answers as are wanted in which none of the *parts*, or nothing, is said to have moved.
    """
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + beams_run.PATIENCE
    while len(found) < ANSWERS:
        assert time.monotonic() < deadline, f"{len(found)} answers of {name} did not move"
        answer = ask(target, name)
        if not set(parts or answer["moved"]) & set(answer["moved"]):
            found.append(answer)
    return found


def test_a_process_that_was_preempted_has_its_own_frames_alone():
    """
    Beside 200 others that never rest, on one scheduler, it is seen waiting in its fold, too.
    """
    with beams_run.start_beam("stock25", "+S", "1:1", "-s", "moving") as beam:
        beam.expect("ready")
        assert "done hog" == beam.ask("hog 200")
        target = inspect(beam.pid)
        viewer, deadline = Viewer(target, FIELDS), time.monotonic() + beams_run.PATIENCE
        rows, seen = find(viewer, "moving_busy"), set()
        while not seen & PREEMPTED and time.monotonic() < deadline:
            moment = next(moments(viewer, rows))
            if "stack" not in moment.moved:
                seen.add(tuple(map(str, frames(viewer, moment))))
    assert seen & PREEMPTED
    assert seen <= STACKS["moving_busy"]


def test_what_a_process_did_while_its_row_was_copied_is_seen():
    """
    The front of a copy is of before it ran and the back of after: the next copy shows it.
    """
    row = np.zeros(1, [(name, np.uint64) for name in ("id", "pointer", "state", "reductions")])
    later = row.copy()
    later["reductions"] = 23
    torn = row.copy()  # its work is not counted yet, and it rests again
    copies = iter([torn, later])
    after, busy = reread(lambda: next(copies))
    assert (False, False) == (busy, stood(row, after, ["reductions"]))
    still = iter([row, row])
    after, busy = reread(lambda: next(still))
    assert (False, True) == (busy, stood(row, after, ["reductions"]))
    later["state"] = RUNNING
    assert reread(lambda: later)[1]
    assert reread(lambda: row[:0])[1]


def test_the_mailbox_and_watchers_of_a_server_that_moves_are_of_one_moment(
    moving: tuple[beams_run.Beam, Target],
):
    """
    Of a server with 40 callers, one taken every 20 ms, every tag is a call, and who waits watches.
    """
    still = _still(moving[1], "moving_slow")
    assert {CALL} == {tag for answer in still for tag in answer["messages"]}
    # Each caller waits in the mailbox or is being served; one may be between two calls.
    assert {answer["watchers"] for answer in still} <= {39, 40}


@pytest.mark.parametrize("kind", ["stock25", "trixie27", "sid29"])
def test_monitors_and_watchers_are_those_of_process_info(kind: str):
    """
    Aliases, suspended processes and subscriptions to nodes are counted apart, on three releases.
    """
    with beams_run.start_beam(kind, "-s", "moving") as beam:
        beam.expect("ready")
        assert beam.ask("holds") == "done holds"
        target = inspect(beam.pid)
        names = ("moving_holder", "moving_suspended", "moving_deaf", "kernel_sup", "init")
        for name in (*names, "global_name_server"):
            found = ask(target, name)
            keys = ("monitors", "watchers", "links", "suspends")
            ours = " ".join(str(found[key]) for key in keys)
            assert beam.ask(f"counts {name}") == f"counts {ours}", name
            related = [[one["process"] for one in found["related"][key]] for key in keys]
            theirs = beam.ask(f"related {name}").removeprefix("related ").split("|")
            for mine, all_of_them in zip(related, map(str.split, theirs), strict=True):
                assert set(mine) <= set(all_of_them), name
                assert min(10, len(all_of_them)) == len(mine), name
        held, suspended = ask(target, "moving_holder"), ask(target, "moving_suspended")
        assert (5, 2, 1) == (held["aliases"], held["suspends"], held["node_monitors"])
        assert 1 == suspended["suspended_by"]
        text = "\n".join(lines(held))
        assert "  aliases       5\n" in text
        assert "  suspends      2\n" in text
        assert "moving_suspended" in {one["name"] for one in held["related"]["suspends"]}
        assert "  held up by    " in "\n".join(lines(suspended))


def test_a_long_mailbox_is_weighed_by_its_first_messages(moving: tuple[beams_run.Beam, Target]):
    """
    A mailbox of 300,000 costs a bounded number of readings, and its weight is marked as estimated.
    """
    beam, target = moving
    assert beam.ask("fill moving_deaf 300000") == "done fill 300000"
    memory, messages = (int(word) for word in beam.ask("memory moving_deaf").split()[1:])
    before = target.memory.calls
    found = ask(target, "moving_deaf")
    assert target.memory.calls - before < 4 * LIMIT
    assert messages == found["message_queue_len"] == 300_000
    assert found["memory_estimated"]
    assert memory == pytest.approx(found["memory_bytes"], rel=0.05)


@pytest.mark.parametrize("kind", ["stock25", "emu25"])
def test_a_process_in_a_native_function_has_left_where_it_slept(kind: str, tmp_path: Path):
    """
    The innermost frame is the native function, and the next is its caller; the sleep is over.
    """
    environment = beams_run.native_functions(tmp_path)
    with beams_run.start_beam(kind, "+S", "3:3", "-s", "moving", env=environment) as beam:
        beam.expect("ready")
        assert beam.ask("inside") == "done inside"
        target = inspect(beam.pid)
        viewer, deadline = Viewer(target), time.monotonic() + beams_run.PATIENCE
        while not (inside := running_nifs(target)) and time.monotonic() < deadline:
            viewer.refresh()
        assert len(inside) == 1
        found = ask(target, "moving_inside")
    names = [frame["function"] for frame in found["stack"]]
    assert ["names_nif:wedge/0", "moving:inner/0", "moving:outer/0"] == names[:3]
    assert ("names_nif:wedge/0", []) == (found["current_function"], found["moved"])


def test_parts_that_moved_each_time_are_named():
    """
    The text names what is not of one moment.
    """
    process = dict.fromkeys(
        ("name", "label", "status", "current_function", "initial_call", "behaviour", "module")
    )
    process |= dict.fromkeys(
        ("parent", "ancestors", "group_leader", "priority", "trap_exit", "reductions")
    )
    process |= dict.fromkeys(
        ("memory_bytes", "heap_words", "old_heap_words", "fragment_words", "stack_words")
    )
    process |= dict.fromkeys(("binary_bytes", "minor_gcs", "links", "monitors", "watchers"))
    process |= dict.fromkeys(
        ("status_reason", "waits_for", "aliases", "suspends", "suspended_by", "node_monitors")
    )
    process |= {"message_queue_len": 2, "pid": "<0.1.0>", "messages": [], "stack": []}
    process |= {"mailbox": {"outside_bytes": 0}, "related": {}}
    assert "moved" not in "\n".join(lines(process | {"moved": []}))
    shown = "\n".join(lines(process | {"moved": ["stack", "messages"]}))
    assert "  moved         stack, messages: changed each time it was read" in shown
