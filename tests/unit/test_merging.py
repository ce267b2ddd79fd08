# SPDX-License-Identifier: Apache-2.0
"""
Clocks from packets, and packets from two captures, on planted numbers.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from capture_fixtures import END, TARGET, head

from scope_ebpf import events
from scope_ebpf.capture import cluster, frames, pairing, schema, survey
from scope_ebpf.capture.bounds import Bounds
from scope_ebpf.capture.clocks import align
from scope_ebpf.capture.merging import Link, merge, read_nodes, unrecorded
from scope_ebpf.capture.pairing import Pairing
from scope_ebpf.capture.reader import Capture
from scope_ebpf.capture.store import FileStore
from scope_ebpf.capture.writer import Names, Writer
from scope_ebpf.cli.merged import print_merged
from scope_ebpf.errors import CaptureError
from scope_ebpf.sinks import messages

if TYPE_CHECKING:
    from pathlib import Path

US = 1000
SECOND = 10**9


def traffic(offset: float, drift: float, seconds: float, count: int = 4000):
    """
    Packets both ways, of 20 us and some more, as two clocks see them.
    """
    random = np.random.default_rng(23)
    start = 1_796_000_000 * SECOND
    times = np.sort(random.integers(0, int(seconds * SECOND), (2, count)), axis=1) + start
    delays = 20 * US + random.exponential(100 * US, (2, count)).astype(np.int64)

    def other(time: np.ndarray) -> np.ndarray:
        return time + np.round(offset + drift * (time - start)).astype(np.int64)

    there = np.stack([times[0], other(times[0] + delays[0])], axis=1)
    back = np.stack([times[1] + delays[1], other(times[1])], axis=1)
    return there, back, start


@pytest.mark.parametrize("offset", [0, 250e6, -81 * SECOND, 100 * SECOND])
@pytest.mark.parametrize("drift", [0, 37.5e-6, -100e-6])
def test_a_planted_clock_is_found_within_its_error(offset: float, drift: float):
    """
    The difference is right at all times to within what is stated, and that is below 100 us.
    """
    there, back, start = traffic(offset, drift, 10)
    found = align(there, back)
    assert found is not None
    moments = start + np.linspace(0, 10 * SECOND, 50).astype(np.int64)
    truth = offset + drift * (moments - start)
    assert np.abs(found.difference(moments) - truth).max() <= found.error + 1
    assert found.error < 100 * US
    # Nothing arrives before it is sent.
    assert (there[:, 1] - found.difference(there[:, 0]) >= there[:, 0]).all()


def test_a_clock_that_was_set_meanwhile_is_not_aligned():
    """
    No line fits packets before and after a jump of a second; nor is there one for one way only.
    """
    there, back, start = traffic(0, 0, 10)
    for pairs in (there, back):
        pairs[pairs[:, 0] > start + 5 * SECOND, 1] += SECOND
    assert align(there, back) is None
    assert align(there, back[:0]) is None


def packets(kind: str, numbers: range, checks: list[int]) -> np.ndarray:
    """
    Records of packets with these numbers and ends, 10 us apart.
    """
    made = np.zeros(len(numbers), events.RECORDS[kind])
    made["kind"], made["peer"] = events.KINDS[kind].id, PEER
    made["number"], made["check"] = numbers, checks
    late = 50 * US if kind == "dist_in" else 0
    made["time_ns"] = 10 * SECOND + 10 * US * np.arange(len(numbers)) + late
    return made


PEER, RENAMED = (number << 6 | 0x0B for number in (100, 101))
TOO_FEW = "too few packets have an end of their own"


def capture(
    folder: Path,
    name: str,
    *records: np.ndarray,
    peer: str = "",
    renamed: str = "",
    others: dict[int, str] | None = None,
) -> Capture:
    """
    A capture of the node *name* with some records, one of a or b with a peer of the other name,
    which may have been *renamed*. *others* are names of its peers by their terms.
    """
    path = folder / f"{name.partition('@')[0]}.scope"
    store, names = FileStore(path.open("wb", buffering=0)), Names()
    if renamed:
        names.atom(RENAMED, renamed)
    for term, text in (others or {}).items():
        names.atom(term, text)
    names.atom(PEER, peer or {"a@h": "b@h", "b@h": "a@h"}.get(name, "-"))
    writer = Writer(store, names)
    writer.head(head(target=TARGET | {"node": name}))
    for rows in records:
        for first in range(0, len(rows), 1000):
            writer.records(rows[first : first + 1000].view(events.RECORD))
    writer.end(END)
    store.close()
    return Capture(path)


def pair(folder: Path, out: np.ndarray, received: np.ndarray) -> tuple[Link, np.ndarray]:
    """
    The link of packets from a to b, and the ends of those that are paired.
    """
    nodes = read_nodes([capture(folder, "a@h", out), capture(folder, "b@h", received)])
    (link,) = merge(nodes)
    found = []
    Pairing(nodes, [link]).run(pairs=lambda _link, *ends: found.append(ends))
    for mine, theirs in found:
        assert mine["check"].tolist() == theirs["check"].tolist()
    return link, np.concatenate([mine["check"] for mine, _ in found] or [[]])


def test_what_was_lost_moves_no_other_pair(tmp_path: Path):
    """
    With captures that begin at other packets, and records lost on both sides, the rest is right.
    """
    checks = np.random.default_rng(23).integers(1, 1 << 32, 200).tolist()
    out = packets("dist_out", range(1, 201), checks)
    received = packets("dist_in", range(1, 171), checks[30:])
    link, found = pair(tmp_path, np.delete(out, [50, 51, 120]), np.delete(received, [5, 100]))
    assert "" == link.refused
    assert 170 - 3 - 2 == len(found) == link.paired


def test_equal_ends_pair_with_the_help_of_others(tmp_path: Path):
    """
    A thousand packets with the same end are paired by those that have ends of their own.
    """
    checks = [7] * 1000
    checks[400], checks[700] = 8, 9
    _, found = pair(
        tmp_path,
        packets("dist_out", range(1, 1001), checks),
        packets("dist_in", range(11, 1011), checks),
    )
    assert 1000 == len(found)


def test_what_does_not_agree_is_not_paired(tmp_path: Path):
    """
    Other ends at the same numbers, and ends that are all alike, are refused with the reason.
    """
    checks = list(range(1, 101))
    wrong = [*checks[:50], 999, *checks[51:]]
    out = packets("dist_out", range(1, 101), checks)
    link, found = pair(tmp_path, out, packets("dist_in", range(1, 101), wrong))
    assert ("packets with the same number have different ends", 0, 0) == (
        link.refused, link.paired, len(found),
    )  # fmt: skip
    same, _ = pair(
        tmp_path,
        packets("dist_out", range(1, 9), [7] * 8),
        packets("dist_in", range(1, 9), [7] * 8),
    )
    assert "too few packets have an end of their own" == same.refused


def test_samples_of_both_nodes_find_the_numbers_of_many_packets(tmp_path: Path):
    """
    Of 50,000 packets, 40,000 of them with the same end, 4,096 are kept, and all are paired.
    """
    checks = np.full(50_000, 7)
    checks[::5] = np.random.default_rng(23).integers(8, 1 << 32, 10_000)
    out = packets("dist_out", range(1, 50_001), checks)
    received = packets("dist_in", range(1, 30_001), checks[20_000:])
    link, found = pair(tmp_path, out, received)
    assert (-20_000, 30_000) == (link.shift, len(found))
    for node, key in ((link.source, link.sent), (link.target, link.received)):
        assert len(node.directions[key].alone()) <= 4096


def test_packets_wait_for_no_more_than_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    Where the other end comes later than so many packets, they are given up and reported.
    """
    checks = np.random.default_rng(23).integers(1, 1 << 32, 5000)
    out, received = (
        packets("dist_out", range(1, 5001), checks),
        packets("dist_in", range(1, 5001), checks),
    )
    nodes = read_nodes([capture(tmp_path, "a@h", out), capture(tmp_path, "b@h", received)])
    links = merge(nodes)
    nodes[1].rough += 3600 * SECOND  # its clock is taken to be an hour ahead
    monkeypatch.setattr(pairing, "MOST_OPEN", 100)
    monkeypatch.setattr(pairing, "BATCH", 1)
    most = Pairing(nodes, links)
    found = []
    most.run(pairs=lambda _link, *ends: found.append(ends))
    assert 2 * 5000 == most.given_up
    assert [] == found


@pytest.mark.parametrize("end", [0, 1])
def test_packets_that_are_out_of_order_are_not_paired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int
):
    """
    Where a batch ends with the number of the first packet, no pair is delivered again and again.
    """
    monkeypatch.setattr(pairing, "BATCH", 1)
    checks = np.random.default_rng(23).integers(1, 1 << 32, 3000)
    ends = [packets(kind, range(1, 3001), checks) for kind in ("dist_out", "dist_in")]
    for name in ("number", "check"):
        ends[end][name][[999, 1999]] = ends[end][name][0]
    link, found = pair(tmp_path, *ends)
    assert ("the numbers of its packets do not grow", 0, 0) == (
        link.refused, link.paired, len(found),
    )  # fmt: skip


def test_what_waits_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    20 batches of one end wait for the 20 of the other one: each packet is joined once at most.
    """
    checks = np.random.default_rng(23).integers(1, 1 << 32, 20_000)
    ends = [packets(kind, range(1, 20_001), checks) for kind in ("dist_out", "dist_in")]
    nodes = read_nodes(
        [capture(tmp_path, name, rows) for name, rows in zip(("a@h", "b@h"), ends, strict=True)]
    )
    links = merge(nodes)
    nodes[1].rough += 3600 * SECOND
    monkeypatch.setattr(pairing, "BATCH", 1)
    copied, found = [], []

    class Counting:
        """
        numpy, whose joins are counted.
        """

        def __getattr__(self, name: str):
            return getattr(np, name)

        def concatenate(self, parts):
            made = np.concatenate(list(parts))
            copied.append(len(made))
            return made

    monkeypatch.setattr(pairing, "np", Counting())
    Pairing(nodes, links).run(pairs=lambda _link, out, _in: found.append(len(out)))
    assert 20_000 == sum(found)
    assert sum(copied) <= 2 * 20_000


def test_corners_of_bounds_say_what_all_packets_do():
    """
    A clock that is aligned by the few packets that bound it is that of all packets.
    """
    there, back, _ = traffic(250e6, 37.5e-6, 10)
    corners = []
    for pairs in (there, back[:, ::-1]):
        bounds = Bounds()
        for first in range(0, len(pairs), 333):
            bounds.add(*pairs[first : first + 333].T)
        corners.append(bounds.corners)
    assert max(map(len, corners)) < 100
    found, whole = align(corners[0], corners[1][:, ::-1]), align(there, back)
    moments = there[:, 0]
    assert np.abs(found.difference(moments) - whole.difference(moments)).max() <= 1
    assert found.error == pytest.approx(whole.error, abs=1)


def test_one_node_twice_is_refused(tmp_path: Path):
    """
    Two captures of one node are no cluster.
    """
    rows = packets("dist_out", range(1, 9), list(range(1, 9)))
    one = capture(tmp_path, "a@h", rows)
    with pytest.raises(CaptureError, match=r"a.scope and .*a.scope are of the node a@h"):
        read_nodes([one, one])


def test_errors_of_all_captures_name_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    What goes wrong when captures are joined is not said of the first one alone.
    """
    rows = packets("dist_out", range(1, 9), list(range(1, 9)))
    paths = [str(capture(tmp_path, name, rows).path) for name in ("a@h", "b@h")]
    monkeypatch.setattr(messages.Reading, "document", lambda _: 1 // 0)
    with pytest.raises(CaptureError, match=r"a.scope, .*b.scope make no sense"):
        print_merged([Capture(path) for path in paths], None, "json")


def test_a_broken_capture_is_named_whichever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    An error in the second reading of the second capture names that one.
    """
    rows = packets("dist_out", range(1, 9), list(range(1, 9)))
    one, other = (capture(tmp_path, name, rows) for name in ("a@h", "b@h"))
    nodes = read_nodes([one, other])
    monkeypatch.setattr(other, "batches", lambda _: iter([[]]))
    with pytest.raises(CaptureError, match=r"b.scope makes no sense"):
        merge(nodes)


@pytest.mark.parametrize(("kind", "named"), [("dist_out", "a.scope"), ("dist_in", "b.scope")])
def test_more_connections_than_are_compared_are_refused(tmp_path: Path, kind: str, named: str):
    """
    257 connections between two nodes are an error that names the capture; 256 are no error.
    """

    def links(count: int) -> list[Link]:
        rows = packets(kind, range(1, count + 1), list(range(1, count + 1)))
        rows["connection"] = np.arange(count)
        return merge(read_nodes([capture(tmp_path, name, rows) for name in ("a@h", "b@h")]))

    assert {"dist_out": 2 * 256, "dist_in": 0}[kind] == len(links(256))
    with pytest.raises(CaptureError, match=rf"{named} has more than 256 connections"):
        links(257)


def test_names_of_all_captures_share_one_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    What the first capture keeps in memory is not there for the next one, which says so.
    """
    rows = packets("dist_out", range(1, 9), list(range(1, 9)))
    captures = [capture(tmp_path, name, rows) for name in ("a@h", "b@h")]
    monkeypatch.setattr("scope_ebpf.capture.merging._ROOM", 600)
    first, second = read_nodes(captures)
    assert ("", 1) == (first.contents.wrong, second.contents.left_out)
    assert "no room in memory for more names" in second.contents.wrong


def test_a_cluster_in_one_file_is_read_as_its_captures_are(tmp_path: Path):
    """
    Its captures have the records of the files; one that ends within a capture says so.
    """
    checks = np.random.default_rng(23).integers(1, 1 << 32, 2000)
    ends = [packets(kind, range(1, 2001), checks) for kind in ("dist_out", "dist_in")]
    nodes = read_nodes(
        [capture(tmp_path, name, rows) for name, rows in zip(("a@h", "b@h"), ends, strict=True)]
    )
    whole = tmp_path / "all.scope"
    with whole.open("wb") as file:
        cluster.write([(n.name, n.capture, n.contents.file_bytes) for n in nodes], file)
    again = cluster.captures(whole)
    for section, node in zip(again, nodes, strict=True):
        assert (
            np.concatenate(list(section.batches())).tobytes()
            == np.concatenate(list(node.capture.batches())).tobytes()
        )
    assert 2000 == merge(read_nodes(again))[0].paired
    with pytest.raises(CaptureError, match="captures of several nodes"):
        Capture(whole).contents()
    whole.write_bytes(whole.read_bytes()[:-500])
    assert "cut within a block" in cluster.captures(whole)[1].contents().damage


def test_all_nodes_of_a_full_mesh_are_paired(tmp_path: Path):
    """
    Seven nodes, each with its own packets to each other one, in files of mixed order: 42 links.
    """
    names = [f"n{number}@h" for number in range(7)]
    terms = {name: (200 + number) << 6 | 0x0B for number, name in enumerate(names)}
    planted = {
        (one, other): np.random.default_rng(hash_of).integers(1, 1 << 32, 23 + hash_of).tolist()
        for hash_of, (one, other) in enumerate(itertools.permutations(names, 2))
    }
    captures = []
    for name in names:
        rows = []
        for (one, other), checks in planted.items():
            if name in (one, other):
                kind, peer = ("dist_out", other) if name == one else ("dist_in", one)
                made = packets(kind, range(1, len(checks) + 1), checks)
                made["peer"] = terms[peer]
                rows.append(made.view(events.RECORD))
        mixed = np.concatenate(rows)
        mixed = mixed[np.argsort(mixed["time_ns"], kind="stable")]
        captures.append(capture(tmp_path, name, mixed, others={terms[n]: n for n in names}))
    nodes = read_nodes(captures)
    links = merge(nodes)
    assert planted.keys() == {(link.source.name, link.target.name) for link in links}
    found: dict[tuple[str, str], list[int]] = {}
    Pairing(nodes, links).run(
        pairs=lambda link, out, came: (
            found.setdefault((link.source.name, link.target.name), []).extend(out["check"].tolist())
            if out["check"].tolist() == came["check"].tolist()
            else pytest.fail("wrong pairs")
        )
    )
    assert planted == found
    assert all(node.aligned for node in nodes)


def test_samples_of_many_connections_become_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """
    Where not 200 packets of each of 100 connections have room in memory, 64 do, fewer do not.
    """
    checks = np.random.default_rng(23).integers(1, 1 << 32, 20_000)
    ends = [packets(kind, range(1, 20_001), checks.tolist()) for kind in ("dist_out", "dist_in")]
    for rows in ends:
        rows["connection"], rows["number"] = np.divmod(np.arange(20_000), 200) + np.array(
            [[0], [1]]
        )
    captures = [
        capture(tmp_path, name, rows) for name, rows in zip(("a@h", "b@h"), ends, strict=True)
    ]
    monkeypatch.setattr(survey, "_MOST_SAMPLED", 2 * 100 * (64 + 64))
    nodes = read_nodes(captures)
    assert 20_000 == sum(link.paired for link in merge(nodes))
    samples = [len(one.alone()) for node in nodes for one in node.directions.values()]
    assert (200, True) == (len(samples), max(samples) <= 64)
    monkeypatch.setattr(survey, "_MOST_SAMPLED", 2 * 90 * 64)
    with pytest.raises(CaptureError, match=r"a.scope has too many connections"):
        read_nodes(captures)


def test_nodes_that_never_met_are_merged_without_pairs(tmp_path: Path):
    """
    Neither knows the other: no link, no clock, and nothing is wrong.
    """
    rows = packets("dist_out", range(1, 9), list(range(1, 9)))
    nodes = read_nodes([capture(tmp_path, name, rows, peer="c@h") for name in ("a@h", "b@h")])
    assert [] == merge(nodes)
    assert 1 == sum(node.aligned for node in nodes)


def test_two_nodes_of_one_name_are_refused(tmp_path: Path):
    """
    Names of nodes collide where two clusters use the same: both captures are named.
    """
    (tmp_path / "two").mkdir()
    rows = packets("dist_out", range(1, 9), list(range(1, 9)))
    ends = capture(tmp_path, "a@h", rows), capture(tmp_path / "two", "a@h", rows)
    with pytest.raises(CaptureError, match=r"a.scope and .*two/a.scope are of the node a@h"):
        read_nodes(ends)


def test_a_node_that_takes_another_name_is_paired_by_the_one_it_was_recorded_with(tmp_path: Path):
    """
    What its peer sends to the other name is counted for a node that was not recorded.
    """
    checks = np.random.default_rng(23).integers(1, 1 << 32, 1500)
    out = packets("dist_out", range(1, 1501), checks)
    out["peer"][1000:], out["number"][1000:] = RENAMED, np.arange(1, 501)
    received = packets("dist_in", range(1, 1001), checks[:1000])
    one = capture(tmp_path, "a@h", out, renamed="renamed@h")
    nodes = read_nodes([one, capture(tmp_path, "b@h", received)])
    (link,) = merge(nodes)
    assert ("", 1000) == (link.refused, link.paired)
    assert [(nodes[0], RENAMED, 500, 0)] == unrecorded(nodes)


@pytest.mark.parametrize(("missing", "found"), [("", ("", 2000)), ("check", (TOO_FEW, 0))])
def test_captures_of_unequal_schemas_are_paired_by_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, found: tuple[str, int]
):
    """
    Kinds with other numbers pair; packets whose ends were not recorded yet say why they do not.
    """
    checks = np.random.default_rng(23).integers(1, 1 << 32, 2000)
    out, received = (packets(kind, range(1, 2001), checks) for kind in ("dist_out", "dist_in"))
    one = capture(tmp_path, "a@h", out)
    described = schema.describe()
    kinds = described["kinds"]
    kinds["dist_in"]["id"], kinds["gc"]["id"] = kinds["gc"]["id"], kinds["dist_in"]["id"]
    received["kind"] = kinds["dist_in"]["id"]
    for field in kinds["dist_in"]["fields"]:
        field[0] = "forgotten" if field[0] == missing else field[0]
    monkeypatch.setattr(schema, "describe", lambda: described)
    other = capture(tmp_path, "b@h", received)
    (link,) = merge(read_nodes([one, other]))
    assert found == (link.refused, link.paired)


def test_captures_of_different_days_are_not_paired(tmp_path: Path):
    """
    Connections of the same number with other packets have no packet in common.
    """
    random = np.random.default_rng(23)
    one, other = random.integers(1, 1 << 32, (2, 1000))
    link, found = pair(
        tmp_path,
        packets("dist_out", range(1, 1001), one),
        packets("dist_in", range(1, 1001), other),
    )
    assert (TOO_FEW, 0) == (link.refused, len(found))


def test_a_capture_without_an_end_is_paired_as_far_as_it_goes(tmp_path: Path):
    """
    Cut within a block: what is before pairs, and the damage is reported.
    """
    checks = np.random.default_rng(23).integers(1, 1 << 32, 3000)
    ends = [packets(kind, range(1, 3001), checks) for kind in ("dist_out", "dist_in")]
    captures = [
        capture(tmp_path, name, rows) for name, rows in zip(("a@h", "b@h"), ends, strict=True)
    ]
    whole = captures[1].path.read_bytes()
    captures[1].path.write_bytes(whole[: len(whole) * 2 // 3])
    nodes = read_nodes(captures)
    assert "cut within a block" in nodes[1].contents.damage
    (link,) = merge(nodes)
    assert nodes[1].contents.records == link.paired
    assert 0 < link.paired < 3000


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        ({}, "an object with the field captures"),
        ({"captures": [{"name": "x", "bytes": -1}]}, "a whole number"),
        ({"captures": []}, "there is no capture in it"),
        ({"captures": [{"name": "x", "bytes": 1}] * 101}, "a list of at most 100"),
    ],
)
def test_a_file_of_captures_is_checked_like_any_other(tmp_path: Path, head: dict, wanted: str):
    """
    Sizes and names are those of a stranger.
    """
    path = tmp_path / "x.scope"
    block = frames.frame(frames.BlockKind.CLUSTER, json.dumps(head).encode())
    path.write_bytes(frames.start() + block)
    with pytest.raises(CaptureError, match=wanted):
        cluster.captures(path)


def test_a_file_of_captures_contains_no_other_file_of_captures(tmp_path: Path):
    """
    Not even itself: a section is a capture of one node, whatever its size says.
    """
    path = tmp_path / "x.scope"
    inner = frames.start() + frames.frame(frames.BlockKind.CLUSTER, b'{"captures":[]}')
    head = {"captures": [{"name": "x", "bytes": 1 << 62}] * 2}
    block = frames.frame(frames.BlockKind.CLUSTER, json.dumps(head).encode())
    path.write_bytes(frames.start() + block + inner)
    first, second = cluster.captures(path)
    with pytest.raises(CaptureError, match="captures of several nodes"):
        first.contents()
    with pytest.raises(CaptureError, match="the file ends before it begins"):
        second.contents()
