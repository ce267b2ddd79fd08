# SPDX-License-Identifier: Apache-2.0
"""
What is read from outside, held against what the VM says of itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from beam_fixtures import SIZES, TRUTH, Mixed, Zoo, zoo  # noqa: F401 - a fixture

from scope_ebpf.beam.memory.moment import moments
from scope_ebpf.beam.processes.detail import FIELDS, detail, find, frames
from scope_ebpf.beam.processes.labels import Labels
from scope_ebpf.beam.processes.view import Viewer, document
from scope_ebpf.cli.trouble import Troubles

if TYPE_CHECKING:
    import numpy as np

    from scope_ebpf.beam.code.tables import Mfa

MOVES = {"reductions": 0}
KINDS = ("stock25", "usdt25", "emu25", "trixie27", "sid29")


def stack(viewer: Viewer, rows: np.ndarray) -> list[Mfa]:
    """
    The frames of a process that holds still.
    """
    return frames(viewer, next(moments(viewer, rows)))


def read(mixed: Mixed) -> dict:
    viewer = mixed.viewer()
    snapshot = viewer.table.snapshot()
    return document(viewer.target, snapshot) | {"processes": viewer.describe(snapshot.rows)}


def differences(mixed: Mixed) -> tuple[int, list[str]]:
    """
    Compare with what the VM says next; say how many rows stood still meanwhile.

    A process answers ``process_info`` itself and pays a reduction for it after the answer, so the
    reductions are those of the second answer.
    """
    before, seen, after = mixed.truth(), read(mixed), mixed.truth()
    ours = {row["pid"]: row for row in seen["processes"]}
    answering = next(iter(before))
    still = [pid for pid in before if before[pid] | MOVES == after.get(pid, {}) | MOVES]
    wrong = [
        f"{pid}.{key}: {ours[pid][key]!r} is {after[pid][key]!r}"
        for pid in still
        for key in TRUTH
        if pid != answering and ours[pid][key] != after[pid][key]
    ]
    assert set(before) == set(ours) == set(after)
    assert (len(before), 0) == (seen["read"], seen["torn"])
    assert seen["read"] == seen["processes_total"]
    return len(still), wrong


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_every_process_is_what_process_info_says(zoo: Zoo, kind: str):  # noqa: F811
    """
    Each column of each process of a quiet VM equals what ``erlang:process_info`` says.
    """
    mixed = zoo(kind)
    compared, wrong = differences(mixed)
    assert wrong[:20] == []
    assert compared >= SIZES[kind] * 0.85


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_is_what_process_info_says_with_files_and_lines(zoo: Zoo, kind: str):  # noqa: F811
    """
    The innermost eight frames of a deep process and of gen_servers are those of the VM, with lines.
    """
    mixed = zoo(kind)
    viewer = Viewer(mixed.target(), FIELDS)
    for name in ("names_deep", "names_waiter", "logger", "names_event", "names_hot"):
        rows = find(viewer, name)
        ours = [f"{frame}@{frame.file or ''}:{frame.line or 0}" for frame in stack(viewer, rows)]
        pid = viewer.pids.text(int(rows["id"][0]))
        theirs = mixed.beam.ask(f"location {pid}").split()
        assert theirs == ours[: len(theirs)], name
        assert len(theirs) == min(8, len(ours)), name


def test_code_that_was_replaced_is_named_anew(zoo: Zoo):  # noqa: F811
    """
    A process in a module that is loaded again is seen in the new code, by a view made before.
    """
    mixed = zoo("trixie27")
    viewer = Viewer(mixed.target(), FIELDS)
    before = stack(viewer, find(viewer, "names_hot"))[0]
    assert ("names_hot:loop_1/0", "names_hot_1.erl:100") == (str(before), before.location)
    assert mixed.beam.ask("upgrade") == "done"
    viewer.refresh()
    after = stack(viewer, find(viewer, "names_hot"))[0]
    assert ("names_hot:loop_2/0", "names_hot_2.erl:200") == (str(after), after.location)


@pytest.mark.parametrize("kind", ["stock25", "sid29"])
def test_a_mailbox_shows_tags_and_no_contents(zoo: Zoo, kind: str):  # noqa: F811
    """
    The first messages are shown in their order, by their tags.
    """
    viewer = Viewer(zoo(kind).target(), FIELDS)
    shown = detail(viewer, find(viewer, "names_full"))
    assert 1006 == shown["message_queue_len"]
    call = "{'$gen_call', _, integer}"
    assert [call, call, call, "go", "list", "{_, _}", "{filler, _}"] == shown["messages"][:7]
    assert 1 == shown["links"]


def test_a_stopped_vm_is_read_and_said_to_be_stopped(zoo: Zoo):  # noqa: F811
    """
    SIGSTOP does not keep us from reading, and is shown.
    """
    mixed = zoo("usdt25")
    mixed.beam.freeze()
    try:
        seen = read(mixed)
        assert seen["processes_total"] == seen["read"] > 1000
        assert "stopped" in (Troubles(mixed.target(), mixed.viewer()).now() or "")
    finally:
        mixed.beam.thaw()


def test_pids_of_events_get_names_and_forget_them_when_they_change(zoo: Zoo):  # noqa: F811
    """
    A label says who a pid is and how many wait; one that has ended is a pid and no more.
    """
    viewer = Viewer(zoo("stock25").target(), FIELDS)
    now = [0.0]
    labels = Labels(viewer.target, viewer.atoms, viewer.code, clock=lambda: now[0])
    full, logger = (int(find(viewer, name)["id"][0]) for name in ("names_full", "logger"))
    assert str(labels.label(full)).endswith("names_full (mailbox 1,006)")
    assert str(labels.label(logger)).endswith("logger (gen_server)")
    nobody = full ^ 1 << 20 | 3
    assert viewer.pids.text(nobody) == str(labels.label(nobody))
    assert 3 == labels.misses
    labels.labels([full, logger, nobody])
    assert 3 == labels.misses
    now[0] = 60.0
    labels.labels([full, logger])
    assert 5 == labels.misses
