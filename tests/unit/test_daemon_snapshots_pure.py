# SPDX-License-Identifier: Apache-2.0
"""
When targets are read, and what is published of a target that cannot be read.
"""

from __future__ import annotations

import logging
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from scope_ebpf.daemon.looks.owners import ROOT
from scope_ebpf.daemon.readings import snapshots
from scope_ebpf.daemon.readings.snapshots import SnapshotResults, Snapshots
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError, ReadRefusedError
from scope_ebpf.metrics.reading import MemoryReading
from scope_ebpf.metrics.snapshot import SnapshotReading

REFUSED = ReadRefusedError("the layout does not fit")


class Watched:
    """
    A watch of process 7, with planned results: readings, or exceptions that are raised.
    """

    def __init__(self, tables: list = (), memories: list = (), pid: int = 7) -> None:
        identity = SimpleNamespace(check=lambda: None)
        self.target = SimpleNamespace(pid=pid, watch=self, identity=identity)
        self.owner = ROOT
        self.tables, self.memories = list(tables), list(memories)
        self.results = SnapshotResults()
        self.made = 0

    def publish(self, results: SnapshotResults) -> None:
        self.results = results

    @property
    def snapshot(self) -> SnapshotReading | None:
        return self.results.snapshot

    @property
    def refused(self) -> dict[str, str] | None:
        return self.results.memory and self.results.memory.refused


class Part:
    """
    Stands for a Table or Readers; gives an empty reading where nothing is planned.
    """

    plan, empty = "", None
    seconds = 0.0

    def __init__(self, target: SimpleNamespace) -> None:
        self.watch = target.watch
        self.watch.made += 1

    def read(self, *_: object) -> object:
        planned = getattr(self.watch, self.plan)
        result = planned.pop(0) if planned else self.empty()
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """
    Snapshots of the list *watches*, every 15 seconds of the clock *now*.
    """

    class ATable(Part):
        plan, empty = "tables", staticmethod(lambda: SnapshotReading(1))

    class AReaders(Part):
        plan, empty = "memories", MemoryReading

    monkeypatch.setattr(snapshots, "Table", ATable)
    monkeypatch.setattr(snapshots, "Readers", AReaders)
    state = SimpleNamespace(watches=[], now=0.0, errors=Counter())
    config = SimpleNamespace(top=1, snapshot_interval=15.0)
    taker = Snapshots(lambda: state.watches, lambda: config, state.errors, lambda: state.now)

    def look(after: float = 0.0, *watches: Watched) -> None:
        state.now += after
        state.watches = list(watches) or state.watches
        taker.look()

    state.look = look
    return state


def test_a_table_that_is_refused_is_shown_no_more_and_tried_again(run: SimpleNamespace):
    """
    No old snapshot stays, the refusal is published, and both end when reading works again; after
    a second failure the pause is twice as long.
    """
    watch = Watched(tables=[SnapshotReading(1), REFUSED, REFUSED])
    run.look(0, watch)
    assert watch.snapshot is not None
    assert watch.refused == {}
    for wait in (15, 59, 1):
        run.look(wait)
        assert watch.snapshot is None
        assert watch.refused == {"processes": "the layout does not fit"}
    assert watch.tables == []
    run.look(119)
    assert watch.snapshot is None
    run.look(1)
    assert watch.snapshot is not None
    assert watch.refused == {}
    assert run.errors == {}


def test_a_failed_reading_is_paid_for_and_a_good_one_halves_the_pause(
    run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    """
    Failures of little are repeated after 60, 120, 240 s, then one after 240 s; 4 s are one in 1000.
    """
    spent = [0.0]
    monkeypatch.setattr(snapshots, "cpu_seconds", lambda: spent[0])
    good = SnapshotReading(1)
    watch = Watched([REFUSED, REFUSED, REFUSED, good, REFUSED, good])

    def left(after: float) -> int:
        run.look(after, watch)
        return len(watch.tables)

    assert [5, 4, 3, 2, 1] == [left(after) for after in (0, 60, 120, 240, 15)]
    assert [1, 0] == [left(239), left(1)]
    read = Part.read

    def costly(part: Part) -> object:
        spent[0] += 4.0 if part.plan == "tables" else 0.0
        return read(part)

    monkeypatch.setattr(Part, "read", lambda part, *_: costly(part))
    watch.tables = [REFUSED, good]
    assert [1, 1, 0] == [left(15), left(999), left(1)]


def test_an_unexpected_error_affects_no_other_target(
    run: SimpleNamespace, caplog: pytest.LogCaptureFixture
):
    """
    It is counted each time and logged once; the VM is read again later, and others as before.
    """
    broken, other = Watched(tables=[ValueError("odd")] * 3), Watched(pid=8)
    with caplog.at_level(logging.WARNING, logger="scope-ebpfd"):
        run.look(0, broken, other)
        first = other.snapshot
        for _ in range(20):
            run.look(15 / 4)
    assert Counter(snapshot=2) == run.errors
    assert ["processes"] == [record.fields["part"] for record in caplog.records]
    assert {"processes": "ValueError('odd')"} == broken.refused
    assert other.snapshot is not first


def test_the_table_is_read_where_other_memory_cannot_be(run: SimpleNamespace):
    """
    The parts are independent, and a failed one is read again after a minute.
    """
    watch = Watched(memories=[ValueError("odd")])
    run.look(0, watch)
    assert watch.snapshot is not None
    assert watch.refused == {"memory": "ValueError('odd')"}
    run.look(60)
    assert watch.refused == {}


def test_another_vm_in_the_same_process_is_read_at_its_own_addresses(run: SimpleNamespace):
    """
    After an exec the pid is the same, and every address is different.
    """
    before, after = Watched(), Watched()
    run.look(0, before)
    run.look(1, after)
    assert 2 == after.made
    assert after.snapshot is not None


def test_a_target_that_ended_is_left_to_the_loop(run: SimpleNamespace):
    """
    That is not a failure, and nothing is logged.
    """
    watch = Watched(tables=[NoSuchProcessError("process 7 has ended")])
    run.look(0, watch)
    assert watch.refused == {}
    assert run.errors == {}


def test_memory_that_hangs_is_an_error_for_the_loop(run: SimpleNamespace):
    """
    The error stays published with later results, so that the loop drops the target.
    """
    error = NoAnswerError("it has memory that cannot be read")
    watch = Watched(memories=[error])
    run.look(0, watch)
    assert watch.results.error is error
    assert watch.snapshot is not None


def test_a_long_mailbox_that_moves_on_keeps_its_bytes_for_one_reading(
    monkeypatch: pytest.MonkeyPatch,
):
    """
    Neither a mailbox that moved nor messages that fit no block turn it into its heaps alone.
    """
    rows = np.zeros(1, [("id", "u8"), ("slot", "u8"), ("mailbox", "u8"), ("state", "u4")])
    rows["id"], rows["mailbox"] = 23, 5000
    state = SimpleNamespace(calm=True, size=9000, wrong=False)
    table = object.__new__(snapshots.Table)
    table._target = SimpleNamespace(layout=SimpleNamespace(size=lambda _: 700))
    table._blocks = SimpleNamespace(disproves=lambda _: state.wrong)
    table._whole = SimpleNamespace(
        slots=1,
        at=lambda _: SimpleNamespace(rows=rows),
        still=lambda _: (np.array([True]), np.array([state.calm])),
        slots_of=lambda pids: np.zeros(len(pids), np.int64),
    )
    part = SimpleNamespace(rows=rows, missed=np.empty(0))
    table._table = SimpleNamespace(slots=1, count=lambda: 1, snapshot=lambda *_: part)
    table._reductions = SimpleNamespace(rates=lambda *_: np.zeros(1))
    table._names = lambda _: {}
    table._long, table._before = {}, {}
    monkeypatch.setattr(snapshots, "base_bytes", lambda *_: np.array([800]))
    monkeypatch.setattr(
        snapshots,
        "memory_bytes",
        lambda *_: SimpleNamespace(bytes=np.array([state.size], np.uint64)),
    )

    def bytes_read(**now) -> int:
        vars(state).update(now)
        reading = table.read(1, lambda _: None)
        assert reading.memory == reading.memories[0].value
        return reading.memory

    assert bytes_read() == 9000
    assert bytes_read(calm=False) == 9000
    assert bytes_read() == 800
    assert bytes_read(calm=True) == 9000
    assert bytes_read(wrong=True, size=820) == 9000
    assert bytes_read() == 820
