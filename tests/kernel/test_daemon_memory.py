# SPDX-License-Identifier: Apache-2.0
"""
What is read of a VM's memory for metrics, held against what the VM says of itself.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import beams_run

from scope_ebpf import relations
from scope_ebpf.beam.memory import roots
from scope_ebpf.beam.vm.allocators import AllocatorReader
from scope_ebpf.beam.vm.connections import ConnectionReader, Connections
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.budget.reference_counters import ReferenceCounters
from scope_ebpf.daemon.readings.memory import Readers

KINDS = ("stock25", "usdt25", "trixie27", "sid29")
#: Not the same number of any two kinds of schedulers, and not all of them online.
SCHEDULERS = ("+S", "4:2", "+SDcpu", "3:1", "+SDio", "5")


@pytest.fixture(scope="module", params=KINDS)
def witnessed(request):
    """
    A VM of each kind that reports its own figures, and its view from outside.
    """
    beams_run.require(os.geteuid() == 0, "reading another process's memory takes root")
    with beams_run.start_beam(request.param, *SCHEDULERS, "-s", "witness") as beam:
        beam.expect("ready")
        yield request.param, beam, inspect(beam.pid)


def facts(answer: str) -> dict[str, int]:
    """
    The numbers of one answer, by name.
    """
    return {name: int(value) for name, value in (pair.split("=") for pair in answer.split()[1:])}


def test_counters_are_those_of_the_vm(witnessed):
    """
    Every counter agrees with erlang:statistics and system_info, but for what asking itself takes.
    """
    _, beam, target = witnessed
    reader = CounterReader(target)
    before, said, after = reader.read(), facts(beam.ask("statistics")), reader.read()
    for name in ("context_switches", "reductions"):
        # A process that runs is accounted for when it leaves its scheduler.
        assert getattr(before, name) <= said[name] <= getattr(after, name) + 5_000, name
    if before.dirty_collections is not None:
        for name in ("collections", "reclaimed_words"):
            assert getattr(before, name) <= said[name] <= getattr(after, name), name
    assert before.bytes_in <= said["bytes_in"] <= after.bytes_in
    assert before.bytes_out <= said["bytes_out"] <= after.bytes_out
    assert said["processes"] == after.processes
    assert said["ports"] == after.ports
    assert said["atoms"] == after.atoms
    assert said["ets_tables"] == after.ets_tables
    assert after.schedulers == (said["normal"], said["dirty_cpu"], said["dirty_io"]) == (4, 3, 5)
    assert after.online[:2] == (said["normal_online"], said["dirty_cpu_online"]) == (2, 1)
    limits = reader.limits()
    assert said["process_limit"] == limits.processes
    assert said["port_limit"] == limits.ports
    assert said["atom_limit"] == limits.atoms


def test_collections_on_dirty_schedulers_are_counted_where_possible(witnessed):
    """
    Of 23 collections of a large heap the VM and we say the same; OTP 29 does not let us see them,
    and then they are not said to be none.
    """
    kind, beam, target = witnessed
    reader = CounterReader(target)
    asked = facts(beam.ask("statistics"))
    before = reader.read()
    assert beam.ask("dirty_gc 23") == "done dirty_gc 23"
    early, said, after = reader.read(), facts(beam.ask("statistics")), reader.read()
    assert said["collections"] - asked["collections"] >= 23
    if kind == "sid29":
        assert before.dirty_collections is None
        return
    assert 23 <= after.dirty_collections - before.dirty_collections < 40
    assert early.collections <= said["collections"] <= after.collections
    assert early.reclaimed_words <= said["reclaimed_words"] <= after.reclaimed_words


def test_run_queues_are_as_long_as_the_vm_says(witnessed):
    """
    With more processes that never wait than schedulers, those that wait for one are counted.
    """
    _, beam, target = witnessed
    reader = CounterReader(target)
    assert beam.ask("crowd 23") == "done crowd 23"
    # Two schedulers are online, and one of the crowd is on each of them.
    lengths = [reader.read().waiting[0] for _ in range(200)]
    assert beam.ask("disperse") == "done disperse"
    assert sorted(lengths)[100] in range(19, 24)


def test_tables_that_come_are_counted(witnessed):
    """
    23 ETS tables are 23 more.
    """
    _, beam, target = witnessed
    reader = CounterReader(target)
    before = reader.read().ets_tables
    assert beam.ask("tables 23") == "done tables 23"
    assert reader.read().ets_tables - before == 23


def test_allocators_have_what_the_vm_says(witnessed):
    """
    Carriers agree to the byte while nothing happens, those in the pool too; blocks nearly.
    """
    _, beam, target = witnessed
    reader = AllocatorReader(target)
    for _ in range(20):
        before, said, after = reader.read(), facts(beam.ask("allocators")), reader.read()
        sizes = {one.name: one.carriers for one in after.allocators}
        if sizes == {one.name: one.carriers for one in before.allocators}:
            break
    assert said == {f"{name}_alloc": size for name, size in sizes.items()}


def test_memory_is_what_erlang_memory_says(witnessed):
    """
    Twenty megabytes of binaries and as much of ETS appear where the VM has them.

    The process that asks has a heap and copies, which are gone when we look.
    """
    kind, beam, target = witnessed
    assert beam.ask("hold 20") == "done hold 20"
    said, use = facts(beam.ask("memory")), AllocatorReader(target).read().memory
    near = 400_000
    assert said["binary"] > 20 << 20
    assert said["ets"] > 20 << 20
    assert use.binary == pytest.approx(said["binary"], abs=near)
    assert use.processes == pytest.approx(said["processes"], abs=near)
    assert use.processes_used == pytest.approx(said["processes_used"], abs=near)
    if kind == "sid29":  # two variables have no symbol there
        assert (use.total, use.system, use.ets, use.loaded_code) == (None,) * 4
        return
    assert use.ets == pytest.approx(said["ets"], abs=near)
    assert use.total == pytest.approx(said["total"], abs=2 * near)
    assert use.system == pytest.approx(said["system"], abs=2 * near)
    assert said["code"] / 2 < use.loaded_code < said["code"]


@pytest.mark.parametrize("flags", [("+Muacul", "0"), ("+MFacul", "0", "+MHas", "gf"), ()])
@pytest.mark.parametrize("kind", ["stock25", "trixie27"])
def test_memory_is_that_of_the_vm_whatever_its_allocators_do(kind: str, flags: tuple[str, ...]):
    """
    With 20,000 processes more, whether carriers are given to a pool or not.
    """
    beams_run.require(os.geteuid() == 0, "reading another process's memory takes root")
    with beams_run.start_beam(kind, *flags, "-s", "witness") as beam:
        beam.expect("ready")
        assert beam.ask("sleepers 20000") == "done sleepers 20000"
        reading = AllocatorReader(inspect(beam.pid)).read()
        said, use = facts(beam.ask("memory")), reading.memory
        assert said["processes"] > 20_000 * 2_000
        assert use.processes == pytest.approx(said["processes"], rel=0.01)
        assert use.processes_used == pytest.approx(said["processes_used"], rel=0.01)
        assert use.total == pytest.approx(said["total"], rel=0.01)
        # What memory/0 counts of atoms and of tables of code is in no allocator that we read.
        assert use.system == pytest.approx(said["system"], abs=4 << 20)
        assert use.processes_used <= use.processes
        assert relations.of_allocators(reading.allocators) == []


def test_memory_that_the_vm_does_not_know_is_refused():
    """
    Without its allocators ``erlang:memory/0`` is not supported, and we do not add up what is left.
    """
    beams_run.require(os.geteuid() == 0, "reading another process's memory takes root")
    with beams_run.start_beam("stock25", "+Mea", "min", "-s", "witness") as beam:
        assert beam.readline()  # it says that it cannot warm up, or that it is ready
        assert "notsup" in beam.ask("memory")
        reading = Readers(inspect(beam.pid)).read()
    assert reading.allocators is None or reading.allocators.memory is None
    assert reading.refused.keys() & {"allocators", "erlang_memory"}


@pytest.fixture
def misfit(witnessed, monkeypatch):
    """
    The VM with allocators that are not where the layout has them, until it is mended.
    """
    _, _, target = witnessed
    wrong = {**target.layout.structs["Allctr_t"], "alloc_no": 132}
    with monkeypatch.context() as patched:
        patched.setitem(target.layout.structs, "Allctr_t", wrong)
        yield target, patched.undo


def test_a_layout_that_does_not_fit_is_refused(misfit):
    """
    Allocators that are not where the layout has them yield a reason, and no number.
    """
    readers = Readers(misfit[0])
    for _ in range(2):
        reading = readers.read()
        assert reading.allocators is None
        assert "allocators" in reading.refused


def test_a_part_that_was_refused_once_is_read_later(misfit, monkeypatch):
    """
    A VM that was just starting is complete a while later: nothing stays refused.
    """
    target, mend = misfit
    monkeypatch.setattr(
        roots, "_AGAIN", 0.0
    )  # seconds until what was not found is looked for again
    readers = Readers(target)
    assert readers.read().allocators is None
    mend()
    reading = readers.read()
    assert reading.allocators is not None
    assert "allocators" not in reading.refused


def test_connections_are_those_there_are():
    """
    One visible node is connected; while it does not read, its queue is shown, and it is busy.
    """
    beams_run.require(os.geteuid() == 0, "reading another process's memory takes root")
    with beams_run.dist_pair("stock25") as (watched, peer):
        reader = ConnectionReader(inspect(watched.pid))
        assert reader.read() == Connections((1, 0), 0, 0)
        peer.freeze()
        try:
            assert watched.ask("fill", timeout=120).startswith("done fill ")
            full = reader.read()
        finally:
            peer.thaw()
        assert (full.nodes, full.busy) == ((1, 0), 1)
        assert full.queued > 1 << 16


def test_the_queue_of_a_node_that_is_being_connected_is_shown():
    """
    A node that accepts the connection and sends nothing has a queue, and is busy.
    """
    beams_run.require(os.geteuid() == 0, "reading another process's memory takes root")
    with beams_run.dist_pair("stock25") as (watched, _), socket.socket() as silent:
        arguments = Path(f"/proc/{watched.pid}/cmdline").read_text().split("\0")
        silent.bind(("127.0.0.3", int(arguments[arguments.index("-erl_epmd_port") + 1])))
        silent.listen()
        reader = ConnectionReader(inspect(watched.pid))
        assert watched.ask("flood silent@127.0.0.3 sync 40") == "done flood suspended"
        found = reader.read()
    assert ((1, 0), 1, 1) == (found.nodes, found.pending, found.busy)
    assert found.queued > 1 << 20


def test_the_queue_of_senders_that_do_not_wait_is_shown():
    """
    8 MB of a process with ``async_dist`` wait for a node that does not read, and no link is full.
    """
    beams_run.require(os.geteuid() == 0, "reading another process's memory takes root")
    with beams_run.dist_pair("trixie27") as (watched, peer):
        reader = ConnectionReader(inspect(watched.pid))
        peer.freeze()
        try:
            assert watched.ask("flood peer@127.0.0.2 async 120") == "done flood waiting"
            found = reader.read()
        finally:
            peer.thaw()
    assert found.queued > 6 << 20


@pytest.mark.parametrize("kind", ["stock25", "trixie27"])
def test_ports_that_are_opened_are_counted_by_the_vm_itself(kind: str):
    """
    The counter of ports grows by one for each, and stands still when none is opened.
    """
    beams_run.require(os.geteuid() == 0, "reading another process's memory takes root")
    with beams_run.planted(kind) as beam:
        counters = ReferenceCounters(inspect(beam.pid))
        before = counters.now()[counters.name_of("port_open")]
        assert beam.plant("ports 23") == 23
        after = counters.now()[counters.name_of("port_open")]
        assert counters.growth("port_open", before, after) == 23
