# SPDX-License-Identifier: Apache-2.0
"""
A process table of any size folded into a fixed number of figures.

Pure: rows of ``beam.processes`` go in, part by part, so that a table of a million
processes never lies in memory at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.processes import base_bytes

if TYPE_CHECKING:
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

    def _most(
        self, known: list[Top], pids: NDArray[np.uint64], values: NDArray[np.int64]
    ) -> list[Top]:
        """The largest of those *known* and these; none that is 0."""
        count = min(self.top, len(values))
        places = np.argpartition(values, -count)[-count:] if count else np.empty(0, np.int64)
        found = [Top(int(pids[p]), int(values[p])) for p in places.tolist() if values[p] > 0]
        ranked = sorted([*known, *found], key=lambda one: (-one.value, one.pid))
        return ranked[: self.top]


def _at_least(values: NDArray[np.int64], steps: tuple[int, ...]) -> NDArray[np.int64]:
    ordered = np.sort(values)
    return (len(ordered) - np.searchsorted(ordered, steps)).astype(np.int64)
