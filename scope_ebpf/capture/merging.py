# SPDX-License-Identifier: Apache-2.0
"""
Captures of several nodes, joined: packets that one node sent and another received, and the clocks.

The kernel numbers the packets of each connection on both nodes, in the order of the connection. So
the two numbers of a packet differ by the same amount for all packets, which is found by the ends of
packets that occur only once, and checked with the ends of all others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.capture.clocks import Alignment, align
from scope_ebpf.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from scope_ebpf.capture.reader import Capture, Contents

#: Captures that are merged at once, and packets of one that are kept: 240 MB.
MOST_CAPTURES, _MOST_PACKETS = 100, 1 << 22
#: Connections between two nodes, one after the other.
_MOST_CONNECTIONS = 256
#: Packets with an end of their own that must agree on the difference of the numbers.
_FEWEST = 2
_OUT, _IN = "dist_out", "dist_in"


@dataclass
class Node:
    """One capture, and the packets in it; times are ns since 1970 by its own clock."""

    capture: Capture
    contents: Contents
    name: str
    packets: dict[str, NDArray[np.void]] = field(default_factory=dict)
    #: Of its clock against that of the reference node; None where it could not be aligned.
    clock: Alignment | None = None
    #: Time on the reference node's clock.
    aligned: bool = False


@dataclass
class Link:
    """Packets from one node to another on one connection."""

    source: Node
    target: Node
    #: Records of both ends, in the order of the connection; of equal length once paired.
    out: NDArray[np.void]
    received: NDArray[np.void]
    sent_count: int
    received_count: int
    #: Why the packets are not paired; empty if they are.
    refused: str = ""


def read_node(capture: Capture) -> Node:
    """
    Read a capture's packets.

    CaptureError without a node name, without packets, or with more of them than are kept.
    """
    contents = capture.contents()
    name = contents.head.target["node"]
    if not name:
        raise CaptureError(f"{capture.path} is of a VM that is no node")
    planned = {kind.name for kind in contents.head.plan.kinds}
    if not {_OUT, _IN} <= planned:
        raise CaptureError(
            f"{capture.path} has no packets of connections: record with the events {_OUT} and {_IN}"
        )
    node = Node(capture, contents, str(name))
    kept: dict[str, list[NDArray[np.void]]] = {_OUT: [], _IN: []}
    count = 0
    for batch in capture.batches():
        for kind, parts in kept.items():
            rows = batch[batch["kind"] == events.KINDS[kind].id].view(events.RECORDS[kind])
            parts.append(rows[rows["number"] != 0])
            count += len(parts[-1])
        if count > _MOST_PACKETS:
            raise CaptureError(
                f"{capture.path} has more than {_MOST_PACKETS:,} packets: record for less time"
            )
    for kind, parts in kept.items():
        whole = np.concatenate(parts) if parts else np.zeros(0, events.RECORDS[kind])
        whole["time_ns"] += np.uint64(contents.head.clocks.to_wall)
        node.packets[kind] = whole
    return node


def links(nodes: list[Node]) -> list[Link]:
    """
    The paired packets of each connection between two of *nodes*, in each direction.

    CaptureError for two captures of one node.
    """
    names = [node.name for node in nodes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CaptureError(f"two captures are of the node {twice}: one of each node can be merged")
    return [
        link
        for source in nodes
        for target in nodes
        if source is not target
        for link in _links(source, target)
    ]


def _links(source: Node, target: Node) -> Iterable[Link]:
    out = _between(source, _OUT, target.name)
    received = _between(target, _IN, source.name)
    left = {int(number) for number in np.unique(received["connection"])}
    for number in np.unique(out["connection"]).tolist():
        mine = out[out["connection"] == number]
        found = None
        for other in sorted(left):
            theirs = received[received["connection"] == other]
            found = _paired(source, target, mine, theirs)
            if not found.refused or len(left) == 1:
                left.discard(other)
                break
            found = None
        yield found or Link(
            source, target, mine[:0], received[:0], len(mine), 0, "the other node did not see it"
        )


def _between(node: Node, kind: str, peer: str) -> NDArray[np.void]:
    """The packets of *node* to or from *peer*."""
    atoms = [term for term, text in node.contents.atoms.items() if text == peer]
    rows = node.packets[kind]
    found: NDArray[np.void] = rows[np.isin(rows["peer"], np.array(atoms, np.uint64))]
    if len(np.unique(found["connection"])) > _MOST_CONNECTIONS:
        raise CaptureError(
            f"{node.capture.path} has more than {_MOST_CONNECTIONS} connections to {peer}: record "
            "for less time"
        )
    return found


def _paired(source: Node, target: Node, out: NDArray[np.void], received: NDArray[np.void]) -> Link:
    """The packets that both have; refused unless all their ends agree."""
    link = Link(source, target, out[:0], received[:0], len(out), len(received))
    shift = _shift(out, received)
    if shift is None:
        link.refused = "too few packets have an end of their own"
        return link
    numbers = out["number"].astype(np.int64) + shift
    _, mine, theirs = np.intersect1d(
        numbers, received["number"].astype(np.int64), return_indices=True
    )
    one, other = out["check"][mine], received["check"][theirs]
    known = (one != 0) & (other != 0)
    if (one[known] != other[known]).any():
        link.refused = "packets with the same number have different ends"
        return link
    link.out, link.received = out[mine], received[theirs]
    return link


def _shift(out: NDArray[np.void], received: NDArray[np.void]) -> int | None:
    """The receiver's number of a packet minus the sender's, where enough packets agree on it."""
    ends = [_alone(rows) for rows in (out, received)]
    _, mine, theirs = np.intersect1d(ends[0]["check"], ends[1]["check"], return_indices=True)
    differences = ends[1]["number"][theirs].astype(np.int64) - ends[0]["number"][mine]
    if len(differences) < _FEWEST:
        return None
    values, counts = np.unique(differences, return_counts=True)
    best = int(counts.argmax())
    return int(values[best]) if counts[best] >= _FEWEST else None


def _alone(rows: NDArray[np.void]) -> NDArray[np.void]:
    """The packets whose end no other one has."""
    known = rows[rows["check"] != 0]
    _, first, counts = np.unique(known["check"], return_index=True, return_counts=True)
    found: NDArray[np.void] = known[first[counts == 1]]
    return found


def align_all(nodes: list[Node], found: list[Link]) -> None:
    """Align the clock of each node with that of the one with most packets, along links."""
    pairs = _pairs(nodes, found)
    reference = max(nodes, key=lambda node: sum(len(p) for n, p in pairs.items() if node.name in n))
    reference.aligned = True
    waiting = [node for node in nodes if node is not reference]
    while waiting:
        best = max(
            ((k, w) for k in nodes if k.aligned for w in waiting),
            key=lambda ends: _weight(pairs, ends[0].name, ends[1].name),
            default=None,
        )
        if best is None or not _weight(pairs, best[0].name, best[1].name):
            return
        known, node = best
        waiting.remove(node)
        made = align(
            _times(pairs, known, node, forth=True), _times(pairs, node, known, forth=False)
        )
        if made is not None:
            node.clock, node.aligned = _composed(known.clock, made), True


_Pairs = dict[tuple[str, str], "NDArray[np.int64]"]


def _pairs(nodes: list[Node], found: list[Link]) -> _Pairs:
    """Times of each packet at its source and at its target, by both names."""
    made: _Pairs = {(a.name, b.name): np.zeros((0, 2), np.int64) for a in nodes for b in nodes}
    for link in found:
        names = link.source.name, link.target.name
        times = [rows["time_ns"].astype(np.int64) for rows in (link.out, link.received)]
        made[names] = np.concatenate([made[names], np.stack(times, axis=1)])
    return made


def _weight(pairs: _Pairs, one: str, other: str) -> int:
    """Packets each way, of the way with fewer."""
    return min(len(pairs[one, other]), len(pairs[other, one]))


def _times(pairs: _Pairs, source: Node, target: Node, *, forth: bool) -> NDArray[np.int64]:
    """Times of packets, that of the node with the known clock first and on the reference clock."""
    times = pairs[source.name, target.name]
    known = source if forth else target
    if not forth:
        times = times[:, ::-1]
    return np.stack([on_reference(known, times[:, 0]), times[:, 1]], axis=1)


def _composed(known: Alignment | None, made: Alignment) -> Alignment:
    """*made* with the error of the clock that it was made with."""
    error = made.error + (known.error if known else 0.0)
    return Alignment(made.origin, made.offset, made.drift, error)


def on_reference(node: Node, times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Times of a node's clock on that of the reference node, ns."""
    if node.clock is None:
        return times
    # The difference is a function of the reference time: t + d(t) is the node's time.
    clock = node.clock
    moved = (times - clock.origin - clock.offset) / (1 + clock.drift)
    made: NDArray[np.int64] = np.round(moved).astype(np.int64) + clock.origin
    return made


def named(contents: Contents) -> Callable[[str], str | None]:
    """The label of a process of a capture by the text of its pid."""
    terms = np.array(list(contents.processes), np.uint64)
    texts = contents.head.pids.texts(terms) if len(terms) else []
    labels = [label.who for label in contents.processes.values()]
    return dict(zip(texts, labels, strict=True)).get
