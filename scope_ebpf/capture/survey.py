# SPDX-License-Identifier: Apache-2.0
"""
The connections of one capture, and of each a sample of packets that the other node samples alike.

A packet is in the sample if a hash of its end is small. So both nodes keep the same packets without
knowing of each other, however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scope_ebpf.capture.reader import Capture

OUT, IN = "dist_out", "dist_in"
#: Records that are worked on at once.
BATCH = 1 << 16
#: Packets in the samples of all captures together, and of one direction: 17 bytes each.
_MOST_SAMPLED, _MOST_OF_ONE, _FEWEST_OF_ONE = 1 << 22, 4096, 64
#: Multiplier of the hash; ends are hashes already, but not even ones.
_MIX, _WORD = np.uint64(2654435761), np.uint64(0xFFFFFFFF)
_SAMPLE = np.dtype([("check", "<u4"), ("number", "<u4"), ("time_ns", "<u8"), ("twice", "?")])


class Key(NamedTuple):
    """One direction of a connection: its kind of records, the peer's atom, and its number."""

    kind: str
    peer: int
    connection: int


@dataclass(slots=True)
class Direction:
    """Packets of one direction of a connection."""

    #: Packets that are kept of it.
    most: int
    count: int = 0
    #: Numbers and times of the first and the last one.
    first: int = 0
    last: int = 0
    first_ns: int = 0
    last_ns: int = 0
    #: Packets in it have hashes below this.
    _below: int = 1 << 32
    _sample: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, _SAMPLE))

    def add(self, rows: NDArray[np.void]) -> int:
        """Add some packets in their order; by how many the sample grows."""
        before = len(self._sample)
        if not self.count:
            self.first, self.first_ns = int(rows["number"][0]), int(rows["time_ns"][0])
        self.count += len(rows)
        self.last, self.last_ns = int(rows["number"][-1]), int(rows["time_ns"][-1])
        known = rows[(rows["check"] != 0) & (_hash(rows["check"]) < self._below)]
        fresh = np.zeros(len(known), _SAMPLE)
        for name in ("check", "number", "time_ns"):
            fresh[name] = known[name]
        both = np.concatenate([self._sample, fresh])
        _, first, counts = np.unique(both["check"], return_index=True, return_counts=True)
        both["twice"][first] |= counts > 1
        self._sample = both[first]
        self.keep(self.most)
        return len(self._sample) - before

    def keep(self, most: int) -> int:
        """Keep so many packets from now on; by how many the sample shrinks."""
        before, self.most = len(self._sample), most
        while len(self._sample) > most:
            self._below >>= 1
            self._sample = self._sample[_hash(self._sample["check"]) < self._below]
        return before - len(self._sample)

    def alone(self) -> NDArray[np.void]:
        """The packets of the sample whose end no other packet has."""
        found: NDArray[np.void] = self._sample[~self._sample["twice"]]
        return found


def _hash(checks: NDArray[np.void]) -> NDArray[np.uint64]:
    found: NDArray[np.uint64] = (checks.astype(np.uint64) * _MIX) & _WORD
    return found


def by_connection(batch: NDArray[np.void]) -> Iterator[tuple[Key, NDArray[np.void]]]:
    """The numbered packets of a batch, each direction of a connection by itself and in order."""
    for kind in (OUT, IN):
        rows = batch[batch["kind"] == events.KINDS[kind].id].view(events.RECORDS[kind])
        rows = rows[rows["number"] != 0]
        if not len(rows):
            continue
        _, peers = np.unique(rows["peer"], return_inverse=True)
        ends = peers.astype(np.uint64) << np.uint64(16) | rows["connection"]
        _, where = np.unique(ends, return_inverse=True)
        order = np.argsort(where, kind="stable")
        for part in np.split(rows[order], np.cumsum(np.bincount(where))[:-1]):
            yield Key(kind, int(part["peer"][0]), int(part["connection"][0])), part


def survey(capture: Capture, captures: int) -> dict[Key, Direction]:
    """
    All connections of a capture, one of *captures*; of more connections fewer packets are kept.

    CaptureError for more connections than are kept.
    """
    found: dict[Key, Direction] = {}
    room = _MOST_SAMPLED // captures
    most = max(_FEWEST_OF_ONE, min(_MOST_OF_ONE, room // (2 * captures)))
    for batch in capture.batches(BATCH):
        for key, rows in by_connection(batch):
            # What a direction itself takes counts, too.
            room -= 0 if key in found else _FEWEST_OF_ONE
            room -= found.setdefault(key, Direction(most)).add(rows)
            while room < 0 and most > _FEWEST_OF_ONE:
                most = max(_FEWEST_OF_ONE, most // 2)
                room += sum(one.keep(most) for one in found.values())
            if room < 0:
                raise CaptureError(f"{capture.path} has too many connections: record for less time")
    return found
