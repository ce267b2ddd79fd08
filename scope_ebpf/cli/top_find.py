# SPDX-License-Identifier: Apache-2.0
"""Which processes have a text in their name: found within a budget of CPU time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.cli.top_cells import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.view import Viewer

#: Processes whose names are read at once.
_BLOCK = 2048
#: What is known of a process.
_UNKNOWN, _OTHER, _MATCH = 0, 1, 2
_KNOWN = np.dtype([("slot", np.uint32), ("id", np.uint64), ("verdict", np.uint8)])


class Finder:
    """
    The processes of one VM whose pid or name contains *wanted*, whatever its case.

    Names are read in turn, as many as fit the budget, and again when all were: a process may be
    registered later.
    """

    def __init__(
        self, viewer: Viewer, wanted: str, clock: Callable[[], float] = time.process_time
    ) -> None:
        self.wanted = wanted
        self._needle = wanted.removeprefix("#PID").casefold()
        self._viewer = viewer
        self._clock = clock
        #: In the order of slots; and where each of them was given to :meth:`search`.
        self._known = np.empty(0, _KNOWN)
        self._order = np.empty(0, np.int64)
        self._next = 0

    def search(self, slots: NDArray[np.uint32], ids: NDArray[np.uint64], budget: float) -> None:
        """
        Read names of the processes with these *ids* in these *slots*.

        Takes *budget* seconds of CPU, or little more; the names of one block are read in any case.
        """
        self._order = np.argsort(slots)
        self._align(slots[self._order], ids[self._order])
        began, left = self._clock(), len(slots)
        while left > 0:
            part = np.arange(self._next, self._next + min(left, _BLOCK)) % len(slots)
            self._judge(part)
            self._next = int(part[-1] + 1) % len(slots)
            left -= len(part)
            if self._clock() - began >= budget:
                return

    def matches(self) -> NDArray[np.bool_]:
        """Which of the processes that :meth:`search` was given last match, shape ``(n,)``."""
        found = np.empty(len(self._known), np.bool_)
        found[self._order] = self._known["verdict"] == _MATCH
        return found

    @property
    def unknown(self) -> int:
        """Processes whose names were not read yet."""
        return int((self._known["verdict"] == _UNKNOWN).sum())

    def _align(self, slots: NDArray[np.uint32], ids: NDArray[np.uint64]) -> None:
        """Take over what is known of the processes that are still there."""
        old, new = self._known, np.zeros(len(slots), _KNOWN)
        new["slot"], new["id"] = slots, ids
        if len(old) and len(new):
            index = np.searchsorted(old["slot"], slots).clip(max=len(old) - 1)
            same = old["id"][index] == ids
            new["verdict"][same] = old["verdict"][index][same]
        self._known = new
        self._next = self._next % len(new) if len(new) else 0

    def _judge(self, part: NDArray[np.int64]) -> None:
        viewer = self._viewer
        rows = viewer.table.at(self._known["slot"][part].astype(np.int64)).rows
        names, labels = viewer.names.registered(rows), viewer.labels(rows)
        pids, identities = viewer.pids.texts(rows["id"]), viewer.names.identities(rows)
        where = dict(zip(self._known["id"][part].tolist(), part.tolist(), strict=True))
        for term, pid, name, label, who in zip(
            rows["id"].tolist(), pids, names, labels, identities, strict=True
        ):
            call = str(who.initial_call) if who.initial_call else None
            text = name_of(name, label, who.module if who.behaviour else None, call)
            found = self._needle in text.casefold() or self._needle in (pid or "")
            if term in where:
                self._known["verdict"][where[term]] = _MATCH if found else _OTHER
