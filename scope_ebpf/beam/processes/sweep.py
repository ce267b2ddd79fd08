# SPDX-License-Identifier: Apache-2.0
"""
The load of every process, kept up to date within a budget of CPU time.

A table that costs more than the budget is read in parts, one at each turn:
every process is read equally often, and *age* says how old a row may be.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scope_ebpf.arrays import distinct, within
from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.beam.processes.table import CHUNK, binary_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.table import ProcessTable, Snapshot

#: Columns that are kept of each process: 60 bytes.
_KEPT = np.dtype(
    [
        ("slot", np.uint32),
        ("id", np.uint64),
        ("reductions", np.uint64),
        ("seen", np.float64),
        ("rate", np.float32),
        ("memory", np.int64),
        ("mailbox", np.int64),
        ("minor_gcs", np.int32),
        ("heap", np.uint64),
        ("collected", np.float32),
        ("binary", np.int64),
    ]
)
#: Names for ``--sort``, and their columns.
SORTS = {
    "reductions": "rate",
    "mailbox": "mailbox",
    "memory": "memory",
    "gc": "collected",
    "binary": "binary",
}
_WORD = 8
#: Seconds between two readings of those that collect.
_LOOK = 0.008


class State(NamedTuple):
    """Totals of the last round of a sweep, updated at each turn."""

    #: Processes that the table counts.
    total: int
    #: Processes that were read.
    read: int
    #: Processes that changed too fast, or could not be read.
    torn: int
    #: Turns of a round.
    parts: int
    #: CPU time of the last turn.
    seconds: float


class Top(NamedTuple):
    """Some processes, shape ``(n,)`` each."""

    slots: NDArray[np.int64]
    #: Reductions a second.
    rates: NDArray[np.float32]
    #: Bytes a second that went through garbage collections.
    collected: NDArray[np.float32]


class Sweep:
    """
    Reads the process table turn by turn; *budget* is CPU seconds per turn.

    *weigh* gives the bytes of each process that it is sorted by; where nothing is sorted by
    them, those of its struct and heaps will do.
    """

    def __init__(
        self,
        table: ProcessTable,
        weigh: Callable[[NDArray[np.void]], NDArray[np.uint64]],
        budget: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.table = table
        self._weigh = weigh
        self._budget = budget
        self._clock = clock
        self._blocks = -(-table.slots // CHUNK)
        self._part = 0
        #: By part: its processes in the order of their slots, the slots that were missed, and when
        #: it was read last.
        self._kept = [np.empty(0, _KEPT)]
        self._missed: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._seen = [0.0]
        self._torn: dict[int, int] = {}

    def turn(self) -> State:
        """Read the next part; the first turn reads everything."""
        began = cpu_seconds()
        part, parts = self._part, len(self._kept)
        snapshot = self.table.snapshot(part, parts)
        self._take(snapshot, part)
        self._torn[part] = snapshot.torn + snapshot.unreadable
        torn, seconds = sum(self._torn.values()), cpu_seconds() - began
        self._part = (part + 1) % parts
        if self._part == 0:
            self._plan(seconds * parts)
        read = sum(len(kept) for kept in self._kept)
        return State(snapshot.total, read, torn, parts, seconds)

    def top(self, sort: str, limit: int) -> Top:
        """Return the *limit* processes with most of *sort*."""
        best = [
            np.argsort(-kept[SORTS[sort]].astype(np.float64), kind="stable")[:limit]
            for kept in self._kept
        ]
        found = np.concatenate(
            [kept[indexes] for kept, indexes in zip(self._kept, best, strict=True)]
        )
        order = np.lexsort((found["slot"], -found[SORTS[sort]].astype(np.float64)))
        return _top(found[order[:limit]])

    def collectors(self, limit: int) -> NDArray[np.int64]:
        """
        Return the processes to sample for collections: at most *limit* slots.

        Those with most collections so far, and the largest of those that ran: after two
        collections a heap may be where it was.
        """
        kept = np.concatenate(self._kept)
        ran = kept[kept["rate"] > 0]
        large = ran["slot"][np.argsort(-ran["memory"], kind="stable")[: limit // 2]]
        return distinct(np.concatenate((large.astype(np.int64), self.top("gc", limit // 2).slots)))

    def column(self, name: str) -> NDArray[Any]:
        """
        Return what is kept of every process under *name*, shape ``(n,)``.

        All columns are in one order, which lasts until the next turn.
        """
        return np.concatenate([kept[name] for kept in self._kept])

    def of(self, slots: NDArray[np.int64]) -> Top:
        """Return what is kept of the processes in these slots, in the order of their slots."""
        kept = np.concatenate(self._kept)
        kept = np.sort(kept[within(kept["slot"], slots)], order="slot")
        return _top(kept)

    def _plan(self, cost: float) -> None:
        """Cut the table so that a part of it fits the budget."""
        parts = min(max(1, math.ceil(cost / self._budget)), self._blocks)
        if parts == len(self._kept):
            return
        kept, missed = np.concatenate(self._kept), np.concatenate(self._missed)
        kept = kept[np.argsort(kept["slot"])]
        # Of a new process it is only known that it was not there when the oldest part was read.
        self._seen = [min(self._seen)] * parts
        self._kept = [kept[kept["slot"] // CHUNK % parts == part] for part in range(parts)]
        self._missed = [missed[missed // CHUNK % parts == part] for part in range(parts)]
        self._torn = {}

    def _take(self, snapshot: Snapshot, part: int) -> None:
        now, rows = self._clock(), snapshot.rows
        rows = rows[np.argsort(rows["slot"])]
        kept, before = np.empty(len(rows), _KEPT), self._before(rows, part)
        for name in ("slot", "id", "reductions", "mailbox", "minor_gcs", "heap"):
            kept[name] = rows[name]
        kept["seen"] = now
        kept["memory"] = self._weigh(rows)
        kept["binary"] = binary_bytes(rows) if "old_binaries" in (rows.dtype.names or ()) else 0
        elapsed = now - before["seen"]
        known = (before["seen"] > 0) & (elapsed > 0) & (rows["reductions"] >= before["reductions"])
        work = (rows["reductions"] - before["reductions"]).astype(np.float64)
        seconds = np.where(known, elapsed, 1.0)
        kept["rate"] = np.where(known, work, 0.0) / seconds
        same = known & (before["id"] == rows["id"])
        kept["collected"] = np.where(same, _collected(rows, before), 0.0) / seconds
        self._kept[part], self._missed[part], self._seen[part] = kept, snapshot.missed, now

    def _before(self, rows: NDArray[np.void], part: int) -> NDArray[np.void]:
        """
        Return what was known of each process at the last reading.

        A process that was not there has done all its work since; one in a slot that was missed need
        not be new.
        """
        old = self._kept[part]
        before = np.zeros(len(rows), _KEPT)
        before["seen"] = np.where(within(rows["slot"], self._missed[part]), 0.0, self._seen[part])
        index = np.minimum(np.searchsorted(old["slot"], rows["slot"]), max(len(old) - 1, 0))
        if len(old):
            same = old["id"][index] == rows["id"]
            before[same] = old[index[same]]
        return before


def _top(rows: NDArray[np.void]) -> Top:
    return Top(rows["slot"].astype(np.int64), rows["rate"].copy(), rows["collected"].copy())


def collected(
    table: ProcessTable,
    slots: NDArray[np.int64],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> NDArray[np.float64]:
    """
    Return how many bytes a second the collections of the processes in *slots* go through, at least.

    Two major collections between two readings count as one, or none, so these processes are read
    every few ms, for *seconds*. *slots* are in ascending order; returns the shape of *slots*.
    """
    began, found, before = clock(), np.zeros(len(slots)), np.zeros(0, _KEPT)
    while True:
        rows = table.at(slots).rows
        rows = rows[np.argsort(rows["slot"])]
        now = np.zeros(len(rows), _KEPT)
        for name in ("slot", "id", "minor_gcs", "heap"):
            now[name] = rows[name]
        both = within(now["id"], before["id"])
        earlier = before[within(before["id"], now["id"])]
        found[within(slots, now["slot"][both])] += _collected(rows[both], earlier)
        before = now
        took = clock() - began
        if took >= seconds:
            return found / took
        sleep(_LOOK)


def _collected(rows: NDArray[np.void], before: NDArray[np.void]) -> NDArray[np.float64]:
    """
    Return the least bytes that the collections of each process went through since the last reading.

    The VM counts only the minor collections of a process since its last major one: a smaller
    count, or the same count with another heap, means one major collection or more.
    """
    now, earlier = rows["minor_gcs"].astype(np.int64), before["minor_gcs"]
    moved = before["heap"] != rows["heap"]
    major = (now < earlier) | ((now == earlier) & moved)
    minor = np.where(major, now, now - earlier)
    old = np.where(rows["old_heap"] != 0, rows["old_hend"] - rows["old_heap"], 0)
    young = (rows["heap_words"] * np.uint64(_WORD)).astype(np.float64)
    # A minor collection leaves the old heap alone.
    found: NDArray[np.float64] = minor * young + major * (young + old)
    return found
