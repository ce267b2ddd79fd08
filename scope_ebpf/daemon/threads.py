# SPDX-License-Identifier: Apache-2.0
"""The threads of one target, as the kernel schedules them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from scope_ebpf.beam.threads import ROLES, TaskFaults, faults
from scope_ebpf.metrics.reading import ThreadBooks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.kernel.tracepoints import ThreadWatch

#: Ticks between two looks at which threads there are: a VM starts nearly all of them at once.
_LOOK = 10


class WatchedThreads:
    """
    Watches the threads of process *pid* through *watch*, as its target number *place*.

    Without them only ``/proc`` tells, and *totals* is None.
    """

    def __init__(self, watch: ThreadWatch | None, pid: int, place: int | None) -> None:
        self._watch, self._pid, self._place = watch, pid, place or 0
        if place is None:
            self._watch = None
        self._tids: set[int] = set()
        self._ticks = 0
        self._faults = Faults()
        self.totals: NDArray[np.void] | None = None
        self.books = ThreadBooks((), (), ())
        self._look()
        self._read()

    def tick(self) -> None:
        """Read the totals; now and then look for threads that came or went."""
        self._ticks += 1
        if self._ticks % _LOOK == 0:
            self._look()
        self._read()

    def spent(self) -> float:
        """
        Seconds of CPU that the tracepoints took of the target.

        Each time a thread is given a CPU it was woken or had left one before, so
        that is two runs.
        """
        if self._watch is None or self.totals is None:
            return 0.0
        runs, seconds = map(sum, zip(*self._watch.stats().values(), strict=True))
        return 2 * float(self.totals["switches"].sum()) * seconds / runs if runs else 0.0

    def close(self) -> None:
        """Watch them no longer."""
        if self._watch:
            self._watch.unwatch(self._tids)
            self._watch.remove(self._place)

    def _read(self) -> None:
        if self._watch:
            self.totals = self._watch.totals(self._place)

    def _look(self) -> None:
        seen = faults(self._pid)
        self.books = self._faults.add(seen)
        found = {one.tid: ROLES.index(one.role) for one in seen if one.role}
        if self._watch:
            self._watch.unwatch(self._tids - found.keys())
            self._watch.watch(
                self._place, {tid: role for tid, role in found.items() if tid not in self._tids}
            )
        self._tids = set(found)


class Faults:
    """Page faults by type of thread, which grow also when threads end."""

    def __init__(self) -> None:
        self._last: dict[int, TaskFaults] = {}
        self._minor: Counter[str] = Counter()
        self._major: Counter[str] = Counter()

    def add(self, seen: list[TaskFaults]) -> ThreadBooks:
        """Take in a reading of all threads; the whole process is its last."""
        threads = {one.tid: one for one in seen if one.role}
        for tid, one in threads.items():
            before = self._last.get(tid, TaskFaults(tid, one.role, 0, 0))
            self._minor[one.role or ""] += max(0, one.minor - before.minor)
            self._major[one.role or ""] += max(0, one.major - before.major)
        self._last = threads
        if seen and not seen[-1].tid:
            for books, total in ((self._minor, seen[-1].minor), (self._major, seen[-1].major)):
                known = sum(books[role] for role in ROLES)
                books["other"] = max(books["other"], total - known)
        counts = Counter(one.role for one in threads.values())
        order = (*ROLES, "other")
        return ThreadBooks(
            tuple(counts[role] for role in ROLES),
            tuple(self._minor[role] for role in order),
            tuple(self._major[role] for role in order),
        )
