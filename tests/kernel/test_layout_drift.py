# SPDX-License-Identifier: Apache-2.0
"""
Layouts that have drifted: every figure is refused or right, on a VM that stands still.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from beams_run import planted

from scope_ebpf import relations
from scope_ebpf.beam import layouts
from scope_ebpf.beam.layouts import live
from scope_ebpf.beam.processes.table import IDENTITY
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm.allocators import AllocatorReader
from scope_ebpf.beam.vm.connections import ConnectionReader
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.beam.vm.schedulers import Schedulers
from scope_ebpf.errors import ReadRefusedError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scope_ebpf.beam.layouts import Layout
    from scope_ebpf.beam.vm.discover import Beam

#: What figures come from, and what each is the aligned size of.
STRUCTS = {
    "ErtsSchedulerData": "ErtsAlignedSchedulerData",
    "ErtsRunQueue": "ErtsAlignedRunQueue",
    "Allctr_t": None,
    "ErtsAlcFixList_t": None,
    "Process": None,
    "ErtsPTab": None,
    "IndexTable": None,
    "DistEntry": None,
    "ErtsPSD": None,
}
#: Fields that are indexes into a list, and no offsets.
INDEXES = ("proc", "msg_ref", "ll_ptimer", "hl_ptimer", "bif_timer", "monitor", "link")
SHIFTS = (-64, -32, -16, -8, 8, 16, 32, 64)


@pytest.fixture(scope="module", params=[(), ("+S", "1:1", "+SDcpu", "1:1", "+SDio", "1")])
def still(request: pytest.FixtureRequest) -> Iterator[Beam]:
    """
    A VM that stands still, so that two readings are the same; one has one scheduler of each kind.
    """
    with planted("stock25", *request.param) as beam:
        target = inspect(beam.pid)
        beam.freeze()
        yield target
        beam.thaw()


def drifted(layout: Layout, struct: str, field: str, by: int) -> Layout:
    """
    The layout of a version that has *by* bytes more, or fewer, before *field*.
    """
    structs = {name: dict(fields) for name, fields in layout.structs.items()}
    moved = structs[struct]
    start = moved[field]
    for name, offset in moved.items():
        if name not in INDEXES and offset >= start:
            moved[name] = offset + by
    if (aligned := STRUCTS[struct]) is not None:
        structs[aligned]["sizeof"] = (moved["sizeof"] + 63) // 64 * 64
    return replace(layout, structs=structs)


def possible(struct: str, fields: Mapping[str, int], field: str, by: int) -> bool:
    """
    Whether a struct may be like that: no field before its beginning, none behind its end.
    """
    return fields[field] + by >= 0 and (field != "sizeof" or by > 0 or struct == "ErtsPSD")


def _counters(target: Beam) -> dict[str, Any]:
    reader = CounterReader(target)
    found, limits = reader.read(), reader.limits()
    if why := relations.of_counters(found, limits):
        raise ReadRefusedError(str(why))
    figures = {name: getattr(found, name) for name in found.__slots__}
    return figures | {"run_queues": found.run_queues.tolist(), "limits": limits}


def _allocators(target: Beam) -> dict[str, Any]:
    found = AllocatorReader(target).read()
    use = found.memory
    if why := relations.of_allocators(found.allocators) + (relations.of_use(use) if use else []):
        raise ReadRefusedError(str(why))
    return {one.name: one for one in found.allocators} | {"use": use}


def _connections(target: Beam) -> dict[str, Any]:
    return dataclasses.asdict(ConnectionReader(target).read())


def _processes(target: Beam) -> dict[str, Any]:
    viewer = Viewer(target)
    found = {}
    for row in viewer.describe(viewer.table.snapshot().rows):
        if row.pop("memory_estimated", False):
            del row["memory_bytes"]
        found[row["pid"]] = row
    return found


def _schedulers(target: Beam) -> dict[str, Any]:
    reader = Schedulers(target, Viewer(target, IDENTITY))
    found = reader.read()
    if reader.refused:
        raise ReadRefusedError(str(reader.refused))
    return {str(one.thread.tid): (one.as_json(), one.queue) for one in found}


READERS = (_counters, _allocators, _connections, _processes, _schedulers)


def figures(target: Beam) -> dict[str, dict[str, Any] | None]:
    """
    What each reader returns, None where it refuses.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for reader in READERS:
        try:
            found[reader.__name__] = reader(target)
        except ScopeError:
            found[reader.__name__] = None
    return found


def wrong(read: Any, truth: Any) -> bool:
    """
    Whether something is *read* that is not so; of a process, less may be read.
    """
    if isinstance(read, dict) and isinstance(truth, dict):
        return any(key not in truth or wrong(value, truth[key]) for key, value in read.items())
    return bool(read != truth)


def test_a_layout_that_has_drifted_shows_no_wrong_figure(
    still: Beam, monkeypatch: pytest.MonkeyPatch
):
    """
    A hundred layouts, each moved from a random field of a struct on: what is read is true.
    """
    right = still.layout
    truth = figures(still)
    assert None not in truth.values()
    chance = random.Random(1)
    refused = 0
    for _ in range(100):
        struct = chance.choice([*STRUCTS])
        fields = right.structs[struct]
        field = chance.choice([name for name in fields if name not in INDEXES])
        by = chance.choice([shift for shift in SHIFTS if possible(struct, fields, field, shift)])
        moved = drifted(right, struct, field, by)
        monkeypatch.setattr(live, "ranges", lambda *_, moved=moved, **__: (moved,))
        for name, read in figures(replace(still)).items():
            refused += read is None
            assert read is None or not wrong(read, truth[name]), (struct, field, by, name)
    assert refused >= 100


def test_a_version_between_known_ones_takes_the_layout_that_passes(still: Beam):
    """
    Of all ranges of the release the VM's own alone passes every check.
    """
    found = replace(still, erts_version="13.1.2.9").layout
    assert (still.layout.structs, False) == (found.structs, found.exact)


def test_a_version_beyond_known_ones_whose_layout_is_unknown_is_refused(
    still: Beam, monkeypatch: pytest.MonkeyPatch
):
    """
    Without the VM's own range none passes, and the reason names a check.
    """
    others = layouts.ranges(25, usdt=False, interpreter=False)[1:]
    monkeypatch.setattr(live, "ranges", lambda *_, **__: others)
    with pytest.raises(ReadRefusedError, match=r"none passes the checks.*the check that"):
        _ = replace(still, erts_version="13.9").layout
