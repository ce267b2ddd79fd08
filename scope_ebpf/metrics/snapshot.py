# SPDX-License-Identifier: Apache-2.0
"""
A process table of any size folded into a fixed number of figures.

Pure: rows of ``beam.processes`` go in, part by part, so that a table of a million
processes never lies in memory at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.processes import base_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

#: Processes are counted by at least how many messages wait, and how many bytes they have.
MAILBOX_STEPS = (1, 10, 100, 1_000, 10_000, 100_000)
MEMORY_STEPS = (1 << 16, 1 << 20, 1 << 24, 1 << 28)


@dataclass(frozen=True, slots=True)
class Top:
    """One of the processes that have most of something."""

    pid: int
    value: int


@dataclass(slots=True)
class SnapshotReading:
    """
    What a table holds: *mailbox_counts* and *memory_counts* by the steps above.

    *names* is told by whoever can read them, by pid term. *seconds* is the CPU time
    of the reading, *taken* the time when it was done, in seconds since 1970.
    """

    top: int
    read: int = 0
    torn: int = 0
    messages: int = 0
    memory: int = 0
    mailbox_counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(MAILBOX_STEPS), np.int64)
    )
    memory_counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(MEMORY_STEPS), np.int64)
    )
    mailboxes: list[Top] = field(default_factory=list)
    memories: list[Top] = field(default_factory=list)
    #: Reductions a second since the snapshot before, of all and of the busiest.
    rate: int = 0
    rates: list[Top] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    taken: float = 0.0

    def take_in(self, rows: NDArray[np.void], torn: int, process_size: int) -> None:
        """Add *rows* with the columns ``LOAD``; *process_size* is that of the VM's struct."""
        self.read += len(rows)
        self.torn += torn
        mailbox = rows["mailbox"]
        memory = base_bytes(rows, process_size).astype(np.int64)
        self.messages += int(mailbox.sum())
        self.memory += int(memory.sum())
        self.mailbox_counts += _at_least(mailbox, MAILBOX_STEPS)
        self.memory_counts += _at_least(memory, MEMORY_STEPS)
        self.mailboxes = self._most(self.mailboxes, rows["id"], mailbox)
        self.memories = self._most(self.memories, rows["id"], memory)

    def take_in_rates(
        self, rows: NDArray[np.void], reductions: NDArray[np.int64], seconds: float
    ) -> None:
        """Add what *rows* have done in *seconds*; nothing where that is 0."""
        if seconds > 0:
            rates = (reductions / seconds).astype(np.int64)
            self.rate += int(rates.sum())
            self.rates = self._most(self.rates, rows["id"], rates)

    def _most(
        self, known: list[Top], pids: NDArray[np.uint64], values: NDArray[np.int64]
    ) -> list[Top]:
        """The largest of those *known* and these; none that is 0."""
        count = min(self.top, len(values))
        places = np.argpartition(values, -count)[-count:] if count else np.empty(0, np.int64)
        found = [Top(int(pids[p]), int(values[p])) for p in places.tolist() if values[p] > 0]
        ranked = sorted([*known, *found], key=lambda one: (-one.value, one.pid))
        return ranked[: self.top]


class Reductions:
    """
    What each process has done since the snapshot before, by its reductions.

    Those of a process that runs are counted when it leaves its scheduler, and a pid
    that was not there is a new process. Of each 16 bytes are kept.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[int, tuple[NDArray[np.uint64], NDArray[np.uint64], float]] = {}

    def since(self, part: int, rows: NDArray[np.void]) -> tuple[NDArray[np.int64], float]:
        """Reductions of each of *rows*, of the same *part* as before, and in how many seconds."""
        now = self._clock()
        order = np.argsort(rows["id"])
        ids, done = rows["id"][order], rows["reductions"][order]
        before = self._last.get(part)
        self._last[part] = ids, done, now
        if before is None:
            return np.zeros(len(rows), np.int64), 0.0
        old_ids, old_done, then = before
        places = np.searchsorted(old_ids, rows["id"])
        places[places == len(old_ids)] = 0
        known = (old_ids[places] == rows["id"]) if len(old_ids) else np.zeros(len(rows), np.bool_)
        base = np.where(known, old_done[places], 0) if len(old_ids) else 0
        # A count that fell is that of another process with the same pid.
        grown = np.maximum((rows["reductions"] - base).astype(np.int64), 0)
        return grown, now - then


def _at_least(values: NDArray[np.int64], steps: tuple[int, ...]) -> NDArray[np.int64]:
    ordered = np.sort(values)
    return (len(ordered) - np.searchsorted(ordered, steps)).astype(np.int64)
