# SPDX-License-Identifier: Apache-2.0
"""
Growth of ETS tables and ports, flags of their status, and their text; looks that were kept.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import documents
import numpy as np
import pytest
from profile_fixtures import TARGET

from scope_ebpf.beam.held import memory as held
from scope_ebpf.beam.held.ports import ROW as PORT_ROW
from scope_ebpf.beam.held.ports import changes, is_busy
from scope_ebpf.beam.held.tables import ROW, is_named, protection_of, type_of
from scope_ebpf.cli.main import main
from scope_ebpf.cli.memory_text import memory_lines
from scope_ebpf.cli.ports import _lines as port_lines
from scope_ebpf.cli.ports import what
from scope_ebpf.cli.snapshots import conforms
from scope_ebpf.cli.stacks import _lines as stack_lines
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.runs import memory
from scope_ebpf.runs.held_tables import growth
from scope_ebpf.runs.memory import Span, process_growth


def table(address: int, btid: int, objects: int, size: int) -> np.ndarray:
    row = np.zeros(1, ROW)
    row["address"], row["btid"], row["objects"], row["memory_bytes"] = address, btid, objects, size
    return row


def test_a_new_table_at_an_old_address_has_no_growth():
    """
    Only a table of the same address and identifier has grown; others are new.
    """
    before = np.concatenate([table(8, 1, 10, 100), table(16, 2, 10, 100)])
    after = np.concatenate([table(16, 3, 99, 900), table(8, 1, 7, 123), table(24, 4, 1, 1)])
    objects, size = growth(before, after)
    assert [-3.0] == objects[~np.isnan(objects)].tolist()
    assert [True, False, True] == np.isnan(size).tolist()
    assert 23.0 == size[1]


def test_flags_of_a_table():
    """
    Both kinds of ordered sets are ordered sets, and other flags do not matter.
    """
    assert ["set", "bag", "duplicate_bag", "ordered_set", "ordered_set"] == [
        type_of(1 << bit | 1 << 9 | 1 << 1) for bit in range(4, 9)
    ]
    assert ["private", "protected", "public"] == [protection_of(1 << bit | 16) for bit in range(3)]
    assert is_named(1 << 11)
    assert not is_named(16)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["ets", "--duration", "0"], "looks twice"),
        (["ets", "--once", "--sort", "growth"], "shows no growth"),
        (["memory", "--duration", "0"], "looks twice"),
        (["memory", "--once", "--sort", "growth"], "shows no growth"),
        (["ports", "--duration", "0"], "looks twice"),
        (["ports", "--once", "--sort", "traffic"], "shows no traffic"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_vm_is_looked_at(words, why, capsys):
    """
    Without a second look there is no growth.
    """
    assert 2 == main([*words, "--pid", "1"])
    assert why in capsys.readouterr().err


def port(term: int, came: int, went: int) -> np.ndarray:
    row = np.zeros(1, PORT_ROW)
    row["id"], row["bytes_in"], row["bytes_out"] = term, came, went
    return row


def test_the_traffic_of_a_port_is_that_between_two_looks():
    """
    By its term, in any order; a port that is new, or the only ones there are, have none.
    """
    before = np.concatenate([port(7, 100, 0), port(3, 10, 5)])
    after = np.concatenate([port(3, 33, 5), port(9, 1, 1), port(7, 123, 77)])
    came, went = changes(before, after, ("bytes_in", "bytes_out"))
    assert [23.0, 23.0] == came[[0, 2]].tolist()
    assert [0.0, 77.0] == went[[0, 2]].tolist()
    assert [False, True, False] == np.isnan(came).tolist()
    assert np.isnan(changes(before[:0], after, ("bytes_in",))[0]).all()


def test_a_port_is_busy_by_its_driver_or_by_its_queue():
    """
    Other flags do not matter.
    """
    assert is_busy(1 << 4)
    assert is_busy(1 << 5 | 1)
    assert not is_busy(1 << 6 | 1 << 3)


PORT = {
    "port": "#Port<0.23>", "name": "cat -n", "driver": "spawn", "os_pid": 4711,
    "owner": "<0.85.0>", "owner_name": None, "initial_call": "shop:print/0",
    "queued_bytes": 2300, "busy": True, "waiting": 3, "bytes_in": 5, "bytes_out": 77000,
    "bytes_in_per_second": 0.0, "bytes_out_per_second": None,
}  # fmt: skip


def test_ports_as_text_have_program_owner_and_who_waits():
    """
    What was left out is counted, and no control character of a name reaches a terminal.
    """
    document = {
        "schema": 1, "target": TARGET, "duration_seconds": 1.0, "ports_total": 26, "read": 24,
        "torn": 2, "busy": 1, "queued_bytes": 2300, "drivers": {"tcp_inet": 23, "spawn": 1},
        "seconds": 0.1, "ports": [PORT, PORT | {"name": "a\x1b[2J", "os_pid": None}], "notes": [],
    }  # fmt: skip
    lines = port_lines(documents.validated(document))
    assert "1.0 s, 24 ports, 1 busy, 2.3k bytes queued" in lines[0]
    assert "by driver: 23 tcp_inet, 1 spawn" == lines[1]
    assert [
        *("#Port<0.23>", "4711:", "cat", "-n", "<0.85.0>", "shop:print/0"),
        *("2.3k", "3", "5", "77k", "0", "-"),
    ] == lines[3].split()
    assert ["and 22 ports more", "2 ports changed each time they were read: left out"] == lines[5:]
    assert [] == [line for line in lines if "\x1b" in line]
    assert "tcp_inet" == what(PORT | {"name": "tcp_inet", "driver": "tcp_inet", "os_pid": None})


def test_stacks_as_text_have_counts_frames_and_what_is_left_out():
    """
    A group's head and its frames, Elixir as Elixir writes it; what ran meanwhile has no stack.
    """
    frames = [
        {"function": "gen_server:loop/7", "location": "gen_server.erl:871"},
        {"function": "Elixir.Shop.Cart:add/3", "location": None},
    ]
    group = {
        "count": 1234, "initial_call": "Elixir.Shop.Cart:init/1", "stack": frames, "cut": True,
        "label": None, "messages": 23, "heap_bytes": 2_300_000, "example": "<0.85.0>",
    }  # fmt: skip
    document = {
        "schema": 1, "target": TARGET, "by": "stack", "processes_total": 1300, "read": 1290,
        "torn": 2, "moved": 8, "groups_total": 3, "seconds": 0.1, "groups": [group], "notes": [],
    }  # fmt: skip
    lines = stack_lines(documents.validated(document))
    assert lines[0].endswith("1,290 processes in 3 groups by stack")
    assert [
        "",
        "1,234 processes such as <0.85.0>, Shop.Cart.init/1: 2.3M bytes of heaps, 23 messages",
        "    in gen_server:loop/7  (gen_server.erl:871)",
        "    called by Shop.Cart.add/3",
        "    (further frames lie beyond the first 64 words)",
        "",
        "and 2 groups more",
        "8 processes ran meanwhile, and have no stack",
        "2 processes changed too fast to be read",
    ] == lines[1:]


HOLDER = {
    "pid": "<0.85.0>", "name": "a\x1b[2J", "initial_call": "shop:init/1", "memory_bytes": 2_300_000,
    "memory_estimated": True, "binary_bytes": 23, "messages": 77,
    "message_binary_bytes": 7_000,
    "heap_bytes_per_second": -500.0, "binary_bytes_per_second": 0.0,
}  # fmt: skip
KINDS = ("total", "processes", "processes_used", "system", "atom", "atom_used", "binary", "code")


MEMORY = {
    "schema": 1, "target": TARGET, "time": 1.0, "duration_seconds": 1.0,
    "kinds": dict.fromkeys(KINDS, 2300) | {"code": None, "ets": 77},
    "kinds_per_second": dict.fromkeys(KINDS, 0.0) | {"code": None, "ets": -230.0},
    "allocators": [{
        "what": "binary", "carriers_bytes": 1000, "blocks_bytes": 230, "inside_bytes": 230,
        "used_share": 0.23, "carriers_bytes_per_second": 0.0, "blocks_bytes_per_second": None,
    }],
    "outside": {
        "resident_bytes": 9000, "anonymous_bytes": 8000, "swapped_bytes": 0,
        "carriers_bytes": 1000, "beyond_carriers_bytes": 7000,
    },
    "cgroup": {"used_bytes": 90, "limit_bytes": 100, "used_share": 0.9, "oom_kills": 3},
    "tables": [
        {"what": "atoms", "used": 23, "limit": 100, "used_share": 0.23, "per_second": 0.0},
        {"what": "ets_tables", "used": 7, "limit": None, "used_share": None, "per_second": 1.0},
    ],
    "persistent_terms": {
        "count": 23, "memory_bytes": 77, "largest": [{"name": None, "memory_bytes": 7}],
    },
    "timers": {"receive": 1234, "bif": 5}, "newest_atoms": ["b\x1b[2J"],
    "processes_total": 3, "torn": 2, "processes": [HOLDER], "binaries": [], "ets_tables": [],
    "processes_beyond_rows_bytes": 230,
    "not_read": [
        {"what": "code", "reason": "hidden"}, {"what": "ets", "reason": "another layout"},
        {"what": "names", "reason": "hidden"},
    ], "seconds": 0.1,
}  # fmt: skip


def test_memory_as_text_has_kinds_holders_and_what_was_not_read():
    """
    What is not known is a question mark, an estimate has a mark, and names reach no terminal.
    """
    lines = memory_lines(documents.validated(MEMORY))
    assert "its cgroup uses 90 of 100 bytes (90 %); the kernel has killed 3" in lines[1]
    words = [line.split() for line in lines]
    assert ["code", "?", "-"] in words
    assert ["ets", "77", "-230"] in words
    assert ["binary", "1.0k", "230", "23", "%", "0"] in words
    assert ["ETS", "tables", "7", "-", "-", "1"] in words
    (holder,) = [line for line in lines if "<0.85.0>" in line]
    assert ["~2.3M", "7.0k", "77", "-500"] == holder.split()[-4:]
    assert "23 persistent terms, 77 bytes, the largest ? 7" in lines
    assert ["not read: code, names: hidden", "not read: ets: another layout"] == lines[-2:]
    assert "2 processes changed too fast to be read" == lines[-3]
    assert [] == [line for line in lines if "\x1b" in line]


def test_a_look_that_an_older_daemon_kept_is_shown(kept, capsys):
    """
    It does not say what binaries the messages refer to.
    """
    older = {key: value for key, value in HOLDER.items() if key != "message_binary_bytes"}
    assert 0 == kept(processes=[older])
    (holder,) = [line for line in capsys.readouterr().out.splitlines() if "<0.85.0>" in line]
    assert ["~2.3M", "23", "77", "-500"] == holder.split()[-4:]


@pytest.fixture
def kept(tmp_path):
    """
    Writes a file as the daemon does, with *changes*, and reads it as the command does.
    """

    def read(words=(), **changes):
        path = tmp_path / "kept.json"
        path.write_text(json.dumps(MEMORY | changes))
        return main(["memory", "--from", str(path), *words])

    return read


@pytest.mark.parametrize(
    "changes",
    [
        {"time": 1e300},
        {"time": float("nan")},
        {"torn": 10**400},
        {"torn": True},
        {"schema": True},
        {"seconds": float("-inf")},
        {"kinds": MEMORY["kinds"] | {"total": float("inf")}},
        {"kinds": MEMORY["kinds"] | {"total": 1 << 64}},
        {"kinds": [2300]},
        {"outside": None},
        {"tables": [MEMORY["tables"][0] | {"what": "files"}]},
        {"processes": [HOLDER | {"memory_bytes": "23"}]},
        {"binaries": [{}]},
        {"newest_atoms": [{}]},
    ],
)
def test_a_kept_look_has_figures_that_a_vm_can_have(kept, changes, capsys):
    """
    Any other is refused in one line.
    """
    assert 0 == kept()
    assert 2 == kept(**changes)
    assert 1 == capsys.readouterr().err.count("\n")


def test_what_a_kept_look_conforms_to_is_its_schema():
    """
    Each field of the schema is missed, and fields of later versions are not in the way.
    """
    schema = json.loads((documents.FOLDER / "memory.json").read_text())
    assert conforms(MEMORY | {"later": {}}, schema, schema["$defs"])
    for name in MEMORY:
        less = {field: value for field, value in MEMORY.items() if field != name}
        assert not conforms(less, schema, schema["$defs"]), name


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["shop"], "TARGET"),
        (["--pid", "23"], "--pid"),
        (["--once"], "--once"),
        (["-s", "size"], "--sort"),
        (["-d", "1s", "--sort", "growth"], "--duration and --sort"),
    ],
)
def test_a_kept_look_is_not_looked_at_otherwise(kept, words, named, capsys):
    """
    Options of a look are refused, not ignored.
    """
    assert 2 == kept(words)
    assert f"leave out {named}\n" in capsys.readouterr().err


def test_a_kept_look_has_as_many_holders_as_are_asked_for(kept, capsys):
    """
    All that were kept without ``--limit``.
    """
    holders = {"processes": [HOLDER] * 9, "newest_atoms": ["a"] * 9}
    counts = lambda document: [len(document[name]) for name in holders]  # noqa: E731
    kept(["--format", "json"], **holders)
    assert [9, 9] == counts(documents.load(capsys.readouterr().out))
    kept(["--format", "json", "--limit", "2"], **holders)
    assert [2, 2] == counts(documents.load(capsys.readouterr().out))


def test_growth_of_processes_is_by_pid_and_not_by_place():
    """
    A process that is new has none, in whatever order the tables were read.
    """
    target = SimpleNamespace(layout=SimpleNamespace(size=lambda _: 100))
    columns = ("id", "heap_words", "fragment_words", "abandoned", "hend", "heap", "old_heap")
    columns = (*columns, "old_hend", "off_heap_words", "old_binaries")
    kind = np.dtype([(name, np.uint64) for name in columns])
    before, after = np.zeros(2, kind), np.zeros(3, kind)
    before["id"], before["heap_words"], before["off_heap_words"] = [7, 3], [10, 20], [1, 2]
    after["id"], after["heap_words"], after["off_heap_words"] = [3, 9, 7], [43, 1, 10], [2, 5, 24]
    span = Span(target, None, SimpleNamespace(processes=SimpleNamespace(rows=before)), 2.0, 5)
    heaps, binaries = process_growth(span, after)
    assert [92.0, 0.0] == heaps[[0, 2]].tolist()
    assert [0.0, 92.0] == binaries[[0, 2]].tolist()
    assert [False, True, False] == np.isnan(heaps).tolist()


def test_mailboxes_are_read_to_find_the_largest_process(monkeypatch):
    """
    The longest of them, and that others were not read is noted; one that ended keeps its heaps.
    """
    monkeypatch.setattr(memory, "_MAILBOXES", 3)
    layout = SimpleNamespace(size=lambda _: 100)
    columns = ("id", "slot", "mailbox", "heap_words", "fragment_words", "abandoned", "hend", "heap")
    kind = np.dtype([(name, np.uint64) for name in (*columns, "old_heap", "old_hend")])
    rows = np.zeros(5, kind)
    rows["id"], rows["slot"], rows["mailbox"] = np.arange(5) + 10, np.arange(5), [5, 0, 60, 7, 1]
    there = lambda slots: SimpleNamespace(rows=rows[slots[slots != 3]])  # noqa: E731

    def sizes(rows, _):
        boxes = SimpleNamespace(binaries=rows["id"] * 7.0)
        return SimpleNamespace(bytes=rows["id"] * np.uint64(1000), mailboxes=boxes)

    viewer = SimpleNamespace(table=SimpleNamespace(at=there), sizes=sizes)
    look = SimpleNamespace(refused={})
    span = Span(SimpleNamespace(layout=layout), look, None, 0.0, 5)
    found, referred = memory.process_sizes(span, rows, viewer)
    assert [10_000, 100, 12_000, 100, 100] == found.tolist()
    assert [70, 0, 84, 0, 0] == referred.tolist()
    assert look.refused["mailboxes"].startswith("of 4 that have messages the 3 longest were read")


def test_timers_that_are_not_counted_leave_the_processes_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
):
    """
    Those that do not fit, and more than are read: each has its own reason.
    """
    reader = object.__new__(held.MemoryReader)
    reader.target, reader._holders, reader._refused = None, 5, {}
    reader._allocators = reader._counters = reader._atoms = reader._ets = None
    snapshot = SimpleNamespace(rows=np.zeros(0))
    reader._table = SimpleNamespace(snapshot=lambda most: snapshot)
    for name in ("_atom", "_code"):
        monkeypatch.setattr(held.MemoryReader, name, lambda *_: None)
    monkeypatch.setattr(held, "persistent_terms", lambda *_: None)

    def no_timers(*_: object) -> None:
        raise ReadRefusedError("they do not fit")

    for timers, why in (
        (no_timers, "they do not fit"),
        (
            lambda *_: SimpleNamespace(cut=True),
            "there are more than 524,288: only so many are counted",
        ),
        (lambda *_: SimpleNamespace(cut=False), None),
    ):
        monkeypatch.setattr(held, "timers", timers)
        found = reader.read()
        assert found.processes is snapshot
        assert found.refused == ({"timers by receiver": why} if why else {})
