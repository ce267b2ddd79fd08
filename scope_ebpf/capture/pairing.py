# SPDX-License-Identifier: Apache-2.0
"""
Both ends of each packet, from captures that are read side by side.

A packet waits for its other end until a later one of its connection has both ends: the distribution
keeps the order of packets, so what was passed over is not in the other capture.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.capture.reader import sound
from scope_ebpf.capture.survey import BATCH, IN, OUT, by_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.capture.merging import Link, Node
    from scope_ebpf.capture.survey import Key

    _Pairs = Callable[[Link, NDArray[np.void], NDArray[np.void]], object]
    _Batches = Callable[[Node, NDArray[np.void]], object]

#: Packets of all links that wait for their other ends: 64 bytes each.
MOST_OPEN = 1 << 20
_DIFFERENT = "packets with the same number have different ends"
_DISORDERED = "the numbers of its packets do not grow"


class Pairing:
    """Reads the captures of *nodes* once, and pairs the packets of *links* that are not refused."""

    def __init__(self, nodes: Sequence[Node], links: Sequence[Link]) -> None:
        self._nodes = nodes
        #: By node and key of one end: the link, and which end it is.
        self._ends: dict[tuple[Node, Key], tuple[Link, str]] = {}
        for link in links:
            if link.received is not None and not link.refused:
                self._ends[link.source, link.sent] = link, OUT
                self._ends[link.target, link.received] = link, IN
        self._waiting: dict[Link, dict[str, deque[NDArray[np.void]]]] = defaultdict(
            lambda: {OUT: deque(), IN: deque()}
        )
        #: The number of the last packet of each end.
        self._last: dict[tuple[Link, str], int] = {}
        self._open = 0
        #: Packets whose other end was not waited for, because too many were waiting.
        self.given_up = 0

    def run(
        self,
        *,
        pairs: _Pairs = lambda _link, _out, _in: None,
        batches: _Batches = lambda _node, _batch: None,
    ) -> None:
        """
        Read everything: *batches* gets each batch of a node, *pairs* packets with both ends.

        A batch comes before the pairs of its packets. A link whose packets disagree or are not in
        order is refused, and has no more pairs.
        """
        readers = {node: _batches(node, BATCH // len(self._nodes)) for node in self._nodes}
        heads = {node: head for node, reader in readers.items() if (head := next(reader, None))}
        while heads:
            node = min(heads, key=lambda one: heads[one][0])
            _, batch = heads.pop(node)
            batches(node, batch)
            with sound(node.capture):
                touched = self._take(node, batch)
            for link in touched:
                self._pair(link, pairs)
            later = next(readers[node], None)
            if later is not None:
                heads[node] = later

    def _take(self, node: Node, batch: NDArray[np.void]) -> set[Link]:
        """Let the packets of a batch wait for their other ends."""
        touched = set()
        for key, rows in by_connection(batch):
            link, end = self._ends.get((node, key), (None, ""))
            if link is None or link.refused:
                continue
            touched.add(link)
            if not self._in_order(link, end, rows["number"]):
                link.refused = _DISORDERED
                continue
            numbers = rows["number"].astype(np.int64) + (link.shift if end == OUT else 0)
            kept = rows[(numbers >= link.range[0]) & (numbers <= link.range[1])]
            if len(kept):
                self._waiting[link][end].append(kept)
                self._open += len(kept)
        return touched

    def _in_order(self, link: Link, end: str, numbers: NDArray[np.uint32]) -> bool:
        """Whether the numbers of an end grow; what is passed over relies on it."""
        before = self._last.get((link, end), 0)
        self._last[link, end] = int(numbers[-1])
        return int(numbers[0]) > before and bool((numbers[1:] > numbers[:-1]).all())

    def _pair(self, link: Link, pairs: _Pairs) -> None:
        waiting = self._waiting[link]
        if not link.refused and all(waiting.values()):
            sent, came = (int(parts[-1]["number"][-1]) for parts in waiting.values())
            passed = min(sent + link.shift, came)
            out = _until(waiting[OUT], passed - link.shift)
            received = _until(waiting[IN], passed)
            self._open -= len(out) + len(received)
            _, mine, theirs = np.intersect1d(
                out["number"].astype(np.int64) + link.shift,
                received["number"].astype(np.int64),
                assume_unique=True,
                return_indices=True,
            )
            self._deliver(link, out[mine], received[theirs], pairs)
        if link.refused or self._open > MOST_OPEN:
            self._drop(link)

    def _deliver(
        self, link: Link, out: NDArray[np.void], received: NDArray[np.void], pairs: _Pairs
    ) -> None:
        known = (out["check"] != 0) & (received["check"] != 0)
        if (out["check"][known] != received["check"][known]).any():
            link.refused = _DIFFERENT
        elif len(out):
            pairs(link, out, received)

    def _drop(self, link: Link) -> None:
        """Let no packet of a link wait any longer."""
        dropped = sum(len(rows) for parts in self._waiting.pop(link).values() for rows in parts)
        self._open -= dropped
        self.given_up += 0 if link.refused else dropped


def _until(parts: deque[NDArray[np.void]], number: int) -> NDArray[np.void]:
    """Take the packets up to a number off what waits in order; no part behind it is copied."""
    empty, taken = parts[0][:0], []
    while parts and int(parts[0]["number"][0]) <= number:
        part = parts.popleft()
        count = int(np.searchsorted(part["number"], number, side="right"))
        taken.append(part[:count])
        if count < len(part):
            parts.appendleft(part[count:].copy())  # the rest of its memory is free
    # Joining parts, even if there is only one, takes longer than the rest for the few packets that
    # one of many links has in a batch.
    return np.concatenate(taken) if len(taken) > 1 else (*taken, empty)[0]


def _batches(node: Node, at_least: int) -> Iterator[tuple[int, NDArray[np.void]]]:
    """The batches of a node, each with the time of its last event on the rough common clock."""
    reader = iter(node.capture.batches(at_least))
    while True:
        with sound(node.capture):
            batch = next(reader, None)
            if batch is None:
                return
            until = int(batch["time_ns"].max()) + node.to_wall + node.rough
        yield until, batch
