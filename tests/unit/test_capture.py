# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from capture_fixtures import ATOM, END, SECOND, TARGET, head, maps, pid, story, write
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_fixtures import record

from scope_ebpf import events
from scope_ebpf.capture import frames, schema
from scope_ebpf.capture.facts import head_as_json, head_of
from scope_ebpf.capture.flows import Flows
from scope_ebpf.capture.frames import BlockKind, Frames, frame
from scope_ebpf.capture.reader import Capture
from scope_ebpf.capture.store import FileStore, RingStore
from scope_ebpf.capture.terms import CapturedTerms
from scope_ebpf.capture.values import Value
from scope_ebpf.cli.main import main
from scope_ebpf.errors import CaptureError
from scope_ebpf.results.summary import Summary, fold
from scope_ebpf.sinks.otlp import Spans
from scope_ebpf.sinks.perfetto.timeline import Timeline

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """
    A whole capture of a small story.
    """
    write(tmp_path / "run.scope")
    return tmp_path / "run.scope"


def read(path: Path) -> np.ndarray:
    return np.concatenate([np.zeros(0, events.RECORD), *Capture(path).batches()])


def stored(records: np.ndarray) -> list:
    """
    Records without what only the ring needs.
    """
    return records[list(schema.STORED.names)].tolist()


def test_records_come_back_as_they_were(path: Path):
    """
    A capture gives back the records that were written, in their order.
    """
    assert str(stored(story())) == str(stored(read(path)))


def test_what_holds_for_all_comes_back(path: Path):
    """
    Target, clocks, plan, names, threads, samples and the end are those that were written.
    """
    contents = Capture(path).contents()
    assert (TARGET, head().plan, head().clocks) == (
        contents.head.target,
        contents.head.plan,
        contents.head.clocks,
    )
    assert "planted_main" == contents.processes[pid(1)].who
    assert {ATOM: "normal"} == contents.atoms
    assert {101: ("normal", 1), 102: ("normal", 2)} == contents.threads
    assert [(10 * SECOND + 500, [3, 0, 0, 0])] == contents.run_queues
    assert [(10 * SECOND + 600, {pid(2): 23})] == contents.mailboxes
    assert [(11 * SECOND, {"spawn": 1})] == contents.losses
    assert (END, "", len(story())) == (contents.end, contents.damage, contents.records)


def test_the_summary_is_that_of_the_maps(path: Path):
    """
    The summary of a capture is what a trace makes of the same maps.
    """
    expected = Summary(
        target=TARGET,
        duration_seconds=2.5,
        stopped_because="interrupted",
        events=fold(head().plan, *maps(spawn=23)),
        cost=END.cost,
        notes=("a note", "another"),
    )
    assert expected == Capture(path).contents().summary()


def test_a_capture_without_an_end_says_so(tmp_path: Path):
    """
    Without its last block the summary has the counts of the last maps, and no cost that is unknown.
    """
    write(tmp_path / "run.scope", end=None)
    summary = Capture(tmp_path / "run.scope").contents().summary()
    assert (23, 1.0, None) == (
        summary.events["spawn"].count,
        summary.duration_seconds,
        summary.cost.cpu_seconds,
    )
    assert summary.stopped_because.startswith("the capture has no end")


def test_terms_have_their_texts_without_the_vm(path: Path):
    """
    Pids, ports and atoms are written as the live stream writes them; unknown atoms as their words.
    """
    terms = CapturedTerms(Capture(path).contents())
    unknown = 78 << 6 | 0x0B
    words = [pid(1), 5 << 4 | 7, ATOM, unknown, 0]
    expected = ["<0.1.0>", "#Port<0.5>", "normal", hex(unknown), None]
    assert expected == terms.texts(words, text_pids=False)
    assert {pid(1): "planted_main"} == terms.who([pid(1), pid(2)])


# Damage


def whole_blocks(data: bytes) -> list[int]:
    """
    Where each whole block of a capture ends.
    """
    reader = Frames(io.BytesIO(data))
    return [reader.end for _ in reader]


def readable(path: Path, data: bytes) -> tuple[int, str]:
    """
    How many records of a file can be read, and what it says of the rest; -1 for a refusal.
    """
    path.write_bytes(data)
    try:
        contents = Capture(path).contents()
        contents.summary()
        found = read(path)
    except CaptureError as error:
        return -1, str(error)
    assert len(found) == contents.records
    assert str(stored(found)) == str(stored(batches())[: len(found)])
    return len(found), contents.damage


def batches(count: int = 8) -> np.ndarray:
    return np.concatenate([story()] * count)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("damaged") / "run.scope"
    write(path, *[story()] * 8)
    return path, path.read_bytes()


@given(st.data())
@settings(deadline=None)
def test_a_capture_that_was_cut_is_read_to_its_last_whole_block(damaged, data: st.DataObject):
    """
    Wherever a capture is cut, what comes before the last whole block is read, and no more.
    """
    path, whole = damaged
    cut = data.draw(st.integers(0, len(whole)))
    ends = [end for end in whole_blocks(whole) if end <= cut]
    count, why = readable(path, whole[:cut])
    if not ends:
        assert count == -1
        return
    records = sum(
        int.from_bytes(block.payload[:4], "little")
        for block in Frames(io.BytesIO(whole[: ends[-1]]))
        if block.kind == BlockKind.RECORDS
    )
    assert records == count
    assert (cut in ends) == (why == "")


@given(st.data())
@settings(deadline=None)
def test_a_capture_with_other_bytes_is_read_up_to_them(damaged, data: st.DataObject):
    """
    Bytes that were changed anywhere end the reading before them, or refuse it; they are never read.
    """
    path, whole = damaged
    at = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(1, 64))
    changed = whole[:at] + bytes([value] * length) + whole[at + length :]
    count, why = readable(path, changed[: len(whole)])
    assert changed[: len(whole)] == whole or count == -1 or why


@given(st.binary(max_size=400))
@settings(deadline=None)
def test_any_bytes_behind_the_magic_are_no_trouble(damaged, junk: bytes):
    """
    A file that only begins like a capture is refused with a reason.
    """
    count, _ = readable(damaged[0], frames.start() + junk)
    assert -1 == count


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=12,
    ),
    st.sampled_from([kind for kind in BlockKind if kind != BlockKind.RECORDS]),
)
@settings(deadline=None)
def test_any_json_in_a_block_is_no_trouble(damaged, document, kind: BlockKind):
    """
    A block that is whole, but says something else than its kind does, costs no record.
    """
    path, whole = damaged
    payload = json.dumps(document).encode()
    ends = whole_blocks(whole)
    count, _ = readable(path, whole[: ends[0]] + frame(kind, payload) + whole[ends[0] :])
    assert 8 * len(story()) == count


@given(st.sampled_from(["schema", "target", "clocks", "plan", "pids", "ports", "notes"]), st.data())
@settings(deadline=None)
def test_any_first_block_is_no_trouble(damaged, key: str, data: st.DataObject):
    """
    A first block of which a part is something else is refused, or is read without harm.
    """
    path, whole = damaged
    document = head_as_json(head(), schema.describe())
    junk = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
    document[key] = data.draw(junk | st.dictionaries(st.sampled_from(list("abc")), junk))
    first = frame(BlockKind.HEAD, json.dumps(document).encode())
    path.write_bytes(frames.start() + first + whole[whole_blocks(whole)[0] :])
    with contextlib.suppress(CaptureError):
        Capture(path).contents().summary()


@pytest.mark.parametrize("claimed", [1 << 20, 0xFFFFFFFF])
def test_a_block_that_is_a_bomb_takes_no_memory(tmp_path: Path, claimed: int):
    """
    A block that decompresses to far more than it says, or says far more, is not unpacked.
    """
    data = zlib.compress(bytes(1 << 28))
    checksum = frames._sum(1, claimed, data)
    bomb = frames._FRAME.pack(b"SBLK", 1, claimed, len(data), checksum) + data
    (tmp_path / "bomb").write_bytes(frames.start() + bomb)
    tracemalloc.start()
    with pytest.raises(CaptureError):
        Capture(tmp_path / "bomb").contents()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_what_is_no_capture_is_named(tmp_path: Path):
    """
    Another file, and none at all, are refused with their names.
    """
    (tmp_path / "x").write_text("something else")
    for name in ("x", "y"):
        with pytest.raises(CaptureError, match=str(tmp_path / name)):
            Capture(tmp_path / name).contents()


# Strangers


def rewritten(path: Path, change, kind: BlockKind = BlockKind.HEAD) -> Path:
    """
    A capture of which *change* has changed the JSON of the first block of a kind.
    """
    with path.open("rb") as file:
        blocks = list(Frames(file))
    index = next(n for n, block in enumerate(blocks) if block.kind == kind)
    document = json.loads(blocks[index].payload)
    change(document)
    blocks[index] = frames.Block(kind, json.dumps(document).encode())
    path.write_bytes(frames.start() + b"".join(frame(*block) for block in blocks))
    return path


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("target", "pid"), "1", r"target\.pid is '1', and wanted is a whole number"),
        (("target", "schedulers"), True, r"target\.schedulers is True"),
        (
            ("target", "node"),
            "x" * 5000,
            r"target\.node is .*, and wanted is text of at most 4,096",
        ),
        (("clocks", "realtime"), 1 << 63, r"clocks\.realtime is 9223372036854775808"),
        (("clocks", "monotonic"), float("inf"), "Infinity is no number of JSON"),
        (
            ("plan", 3, "via"),
            "telepathy",
            r"plan\[3\]\.via is 'telepathy', and wanted is one of symb",
        ),
        (("plan", 3, "event"), "telepathy", r"plan\[3\]\.event is 'telepathy'"),
        (("plan", 0, "attachments", 0, "offset"), -1, r"plan\[0\]\.attachments\[0\]\.offset is -1"),
        (("pids",), {"mask": 1}, "pids is .*, and wanted is an object with the field low_shift"),
        (("notes",), ["x"] * 5000, "notes is .*, and wanted is a list of at most 4,096"),
        (("schema", "kinds", "gc", "id"), 1 << 40, r"schema\.kinds\.gc\.id is 1099511627776"),
        (("schema", "header", 0, 1), "<u8;S0", r"schema\.header\[0\]\[1\] is '<u8;S0'"),
        (("schema", "header", 0, 1), "S8", "a header with the unsigned number time_ns"),
        (("schema", "kinds"), {"\x1b": 3}, "and wanted is an object"),
    ],
)
def test_a_field_that_is_wrong_is_named(path: Path, keys: tuple, value, message: str):
    """
    Type and range of each field of the first block are checked, and the message names it.
    """

    def change(document) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    with pytest.raises(CaptureError, match=message):
        Capture(rewritten(path, change)).contents()


def test_a_target_without_its_pid_is_refused(path: Path):
    """
    What is missing is named too.
    """
    with pytest.raises(CaptureError, match="wanted is an object with the field pid"):
        Capture(rewritten(path, lambda document: document["target"].pop("pid"))).contents()


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        (BlockKind.END, {"cost": "much"}, "the last block: cost is 'much'"),
        (BlockKind.END, {"duration_seconds": -1}, "duration_seconds is -1, and wanted is a number"),
        (
            BlockKind.SAMPLES,
            {"threads": [[1, "x"]]},
            r"threads\[0\] is .*, and wanted is a list of 3",
        ),
        (BlockKind.SAMPLES, {"mailboxes": [[1, [[1 << 64, 2]]]]}, r"mailboxes\[0\]\[1\]\[0\]\[0\]"),
        (BlockKind.NAMES, {"processes": [[1, [None] * 3]]}, r"processes\[0\]\[1\] is"),
    ],
)
def test_a_block_that_is_wrong_is_left_out_and_says_why(
    path: Path, capsys: pytest.CaptureFixture, kind: BlockKind, changed: dict, message: str
):
    """
    It costs no record; the warning names block, field and cause.
    """
    rewritten(path, lambda document: document.update(changed), kind)
    contents = Capture(path).contents()
    assert (1, len(story())) == (contents.left_out, contents.records)
    assert re.search(message, contents.wrong)
    assert 0 == main(["summary", str(path)])
    assert re.search(message, capsys.readouterr().err)


def test_an_event_that_a_later_version_knows_is_left_out(path: Path):
    """
    Its plan is read without the event that the capture's own schema has and this program has not.
    """

    def change(document) -> None:
        document["schema"]["kinds"]["telepathy"] = document["schema"]["kinds"].pop("hibernate")
        item = next(item for item in document["plan"] if item["event"] == "hibernate")
        item["event"] = "telepathy"

    summary = Capture(rewritten(path, change)).contents().summary()
    assert set(events.KINDS) - {"hibernate"} == set(summary.events)


def test_no_text_of_a_capture_is_obeyed_by_a_terminal(path: Path, capsys: pytest.CaptureFixture):
    """
    Escape sequences and markup of every text are printed as text, on stdout and on stderr.
    """
    evil = "\x1b]0;owned\x07\x9b31m[bold]loud[/bold]\udcff"

    def change(document) -> None:
        document["target"] |= {"node": evil, "otp_release": evil, "erts_version": evil}
        document["plan"][-1]["reason"] = document["plan"][0]["reason"] = evil
        document["schema"]["kinds"][evil] = document["schema"]["kinds"].pop("gc")
        document["plan"] = [item for item in document["plan"] if item["event"] != "gc"]

    def change_end(document) -> None:
        document["stopped_because"] = document["notes"][0] = evil

    rewritten(rewritten(path, change), change_end, BlockKind.END)
    rewritten(path, lambda document: document.update(threads=evil), BlockKind.SAMPLES)
    assert 0 == main(["summary", str(path)])
    for text in capsys.readouterr():
        assert all(c.isprintable() or c == "\n" for c in text), text
        assert "owned" in text
    with pytest.raises(SystemExit):
        main(["summary", str(path), evil])
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["summary"], ["export", "--to", "jsonl", "-o", "-"]])
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture, command: list[str]
):
    """
    A FIFO without a writer, a device and a folder are each refused in one line.
    """
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero", "/dev/tty", tmp_path, "a\0b"):
        assert CaptureError.exit_code == main([*command, str(path)])
        said = capsys.readouterr().err
        assert 1 == said.count("\n")
        assert "no regular file" in said or "cannot read a" in said


def test_an_unforeseen_error_is_a_message(path: Path, monkeypatch, capsys):
    """
    A capture that makes Python fail further on is one line, too, with the exit code of captures.
    """
    monkeypatch.setattr("scope_ebpf.capture.reader.fold", lambda *_: {}["x"])
    assert CaptureError.exit_code == main(["summary", str(path)])
    assert f"scope-trace: {path} makes no sense: KeyError" in capsys.readouterr().err


def test_names_and_samples_take_no_more_memory_than_is_set(path: Path, monkeypatch):
    """
    Blocks of which there are ever more are left out once their room is used up.
    """
    monkeypatch.setattr("scope_ebpf.capture.samples.ROOM", 5000)
    long = [[10 * SECOND, list(range(40))]]
    rewritten(path, lambda document: document.update(run_queues=long), BlockKind.SAMPLES)
    with path.open("ab") as file:
        for _ in range(9):
            file.write(frame(BlockKind.SAMPLES, json.dumps({"run_queues": long}).encode()))
    contents = Capture(path).contents()
    assert (1, 9) == (len(contents.run_queues), contents.left_out)
    assert "there is no room in memory for more names and samples" in contents.wrong


@pytest.mark.parametrize(
    "payload", [b"[" * 100_000, b"{" + b'"a":{' * 5000, b"[" + b"[]," * (1 << 20), b"1" * 10_000]
)
def test_json_that_is_deep_or_has_too_many_parts_is_refused(path: Path, payload: bytes):
    """
    Neither Python's stack nor its memory is used up by one block.
    """
    path.write_bytes(frames.start() + frame(BlockKind.HEAD, payload))
    with pytest.raises(CaptureError, match="the first block"):
        Capture(path).contents()


def test_kinds_that_are_not_known_cost_one_pass_and_few_names():
    """
    300,000 records, each of a kind of its own, are counted under 65 names.
    """
    described = older()
    header = described["header"]
    next(field for field in header if field[0] == "kind")[1] = "<u8"
    next(field for field in header if field[0] == "body")[2] = 3
    reader = schema.Schema(Value(described, "schema"))
    rows = np.zeros(250_000, reader._header)
    rows["kind"] = np.arange(1 << 20, (1 << 20) + len(rows))
    columns = [rows[name].T if rows[name].ndim > 1 else rows[name] for name in rows.dtype.names]
    payload = len(rows).to_bytes(4, "little") + b"".join(c.tobytes() for c in columns)
    assert 0 == len(reader.records(payload))
    assert (65, len(rows)) == (len(reader.unknown), sum(reader.unknown.values()))


def test_numbers_beyond_what_a_format_holds_are_cut_to_it(tmp_path: Path):
    """
    Times, threads and durations of any size make a timeline and spans, none a failure.
    """
    most = (1 << 64) - 1
    extreme = [
        record(name, time_ns=time, process=pid(1), tid=(1 << 32) - 1, **{"class": kind.classes[-1]})
        for name, kind in events.KINDS.items()
        for time in (0, most)
    ]
    rows = np.concatenate(extreme)
    rows["body"][:, 1:] = most
    rows["body"][:, 0] = 1 << 63
    write(tmp_path / "x", rows)
    capture = Capture(tmp_path / "x")
    output = io.BytesIO()
    Timeline(capture, capture.contents(), output).write()
    assert output.tell()
    for request in Spans(capture, capture.contents()).requests():
        for span in request["resourceSpans"][0]["scopeSpans"][0]["spans"]:
            assert 0 <= int(span["startTimeUnixNano"]) <= most


def test_a_capture_that_has_just_been_begun_has_no_records_yet(path: Path):
    """
    A reader of a file that is being written finds nothing in it; there is no summary of it.
    """
    path.write_bytes(frames.start())
    assert 0 == len(read(path))
    with pytest.raises(CaptureError, match="it has no blocks"):
        Capture(path).contents()


# Other schemas


def older() -> dict:
    """
    A schema in which kinds have other numbers, receive had no sender, and gc had one class less.
    """
    described = copy.deepcopy(schema.describe())
    kinds = described["kinds"]
    kinds["send"]["id"], kinds["receive"]["id"] = kinds["receive"]["id"], kinds["send"]["id"]
    kinds["gc"]["classes"] = ["minor", "major"]
    fields = kinds["receive"]["fields"]
    index = next(n for n, field in enumerate(fields) if field[0] == "sender")
    fields[index][0] = "forgotten"
    kinds["telepathy"] = kinds.pop("hibernate")
    return described


def test_a_capture_of_another_schema_is_read_by_names():
    """
    Fields and classes are found by their names; what was not known then is absent, and records of
    a kind that is not known now are counted.
    """
    rows = np.concatenate(
        [
            record("receive", process=5, message=0xA0, sender=9),
            record("gc", process=6, duration_ns=7, **{"class": "minor"}),
            record("hibernate", process=7),
        ]
    )
    rows["kind"][0] = events.KINDS["send"].id
    rows["class"][1] = 0
    reader = schema.Schema(Value(older(), "schema"))
    made = reader.records(schema.pack(rows))
    receive = made[:1].view(events.RECORDS["receive"])[0]
    assert (events.KINDS["receive"].id, 0xA0, 0) == (
        receive["kind"],
        receive["message"],
        receive["sender"],
    )
    assert events.KINDS["gc"].classes.index("minor") == made[1]["class"]
    assert (2, {"telepathy": 1}) == (len(made), reader.unknown)


def test_maps_of_another_schema_are_read_by_names():
    """
    Counts are found by the names of their kinds and classes.
    """
    reader = schema.Schema(Value(older(), "schema"))
    values = np.zeros(reader.shape, events.COUNTERS)
    values["count"][events.KINDS["send"].id, 0] = 23
    values["count"][events.KINDS["gc"].id, 1] = 42
    counts = reader.by_class(values)["count"]
    gc = events.KINDS["gc"]
    assert (23, 42, 65) == (
        counts[events.KINDS["receive"].id, 0],
        counts[gc.id, gc.classes.index("major")],
        counts.sum(),
    )


def test_the_head_comes_back_from_json():
    """
    What holds for a capture is the same after JSON.
    """
    document = json.loads(json.dumps(head_as_json(head(), {})))
    assert document == head_as_json(head_of(Value(document, "head")), {})


# Stores


def test_a_ring_keeps_the_last_blocks(tmp_path: Path):
    """
    A ring that is full forgets its oldest blocks, whole, and what lasts is written before the rest.
    """
    block = frame(BlockKind.RECORDS, schema.pack(story()))
    store = RingStore(3 * len(block), lambda: [(BlockKind.HEAD, b"{}")])
    for _ in range(10):
        store.put(BlockKind.RECORDS, schema.pack(story()))
    with (tmp_path / "x").open("wb") as file:
        size = store.write(file, b"{}")
    kinds = [b.kind for b in Frames((tmp_path / "x").open("rb"))]
    assert [BlockKind.HEAD, *[BlockKind.RECORDS] * 3, BlockKind.END] == kinds
    assert (7, (tmp_path / "x").stat().st_size) == (store.dropped, size)


def test_a_bounded_file_keeps_room_for_its_end(tmp_path: Path):
    """
    A file that is full takes no more records, but its end.
    """
    store = FileStore((tmp_path / "x").open("wb", buffering=0), 80 << 10)
    payload = np.random.default_rng(1).bytes(15 << 10)
    assert [True, False] == [store.put(BlockKind.RECORDS, payload) for _ in range(2)]
    assert store.put(BlockKind.END, payload)
    store.close()
    assert (tmp_path / "x").stat().st_size <= 80 << 10


# Messages


def test_a_message_is_paired_by_receiver_and_address():
    """
    A receive belongs to the last send of the same message to the same process, whatever the order.
    """
    flows = Flows()
    sent = [flows.send(1, 2, 0xA), flows.send(1, 3, 0xA), flows.send(1, 2, 0xB)]
    assert [sent[2], sent[1], sent[0]] == [
        flows.receive(2, 0xB, 1),
        flows.receive(3, 0xA, 1),
        flows.receive(2, 0xA, 1),
    ]
    assert (3, 0, 0) == (flows.paired, flows.unreceived, flows.unsent)


def test_an_address_that_is_used_again_is_another_message():
    """
    A message that was not received is replaced by the next one at its address, and is counted.
    """
    flows = Flows()
    lost, sent = flows.send(1, 2, 0xA), flows.send(1, 2, 0xA)
    assert lost != sent == flows.receive(2, 0xA, 1)
    assert 0 == flows.receive(2, 0xA, 1)
    assert (1, 1, 1) == (flows.paired, flows.unreceived, flows.unsent)


def test_an_unknown_sender_is_not_guessed():
    """
    A receive from another sender, or of a message that is not known, has no send.
    """
    flows = Flows()
    flows.send(1, 2, 0xA)
    assert 0 == flows.receive(2, 0xA, 7)
    assert 0 == flows.receive(2, 0, 1)
    assert 0 == flows.send(1, 2, 0)
    assert (0, 2, 2) == (flows.paired, flows.unreceived, flows.unsent)


def test_messages_of_ports_nodes_and_timers_are_distinguished():
    """
    Of the messages without a send, those of a port, a node, or the VM's services.
    """
    port, atom, node, pid = 0x57, 0x8B, 0x10B, 0x23
    flows = Flows({node})
    for sender in (port, port, atom, node, node, node, pid, 0):
        flows.receive(2, 0xA, sender)
    assert (8, 2, 3, 1) == (flows.unsent, flows.by_ports, flows.by_nodes, flows.by_vm)
