# SPDX-License-Identifier: Apache-2.0
"""
Checks of structs in memory that changes while it is read.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import beam_image

from scope_ebpf.beam.layouts import checks
from scope_ebpf.beam.processes.blocks import Blocks
from scope_ebpf.errors import ReadRefusedError

#: Bytes of the struct whose blocks are planted.
SIZE = 40


class Planted:
    """
    Blocks of a struct: each is as large as SIZE and *rest* bytes.
    """

    def __init__(self) -> None:
        self.image = beam_image.Image()
        self.blocks = Blocks(self.target())

    def target(self) -> SimpleNamespace:
        image = self.image
        return SimpleNamespace(
            memory=image.memory, layout=image.layout, address=image.address, pid=0
        )

    def fits(self, *rests: int) -> list[bool]:
        image = self.image
        at = [image.put(struct.pack("<QQ", 0, SIZE + 8 + rest)) + 16 for rest in rests]
        image.data += bytes(-len(image.data) % beam_image.PAGE)
        sizes = np.full(len(at), SIZE)
        return self.blocks.fits("ErtsMessage", np.array(at, np.uint64), sizes).tolist()


def test_a_few_blocks_that_were_used_again_disprove_no_size():
    """
    One reading of freed memory is unsure; the next ones fit again, and so does the size.
    """
    planted = Planted()
    assert [True, True] == planted.fits(0, 16)
    assert [False] * 3 == planted.fits(4096, -8, 4096)
    assert not planted.blocks.disproves("ErtsMessage")
    assert [True] * 3 == planted.fits(0, 0, 0)


def test_many_blocks_that_do_not_fit_disprove_a_size_until_others_fit():
    """
    From 64 on, of which half do not fit.
    """
    planted = Planted()
    planted.fits(*[0] * 32, *[4096] * 31)
    assert not planted.blocks.disproves("ErtsMessage")
    planted.fits(4096)
    assert planted.blocks.disproves("ErtsMessage")
    assert not planted.blocks.knows("ErtsMessage")
    planted.fits(*[0] * 32)
    assert planted.blocks.knows("ErtsMessage")
    assert not planted.blocks.disproves("ErtsMessage")
    planted.fits(*[4096] * 1000)
    assert planted.blocks.disproves("ErtsMessage")
    planted.fits(*[0] * 300)
    assert planted.blocks.knows("ErtsMessage")


class Rings:
    """
    Schedulers with ETS tables: of each its *count*, and rings of which some are broken.
    """

    def __init__(self, *rings: tuple[int, int], broken: int = 0) -> None:
        self.image = image = beam_image.Image()
        size = image.layout.size("DbTableCommon")
        onward, back = (image.layout.offset("DbTableCommon", f"all.{w}") for w in ("next", "prev"))
        rows = []
        for number, (count, length) in enumerate(rings):
            tables = [image.put(bytes(size)) for _ in range(length)]
            for index, table in enumerate(tables):
                there = tables[(index + 1) % length], tables[index - 1]
                for at, other in zip((onward, back), there, strict=True):
                    wrong = number < broken and at == back
                    struct.pack_into("<Q", image.data, table + at - beam_image.BASE, other + wrong)
            first = tables[0] if tables else 0
            row = image.struct(
                "ErtsSchedulerData",
                ets_tables__count=(count, "Q"),
                ets_tables__clist=(first, "Q"),
            )
            rows.append(image.put(row))
        self.first = first
        self.normal = np.array(rows, np.uint64)
        self.target = SimpleNamespace(
            memory=image.memory, layout=image.layout, pid=0, erts_version="13.1.5", started=0.0
        )

    def check(self) -> None:
        checks._check_tables(self.target, self.normal)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.time, "sleep", lambda _: None)


@pytest.mark.parametrize(
    ("rings", "broken"),
    [
        ([(3, 3), (2, 2), (20, 20)], 0),
        ([(3, 3), (2, 2), (20, 20)], 1),
        ([(1, 0), (0, 2), (3, 3)], 0),
        ([(0, 0), (0, 0), (400, 400)], 0),
    ],
)
def test_most_rings_of_ets_tables_decide(rings: list[tuple[int, int]], broken: int):
    """
    A ring that changes all the time does not hold, and a count may be ahead of its ring.
    """
    Rings(*rings, broken=broken).check()


@pytest.mark.parametrize(
    ("rings", "broken"),
    [
        ([(3, 3), (2, 2), (20, 20)], 2),
        ([(3, 3)], 1),
        ([(3, 3), (2, 2)], 1),
        ([(0, 0), (0, 0), (3, 3)], 3),
        ([(3, 200)], 0),
        ([(200, 3)], 0),
        ([(1 << 40, 20)], 0),
        ([(1 << 40, 32)], 0),
        ([(200, 0)], 0),
    ],
)
def test_rings_of_ets_tables_that_do_not_hold_are_refused(
    rings: list[tuple[int, int]], broken: int
):
    """
    Half of them, one that is alone, and counts that are far from the ring.
    """
    with pytest.raises(ReadRefusedError, match="ring of as many as it counts"):
        Rings(*rings, broken=broken).check()


def test_a_ring_that_holds_is_followed_once(monkeypatch: pytest.MonkeyPatch):
    """
    A ring that is broken at first is tried again, and the other one is not.
    """
    planted, asked = Rings((3, 3), (2, 2)), []

    def ring(_target, first: int, _count: int) -> int:
        asked.append(first)
        if len(asked) == 1:
            raise ReadRefusedError("it changed")
        return 1

    monkeypatch.setattr(checks, "_ring", ring)
    planted.check()
    first, second = asked[:2]
    assert [first, second, first] == asked


def test_a_ring_is_followed_for_256_tables_with_two_readings_each():
    """
    Each table is read once, and the last one leads to one more; a pointer is no count of them.
    """
    planted = Rings((400, 400))
    before = planted.image.memory.calls
    assert 256 == checks._ring(planted.target, int(planted.first), 400)
    assert 2 * 257 == planted.image.memory.calls - before
    with pytest.raises(ReadRefusedError, match="as many as it counts"):
        checks._ring(planted.target, int(planted.first), 94_186_854_826_424)


def test_schedulers_are_checked_once_for_each_vm_and_layout(monkeypatch: pytest.MonkeyPatch):
    """
    A VM without ETS tables is checked until it has some, and another layout or VM by itself.
    """
    tables, calls = [0, 2], []
    for name in ("numbers", "back_pointers", "thread_numbers", "run_queues"):
        monkeypatch.setattr(checks, f"_check_{name}", lambda *_: None)
    monkeypatch.setattr(checks, "_counts", lambda _: {"normal": 2})
    monkeypatch.setattr(checks, "_array", lambda *_: np.array([23, 42], np.uint64))

    def ets(target: SimpleNamespace, _normal: np.ndarray) -> int:
        calls.append(target)
        return tables.pop(0) if tables else 2

    monkeypatch.setattr(checks, "_check_tables", ets)
    image = beam_image.Image()
    one = SimpleNamespace(memory=image.memory, layout=image.layout)
    for _ in range(4):
        assert [23, 42] == checks.schedulers(one)["normal"].tolist()
    assert 2 == len(calls)
    checks.schedulers(SimpleNamespace(memory=image.memory, layout=image.layout._replace()))
    checks.schedulers(SimpleNamespace(memory=beam_image.Image().memory, layout=image.layout))
    assert 4 == len(calls)


@pytest.mark.parametrize(
    ("age", "name", "begins"),
    [(1, "init", True), (60, "init", True), (60, "kernel_sup", False), (600, "init", False)],
)
def test_a_vm_begins_while_it_loads_modules(
    monkeypatch: pytest.MonkeyPatch, age: int, name: str, *, begins: bool
):
    """
    Embedded mode loads all of them before the first application starts; a minute is not too long.
    """
    monkeypatch.setattr(beam_image, "ATOMS", [*beam_image.ATOMS, "kernel_sup"])
    image = beam_image.Image()
    beam_image.add_atoms(image)
    entry = image.put(image.struct("RegProc", name=(beam_image.atom(name), "Q")))
    rows = {"registered": np.array([0, entry], np.uint64)}
    table = SimpleNamespace(snapshot=lambda: SimpleNamespace(rows=rows))
    monkeypatch.setattr(checks, "ProcessTable", lambda *_: table)
    monkeypatch.setattr(checks.time, "clock_gettime", lambda _: 1000.0)
    target = SimpleNamespace(
        memory=image.memory,
        layout=image.layout,
        address=image.address,
        pid=0,
        started=1000.0 - age,
    )
    assert begins == checks._begins(target)


def rare(monkeypatch: pytest.MonkeyPatch, *readings: list[int]) -> SimpleNamespace:
    """
    A VM whose rare data lies in blocks that differ by these bytes from the struct, by reading.
    """
    image, snapshots = beam_image.Image(), []
    size = image.layout.size("ErtsPSD") + 8
    for differences in readings:
        blocks = [image.put(struct.pack("<QQ", 0, size + more)) + 16 for more in differences]
        snapshots.append(SimpleNamespace(rows={"psd": np.array(blocks, np.uint64)}))
    last = snapshots[-1]
    table = SimpleNamespace(slots=1, snapshot=lambda *_: snapshots.pop(0) if snapshots else last)
    monkeypatch.setattr(checks, "ProcessTable", lambda *_: table)
    image.data += bytes(-len(image.data) % beam_image.PAGE)
    return SimpleNamespace(memory=image.memory, layout=image.layout, pid=0, erts_version="13.1.5")


@pytest.mark.parametrize(
    "readings",
    [
        ([0, 0, 16],),
        ([],),
        ([16, 0, 16, 8],),
        ([0, -16, 0],),
        ([0, 16, -32, 0, 4096],),
        ([-16], [0]),
    ],
)
def test_one_block_that_was_freed_does_not_refuse_rare_data(
    monkeypatch: pytest.MonkeyPatch, readings: tuple[list[int], ...]
):
    """
    Blocks are as large or larger, and the few that are smaller were freed under the reader.
    """
    checks.check_rare_data(rare(monkeypatch, *readings))


@pytest.mark.parametrize("reading", [[8], [8, 8, 16], [-8], [-8, -8, 0], [-8, 16, 24, 0, -8]])
def test_rare_data_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch, reading: list[int]):
    """
    All blocks are larger, or as many are smaller as are of the size.
    """
    with pytest.raises(ReadRefusedError, match="rare data of a process has the size"):
        checks.check_rare_data(rare(monkeypatch, reading))
