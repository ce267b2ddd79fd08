# SPDX-License-Identifier: Apache-2.0
"""
Looks at the servers of VMs of any size.

Of a small process table each look reads all. A large one is read once, part by part; from then on
a look reads the processes that matter: all servers and callers that had anything to do, and of the
other servers some that are drawn at random. Besides, each look reads a part of the whole table that
is drawn at random: a search for servers and callers that are new.
"""

from __future__ import annotations

import random
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.arrays import within
from scope_ebpf.beam.processes.table import CHUNK
from scope_ebpf.beam.servers.looks import Servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.beam.servers.looks import Look

#: Processes that one look is meant to read: a table with more is read in parts.
MOST_READ = 1 << 13
#: Processes that had anything to do, and other servers: those that are remembered.
_MOST_ACTIVE, _MOST_IDLE = 1 << 17, 1 << 20
#: One of so many idle servers is read by each look, and so many of them at most or at least.
_ONE_OF, _MOST_DRAWN, _FEWEST_DRAWN = 32, 1 << 13, 1 << 11
#: Processes that each look is meant to search, and slots of the table at most.
_SEARCHED, _MOST_SLOTS = 1 << 11, 1 << 16
#: Slots that are searched together: further ones in the same 512 bytes cost nothing.
_LINE = 64


class Survey:
    """
    Looks again and again at the servers of the VM of *viewer*.

    One look takes several steps where the table is read for the first time, part by part. *parts*
    is in how many; None for as many as the table needs.
    """

    def __init__(
        self, viewer: Viewer, draw: random.Random | None = None, parts: int | None = None
    ) -> None:
        self._viewer, self._pids = viewer, viewer.pids
        self._random = draw or random.Random()  # noqa: S311 - what is read is no secret
        self.servers = Servers(viewer, self._random)
        table = viewer.table
        blocks = -(-table.slots // CHUNK)
        self.parts = parts or max(1, min(blocks, -(-table.count() // MOST_READ)))
        #: Parts of the table that were not read yet.
        self._left = list(range(self.parts))
        self._random.shuffle(self._left)
        #: Processes that had anything to do, and servers that had not.
        self._active: dict[int, None] = {}
        self._idle: dict[int, None] = {}
        #: The part of the table that one look searches, and how many lines of slots that is.
        self.part, self.drawn = 1.0, 1
        #: Whether some processes that had anything to do are left out of later looks.
        self.misses = False

    @property
    def read(self) -> int:
        """How many parts of the table have been read."""
        return self.parts - len(self._left)

    @property
    def begins(self) -> bool:
        """Whether the first look goes on: what steps return belongs to one look."""
        return bool(self._left)

    def line_of(self, pid: int) -> int:
        """The line of slots in which that of a process is."""
        return int(self._pids.slot(np.array([pid], np.uint64))[0]) // _LINE

    def step(self) -> list[Look]:
        """Look, or go on with the first look; what was read of several groups of processes."""
        if self.parts == 1:
            self._left.clear()
            return [self.servers.look()]
        if self._left:
            looks = [self.servers.look(self._left[-1], self.parts)]
            self._left.pop()
        else:
            looks = [*self._known_ones(), self._search()]
        for look in looks:
            self._sort(look)
        return looks

    def _known_ones(self) -> Iterator[Look]:
        """Look at processes that had anything to do, and at some of the other servers."""
        drawn = max(_FEWEST_DRAWN, min(_MOST_DRAWN, len(self._idle) // _ONE_OF))
        for pids, most in ((self._active, _MOST_DRAWN), (self._idle, drawn)):
            if pids:
                yield self._at(pids, most)

    def _at(self, pids: dict[int, None], most: int) -> Look:
        """Look at *most* of *pids*, each of which stands for some; forget those that have ended."""
        total, chosen = len(pids), list(pids)
        if total > most:
            chosen = self._random.sample(chosen, most)
        terms = np.array(chosen, np.uint64)
        look = self.servers.look_at(self._viewer.table.slots_of(terms), terms)
        look.weight = total / len(chosen)
        look.caller_weight *= look.weight
        gone = terms[~within(terms, look.read)]
        gone = gone[~within(self._pids.slot(gone).astype(np.int64), look.missed)]
        look.gone = gone.tolist()
        for pid in look.gone:
            del pids[pid]
        return look

    def _search(self) -> Look:
        """
        Search a part of the table for processes that are not known.

        What is found stands for what is not known in the rest as well. So each look draws anew: in
        turn, the parts that come last would have more of what is not known than the others.
        """
        table = self._viewer.table
        lines = -(-table.slots // _LINE)
        parts = max(1, -(-table.count() // _SEARCHED), -(-table.slots // _MOST_SLOTS))
        drawn = self._random.sample(range(lines), -(-lines // parts))
        slots = np.array(sorted(drawn), np.int64)[:, np.newaxis] * _LINE + np.arange(_LINE)
        look = self.servers.look_at(slots[slots < table.slots], but=(self._active, self._idle))
        look.searched = True
        self.part, self.drawn = len(drawn) / lines, len(drawn)
        look.weight = 1 / self.part
        look.caller_weight *= look.weight
        look.torn = 0
        return look

    def _sort(self, look: Look) -> None:
        """Note which of the processes of *look* have anything to do, and which servers have not."""
        worked = {one.pid for one in look.busy}
        worked.update(look.servers[look.mailboxes > 0].tolist())
        worked.update(one.caller for one in look.waiting)
        worked.update(one.server for one in look.waiting if one.server is not None)
        self._active.update(dict.fromkeys(worked))
        for pid in worked:
            self._idle.pop(pid, None)
        for pid in look.servers.tolist():
            if pid not in self._active:
                self._idle[pid] = None
        look.forgotten = [
            *self._forget(self._active, _MOST_ACTIVE),
            *self._forget(self._idle, _MOST_IDLE),
        ]

    def _forget(self, pids: dict[int, None], most: int) -> list[int]:
        found = list(islice(pids, max(0, len(pids) - most)))
        for pid in found:
            del pids[pid]
            self.misses = True
        return found
