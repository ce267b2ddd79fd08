# SPDX-License-Identifier: Apache-2.0
"""
Folds a process table of any size into a fixed number of figures.

Pure: rows of ``beam.processes.table`` go in part by part, so that a table of a million processes
is never in memory as a whole.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

#: Lower bounds by which processes are counted: waiting messages, and bytes of memory.
MAILBOX_STEPS = (1, 10, 100, 1_000, 10_000, 100_000)
MEMORY_STEPS = (1 << 16, 1 << 20, 1 << 24, 1 << 28)


@dataclass(frozen=True, slots=True)
class Top:
    """One process of a ranking."""

    #: The pid as a term.
    pid: int
    value: int


@dataclass(slots=True)
class SnapshotReading:
    """
    The figures of one process table.

    Rankings are sorted by value, the largest first, and have at most *top* processes; those with a
    value of 0 are left out.
    """

    top: int
    #: Processes that were read, and those that changed while they were read.
    read: int = 0
    torn: int = 0
    #: Messages in all mailboxes.
    messages: int = 0
    #: Bytes of all processes.
    memory: int = 0
    #: Number of processes by ``MAILBOX_STEPS`` and ``MEMORY_STEPS``, cumulative.
    mailbox_counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(MAILBOX_STEPS), np.int64)
    )
    memory_counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(MEMORY_STEPS), np.int64)
    )
    mailboxes: list[Top] = field(default_factory=list)
    memories: list[Top] = field(default_factory=list)
    #: Reductions per second since the last snapshot, of all processes and of the busiest.
    rate: int = 0
    rates: list[Top] = field(default_factory=list)
    #: Names of the processes in rankings, by pid term; set by the reader of the table.
    names: dict[int, str] = field(default_factory=dict)
    #: Seconds of CPU that the reading took.
    seconds: float = 0.0
    #: When it was begun, seconds since 1970.
    taken: float = 0.0

    def add(self, rows: NDArray[np.void], torn: int, memory: NDArray[np.int64]) -> None:
        """Add *rows* with the columns ``LOAD``; *memory* are the bytes of each row."""
        self.read += len(rows)
        self.torn += torn
        mailbox = rows["mailbox"]
        self.messages += int(mailbox.sum())
        self.memory += int(memory.sum())
        self.mailbox_counts += _at_least(mailbox, MAILBOX_STEPS)
        self.memory_counts += _at_least(memory, MEMORY_STEPS)
        self.mailboxes = self._ranked(self.mailboxes, rows["id"], mailbox)
        self.memories = self._ranked(self.memories, rows["id"], memory)

    def refine_memory(self, bytes_of: dict[int, int]) -> None:
        """Replace the bytes of the largest processes by exact ones, by pid term."""
        exact = [Top(one.pid, bytes_of.get(one.pid, one.value)) for one in self.memories]
        self.memory += sum(one.value for one in exact) - sum(one.value for one in self.memories)
        self.memories = sorted(exact, key=lambda one: (-one.value, one.pid))

    def add_rates(self, rows: NDArray[np.void], rates: NDArray[np.float64]) -> None:
        """Add the reductions per second of *rows*."""
        whole = rates.astype(np.int64)
        self.rate += int(whole.sum())
        self.rates = self._ranked(self.rates, rows["id"], whole)

    def _ranked(
        self, known: list[Top], pids: NDArray[np.uint64], values: NDArray[np.int64]
    ) -> list[Top]:
        """The largest of *known* and of *values*, without zeros."""
        count = min(self.top, len(values))
        largest = np.argpartition(values, -count)[-count:] if count else np.empty(0, np.int64)
        found = [Top(int(pids[n]), int(values[n])) for n in largest.tolist() if values[n] > 0]
        ranked = sorted([*known, *found], key=lambda one: (-one.value, one.pid))
        return ranked[: self.top]


#: Upper limit of reductions per second; a count that grows faster is not a count of reductions.
_MAX_RATE = 1e11


class _Part(NamedTuple):
    """One part of the last snapshot."""

    #: Pid terms in ascending order, and the reductions of each.
    pids: NDArray[np.uint64]
    done: NDArray[np.uint64]
    #: Slots that could not be read.
    missed: NDArray[np.int64]
    taken: float


class Reductions:
    """
    Rates of reductions of each process since the last snapshot.

    The VM counts the reductions of a running process when it leaves its scheduler. A pid that was
    not in the last snapshot is a new process, unless its slot was missed: then its age is unknown,
    and it has no rate yet. 16 bytes per process are kept.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: For each part, the parts of the last snapshot that contain its processes.
        self._last: list[list[_Part]] = [[]]

    def rates(
        self, part: int, parts: int, rows: NDArray[np.void], missed: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """
        Reductions per second of *rows*, which are all rows of *part* except the slots *missed*.

        *parts*, the number of parts, is a power of two; it may differ from one snapshot to the
        next.
        """
        self._split(parts)
        now, before = self._clock(), self._last[part]
        order = np.argsort(rows["id"])
        self._last[part] = [_Part(rows["id"][order], rows["reductions"][order], missed, now)]
        if not before:
            return np.zeros(len(rows))
        base = np.zeros(len(rows), np.uint64)
        seconds = np.full(len(rows), now - min(old.taken for old in before))
        for old in before:
            unknown = np.isin(rows["slot"], old.missed)
            base[unknown] = rows["reductions"][unknown]
        for old in before:
            known, indexes = _indexes(old.pids, rows["id"])
            base[known] = old.done[indexes]
            seconds[known] = now - old.taken
        # A count that fell belongs to another process with the same pid.
        grown = np.maximum((rows["reductions"] - base).astype(np.int64), 0)
        rates = np.zeros(len(rows))
        np.divide(grown, seconds, out=rates, where=seconds > 0)
        rates[rates > _MAX_RATE] = 0
        return rates

    def _split(self, parts: int) -> None:
        """Assign the last snapshot to *parts* parts; one of twice as many lies within one part."""
        while len(self._last) < parts:
            self._last = self._last * 2
        while len(self._last) > parts:
            half = len(self._last) // 2
            pairs = zip(self._last[:half], self._last[half:], strict=True)
            self._last = [[*one, *other] for one, other in pairs]


def _indexes(
    ordered: NDArray[np.uint64], wanted: NDArray[np.uint64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """A mask of the *wanted* values that are in *ordered*, and the indexes of these in it."""
    indexes = np.searchsorted(ordered, wanted)
    known = indexes < len(ordered)
    known[known] = ordered[indexes[known]] == wanted[known]
    return known, indexes[known]


def _at_least(values: NDArray[np.int64], steps: tuple[int, ...]) -> NDArray[np.int64]:
    ordered = np.sort(values)
    return (len(ordered) - np.searchsorted(ordered, steps)).astype(np.int64)
