# SPDX-License-Identifier: Apache-2.0
"""
What all parts of a check share: the processes of a VM at two times, and their names.

A part looks at one side of the VM. It may look once at the beginning, several times between, and
makes its findings at the end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import numpy as np

from scope_ebpf.arrays import as_bytes, distinct, taken, within
from scope_ebpf.beam.processes.detail import FIELDS
from scope_ebpf.beam.processes.table import IDENTITY, LOAD, ProcessTable, statuses
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.results.check import Name

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.table import Snapshot
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.check import Finding
    from scope_ebpf.results.documents.checks import Involved, Subject
    from scope_ebpf.results.kinds import Kind

_MORE = ("off_heap_words", "old_binaries", "first_message")
#: Columns of all processes; those that are looked at more closely are read with all FIELDS.
_COLUMNS = tuple(one for one in FIELDS if one in (*LOAD, *IDENTITY) or one.name in _MORE)
#: Processes that are read a second time; a smaller table is read as a whole.
_AGAIN = 20_000
#: Processes that are named in the evidence of one finding, and findings of one kind.
SHOWN = 10


class Part(Protocol):
    """One side of the VM. ReadRefusedError from any of its methods says why it is not checked."""

    def look(self) -> None:
        """Look once more; the first look is at the beginning, the last one at the end."""

    def findings(self) -> list[Finding]:
        """What is wrong, after the last look."""


class Scene:
    """
    The processes of *target*, *most* at most; *more* counts findings that are not made, by kind.

    Raises TooMuchError where there are more processes.
    """

    def __init__(self, target: Target, more: Counter[Kind], most: int | None = None) -> None:
        self.target = target
        self.viewer = Viewer(target, FIELDS)
        self.table = ProcessTable(target, _COLUMNS)
        self.more = more
        self.began = time.monotonic()
        self._most = most
        self.first = self.last = self.whole()
        # Whole rows are not sorted: that takes seconds where there are many.
        self._by_slot = np.argsort(self.first.rows["slot"], kind="stable")
        self._slots = self.first.rows["slot"][self._by_slot]
        self._first_at = self._last_at = time.monotonic()
        self.stopped = False

    def end(self) -> None:
        """Read the processes again: of a large table those that mattered at the beginning."""
        self.viewer.refresh()
        table, rows = self.table, self.first.rows
        if len(rows) <= _AGAIN:
            self.last = self.whole()
        else:
            order = np.argsort(-rows["mailbox"], kind="stable")
            some = (rows["mailbox"] > 0) | (np.array(rows["state"]) & np.uint32(1 << 16) != 0)
            slots = rows["slot"][order][some[order]][:_AGAIN].astype(np.int64)
            largest = np.argsort(-rows["heap_words"].astype(np.int64), kind="stable")[:_AGAIN]
            slots = distinct(np.concatenate([slots, rows["slot"][largest].astype(np.int64)]))
            self.last = table.at(slots)
        self._last_at = time.monotonic()

    def whole(self) -> Snapshot:
        """Read all processes, as they are now."""
        return self.table.snapshot(most=self._most)

    @property
    def seconds(self) -> float:
        """Seconds between the two readings of the processes."""
        return max(1e-3, self._last_at - self._first_at)

    def before(self, rows: NDArray[np.void]) -> NDArray[np.void]:
        """What *rows* were at the first reading, in their order; zeros for a new process."""
        first = self.first.rows
        found = np.zeros(len(rows), first.dtype)
        if not len(first):
            return found
        at = np.searchsorted(self._slots, rows["slot"])
        index = self._by_slot[np.minimum(at, len(first) - 1)]
        same = first["id"][index] == rows["id"]
        places = np.flatnonzero(same)
        as_bytes(found)[places] = as_bytes(taken(first, index[places]))
        return found

    def rows_of(self, pids: Sequence[int]) -> NDArray[np.void]:
        """The processes with these pid terms, as they are now."""
        wanted = np.array(sorted(set(pids)), np.uint64)
        rows = self.viewer.table.at(distinct(self.viewer.table.slots_of(wanted))).rows
        found: NDArray[np.void] = rows[within(rows["id"], wanted)]
        return found

    def involved(self, rows: NDArray[np.void]) -> list[Involved]:
        """Name the processes of *rows*, SHOWN at most."""
        rows = rows[:SHOWN]
        names = self.viewer.names
        return [
            {
                "process": pid,
                "name": name,
                "initial_call": str(call) if call else None,
                "function": str(function) if function else None,
            }
            for pid, name, call, function in zip(
                self.viewer.pids.texts(rows["id"]),
                names.registered(rows),
                names.initial_calls(rows),
                names.current_functions(rows),
                strict=True,
            )
        ]


def who(one: Involved) -> Name:
    """What a sentence calls a process: its registered name, or what it runs."""
    if one["name"] is not None:
        return Name("name", one["name"] or "''")
    return Name("initial_call", one["initial_call"] or one["process"])


def subject(one: Involved) -> Subject:
    """The subject of a finding about a process."""
    return {key: one[key] for key in ("process", "name", "initial_call")}  # type: ignore[return-value]


def where(one: Involved) -> tuple[str | Name, ...]:
    """The end of a sentence: the function that a process is in."""
    return (" in ", Name("function", one["function"])) if one["function"] else ()


def ps(one: Involved) -> str:
    """The command that shows a process; its pid needs no quotes."""
    return f"ps {{pid}} {one['process'].strip('<>')}"


def status_of(rows: NDArray[np.void], index: int) -> str:
    """The status of one of *rows*."""
    return statuses(rows["state"][index : index + 1])[0]
