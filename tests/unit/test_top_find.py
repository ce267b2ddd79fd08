# SPDX-License-Identifier: Apache-2.0
"""
The filter and the orders of ``top``, on a made-up process table.
"""

from __future__ import annotations

import math
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from beam_image import BASE, make
from test_beam_memory_image import view

from scope_ebpf.cli import top_find
from scope_ebpf.cli.top_find import Finder
from scope_ebpf.cli.top_table import Processes

if TYPE_CHECKING:
    from beam_image import Image

    from scope_ebpf.beam.processes.view import Viewer

COUNT = 6


def pids(processes: Processes, sort: str, *, least: bool = False) -> list[str]:
    """
    The pids of a table in its order.
    """
    total = processes.order(sort, least=least)
    return [row.process["pid"] for row in processes.page(0, total, sort, least=least)]


def made() -> tuple[Image, Viewer, Processes]:
    """
    A VM of six processes, all of one name, read once.
    """
    image = make(COUNT)
    viewer = view(image)
    processes = Processes(viewer.target, viewer, math.inf)
    processes.turn("reductions")
    return image, viewer, processes


def put(image: Image, viewer: Viewer, slot: int, field: str, value: int) -> None:
    """
    Write a word of the struct of one process.
    """
    rows = viewer.table.snapshot().rows
    pointer = int(rows["pointer"][rows["slot"] == slot][0])
    offset = pointer - BASE + image.layout.offset("Process", field)
    struct.pack_into("<Q", image.data, offset, value)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("MY_na", COUNT),
        ("names_server", COUNT),
        ("<0.3", 1),
        ("#PID<0.3.0>", 1),
        ("0.3.0", 1),
        ("nobody", 0),
        ("", COUNT),
    ],
)
def test_a_filter_is_a_part_of_the_name_or_of_the_pid(wanted: str, found: int):
    """
    Whatever its case; without one all processes are shown.
    """
    _, _, processes = made()
    processes.find(wanted)
    assert found == processes.order("reductions")
    assert processes.unsearched == 0


def test_a_filter_reads_no_more_names_than_its_budget_allows(monkeypatch: pytest.MonkeyPatch):
    """
    One block in each turn, until every name was read; what is unread is counted.
    """
    monkeypatch.setattr(top_find, "_BLOCK", 2)
    _, viewer, _ = made()
    rows = viewer.table.snapshot().rows[::-1]
    slots, ids = rows["slot"].copy(), rows["id"].copy()
    finder = Finder(viewer, "my_name")
    unread = []
    for _ in range(4):
        finder.search(slots, ids, 0.0)
        unread.append((finder.unknown, int(finder.matches().sum())))
    assert [(4, 2), (2, 4), (0, 6), (0, 6)] == unread
    finder.search(slots[[1, 4]], ids[[1, 4]], 0.0)
    assert (0, 2) == (finder.unknown, len(finder.matches()))
    finder.search(slots[:0], ids[:0], 0.0)
    assert (0, 0) == (finder.unknown, len(finder.matches()))


def test_the_longest_mailbox_has_its_owner():
    """
    Of six processes one has messages: it is the first, and the last when reversed.
    """
    image, viewer, processes = made()
    inner = "sig_qs.mq_len" if image.layout.has("Process", "sig_qs.mq_len") else "sig_qs.len"
    put(image, viewer, 4, inner, 2300)
    processes.turn("mailbox")
    longest = processes.longest()
    assert ("<0.4.0>", 2300) == (longest.process["pid"], longest.process["message_queue_len"])
    assert pids(processes, "mailbox")[0] == "<0.4.0>"
    assert pids(processes, "mailbox", least=True)[-1] == "<0.4.0>"


def test_a_rate_is_unknown_before_the_second_reading():
    """
    It is None first, and then what the process did since.
    """
    image, viewer, processes = made()
    processes.order("reductions")
    assert {None} == {row.rate for row in processes.page(0, COUNT, "reductions")}
    put(image, viewer, 2, "reds", 10**9)
    processes.turn("reductions")
    processes.order("reductions")
    first, *others = processes.page(0, COUNT, "reductions")
    assert first.process["pid"] == "<0.2.0>"
    assert first.rate > 0
    assert {0.0} == {row.rate for row in others}


def test_only_the_processes_that_match_are_found():
    """
    Given in any order, the verdicts are of those that they were asked of.
    """
    _, viewer, _ = made()
    rows = viewer.table.snapshot().rows[[3, 0, 5, 1, 4, 2]]
    finder = Finder(viewer, "<0.5")
    finder.search(rows["slot"], rows["id"], math.inf)
    assert [5] == rows["slot"][finder.matches()].tolist()


def test_pages_are_parts_of_the_order():
    """
    By pid the lowest is first; a page begins anywhere, and one beyond the end is empty.
    """
    _, _, processes = made()
    every = [f"<0.{slot}.0>" for slot in range(COUNT)]
    assert pids(processes, "pid") == every
    assert pids(processes, "pid", least=True) == every[::-1]
    processes.order("pid")
    assert [row.process["pid"] for row in processes.page(4, 5, "pid")] == every[4:]
    assert processes.page(9, 5, "pid") == []
    processes.turn("memory")
    assert COUNT == processes.order("memory")
