# SPDX-License-Identifier: Apache-2.0
"""
Layouts that have drifted: every figure is refused or right, on a VM that stands still.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from beams_run import start_beam

from scope_ebpf import relations
from scope_ebpf.beam import layouts
from scope_ebpf.beam.layouts import Layout, live
from scope_ebpf.beam.memory.process_memory import Memory
from scope_ebpf.beam.processes.detail import FIELDS, detail
from scope_ebpf.beam.processes.table import IDENTITY
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm.allocators import AllocatorReader
from scope_ebpf.beam.vm.connections import ConnectionReader
from scope_ebpf.beam.vm.constants import kernel_constants
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.beam.vm.scheduler_addresses import SchedulerFinder
from scope_ebpf.beam.vm.schedulers import Schedulers
from scope_ebpf.errors import ReadRefusedError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.discover import Beam

#: What is the aligned size of a struct.
ALIGNED = {
    "ErtsSchedulerData": "ErtsAlignedSchedulerData",
    "ErtsRunQueue": "ErtsAlignedRunQueue",
}
#: Fields that are indexes into a list, and no offsets.
INDEXES = ("proc", "msg_ref", "ll_ptimer", "hl_ptimer", "bif_timer", "monitor", "link")
SHIFTS = (-64, -32, -16, -8, 8, 16, 32, 64)
#: Drifts that each VM is read with.
DRIFTS = 50
ONE_EACH = ("+S", "1:1", "+SDcpu", "1:1", "+SDio", "1")
#: Processes with every kind of monitor.
MONITORS = """
    spawn(fun() -> register(drift_alias, self()), [alias() || _ <- "1234567"],
        receive x -> x end end),
    spawn(fun() -> register(drift_named, self()), [monitor(process, init) || _ <- "12345"],
        monitor(time_offset, clock_service), receive x -> x end end),
    spawn(fun() -> register(drift_nodes, self()), net_kernel:monitor_nodes(true),
        receive x -> x end end),
    P = spawn(fun() -> register(drift_suspended, self()), receive x -> x end end),
    spawn(fun() -> register(drift_suspender, self()), erlang:suspend_process(P),
        receive x -> x end end).
"""
#: Names of processes of which everything is read, and what is None where it is refused.
WHOLE = ("drift_", "names_full", "init")
UNTOLD = (
    *("links", "monitors", "watchers", "aliases", "suspends", "suspended_by", "node_monitors"),
    "status_reason",
)


@pytest.fixture(
    scope="module",
    params=[("stock25", ()), ("stock25", ONE_EACH), ("trixie27", ()), ("sid29", ())],
    ids=["25", "25-one-each", "27", "29"],
)
def still(request: pytest.FixtureRequest) -> Iterator[Beam]:
    """
    A VM that stands still, so that two readings are the same; one has one scheduler of each kind.
    """
    kind, flags = request.param
    started = start_beam(kind, *flags, "-s", "names_mix", "-names_size", "20", eval=MONITORS)
    with started as beam:
        beam.expect("ready")
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
    if (aligned := ALIGNED.get(struct)) is not None:
        structs[aligned]["sizeof"] = (moved["sizeof"] + 63) // 64 * 64
    return layout._replace(structs=structs)


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
    return ConnectionReader(target).read()._asdict()


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


def _details(target: Beam) -> dict[str, Any]:
    viewer = Viewer(target, FIELDS)
    rows = viewer.table.snapshot().rows
    found = {}
    for index, name in enumerate(viewer.names.registered(rows)):
        if name and name.startswith(WHOLE):
            one = detail(viewer, rows[index : index + 1])
            unsure = ["memory_bytes"] if one.pop("memory_estimated", False) else []
            unsure += ["mailbox"] if one["mailbox"]["estimated"] else []
            unsure += [key for key in UNTOLD if one[key] is None]
            near = one["related"]
            one["related"] = {kind: who for kind, who in near.items() if who is not None}
            found[name] = {key: value for key, value in one.items() if key not in unsure}
    return found


def _settings(target: Beam) -> dict[str, Any]:
    settings, atoms, _ = kernel_constants(target)
    return {n: int(one[n]) for one in (settings, atoms) for n in one.dtype.names if one[n]}


def _samples(target: Beam) -> dict[str, Any]:
    finder = SchedulerFinder(target)
    return {role: finder.find(role, 1) for role in ("normal", "dirty_cpu", "dirty_io")}


READERS = (
    *(_counters, _allocators, _connections, _processes, _schedulers, _details),
    *(_settings, _samples),
)


def read(target: Beam, reader: Any) -> dict[str, Any] | None:
    """
    What a reader returns of a *target* that is looked at anew, None where it refuses.
    """
    try:
        memory = Memory(target.pid, target.identity.process)  # its schedulers are checked anew, too
        return reader(replace(target, memory=memory))
    except ScopeError:
        return None


def structs_of(target: Beam, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """
    The structs that each reader reads, by its name.
    """
    used: dict[str, set[str]] = defaultdict(set)
    offset = Layout.offset
    for reader in READERS:

        def noted(self: Layout, struct: str, field: str, reader: Any = reader) -> int:
            used[reader.__name__].add(struct)
            return offset(self, struct, field)

        monkeypatch.setattr(Layout, "offset", noted)
        read(target, reader)
    monkeypatch.setattr(Layout, "offset", offset)
    return used


def wrong(found: Any, truth: Any, where: str = "") -> list[str]:
    """
    What is *found* that is not so; of a process, less may be read.
    """
    if not isinstance(found, dict) or not isinstance(truth, dict):
        return [] if found == truth else [f"{where}: {found} is {truth}"]
    return [
        line
        for key, value in found.items()
        for line in wrong(value, truth.get(key, "not there"), f"{where} {key}")
    ]


def test_a_layout_that_has_drifted_shows_no_wrong_figure(
    still: Beam, monkeypatch: pytest.MonkeyPatch
):
    """
    Layouts of which each is moved from a random field of a struct on: what is read is true.
    """
    right, used = still.layout, structs_of(still, monkeypatch)
    truth = {reader: read(still, reader) for reader in READERS}
    readers = [reader for reader in READERS if truth[reader] is not None]
    assert {_processes, _details, _schedulers, _counters} <= {*readers}
    chance = random.Random(still.layout.release)
    structs = sorted(set.union(*(used[reader.__name__] for reader in readers)))
    refused = 0
    for _ in range(DRIFTS):
        struct = chance.choice(structs)
        fields = right.structs[struct]
        field = chance.choice([f for f, at in fields.items() if f not in INDEXES and at >= 0])
        by = chance.choice([shift for shift in SHIFTS if fields[field] + shift >= 0])
        moved = drifted(right, struct, field, by)
        monkeypatch.setattr(live, "ranges", lambda *_, moved=moved, **__: (moved,))
        for reader in readers:
            if struct in used[reader.__name__]:
                found = read(still, reader)
                refused += found is None
                reported = (struct, field, by, reader.__name__)
                assert found is None or not wrong(found, truth[reader]), reported
    assert refused >= DRIFTS // 2


def test_a_version_between_known_ones_takes_the_layout_that_passes(still: Beam):
    """
    Of all ranges of the release the VM's own alone passes every check.
    """
    if still.layout.release != 25:
        pytest.skip("versions of OTP 25")
    found = replace(still, erts_version="13.1.2.9").layout
    assert (still.layout.structs, False) == (found.structs, found.exact)


def test_a_version_beyond_known_ones_whose_layout_is_unknown_is_refused(
    still: Beam, monkeypatch: pytest.MonkeyPatch
):
    """
    Without the VM's own range none passes, and the reason names a check.
    """
    if still.layout.release != 25:
        pytest.skip("versions of OTP 25")
    others = layouts.ranges(25, usdt=False, interpreter=False)[1:]
    monkeypatch.setattr(live, "ranges", lambda *_, **__: others)
    with pytest.raises(ReadRefusedError, match=r"none passes the checks.*the check that"):
        _ = replace(still, erts_version="13.9").layout
