# SPDX-License-Identifier: Apache-2.0
"""
Captures of several nodes, joined: packets that one node sent and another received, and the clocks.

The kernel numbers the packets of each connection on both nodes, in the order of the connection. So
the two numbers of a packet differ by the same amount for all packets, which is found by the ends of
packets that occur only once, and checked with the ends of all others.

The captures are read three times: to find the connections and that difference, to align the clocks
and check every packet, and to deliver pairs. What is kept are samples, the packets that bound the
clocks, and packets whose other end was not read yet.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.capture.bounds import Bounds
from scope_ebpf.capture.clocks import Alignment, align
from scope_ebpf.capture.pairing import Pairing
from scope_ebpf.capture.reader import sound
from scope_ebpf.capture.survey import IN, OUT, Direction, Key, survey
from scope_ebpf.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.capture.reader import Capture, Contents

#: Captures that are merged at once.
MOST_CAPTURES = 100
#: Connections from one node to another: each of the sender is compared with each of the receiver.
_MOST_CONNECTIONS = 256
#: Packets with an end of their own that must agree on the difference of the numbers.
_FEWEST = 2
_TOO_FEW = "too few packets have an end of their own"
#: Bytes of memory for names and samples of all captures together.
_ROOM = 256 << 20


@dataclass(eq=False)
class Node:
    """One capture; times are ns since 1970 by its own clock."""

    capture: Capture
    contents: Contents
    name: str
    #: Its connections.
    directions: dict[Key, Direction] = field(default_factory=dict)
    #: Of its clock against that of the reference node; None where it could not be aligned.
    clock: Alignment | None = None
    #: Time on the reference node's clock.
    aligned: bool = False
    #: To be added to its times, so that captures are read in about the order of their events, ns.
    rough: int = 0
    #: The other nodes by the terms of their names in this one.
    peers: dict[int, Node] = field(default_factory=dict)

    @property
    def to_wall(self) -> int:
        """Difference of the time of day and a record's time, ns."""
        return self.contents.head.clocks.to_wall


@dataclass(eq=False)
class Link:
    """Packets from one node to another on one connection."""

    source: Node
    target: Node
    sent: Key
    sent_count: int
    received: Key | None
    received_count: int
    #: The number of a packet at its target minus that at its source.
    shift: int = 0
    #: Numbers at the target that both captures may have.
    range: tuple[int, int] = (0, 0)
    #: Why the packets are not paired; empty if they are.
    refused: str = ""
    #: Packets that were paired so far, and how they bound the clocks.
    paired: int = 0
    bounds: Bounds = field(default_factory=Bounds)


def read_nodes(captures: Sequence[Capture]) -> list[Node]:
    """
    Read what captures contain but their records, and find their connections.

    CaptureError without a node name, without packets, for two captures of one node, and where names
    take more memory than all captures may.
    """
    nodes: list[Node] = []
    room = _ROOM
    for capture in captures:
        with sound(capture):
            node = _node(capture, capture.contents(room), len(captures))
            room = node.contents.room
        twice = next((one for one in nodes if one.name == node.name), None)
        if twice is not None:
            raise CaptureError(
                f"{twice.capture.path} and {capture.path} are of the node {node.name}: one capture "
                "of each node can be merged"
            )
        nodes.append(node)
    acquaint(nodes)
    return nodes


def acquaint(nodes: Sequence[Node]) -> None:
    """Tell each node which terms name the others."""
    by_name = {node.name: node for node in nodes}
    for node in nodes:
        atoms = node.contents.atoms.items()
        node.peers = {term: by_name[text] for term, text in atoms if text in by_name}


def _node(capture: Capture, contents: Contents, captures: int) -> Node:
    name = contents.head.target["node"]
    if not name:
        raise CaptureError(f"{capture.path} is of a VM that is no node")
    planned = {kind.name for kind in contents.head.plan.kinds}
    if not {OUT, IN} <= planned:
        raise CaptureError(
            f"{capture.path} has no packets of connections: record with the events {OUT} and {IN}"
        )
    return Node(capture, contents, str(name), survey(capture, captures))


def merge(nodes: Sequence[Node]) -> list[Link]:
    """Pair the packets of *nodes*, and align their clocks. CaptureError for what makes no sense."""
    found = find_links(nodes)
    _order(nodes, found)

    def take(link: Link, out: NDArray[np.void], received: NDArray[np.void]) -> None:
        link.paired += len(out)
        link.bounds.add(wall(link.source, out), wall(link.target, received))

    Pairing(nodes, found).run(pairs=take)
    for link in found:
        if link.refused:
            link.paired, link.bounds = 0, Bounds()
    align_all(nodes, found)
    return found


def unrecorded(nodes: Sequence[Node]) -> list[tuple[Node, int, int, int]]:
    """
    Packets to and from nodes that are none of *nodes*, those with most packets first.

    Rows are a node, the term of the other's name in it, packets out and packets in.
    """
    found: dict[tuple[Node, int], list[int]] = {}
    for node in nodes:
        for key, one in node.directions.items():
            if key.peer not in node.peers:
                counts = found.setdefault((node, key.peer), [0, 0])
                counts[key.kind == IN] += one.count
    rows = [(node, peer, out, came) for (node, peer), (out, came) in found.items()]
    return sorted(rows, key=lambda row: -row[2] - row[3])


def wall(node: Node, rows: NDArray[np.void]) -> NDArray[np.int64]:
    """Times of records since 1970 by the clock of their own node, ns."""
    times: NDArray[np.int64] = rows["time_ns"].astype(np.int64) + node.to_wall
    return times


def find_links(nodes: Sequence[Node]) -> list[Link]:
    """
    Each direction of each connection between two of *nodes*.

    CaptureError where two nodes have more connections than are compared.
    """
    return [
        link
        for source in nodes
        for target in nodes
        if source is not target
        for link in _links(source, target)
    ]


def _links(source: Node, target: Node) -> Iterator[Link]:
    left = _between(target, IN, source)
    for key, mine in _between(source, OUT, target).items():
        link = Link(source, target, key, mine.count, None, 0)
        for other, theirs in left.items():
            shift = _shift(mine, theirs)
            if shift is not None or len(left) == 1:
                link.received, link.received_count = other, theirs.count
                link.refused = "" if shift is not None else _TOO_FEW
                link.shift = shift or 0
                link.range = (
                    max(mine.first + link.shift, theirs.first),
                    min(mine.last + link.shift, theirs.last),
                )
                del left[other]
                break
        else:
            few = left and len(mine.alone()) < _FEWEST
            link.refused = _TOO_FEW if few else "the other node did not see it"
        yield link


def _between(node: Node, kind: str, peer: Node) -> dict[Key, Direction]:
    """The connections of *node* to or from *peer*. CaptureError for more than are compared."""
    found = {
        key: one
        for key, one in node.directions.items()
        if key.kind == kind and node.peers.get(key.peer) is peer
    }
    if len(found) > _MOST_CONNECTIONS:
        raise CaptureError(
            f"{node.capture.path} has more than {_MOST_CONNECTIONS} connections "
            f"{'to' if kind == OUT else 'from'} {peer.name}: record for less time"
        )
    return found


def _shift(out: Direction, received: Direction) -> int | None:
    """The receiver's number of a packet minus the sender's, where enough packets agree on it."""
    mine, theirs = _common(out, received)
    differences = theirs["number"].astype(np.int64) - mine["number"]
    if len(differences) < _FEWEST:
        return None
    values, counts = np.unique(differences, return_counts=True)
    best = int(counts.argmax())
    return int(values[best]) if counts[best] >= _FEWEST else None


def _common(out: Direction, received: Direction) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """The packets of both samples that have equal ends, and alone have them."""
    ends = out.alone(), received.alone()
    _, mine, theirs = np.intersect1d(
        ends[0]["check"], ends[1]["check"], assume_unique=True, return_indices=True
    )
    return ends[0][mine], ends[1][theirs]


def _order(nodes: Sequence[Node], found: Sequence[Link]) -> None:
    """Put the clocks in order roughly, by the packets of the samples."""
    differences: dict[Node, list[tuple[Node, int]]] = {node: [] for node in nodes}
    for link in found:
        if link.refused or link.received is None:
            continue
        mine, theirs = _common(
            link.source.directions[link.sent], link.target.directions[link.received]
        )
        late = int(np.median(wall(link.target, theirs) - wall(link.source, mine)))
        differences[link.source].append((link.target, late))
        differences[link.target].append((link.source, -late))
    known: set[Node] = set()
    for root in nodes:
        waiting = [] if root in known else [root]
        known.add(root)
        while waiting:
            node = waiting.pop()
            for other, late in differences[node]:
                if other not in known:
                    known.add(other)
                    other.rough = node.rough - late
                    waiting.append(other)


def align_all(nodes: Sequence[Node], found: Sequence[Link]) -> None:
    """Align the clock of each node with that of the one with most packets, along links."""
    packets: Counter[tuple[Node, Node]] = Counter()
    totals: Counter[Node] = Counter()
    for link in found:
        packets[link.source, link.target] += link.paired
        totals.update({link.source: link.paired, link.target: link.paired})
    reference = max(nodes, key=totals.__getitem__)
    reference.aligned = True
    waiting = [node for node in nodes if node is not reference]
    while waiting:
        weights = {
            (known, node): min(packets[known, node], packets[node, known])
            for known in nodes
            if known.aligned
            for node in waiting
        }
        best = max(weights, key=weights.__getitem__, default=None)
        if best is None or not weights[best]:
            return
        waiting.remove(best[1])
        neighbours = [known for known, node in weights if node is best[1]]
        # With all packets of known nodes, so that none arrives before it is sent.
        _align(best[1], neighbours, found) or _align(best[1], [best[0]], found)


def _align(node: Node, known: Sequence[Node], found: Sequence[Link]) -> bool:
    """Align a clock with those that are known; False if no line fits."""
    there, back = [np.zeros((0, 2), np.int64)], [np.zeros((0, 2), np.int64)]
    errors = [0.0]
    for link in found:
        times = link.bounds.corners
        if link.source in known and link.target is node:
            there.append(np.stack([on_reference(link.source, times[:, 0]), times[:, 1]], axis=1))
        elif link.source is node and link.target in known:
            back.append(np.stack([on_reference(link.target, times[:, 1]), times[:, 0]], axis=1))
        else:
            continue
        other = link.target if link.source is node else link.source
        errors.append(other.clock.error if other.clock else 0.0)
    made = align(np.concatenate(there), np.concatenate(back))
    if made is not None:
        error = made.error + max(errors)
        node.clock, node.aligned = Alignment(made.origin, made.offset, made.drift, error), True
    return made is not None


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
