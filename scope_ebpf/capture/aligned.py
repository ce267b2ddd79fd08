# SPDX-License-Identifier: Apache-2.0
"""Captures of several nodes with their times on one clock, that of the reference node."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from scope_ebpf.capture.bounds import Bounds
from scope_ebpf.capture.merging import Link, Node, acquaint, on_reference
from scope_ebpf.capture.reader import Capture

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.capture.facts import Clocks
    from scope_ebpf.capture.reader import Contents


_Sample = TypeVar("_Sample")


class AlignedCapture(Capture):
    """The capture of a node, with times of records as the reference node's clock had shown them."""

    def __init__(self, node: Node, clocks: Clocks) -> None:
        super().__init__(node.capture.path)
        self._node, self._clocks = node, clocks

    def contents(self, room: int | None = None) -> Contents:
        """Everything but the records, with moved times; it was read before."""
        before = self._node.contents
        ends = [before.first_ns, before.last_ns, *(maps.time_ns for maps in [before.maps] if maps)]
        moved = iter(self._moved(ends))
        made = replace(
            before,
            head=replace(before.head, clocks=self._clocks),
            first_ns=next(moved),
            last_ns=next(moved),
            room=0 if room is None else room,
        )
        made.maps = before.maps and replace(before.maps, time_ns=next(moved))
        made.run_queues = self._timed(before.run_queues)
        made.mailboxes = self._timed(before.mailboxes)
        made.losses = self._timed(before.losses)
        return made

    def batches(self, at_least: int = 1) -> Iterator[NDArray[np.void]]:
        """The records, with moved times."""
        for batch in self._node.capture.batches(at_least):
            batch["time_ns"] = self._times(batch["time_ns"])
            yield batch

    def _times(self, times: NDArray[np.void]) -> NDArray[np.uint64]:
        walls = times.astype(np.int64) + self._node.to_wall
        return np.maximum(on_reference(self._node, walls) - self._clocks.to_wall, 0).astype(
            np.uint64
        )

    def _moved(self, times: list[int]) -> list[int]:
        found: list[int] = self._times(np.array(times, np.uint64)).tolist()
        return found

    def _timed(self, rows: list[tuple[int, _Sample]]) -> list[tuple[int, _Sample]]:
        return list(
            zip(self._moved([time for time, _ in rows]), [rest for _, rest in rows], strict=True)
        )


def on_one_clock(nodes: Sequence[Node], links: Sequence[Link]) -> tuple[list[Node], list[Link]]:
    """The same nodes and links on the reference node's clock; a node without one keeps its own."""
    reference = next(node for node in nodes if node.aligned and node.clock is None)
    clocks = reference.contents.head.clocks
    made = {}
    for node in nodes:
        capture = AlignedCapture(node, clocks)
        made[node] = replace(
            node,
            capture=capture,
            contents=capture.contents(),
            clock=None,
            rough=0 if node.aligned else node.rough,
        )
    acquaint(list(made.values()))
    moved = [
        replace(link, source=made[link.source], target=made[link.target], bounds=Bounds(), paired=0)
        for link in links
    ]
    return list(made.values()), moved
