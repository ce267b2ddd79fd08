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
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes import ProcessTable, Snapshot

#: Columns and what they hold for an empty slot; a table of a million takes 44 MB.
_COLUMNS: dict[str, tuple[type[np.generic], int]] = {
    "id": (np.uint64, 0),
    "reductions": (np.uint64, 0),
    "seen": (np.float64, 0),
    "rate": (np.float32, -1),
    "memory": (np.int64, -1),
    "mailbox": (np.int64, -1),
    "minor_gcs": (np.int32, -1),
}
#: Slots of a table; 44 bytes are kept of each. A VM has a million unless it is told otherwise.
_MOST_SLOTS = 1 << 24
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
    """
    Reads the process table turn by turn; *budget* is CPU seconds per turn.

    Raises ReadRefusedError for a table of which it would take too much memory to remember.
    """

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
        # Whole blocks, so that a part of the table is a slice.
        if table.slots > _MOST_SLOTS:
            raise ReadRefusedError(
                f"the process table has {table.slots:,} slots, and up to {_MOST_SLOTS:,} are "
                "remembered: `top --once --format json` reads it without"
            )
        self._blocks = -(-table.slots // CHUNK)
        size = self._blocks * CHUNK
        self._columns = {
            name: np.full(size, empty, kind) for name, (kind, empty) in _COLUMNS.items()
        }
        self._counts = np.zeros(self._blocks, np.int64)
        self._part = 0
        self._parts = 1
        self._torn: dict[int, int] = {}

    def turn(self) -> State:
        """Read the next part; the first turn reads everything."""
        began = time.process_time()
        part, parts = self._part, self._parts
        snapshot = self._table.snapshot(part, parts)
        self._take(snapshot, part, parts)
        self._torn[part] = snapshot.torn + snapshot.unreadable
        torn, seconds = sum(self._torn.values()), time.process_time() - began
        self._part = (part + 1) % parts
        if self._part == 0:
            self._plan(seconds * parts)
        return State(snapshot.total, int(self._counts.sum()), torn, parts, seconds)

    def top(self, sort: str, limit: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tell the slots of the *limit* processes with most of *sort*, and their reductions/s."""
        column = self._columns[SORTS[sort]]
        # The blocks with the largest maxima hold them all; partition is slow among equals.
        blocks = np.argsort(-column.reshape(self._blocks, CHUNK).max(axis=1), kind="stable")[:limit]
        slots = (np.sort(blocks)[:, None] * CHUNK + np.arange(CHUNK)).reshape(-1)
        slots = slots[self._columns["id"][slots] != 0]
        best = slots[np.argsort(-column[slots].astype(np.float64), kind="stable")[:limit]]
        return best, self._columns["rate"][best]

    def _plan(self, cost: float) -> None:
        """Cut the table so that a part of it fits the budget."""
        wanted = max(1, math.ceil(cost / self._budget))
        parts = min(wanted, self._blocks)
        if parts != self._parts:
            self._parts, self._torn = parts, {}

    def _take(self, snapshot: Snapshot, part: int, parts: int) -> None:
        now, rows = self._clock(), snapshot.rows
        slots, columns = rows["slot"], self._columns
        # Who was not there last time has done all its work since.
        before = np.where(columns["id"][slots] == rows["id"], columns["reductions"][slots], 0)
        elapsed = now - columns["seen"][slots]
        known = (columns["seen"][slots] > 0) & (elapsed > 0) & (rows["reductions"] >= before)
        work = (rows["reductions"] - np.where(known, before, rows["reductions"])).astype(np.float64)
        for name, (_, empty) in _COLUMNS.items():
            columns[name].reshape(self._blocks, CHUNK)[part::parts] = empty
        columns["seen"].reshape(self._blocks, CHUNK)[part::parts] = now
        columns["seen"][snapshot.missed] = 0  # who is found there next need not be new
        for name in ("id", "reductions", "mailbox", "minor_gcs"):
            columns[name][slots] = rows[name]
        columns["memory"][slots] = base_bytes(rows, self._process_size)
        columns["rate"][slots] = work / np.where(known, elapsed, 1.0)
        ids = columns["id"].reshape(self._blocks, CHUNK)[part::parts]
        self._counts[part::parts] = np.count_nonzero(ids, axis=1)
