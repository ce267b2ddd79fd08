# SPDX-License-Identifier: Apache-2.0
"""What passes from node to node: delays of packets, who sends to whom, calls with their legs."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.capture.legs import LEGS, RemoteCall, RemoteCalls

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.capture.merging import Link, Node

#: Senders with a receiver that are distinguished, and servers.
_FLOWS, _SERVERS = 1 << 17, 1 << 12
#: Slots of a histogram for each doubling: a quantile is right to within 1.1 %.
_SLOTS = 64
#: The slowest calls that are kept.
SLOWEST = 10
_CLASSES = events.KINDS["dist_out"].classes
_MESSAGE, _FRAGMENT = _CLASSES.index("message"), _CLASSES.index("fragment")


class Times:
    """Durations in ns: mean, largest, quantiles."""

    def __init__(self) -> None:
        self.count = self.total = self.largest = 0
        self._slots: dict[int, int] = defaultdict(int)

    def add(self, durations: NDArray[np.int64]) -> None:
        """Add some durations; those below 0 count as 0."""
        if not len(durations):
            return
        found = np.maximum(durations, 0)
        self.count += len(found)
        self.total += int(found.sum())
        self.largest = max(self.largest, int(found.max()))
        slots = np.ceil(np.log2(np.maximum(found, 1)) * _SLOTS).astype(np.int64)
        for slot, count in zip(*np.unique(slots, return_counts=True), strict=True):
            self._slots[int(slot)] += int(count)

    def quantile(self, share: float) -> float:
        """Seconds that *share* of the durations do not exceed."""
        left = math.ceil(share * self.count)
        for slot in sorted(self._slots):
            left -= self._slots[slot]
            if left <= 0:
                return min(2 ** (slot / _SLOTS), self.largest) / 1e9
        return self.largest / 1e9


class Flow(NamedTuple):
    """A sender and a receiver, as packets name them; 0 for what they do not hold."""

    link: Link
    sender: int
    receiver: int


@dataclass(eq=False)
class ServerCalls:
    """Calls of one server by the processes of another node."""

    calls: int = 0
    down: int = 0
    times: Times = field(default_factory=Times)
    #: Times of LEGS, of the calls of which all are known.
    legs: list[Times] = field(default_factory=lambda: [Times() for _ in LEGS])


class Traffic:
    """Adds up what ``Pairing`` delivers of nodes that are on one clock."""

    def __init__(self) -> None:
        self.delays: dict[Link, Times] = defaultdict(Times)
        self.classes: dict[Link, NDArray[np.int64]] = defaultdict(
            lambda: np.zeros(len(_CLASSES), np.int64)
        )
        self.octets: dict[Link, int] = defaultdict(int)
        #: Messages and bytes of each flow.
        self.flows: dict[Flow, list[int]] = {}
        #: Messages and bytes of flows that are not distinguished.
        self.others = [0, 0]
        #: By node of the caller, node of the server, and the server's term.
        self.servers: dict[tuple[Node, Node | None, int], ServerCalls] = {}
        self.slowest: list[tuple[int, RemoteCall]] = []
        self.remote = RemoteCalls(self.ended)
        #: Gets each call that has ended, too.
        self.also: Callable[[RemoteCall], object] = lambda _call: None

    def batch(self, node: Node, batch: NDArray[np.void]) -> None:
        """Add the messages of a node."""
        self.remote.batch(node, batch)

    def pairs(self, link: Link, out: NDArray[np.void], received: NDArray[np.void]) -> None:
        """Add packets with both ends."""
        link.paired += len(out)
        if link.source.aligned and link.target.aligned:
            self.delays[link].add((received["time_ns"] - out["time_ns"]).astype(np.int64))
        self.classes[link] += np.bincount(out["class"], minlength=len(_CLASSES))[: len(_CLASSES)]
        self.octets[link] += int(received["size"].sum(dtype=np.int64))
        self._add_flows(link, out, received["size"])
        self.remote.pairs(link, out, received)

    def _add_flows(self, link: Link, out: NDArray[np.void], sizes: NDArray[np.void]) -> None:
        message = out["class"] == _MESSAGE
        chosen = message | (out["class"] == _FRAGMENT)
        # Each answer goes to an alias of its own: all of them are one receiver.
        alias = out["receiver"] >> np.uint64(62) == np.uint64(events.REMOTE_REF)
        to = np.where(alias, np.uint64(0), out["receiver"])[chosen]
        _, senders = np.unique(out["process"][chosen], return_inverse=True)
        _, receivers = np.unique(to, return_inverse=True)
        _, first, where = np.unique(
            senders * (len(out) + 1) + receivers, return_index=True, return_inverse=True
        )
        counts = np.bincount(where, message[chosen]).astype(np.int64).tolist()
        octets = np.bincount(where, sizes[chosen]).astype(np.int64).tolist()
        ends = out["process"][chosen][first].tolist(), to[first].tolist()
        for sender, receiver, count, size in zip(*ends, counts, octets, strict=True):
            key = Flow(link, sender, receiver)
            if key not in self.flows and len(self.flows) >= _FLOWS:
                row = self.others
            else:
                row = self.flows.setdefault(key, [0, 0])
            row[0] += count
            row[1] += size

    def ended(self, call: RemoteCall) -> None:
        """Add a call that has ended."""
        self.also(call)
        key = call.client, call.target, call.server
        if key not in self.servers and len(self.servers) >= _SERVERS:
            key = call.client, call.target, 0
        row = self.servers.setdefault(key, ServerCalls())
        row.calls += 1
        if call.down:
            row.down += 1
            return
        took = call.ended - call.sent
        row.times.add(np.array([took]))
        legs = [leg for leg in call.legs() if leg is not None]
        for times, leg in zip(row.legs, legs, strict=False) if len(legs) == len(LEGS) else ():
            times.add(np.array([leg]))
        self.slowest.append((took, call))
        if len(self.slowest) > 2 * SLOWEST:
            self.finish_slowest()

    def finish_slowest(self) -> list[RemoteCall]:
        """The slowest calls, the slowest first."""
        self.slowest.sort(key=lambda item: -item[0])
        del self.slowest[SLOWEST:]
        return [call for _, call in self.slowest]
