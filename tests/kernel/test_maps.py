# SPDX-License-Identifier: Apache-2.0
"""
Maps of an object that no program runs of: what is written with numpy types is read with them.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import beams_run
import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.errors import HostError
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.kernel.bpf.libbpf import LibbpfError, library
from scope_ebpf.kernel.bpf.maps import U32, U64, possible_cpus
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.observers.telemetry_watch import TelemetryWatch, Work
from scope_ebpf.kernel.observers.thread_watch import ThreadWatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.kernel.bpf.maps import Map

#: ENOTSUPP of the kernel, which the C library does not know.
NOT_SUPPORTED = 524


@pytest.fixture
def loaded() -> Iterator[BpfObject]:
    """
    The object ``function``, whose programs are loaded and attached to nothing.
    """
    beams_run.require(os.geteuid() == 0, "loading BPF programs takes root")
    opened = BpfObject("function", object_bytes("function"))
    try:
        opened.set_constants(np.zeros((), events.CALL_SETTINGS).tobytes())
        opened.load(("function_entry", "function_return"))
        yield opened
    finally:
        opened.close()


def places(loaded: BpfObject) -> Map:
    """
    A hash whose keys are addresses.
    """
    return loaded.map("breakpoint_sites", U64, events.BREAKPOINT_SITE)


def place(number: int) -> np.ndarray:
    """
    A value of it.
    """
    value = np.zeros((), events.BREAKPOINT_SITE)
    value["number"], value["module"] = number, 2**63 + number
    return value


def test_a_hash_gives_back_what_was_written(loaded: BpfObject):
    """
    Keys and values of 23 entries are read as they were written, by key and all together.
    """
    table, wanted = places(loaded), {2**40 + 7 * n: place(n) for n in range(23)}
    for key, value in wanted.items():
        table[key] = value
    assert sorted(wanted) == sorted(table.keys().tolist())
    assert {key: value.tobytes() for key, value in wanted.items()} == {
        int(key): value.tobytes() for key, value in table.items()
    }
    assert wanted[2**40].tobytes() == table[2**40].tobytes()


def test_a_key_that_is_not_there(loaded: BpfObject):
    """
    It may be asked for and removed; to read it is an error that names the map.
    """
    table = places(loaded)
    table[1] = place(1)
    table.discard(1)
    table.discard(1)
    assert (None, [], []) == (table.get(1), table.keys().tolist(), list(table.items()))
    with pytest.raises(LibbpfError) as error:
        table[1]
    assert str(error.value).startswith(
        "cannot read the map breakpoint_sites: No such file or directory"
    )


def test_an_index_beyond_the_end_is_refused(loaded: BpfObject):
    """
    The kernel's refusal to write is an error that names the map.
    """
    with pytest.raises(LibbpfError) as error:
        loaded.map("call_state", U32, U64)[3] = 1
    assert str(error.value).startswith("cannot write the map call_state: Argument list too long")


@pytest.mark.parametrize("has_batch", [True, False])
def test_an_array_is_read_whole(
    loaded: BpfObject, monkeypatch: pytest.MonkeyPatch, *, has_batch: bool
):
    """
    In one call, or one by one where the kernel cannot, with the same result.
    """
    if not has_batch:
        monkeypatch.setattr(library(), "bpf_map_lookup_batch", lambda *_: -NOT_SUPPORTED)
    state = loaded.map("call_state", U32, U64)
    for number, value in enumerate((7, 0, 2**64 - 1)):
        state[number] = value
    assert [7, 0, 2**64 - 1] == state.values().tolist()
    assert [2**64 - 1, 7] == state.at((2, 0)).tolist()
    totals = loaded.map("call_totals", U32, events.CALL_TOTALS).values()
    assert (64, possible_cpus()) == totals.shape
    assert not totals["calls"].any()


def test_a_value_of_each_cpu(loaded: BpfObject):
    """
    A per-CPU map is written and read with one value for each possible CPU.
    """
    totals = loaded.map("call_totals", U32, events.CALL_TOTALS)
    value = np.zeros(possible_cpus(), events.CALL_TOTALS)
    value["calls"] = range(1, possible_cpus() + 1)
    totals[63] = value
    assert value.tobytes() == totals[63].tobytes() == totals.values()[63].tobytes()
    with pytest.raises(ValueError, match="call_totals has the shape"):
        totals[63] = value[0]


def test_types_of_another_size_are_refused(loaded: BpfObject):
    """
    The kernel would read or write beyond the end of such a value.
    """
    with pytest.raises(HostError) as error:
        loaded.map("call_state", U32, U32)
    assert (
        "the values of the map call_state have 8 bytes, but this program expects 4: the BPF "
        "objects and this program are of different builds; run `make objects`"
    ) == str(error.value)
    with pytest.raises(HostError, match="the keys of the map call_state have 4 bytes"):
        loaded.map("call_state", U64, U64)


@pytest.mark.parametrize("name", ["breakpoint_sites", "call_state", "call_totals"])
def test_a_map_is_cleared(loaded: BpfObject, name: str):
    """
    A hash is empty after it, and every value of an array is 0.
    """
    table, state = places(loaded), loaded.map("call_state", U32, U64)
    totals = loaded.map("call_totals", U32, events.CALL_TOTALS)
    counts = np.zeros(possible_cpus(), events.CALL_TOTALS)
    counts["calls"] = 1
    table[1], state[1], totals[1] = place(1), 5, counts
    loaded.maps[name].clear()
    left = {
        "breakpoint_sites": bool(len(table.keys())),
        "call_state": bool(state.values().any()),
        "call_totals": bool(totals.values()["calls"].any()),
    }
    assert [name] == [each for each, holds in left.items() if not holds]


def test_open_requests_of_one_vm_take_no_room_of_another():
    """
    23 processes of one at work stay known while another one begins 20,000 works.
    """
    beams_run.require(os.geteuid() == 0, "loading BPF programs takes root")
    threads = ThreadWatch()
    with closing(threads), closing(Attacher()) as attacher, ExitStack() as watches:
        maps = []
        for target in (threads.add(), threads.add()):
            work = Work(8, events.MAX_OPEN_WORKS, threads.works.clock(target))
            settings = np.zeros((), events.TELEMETRY_SETTINGS)
            watch = TelemetryWatch(None, settings, (), 8, attacher=attacher, work=work)
            watches.enter_context(watch)
            maps.append(watch._object.map("works", U64, events.WORK))
            assert {events.WORK_OUTSIDE: 0, events.WORK_OTHER: 0} == watch.work_samples()
        quiet, busy = maps
        for pid in range(1, 24):
            quiet[pid] = np.zeros((), events.WORK)
        for pid in range(1, 20_001):
            busy[pid] = np.zeros((), events.WORK)
        assert {*range(1, 24)} == {*quiet.keys().tolist()}
        assert 0 < len(busy.keys()) <= events.MAX_OPEN_WORKS
