# SPDX-License-Identifier: Apache-2.0
"""The threads of one target, as the kernel schedules them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.threads import ROLES, threads

if TYPE_CHECKING:
    from scope_ebpf.kernel.tracepoints import ThreadWatch

#: Ticks between two looks at which threads there are: a VM starts nearly all of them at once.
_LOOK = 10


class WatchedThreads:
    """Watches the threads of process *pid* through *watch*, as its target number *place*."""

    def __init__(self, watch: ThreadWatch, pid: int, place: int) -> None:
        self._watch, self._pid, self._place = watch, pid, place
        self._tids: set[int] = set()
        self._ticks = 0
        self.totals = watch.totals(place)
        self._look()

    def tick(self) -> None:
        """Read the totals; now and then look for threads that came or went."""
        self._ticks += 1
        if self._ticks % _LOOK == 0:
            self._look()
        self.totals = self._watch.totals(self._place)

    def spent(self) -> float:
        """
        Seconds of CPU that the tracepoints took of the target.

        Each time a thread is given a CPU it was woken or had left one before, so
        that is two runs.
        """
        runs, seconds = map(sum, zip(*self._watch.stats().values(), strict=True))
        return 2 * float(self.totals["switches"].sum()) * seconds / runs if runs else 0.0

    def close(self) -> None:
        """Watch them no longer."""
        self._watch.unwatch(self._tids)
        self._watch.remove(self._place)

    def _look(self) -> None:
        found = {thread.tid: ROLES.index(thread.role) for thread in threads(self._pid)}
        self._watch.unwatch(self._tids - found.keys())
        self._watch.watch(
            self._place, {tid: role for tid, role in found.items() if tid not in self._tids}
        )
        self._tids = set(found)
