# SPDX-License-Identifier: Apache-2.0
"""The moving table of ``top``: the load of every process, and the rows that are shown of it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from scope_ebpf.arrays import within
from scope_ebpf.beam.processes.sweep import SORTS, State, Sweep, collected
from scope_ebpf.beam.processes.table import BINARIES, LOAD, ProcessTable
from scope_ebpf.cli.top_find import Finder

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.processes import ProcessRow

#: What a table can be sorted by.
Sort = Literal["reductions", "memory", "mailbox", "gc", "pid", "binary"]
#: Messages of a mailbox that are read to compute the memory of a shown process.
WALK = 200
#: The part of the budget that a filter may take besides.
_SEARCHING = 0.25
#: Processes whose collections are counted more closely in a table sorted by collections.
_CLOSER = 128
#: The fields of a row by which rows are sorted once they are read in full.
_SHOWN: dict[str, Callable[[ProcessRow], int]] = {
    "mailbox": lambda process: process["message_queue_len"],
    "memory": lambda process: process["memory_bytes"],
    "binary": lambda process: process["binary_bytes"],
}


class Row(NamedTuple):
    """One process of the table."""

    #: Its pid as a term, which no other process of the VM has.
    term: int
    #: As ``Viewer.describe`` has it.
    process: ProcessRow
    #: Reductions per second; None before the process was read twice.
    rate: float | None
    #: Bytes per second that its collections went through, at least; None as *rate*.
    collected: float | None


class Processes:
    """
    The processes of one VM in an order; *budget* is seconds of CPU for one turn.

    Each method raises ScopeError.
    """

    def __init__(self, target: Target, viewer: Viewer, budget: float) -> None:
        self.viewer = viewer
        self._target, self._budget = target, budget
        self._load = ProcessTable(target, (*LOAD, *BINARIES))
        self._by_memory = False
        self._sweep = self._begin()
        self._finder: Finder | None = None
        #: Bytes per second of collections by slot, from a closer look.
        self._closer: tuple[NDArray[np.int64], NDArray[np.float64]] | None = None
        #: Columns of the sweep since the last turn.
        self._columns: dict[str, NDArray[Any]] = {}
        #: The values that the table is sorted by, least first, of the processes to show.
        self._values = np.empty(0)
        self._shown = np.empty(0, np.int64)
        #: The rows that were read last in this turn.
        self._page: list[Row] = []
        self._turns = 0

    def _begin(self) -> Sweep:
        self._turns = 0
        if self._by_memory:
            weigh: Callable[..., Any] = lambda rows: self.viewer.sizes(rows, WALK).bytes  # noqa: E731
            return Sweep(self.viewer.table, weigh, self._budget)
        return Sweep(self._load, self.viewer.heaps, self._budget)

    def turn(self, sort: str) -> State:
        """Read all processes, or the next part of them; those of *sort* need more for memory."""
        if (sort == "memory") != self._by_memory:
            self._by_memory = sort == "memory"
            self._sweep = self._begin()
        state = self._sweep.turn()
        self._turns += 1
        self._columns, self._closer, self._page = {}, None, []
        self._search()
        return state

    def _column(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            self._columns[name] = self._sweep.column(name)
        return self._columns[name]

    def _search(self) -> None:
        if self._finder:
            budget = self._budget * _SEARCHING
            self._finder.search(self._column("slot"), self._column("id"), budget)

    def look_closer(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Count collections for *seconds* in the processes that collect."""
        slots = self._sweep.collectors(_CLOSER)
        self._closer = slots, collected(self._sweep.table, slots, seconds, sleep=sleep)

    def find(self, wanted: str) -> None:
        """Show the processes whose name or pid contains *wanted* alone; "" for all."""
        if wanted != (self._finder.wanted if self._finder else ""):
            self._finder = Finder(self.viewer, wanted) if wanted else None
            self._search()

    @property
    def unsearched(self) -> int:
        """Processes of which is not known yet whether they have the name that is looked for."""
        return self._finder.unknown if self._finder else 0

    def order(self, sort: str, *, least: bool = False) -> int:
        """Sort by *sort*, most or *least* first; how many processes there are to show."""
        if sort == "pid":
            # Ranks: as terms they are too long for doubles.
            values = np.argsort(np.argsort(self._column("id"))).astype(np.float64)
            least = not least
        else:
            values = self._speeds() if sort == "gc" else self._column(SORTS[sort])
        self._shown = np.arange(len(values))
        if self._finder:
            self._shown = np.flatnonzero(self._finder.matches())
        values = values[self._shown].astype(np.float64)
        self._values = values if least else -values
        return len(values)

    def _first(self, count: int) -> NDArray[np.int64]:
        """
        The first *count* of the order; those of one value stay as they are in the table.

        Without sorting all of them, which takes longer than all the rest of a turn.
        """
        values = self._values
        found = np.arange(len(values))
        if count < len(values):
            limit = np.partition(values, count)[count]
            below, equal = np.flatnonzero(values < limit), np.flatnonzero(values == limit)
            found = np.sort(np.concatenate((below, equal[: count - len(below)])))
        return self._shown[found[np.argsort(values[found], kind="stable")]]

    def longest(self) -> Row | None:
        """The process with the longest mailbox; None where no message waits."""
        boxes = self._column("mailbox")
        if not len(boxes) or not boxes.max():
            return None
        index = boxes.argmax()
        term = int(self._column("id")[index])
        found = [row for row in self._page if row.term == term] or self._rows(np.array([index]))
        return found[0] if found and found[0].process["message_queue_len"] else None

    def page(self, first: int, count: int, sort: str, *, least: bool = False) -> list[Row]:
        """Read *count* processes of the order in full, from the one at *first* on."""
        found = self._rows(self._first(first + count)[first:])
        shown = _SHOWN.get(sort)
        if shown:  # by the value that is shown, which is that of now
            found.sort(key=lambda row: shown(row.process), reverse=not least)
        self._page = found
        return found

    def speeds(self) -> dict[int, float]:
        """Bytes per second that collections went through, by pid as a term."""
        return dict(zip(self._column("id").tolist(), self._speeds().tolist(), strict=True))

    def _speeds(self) -> NDArray[np.float64]:
        speeds: NDArray[np.float64] = self._column("collected").astype(np.float64)
        if self._closer:
            slots, closer = self._closer  # in the order of the slots
            index = np.flatnonzero(within(self._column("slot"), slots))
            speeds[index] = closer[np.searchsorted(slots, self._column("slot")[index])]
        return speeds

    def _rows(self, indexes: NDArray[np.int64]) -> list[Row]:
        slots, terms = (self._column(name)[indexes] for name in ("slot", "id"))
        rates = self._column("rate")[indexes].tolist()
        speeds = self._speeds()[indexes].tolist()
        rows = self.viewer.table.at(slots.astype(np.int64)).rows
        described = dict(zip(rows["id"].tolist(), self.viewer.describe(rows, WALK), strict=True))
        known = self._turns > 1
        return [
            Row(term, described[term], rate if known else None, speed if known else None)
            for term, rate, speed in zip(terms.tolist(), rates, speeds, strict=True)
            if term in described
        ]


def unbounded(target: Target, viewer: Viewer) -> Processes:
    """The processes for a single table, which may take a whole reading."""
    return Processes(target, viewer, math.inf)
