# SPDX-License-Identifier: Apache-2.0
"""
The changing table: rates, parts, and the processes on top.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from beam_image import BASE, make
from test_beam_memory_image import view

from scope_ebpf.beam.processes.sweep import Sweep
from scope_ebpf.beam.processes.table import LOAD, ProcessTable
from scope_ebpf.beam.vm.threads import role_of
from scope_ebpf.cli.top import short


def test_a_rate_is_the_work_between_two_looks():
    """
    A hundred reductions in two seconds are fifty a second; an idle process has none.
    """
    image = make(6)
    viewer = view(image)
    now = [10.0]
    table = ProcessTable(viewer.target, LOAD)
    sweep = Sweep(table, viewer.heaps, 1.0, clock=lambda: now[0])
    state = sweep.turn()
    assert (6, 6, 0, 1) == (state.total, state.read, state.torn, state.parts)
    reds = int(table.snapshot().rows["pointer"][4]) - BASE + image.layout.offset("Process", "reds")
    struct.pack_into("<Q", image.data, reds, 1004 + 100)
    now[0] = 12.0
    sweep.turn()
    slots, rates, _ = sweep.top("reductions", 3)
    assert (4, 50.0) == (slots[0], rates[0])
    assert [0.0, 0.0] == rates[1:].tolist()


def test_a_process_that_was_missed_has_no_rate_until_it_is_seen_twice():
    """
    What it has done in all its life is not what it did since the last look.
    """
    image = make(6)
    viewer = view(image)
    now = [10.0]
    table = ProcessTable(viewer.target, LOAD)
    sweep = Sweep(table, viewer.heaps, 1.0, clock=lambda: now[0])
    process = int(table.snapshot().rows["pointer"][4]) - BASE
    locks = process + image.layout.offset("Process", "lock.flags")
    rates = []
    for held, done in ((0, 1000), (0x1F, 1100), (0, 1300), (0, 1400)):
        now[0] += 2.0
        struct.pack_into("<I", image.data, locks, held)
        struct.pack_into("<Q", image.data, process + image.layout.offset("Process", "reds"), done)
        assert int(held > 0) == sweep.turn().torn
        slots, speeds, _ = sweep.top("reductions", 6)
        rates.append(dict(zip(slots.tolist(), speeds.tolist(), strict=True)).get(4))
    assert [0.0, None, 0.0, 50.0] == rates


def test_a_process_that_ended_leaves_the_table():
    """
    An empty slot is no process, whatever was there before.
    """
    image = make(6)
    viewer = view(image)
    sweep = Sweep(ProcessTable(viewer.target, LOAD), viewer.heaps, 1.0)
    sweep.turn()
    table = viewer.target.memory.u64(
        image.roots["erts_proc"] + image.layout.offset("ErtsPTab", "r.o.tab")
    )
    struct.pack_into("<Q", image.data, table - BASE + 8 * 2, 0)
    assert 5 == sweep.turn().read
    assert 2 not in sweep.top("mailbox", 10).slots


def test_a_table_that_costs_more_than_the_budget_is_read_in_parts():
    """
    Every part comes in its turn, and together they are the whole.
    """
    image = make(3)
    viewer = view(image)
    table = ProcessTable(viewer.target, LOAD)
    whole = np.sort(table.snapshot().rows["slot"])
    parts = [table.snapshot(part, 3).rows["slot"] for part in range(3)]
    assert whole.tolist() == np.sort(np.concatenate(parts)).tolist()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ((5, "here"), (5, "here"), 0),
        ((5, "here"), (8, "there"), 3 * 32),
        ((5, "here"), (0, "there"), 32),
        ((5, "here"), (2, "there"), 3 * 32),
        ((0, "here"), (0, "there"), 32),
    ],
)
def test_collections_are_detected_by_their_count_and_by_where_the_heap_lies(
    before: tuple[int, str], after: tuple[int, str], words: int
):
    """
    Minor collections count up, a major one begins anew, and a heap that moved was collected.
    """
    image = make(6)
    viewer = view(image)
    now = [10.0]
    table = ProcessTable(viewer.target, LOAD)
    sweep = Sweep(table, viewer.heaps, 1.0, clock=lambda: now[0])
    process = int(table.snapshot().rows["pointer"][4]) - BASE
    fields = [
        process + image.layout.offset("Process", name) for name in ("heap", "htop", "stop", "hend")
    ]
    for count, where in (before, after):
        shift = 8 if where == "there" else 0
        struct.pack_into(
            "<H", image.data, process + image.layout.offset("Process", "gen_gcs"), count
        )
        for field in fields if shift else ():
            (value,) = struct.unpack_from("<Q", image.data, field)
            struct.pack_into("<Q", image.data, field, value + shift)
        now[0] += 2.0
        sweep.turn()
    slots, _, collected = sweep.top("gc", 6)
    found = dict(zip(slots.tolist(), collected.tolist(), strict=True))
    assert {4: 8 * words / 2.0} == {slot: size for slot, size in found.items() if slot == 4}
    assert [0.0] * 5 == [size for slot, size in found.items() if slot != 4]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("1_scheduler", ("normal", 1)),
        ("10_dirty_io_sch", ("dirty_io", 10)),
        ("2_dirty_cpu_sch", ("dirty_cpu", 2)),
        ("0_poller", ("poll", 0)),
        ("erts_sched_12", ("normal", 12)),
        ("erts_dcpus_1", ("dirty_cpu", 1)),
        ("erts_dios_3", ("dirty_io", 3)),
        ("erts_aux_1", ("aux", 1)),
        ("async_1", ("async", 1)),
        ("erts_async_12", ("async", 12)),
        ("beam.smp", None),
    ],
)
def test_a_thread_says_what_it_is_for_by_its_name(name: str, role: tuple[str, int] | None):
    """
    Names of OTP 25 and of OTP 26 and later.
    """
    assert role == role_of(name)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1.0k"), (9949, "9.9k"), (1e6, "1.0M")]
)
def test_a_number_fits_its_column(number: float, text: str):
    """
    At most five characters.
    """
    assert text == short(number)
