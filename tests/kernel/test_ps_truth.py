# SPDX-License-Identifier: Apache-2.0
"""
What ``ps`` tells of processes that move while they are read, held against what they are.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import beams_run
import pytest
from moving_run import CALL, STACKS, ask

from scope_ebpf.beam.discover import inspect
from scope_ebpf.beam.schedulers import natives
from scope_ebpf.beam.sizes import LIMIT
from scope_ebpf.beam.view import Viewer
from scope_ebpf.cli.ps import lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scope_ebpf.beam.target import Target

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
    answers = [ask(moving[1], name) for _ in range(ANSWERS)]
    still = [answer for answer in answers if "stack" not in answer["moved"]]
    seen = {tuple(frame["function"] for frame in answer["stack"]) for answer in still}
    assert seen <= STACKS[name]
    assert len(still) > ANSWERS // 2


def test_the_mailbox_and_watchers_of_a_server_that_moves_are_of_one_moment(
    moving: tuple[beams_run.Beam, Target],
):
    """
    Of a server with 40 callers, one taken every 20 ms, every tag is a call, and who waits watches.
    """
    answers = [ask(moving[1], "moving_slow") for _ in range(ANSWERS)]
    still = [answer for answer in answers if not answer["moved"]]
    assert {CALL} == {tag for answer in still for tag in answer["messages"]}
    # Each caller waits in the mailbox or is being served; one may be between two calls.
    assert {answer["watchers"] for answer in still} <= {39, 40}
    assert len(still) > ANSWERS // 2


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
        held, suspended = ask(target, "moving_holder"), ask(target, "moving_suspended")
        assert (5, 2, 1) == (held["aliases"], held["suspends"], held["node_monitors"])
        assert 1 == suspended["suspended_by"]
        text = "\n".join(lines(held))
        assert "  aliases       5\n" in text
        assert "  suspends      2\n" in text


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
        while not (inside := natives(target)) and time.monotonic() < deadline:
            viewer.refresh()
        assert len(inside) == 1
        found = ask(target, "moving_inside")
    names = [frame["function"] for frame in found["stack"]]
    assert ["names_nif:wedge/0", "moving:inner/0", "moving:outer/0"] == names[:3]
    assert ("names_nif:wedge/0", []) == (found["current_function"], found["moved"])


def test_what_moved_each_time_is_told():
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
        ("status_reason", "aliases", "suspends", "suspended_by", "node_monitors")
    )
    process |= {"message_queue_len": 2, "pid": "<0.1.0>", "messages": [], "stack": []}
    assert "moved" not in "\n".join(lines(process | {"moved": []}))
    told = "\n".join(lines(process | {"moved": ["stack", "messages"]}))
    assert "  moved         stack, messages: changed each time it was read" in told
