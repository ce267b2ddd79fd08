# SPDX-License-Identifier: Apache-2.0
"""
Reading an image of a VM: whole, damaged, with pages missing, and in circles.
"""

from __future__ import annotations

import struct
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import beam_image
from beam_image import ATOMS, BASE, PAGE, atom, make, pid

from scope_ebpf.beam import layouts
from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.elf.contents import Symbol
from scope_ebpf.beam.held.stacks import StackReader
from scope_ebpf.beam.memory import search
from scope_ebpf.beam.processes import atoms
from scope_ebpf.beam.processes import table as processes
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.blocks import Blocks
from scope_ebpf.beam.processes.detail import FIELDS, detail, find
from scope_ebpf.beam.processes.shapes import TermReader
from scope_ebpf.beam.processes.sizes import mailboxes, memory_bytes
from scope_ebpf.beam.processes.table import LOAD, ProcessTable
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.errors import ReadRefusedError, TooMuchError


def view(image: beam_image.Image) -> Viewer:
    image.memory  # noqa: B018 - the image is complete from here on
    target = SimpleNamespace(
        pid=0,
        otp_release="25",
        erts_version=image.erts_version,
        memory=image.memory,
        layout=image.layout,
        address=image.address,
        find=image.find,
    )
    return Viewer(target, FIELDS)


def test_an_image_is_read_whole():
    """
    Names, behaviour-less initial call, function, mailbox and size of each process are there.
    """
    viewer = view(make(8))
    snapshot = viewer.table.snapshot()
    assert (8, 8, 0, 0) == (len(snapshot), snapshot.total, snapshot.torn, snapshot.unreadable)
    row = viewer.describe(snapshot.rows)[3]
    shown = {key: row[key] for key in ("pid", "name", "initial_call", "behaviour", "module")}
    assert {
        "pid": "<0.3.0>",
        "name": "my_name",
        "initial_call": "names_server:init/1",
        "behaviour": "gen_server",
        "module": "names_server",
    } == shown
    assert ("gen_server:loop/7", 2, 1003) == (
        row["current_function"],
        row["message_queue_len"],
        row["reductions"],
    )
    # The struct, its heap, a link, two messages, a word of theirs, a dictionary of eight words.
    assert 776 + 8 * 32 + 40 + 2 * 88 + 8 + 24 + 8 * 8 == row["memory_bytes"]
    shown = detail(viewer, snapshot.rows[3:4])
    assert ["normal", "{'$gen_call', _, {my_name, _}}"] == shown["messages"]
    assert [{"function": "gen_server:loop/7", "location": None}] == shown["stack"]


def test_a_process_under_construction_is_torn_and_not_shown():
    """
    All locks held means that the process is being made or ended now.
    """
    image = make(4)
    viewer = view(image)
    pointer = int(viewer.table.snapshot().rows["pointer"][2])
    struct.pack_into(
        "<I", image.data, pointer - BASE + image.layout.offset("Process", "lock.flags"), 0x1F
    )
    snapshot = viewer.table.snapshot()
    assert (3, 4, 1) == (len(snapshot), snapshot.total, snapshot.torn)


def spread(slots: list[int], size: int) -> beam_image.Image:
    """
    A VM with processes in these *slots* of a table of this *size*.
    """
    image = make(len(slots))
    table = image.roots["erts_proc"] - BASE
    (old,) = struct.unpack_from(
        "<Q", image.data, table + image.layout.offset("ErtsPTab", "r.o.tab")
    )
    words = [0] * size
    for number, slot in enumerate(slots):
        (words[slot],) = struct.unpack_from("<Q", image.data, old - BASE + 8 * number)
        offset = words[slot] - BASE + image.layout.offset("Process", "common.id")
        struct.pack_into("<Q", image.data, offset, pid(slot))
    fields = (
        ("r.o.tab", image.words(*words), "Q"),
        ("r.o.max", size, "I"),
        ("r.o.pix_mask", size - 1, "I"),
    )
    for name, value, kind in fields:
        struct.pack_into(
            "<" + kind, image.data, table + image.layout.offset("ErtsPTab", name), value
        )
    return image


@pytest.mark.parametrize("parts", [1, 2, 3, 64])
def test_a_sparse_table_is_read_with_few_calls_and_whole(parts: int):
    """
    A process far from the others is found as well, and only in the part of its block.
    """
    slots = [0, 4095, 4096, 20_000, 131_071, 131_072, 200_000, 262_143]
    viewer = view(spread(slots, 1 << 18))
    table, memory = ProcessTable(viewer.target, LOAD), viewer.target.memory
    before = memory.calls
    found = [sorted(table.snapshot(part, parts).rows["slot"].tolist()) for part in range(parts)]
    assert [[n for n in slots if n // 4096 % parts == part] for part in range(parts)] == found
    assert memory.calls - before <= 50 + 5 * parts


@pytest.mark.parametrize("parts", [1, 2])
def test_a_table_of_more_processes_than_it_counts_is_refused(parts: int):
    """
    Nine are there and the table counts one: eight are as many as are read at once.
    """
    image = spread(list(range(9)), 1 << 17)
    count = image.roots["erts_proc"] + image.layout.offset("ErtsPTab", "vola.tile.count")
    struct.pack_into("<I", image.data, count - BASE, 1)
    table = ProcessTable(view(image).target, LOAD)
    assert (1, 9) == (table.count(), len(table.snapshot(0, parts, most=9)))
    with pytest.raises(TooMuchError, match="more than 8 processes"):
        table.snapshot(0, parts, most=8)


def test_stacks_of_more_processes_than_a_part_can_have_are_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    """
    Also where the table counts few.
    """
    reader = StackReader(view(make(9)).target)
    assert 9 == reader.read("call").read
    monkeypatch.setattr("scope_ebpf.beam.held.stacks._MOST_ROWS", 8)
    with pytest.raises(TooMuchError, match="more than 8 processes"):
        reader.read("call")


def test_processes_with_more_labels_than_are_read_are_counted():
    """
    Of 7, 5 have labels of their own, and 3 of these are read: 2 are left, the others are in groups.
    """
    viewer = view(make(7))
    terms = np.array([0, 3, 4, 5, 6, 7, 0], np.uint64)
    names = SimpleNamespace(
        dictionary=lambda _rows, _key: terms, initial_calls=viewer.names.initial_calls
    )
    rows = viewer.table.snapshot().rows
    reader = StackReader(viewer.target)
    reader.viewer = SimpleNamespace(
        names=names, labels=lambda _: [None, "a", "b", "c", None], heaps=viewer.heaps
    )
    groups = {}
    assert (3, 2) == reader._by_label(rows, groups, 3)
    assert {None: 2, "a": 1, "b": 1, "c": 1} == {one.label: one.count for one in groups.values()}


def test_slots_are_looked_at_again_up_to_the_last_of_a_table_of_any_size():
    """
    Nothing behind the table is taken for a slot.
    """
    slots = [0, 63, 4099]
    table = ProcessTable(view(spread(slots, 4100)).target, LOAD)
    assert slots == table.snapshot().rows["slot"].tolist()
    assert [4099, 0] == table.at(np.array([4099, 5, 0])).rows["slot"].tolist()


def test_slots_that_were_missed_are_reported():
    """
    A process under construction is in none of the rows, but its slot is known.
    """
    image = spread([5, 70_000], 1 << 17)
    viewer = view(image)
    pointer = int(viewer.table.snapshot().rows["pointer"][1])
    locks = pointer - BASE + image.layout.offset("Process", "lock.flags")
    struct.pack_into("<I", image.data, locks, 0x1F)
    snapshot = viewer.table.snapshot()
    assert ([5], [70_000]) == (snapshot.rows["slot"].tolist(), snapshot.missed.tolist())


@pytest.mark.parametrize(
    ("field", "check"), [("common.id", "pids lead back"), ("heap_sz", "heap pointers are in order")]
)
def test_a_layout_that_does_not_fit_is_refused_by_the_name_of_the_check(field: str, check: str):
    """
    One field elsewhere, and no process is shown.
    """
    image = make(8)
    structs = {**image.layout.structs, "Process": dict(image.layout.structs["Process"])}
    structs["Process"][field] += 8
    image.layout = image.layout._replace(structs=structs)
    with pytest.raises(ReadRefusedError, match=f"{check}.* of 8 processes"):
        view(image)


@pytest.mark.parametrize(("release", "nearest"), [("30", 29), ("23", 24), ("26", 26), ("odd", 29)])
def test_a_release_that_is_not_known_is_tried_with_the_nearest(release: str, nearest: int):
    """
    It is marked as a guess, and only the checks decide.
    """
    assert nearest == layouts.nearest(release)


# What the VM says is a number of its, and may be any


def test_no_ranges_of_code_are_none_in_order():
    """
    An address that looked like the ranges of code, and does not when it is read again, is refused.
    """
    image = make(1)
    address = image.roots["r"]
    target = view(image).target
    assert search._in_order(target, address)
    for count in (0, 1 << 40):
        struct.pack_into(
            "<Q", image.data, address - BASE + image.layout.offset("ranges", "n"), count
        )
        assert not search._in_order(target, address)


def test_slots_beyond_the_table_have_no_process():
    """
    Another reading of the table may have found it larger.
    """
    table = ProcessTable(view(make(4)).target, LOAD)
    assert [2] == table.at(np.array([2, 12, 70_000])).rows["slot"].tolist()


def test_only_what_a_comparison_leaves_is_read():
    """
    Excluded candidates, whose addresses are often not mapped, are not read.
    """
    target = view(make(1)).target
    addresses = np.full(500, 8, np.uint64)
    good = np.zeros(500, np.bool_)
    addresses[7], good[7] = BASE, True
    words = np.full(500, target.memory.u64(BASE), np.uint64)
    before = target.memory.calls
    assert [7] == np.flatnonzero(search._leading(target, addresses, words, good)).tolist()
    assert target.memory.calls - before == 1


def test_atoms_that_are_only_claimed_are_not_looked_for(monkeypatch):
    """
    33 million atoms of which twelve are there cost two blocks of readings.
    """
    monkeypatch.setattr(atoms, "_BLOCK", 64)
    monkeypatch.setattr(atoms, "_BORN", 64)
    image = make(1)
    entries = image.roots["erts_atom_table"] - BASE + image.layout.offset("IndexTable", "entries")
    struct.pack_into("<I", image.data, entries, 1 << 25)
    target = view(image).target
    before = target.memory.calls
    assert beam_image.ATOMS.index("my_name") == Atoms(target).index("my_name")
    assert Atoms(target).index("no such atom") is None
    assert target.memory.calls - before < 1000


def test_a_table_of_slots_that_lead_nowhere_is_refused(monkeypatch):
    """
    Each slot that cannot be read costs some calls, so their number is limited.
    """
    image = spread([0, 1], 1 << 13)
    (table,) = struct.unpack_from(
        "<Q",
        image.data,
        image.roots["erts_proc"] - BASE + image.layout.offset("ErtsPTab", "r.o.tab"),
    )
    count = image.roots["erts_proc"] + image.layout.offset("ErtsPTab", "vola.tile.count")
    struct.pack_into("<I", image.data, count - BASE, 302)
    for slot in range(5000, 5300):
        struct.pack_into("<Q", image.data, table - BASE + 8 * slot, 0x7FFF_0000_0000 + 8 * slot)
    reader = ProcessTable(view(image).target, LOAD)
    assert 300 == reader.snapshot().unreadable
    monkeypatch.setattr(processes, "_MOST_MISSED", 200)
    with pytest.raises(ReadRefusedError, match="more than 200 slots"):
        reader.snapshot()


@pytest.mark.parametrize(("slots", "refused"), [(1 << 27, False), (1 << 28, True)])
def test_the_largest_table_there_can_be_is_read(slots: int, refused: bool):
    """
    ``+P 134217727``, the documented maximum, makes a table of 134,217,728 slots.
    """
    image = make(2)
    viewer = view(image)
    table = image.roots["erts_proc"] - BASE
    for name, value in (("r.o.max", slots), ("r.o.pix_mask", slots - 1)):
        struct.pack_into("<I", image.data, table + image.layout.offset("ErtsPTab", name), value)
    # The image ends long before the table would: another error.
    with pytest.raises(ReadRefusedError, match="claims" if refused else "cannot be read"):
        ProcessTable(viewer.target, LOAD)


def test_a_mailbox_in_a_circle_ends():
    """
    A message that leads to itself is looked at a bounded number of times, and the size is a guess.
    """
    image = make(2)
    viewer = view(image)
    rows = viewer.table.snapshot().rows
    first = int(rows["first_message"][0])
    struct.pack_into("<Q", image.data, first - BASE, first)
    sizes = memory_bytes(viewer.target, rows, limit=50)
    assert [False, True] == sizes.exact.tolist()
    assert 10 == len(detail(viewer, rows[:1])["messages"])


def test_a_mailbox_holds_no_more_than_a_process_can_have():
    """
    Messages that claim 32 GB each, as memory may that was freed under the reader, hold nothing.
    """
    image = make(2)
    viewer = view(image)
    rows = viewer.table.snapshot().rows
    first = int(rows["first_message"][0])
    struct.pack_into("<Q", image.data, first - BASE, first)
    for field, value in (("data", 1), ("hfrag.used_size", 1 << 32)):
        at = first - BASE + image.layout.offset("ErtsMessage", field)
        struct.pack_into("<Q", image.data, at, value)
    struct.pack_into("<Q", image.data, at - 8, 1 << 32)
    held = mailboxes(viewer.target, rows[:1], 50, Blocks(viewer.target))
    assert ([0.0], [False]) == (held.bytes.tolist(), held.whole.tolist())


def test_a_list_without_a_proper_end_and_bytes_that_are_no_text_are_written_as_erlang_does():
    """
    What is behind the bar is part of a list, and a byte that is no character is a number.
    """
    image = make(1)
    tail = image.words(2 << 4 | 0xF, atom("normal"))
    odd = image.words(1 << 4 | 0xF, tail | 1)
    proper = image.words(1 << 4 | 0xF, 0x3B)
    header = 0x20  # ErlHeapBits, its size in bits behind it
    raw, text = (image.put(struct.pack("<QQ", header, 24) + b) for b in (b"\xff\xfe\0", b"caf"))
    terms = TermReader(
        SimpleNamespace(
            memory=image.memory,
            layout=layouts.load(27, usdt=False, interpreter=False),
            address=image.address,
        ),
        SimpleNamespace(text=lambda term: ATOMS[term >> 6]),
    )
    assert "[1,2|normal]" == terms.text(odd | 1)
    assert "[1]" == terms.text(proper | 1)
    assert "<<255,254,0>>" == terms.text(raw | 2)
    assert '<<"caf">>' == terms.text(text | 2)


def test_a_list_in_a_circle_ends():
    """
    A label that is a list without end is cut.
    """
    image = make(1)
    cell = image.words(0x1F, 0)
    struct.pack_into("<Q", image.data, cell - BASE + 8, cell | 1)
    assert len(view(image).terms.text(cell | 1)) < 200


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), max_size=200),
    holes=st.sets(st.integers(0, 20), max_size=3),
)
def test_a_damaged_image_is_refused_or_counted_and_never_hangs(
    flips: list[tuple[int, int]], holes: set[int]
):
    """
    Flipped bits and missing pages: refusals and torn rows, values within bounds, little memory.
    """
    image = make(8)
    size = len(image.data)
    image.memory.holes = {BASE // PAGE + hole for hole in holes}
    for offset, bit in flips:
        image.data[offset % size] ^= 1 << bit
    tracemalloc.start()
    try:
        viewer = view(image)
        snapshot = viewer.table.snapshot()
        for row in viewer.describe(snapshot.rows, 100):
            assert 0 <= row["message_queue_len"] < 1 << 40
            assert 0 <= row["heap_words"] < 1 << 40
            assert row["name"] is None or len(row["name"]) <= 1020
        for row in range(min(1, len(snapshot))):
            detail(viewer, snapshot.rows[row : row + 1])
    except ReadRefusedError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # A process table that claims millions of slots is read in blocks.
    assert peak < 600 << 20


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=50), st.integers(0, 256))
def test_gathering_at_any_address_says_what_was_read(addresses: list[int], size: int):
    """
    A row is either what is there or zero and counted as a failure.
    """
    image = make(2)
    good = [BASE + address % 512 for address in addresses[::2]]
    wanted = np.array(good + addresses[1::2], np.uint64)
    memory = image.memory
    rows, read = memory.gather(wanted, size)
    assert memory.failures == int((~read).sum())
    for address, row, ok in zip(wanted.tolist(), rows, read.tolist(), strict=True):
        start = address - BASE
        assert row.tobytes() == (image.data[start : start + size] if ok else bytes(size))
    assert read[: len(good)].all()


@pytest.mark.parametrize(
    ("release", "names", "location", "expected"),
    [
        (24, (), 0 << 24 | 31, "gen_server.erl:31"),
        (24, ("init", "loop"), 2 << 24 | 7, "loop:7"),
        (25, ("ab.erl",), 0 << 24 | 31, "ab.erl:31"),
        (25, ("ab.erl", "c.hrl"), 1 << 24 | 7, "c.hrl:7"),
    ],
)
def test_a_code_address_has_the_file_that_its_release_means(
    release: int, names: tuple[str, ...], location: int, expected: str
):
    """
    Until OTP 24 names of files are atoms that follow the module's own, from 25 on texts with it.
    """
    image = beam_image.Image(layout=layouts.load(release, usdt=False, interpreter=False))
    beam_image.add_code(image, beam_image.line_table(image, names, location))
    beam_image.add_atoms(image)
    code = CodeMap(image, Atoms(image))
    found = code.location(image.roots["pc"])
    assert found is not None
    assert (expected, "gen_server:loop/7") == (found.location, str(found))


@pytest.mark.parametrize(
    ("spelled", "slot"),
    [
        *((text, 3) for text in ("<0.3.0>", "0.3.0", "#PID<0.3.0>")),
        *((text, 1) for text in ("MyApp.Worker", "Elixir.MyApp.Worker", "'Elixir.MyApp.Worker'")),
        *((text, 2) for text in ("with space", "'with space'")),
        *((text, None) for text in ("<0.300.0>", "MyApp", "Worker", "'MyApp.Worker", "'", "")),
    ],
)
def test_a_process_is_found_as_erlang_and_elixir_write_it(
    spelled: str, slot: int | None, monkeypatch: pytest.MonkeyPatch
):
    """
    By its pid and by its name; one that is not there is not found, however it is written.
    """
    viewer = view(make(8))
    names = [None, "Elixir.MyApp.Worker", "with space", *[None] * 5]
    monkeypatch.setattr(viewer.names, "registered", lambda _rows: names)
    found = find(viewer, spelled)
    assert ([] if slot is None else [pid(slot)]) == found["id"].tolist()


@pytest.mark.parametrize(
    ("relative", "lock", "expected"),
    [
        (True, b"\x48\x8d\x3d\x39\xef\xff\xff", 0x10068),  # lea rdi, [rip - 0x10c7]
        (False, b"\xbf\x40\x00\x00\x00", 0x68),  # mov edi, 0x40
        (True, b"\xbf\x40\x00\x00\x00", None),
    ],
    ids=["relative", "fixed", "a constant"],
)
def test_collections_of_dirty_schedulers_lie_behind_their_lock(
    *, relative: bool, lock: bytes, expected: int | None
):
    """
    The lock is named relative to the code, or by its own address where the file has a fixed one.
    """
    start, lock_init = 0x1100, 0x1800
    call = start + len(lock)
    code = lock + b"\xe8" + (lock_init - call - 5).to_bytes(4, "little", signed=True)
    store = start + len(code) + 7
    code += b"\x0f\x11\x05" + (0x68 - store).to_bytes(4, "little", signed=True)
    symbols = {
        "erts_init_gc": Symbol("erts_init_gc", start, len(code), True),
        "ethr_mutex_init": Symbol("ethr_mutex_init", lock_init, 16, True),
    }
    binary = SimpleNamespace(
        symbol=symbols.get, machine="x64", relative=relative, read=lambda *_: code
    )
    target = SimpleNamespace(binary=binary, base=0x10000 if relative else 0)
    assert expected == search.SEARCHES["dirty_gc.info"](target)


@pytest.mark.parametrize("named", [0x5000, 0x5000 + 24], ids=["its own", "a field's"])
def test_a_struct_is_found_by_its_own_address_or_by_that_of_its_field(
    monkeypatch: pytest.MonkeyPatch, named: int
):
    """
    What clang names and what GCC names leads to the struct, if the check passes there alone.
    """
    monkeypatch.setattr(search, "referenced", lambda *_: [0x7000, named])
    target = SimpleNamespace(layout=SimpleNamespace(offset=lambda *_: 24))
    found = [
        search._by_function("reads", "Struct", "field", partial(_lies_in, places), target)
        for places in ({0x5000}, {0x5000, 0x7000}, set())
    ]
    assert [0x5000, None, None] == found


def _lies_in(places: set[int], _: object, address: int) -> bool:
    return address in places
