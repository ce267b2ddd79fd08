# SPDX-License-Identifier: Apache-2.0
"""
The load of every process, kept up to date within a budget of CPU time.

A table that costs more than the budget is read in parts, one at each turn:
every process is looked at equally often, and *age* says how old a row may be.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.processes import CHUNK, base_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes import ProcessTable, Snapshot

#: What one process takes here; a table of a million takes 44 MB.
_ROW = np.dtype(
    [
        ("id", np.uint64),
        ("reductions", np.uint64),
        ("seen", np.float64),
        ("rate", np.float32),
        ("memory", np.uint64),
        ("mailbox", np.int64),
        ("minor_gcs", np.uint16),
    ]
)
#: What ``--sort`` may name, and the column behind it.
SORTS = {"reductions": "rate", "mailbox": "mailbox", "memory": "memory", "gc": "minor_gcs"}


@dataclass(frozen=True, slots=True)
class State:
    """What a turn found: counts of the last full round, and how old its rows may be."""

    total: int
    read: int
    torn: int
    parts: int
    seconds: float


class Sweep:
    """Reads the process table turn by turn; *budget* is CPU seconds per turn."""

    def __init__(
        self,
        table: ProcessTable,
        process_size: int,
        budget: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._process_size = process_size
        self._budget = budget
        self._clock = clock
        self._rows = np.zeros(table.slots, _ROW)
        self._blocks = np.arange(table.slots) // CHUNK
        self._part = 0
        self._parts = 1
        self._cost = 0.0
        self._torn: dict[int, int] = {}

    def turn(self) -> State:
        """Read the next part; the first turn reads everything."""
        part, parts = self._part, self._parts
        snapshot = self._table.snapshot(part, parts)
        self._take(snapshot, part, parts)
        if parts == 1:
            self._torn.clear()
        self._torn[part] = snapshot.torn + snapshot.unreadable
        self._plan(snapshot.seconds * parts)
        return State(
            snapshot.total,
            int(np.count_nonzero(self._rows["id"])),
            sum(self._torn.values()),
            parts,
            snapshot.seconds,
        )

    def top(self, sort: str, limit: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tell the slots of the *limit* processes with most of *sort*, and their reductions/s."""
        column = self._rows[SORTS[sort]].astype(np.float64)
        column[self._rows["id"] == 0] = -1
        count = min(limit, len(column))
        best = np.argpartition(column, len(column) - count)[len(column) - count :]
        best = best[np.argsort(-column[best], kind="stable")]
        best = best[column[best] >= 0]
        return best, self._rows["rate"][best]

    def _plan(self, cost: float) -> None:
        """Go on to the next part, and cut the table so that a part fits the budget."""
        self._part = (self._part + 1) % self._parts
        if self._part == 0:
            wanted = max(1, math.ceil(cost / self._budget))
            self._parts = min(wanted, max(1, len(self._rows) // CHUNK))
            self._torn.clear() if self._parts > 1 else None

    def _take(self, snapshot: Snapshot, part: int, parts: int) -> None:
        now = self._clock()
        rows = snapshot.rows
        old = self._rows[rows["slot"]]
        new = np.zeros(len(rows), _ROW)
        for name in ("id", "reductions", "mailbox", "minor_gcs"):
            new[name] = rows[name]
        new["memory"] = base_bytes(rows, self._process_size)
        new["seen"] = now
        # Who was not there last time has done all its work since.
        before = np.where(old["id"] == rows["id"], old["reductions"], 0)
        elapsed = now - old["seen"]
        known = (old["seen"] > 0) & (elapsed > 0) & (rows["reductions"] >= before)
        work = (rows["reductions"] - np.where(known, before, rows["reductions"])).astype(np.float64)
        new["rate"] = work / np.where(known, elapsed, 1.0)
        mine = self._blocks % parts == part
        self._rows["id"][mine] = 0
        self._rows["seen"][mine] = now
        self._rows[rows["slot"]] = new
