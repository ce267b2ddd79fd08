# SPDX-License-Identifier: Apache-2.0
"""
A process table of any size folded into a fixed number of figures.

Pure: rows of ``beam.processes.table`` go in, part by part, so that a table of a million
processes never lies in memory at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

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
    of the reading, *taken* the time when it was begun, in seconds since 1970.
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

    def take_in(self, rows: NDArray[np.void], torn: int, memory: NDArray[np.int64]) -> None:
        """Add *rows* with the columns ``LOAD``, and the bytes of each."""
        self.read += len(rows)
        self.torn += torn
        mailbox = rows["mailbox"]
        self.messages += int(mailbox.sum())
        self.memory += int(memory.sum())
        self.mailbox_counts += _at_least(mailbox, MAILBOX_STEPS)
        self.memory_counts += _at_least(memory, MEMORY_STEPS)
        self.mailboxes = self._most(self.mailboxes, rows["id"], mailbox)
        self.memories = self._most(self.memories, rows["id"], memory)

    def weigh(self, bytes_of: dict[int, int]) -> None:
        """Put what the largest weigh in the place of what was told of them, by pid term."""
        weighed = [Top(one.pid, bytes_of.get(one.pid, one.value)) for one in self.memories]
        self.memory += sum(one.value for one in weighed) - sum(one.value for one in self.memories)
        self.memories = sorted(weighed, key=lambda one: (-one.value, one.pid))

    def take_in_rates(self, rows: NDArray[np.void], rates: NDArray[np.float64]) -> None:
        """Add how many reductions a second *rows* do."""
        whole = rates.astype(np.int64)
        self.rate += int(whole.sum())
        self.rates = self._most(self.rates, rows["id"], whole)

    def _most(
        self, known: list[Top], pids: NDArray[np.uint64], values: NDArray[np.int64]
    ) -> list[Top]:
        """The largest of those *known* and these; none that is 0."""
        count = min(self.top, len(values))
        places = np.argpartition(values, -count)[-count:] if count else np.empty(0, np.int64)
        found = [Top(int(pids[p]), int(values[p])) for p in places.tolist() if values[p] > 0]
        ranked = sorted([*known, *found], key=lambda one: (-one.value, one.pid))
        return ranked[: self.top]


#: Reductions a second that no process does: a count that rises faster is none.
_FASTEST = 1e11


class _Part(NamedTuple):
    """What is kept of one part: pids in order and their reductions, slots that were missed."""

    pids: NDArray[np.uint64]
    done: NDArray[np.uint64]
    missed: NDArray[np.int64]
    taken: float


class Reductions:
    """
    What each process has done since the snapshot before, by its reductions.

    Those of a process that runs are counted when it leaves its scheduler. A pid
    that was not there is a new process, unless its slot was missed: then nobody
    knows how old it is, and it has no rate yet. Of each 16 bytes are kept.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: For each part those of the snapshot before that have its processes.
        self._last: list[list[_Part]] = [[]]

    def rates(
        self, part: int, parts: int, rows: NDArray[np.void], missed: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """
        Reductions a second of each of *rows*, which are all of *part* but those *missed*.

        *parts* is a power of two, as the parts are every so many blocks of the
        table; it may differ from one snapshot to the next.
        """
        self._cut(parts)
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
            known, places = _places(old.pids, rows["id"])
            base[known] = old.done[places]
            seconds[known] = now - old.taken
        # A count that fell is that of another process with the same pid.
        grown = np.maximum((rows["reductions"] - base).astype(np.int64), 0)
        rates = np.zeros(len(rows))
        np.divide(grown, seconds, out=rates, where=seconds > 0)
        rates[rates > _FASTEST] = 0
        return rates

    def _cut(self, parts: int) -> None:
        """Keep it by so many parts; one of twice as many lies within one of these."""
        while len(self._last) < parts:
            self._last = self._last * 2
        while len(self._last) > parts:
            half = len(self._last) // 2
            pairs = zip(self._last[:half], self._last[half:], strict=True)
            self._last = [[*one, *other] for one, other in pairs]


def _places(
    ordered: NDArray[np.uint64], wanted: NDArray[np.uint64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Tell which of *wanted* are among those *ordered*, and where these are."""
    places = np.searchsorted(ordered, wanted)
    known = places < len(ordered)
    known[known] = ordered[places[known]] == wanted[known]
    return known, places[known]


def _at_least(values: NDArray[np.int64], steps: tuple[int, ...]) -> NDArray[np.int64]:
    ordered = np.sort(values)
    return (len(ordered) - np.searchsorted(ordered, steps)).astype(np.int64)
