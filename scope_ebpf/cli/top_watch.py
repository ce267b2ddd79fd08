# SPDX-License-Identifier: Apache-2.0
"""One VM watched by ``top``: a turn once an interval, and what is shown of it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple, cast

from scope_ebpf.beam.layouts.checks import KINDS
from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.cli import top_cells, top_head
from scope_ebpf.cli.top_head import Head
from scope_ebpf.cli.top_table import Processes
from scope_ebpf.cli.trouble import Troubles
from scope_ebpf.screen import layout
from scope_ebpf.screen.layout import Span
from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scope_ebpf.beam.processes.sweep import State
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.cli.top_check import Checks
    from scope_ebpf.cli.top_head import Reading
    from scope_ebpf.cli.top_table import Row, Sort
    from scope_ebpf.results.documents.processes import TopLine, TopLineRow
    from scope_ebpf.screen.layout import Line

#: CPU seconds per second that a moving table may take.
BUDGET = 0.1


class View(NamedTuple):
    """What one turn has found."""

    state: State
    reading: Reading
    longest: Row | None
    #: What keeps the VM from its work, and what could not be read.
    notes: tuple[str, ...]


class Watch:
    """
    The processes and the figures of one VM, read once every *interval* seconds.

    *once* is whether a single table is wanted, which may take a whole reading. *pause* waits for
    some seconds, and raises NoSuchProcessError if the VM ends; *checks* take their steps while
    it waits. Each method raises ScopeError.
    """

    def __init__(
        self,
        target: Target,
        interval: float,
        *,
        once: bool = False,
        pause: Callable[[float], None] | None = None,
        checks: Checks | None = None,
    ) -> None:
        self.target, self.interval = target, interval
        self.viewer = Viewer(target)
        self.processes = Processes(target, self.viewer, math.inf if once else BUDGET * interval)
        self._head = Head(target)
        self._troubles = Troubles(target, self.viewer)
        self._pause = pause or target.identity.wait
        self._checks = checks

    def turn(self, sort: str) -> State:
        """Read the next part of the table; by collections it takes half an interval."""
        state = self.processes.turn(sort)
        if sort == "gc":
            self.processes.look_closer(self.interval / 2, sleep=self._sleep)
        self._head.sample()
        return state

    def view(self, state: State, *, at_once: bool) -> View:
        """
        Read the figures of the whole VM; *at_once* does without a second look at its schedulers.
        """
        self.viewer.refresh()
        if at_once:
            trouble = self._troubles.describe(self._troubles.look(KINDS))
        else:
            trouble = self._troubles.now()
        reading = self._head.read()
        longest = self.processes.longest()
        parts = (
            ""
            if state.parts == 1
            else (f"Read in {state.parts} parts, one per turn: a row may be that many turns old.")
        )
        refused = self._head.refused and f"Schedulers cannot be read: {self._head.refused}"
        self.target.identity.check()
        return View(state, reading, longest, tuple(filter(None, (trouble, parts, refused))))

    def wait(self, until: float) -> None:
        """Wait *until* then, monotonic seconds, and sample the schedulers meanwhile."""
        while True:
            self.sample()
            due = min(until, self._head.due)
            if self._checks is not None:
                self._checks.step()
                due = min(due, self._checks.due)
            self._pause(max(0.0, due - time.monotonic()))
            if time.monotonic() >= until:
                return

    def _sleep(self, seconds: float) -> None:
        self.sample()
        self._pause(seconds)

    def sample(self) -> None:
        """Sample the schedulers if that is due."""
        if time.monotonic() >= self._head.due:
            self._head.sample()

    @property
    def due(self) -> float:
        """When the next sample is due, monotonic seconds."""
        return self._head.due


def heading(target: Target, view: View, order: str, cells: int) -> list[Line]:
    """The figures above the table, in lines of *cells*; *order* says what is shown."""
    state = view.state
    who = [
        Span(escaped(target.node or "?"), "bold"),
        Span(f"pid {target.pid}"),
        Span(f"OTP {target.otp_release} ({target.flavor})"),
    ]
    read = f"read {state.read:,} in {state.seconds:.2f} s of CPU, torn {state.torn}"
    figures = [*who, *top_head.spans(view.reading, view.longest), Span(order), Span(read)]
    return layout.flow([Span(plain(text), style) for text, style in figures], cells)


def table(
    rows: Sequence[Row], sort: str, cells: int
) -> tuple[dict[int, str], list[dict[int, str]]]:
    """Headings and rows: texts as wide as their columns, by column, of *cells* at most in all."""
    columns = top_cells.columns(sort)
    texts = [
        top_cells.cells(row.process, row.collected if sort == "gc" else row.rate, sort)
        for row in rows
    ]
    sizes = layout.fit(columns, texts, cells, {top_cells.PID, top_cells.SORTED[sort]})
    headings = layout.texts(columns, [column.heading for column in columns], sizes)
    return headings, [layout.texts(columns, row, sizes) for row in texts]


def document(target: Target, view: View, rows: Sequence[Row], sort: Sort) -> TopLine:
    """One line of ``top --format jsonl``."""
    state, longest = view.state, view.longest
    return {
        "schema": 1,
        "time": round(time.time(), 3),
        "target": target.as_json(),
        "vm": view.reading.as_json(longest.process["pid"] if longest else None),
        "notes": list(view.notes),
        "processes_total": state.total,
        "read": state.read,
        "torn": state.torn,
        "parts": state.parts,
        "seconds": round(state.seconds, 3),
        "sort": sort,
        "processes": [_process(row, sort) for row in rows],
    }


def _process(row: Row, sort: str) -> TopLineRow:
    rate = None if row.rate is None else round(row.rate)
    found = cast("TopLineRow", dict(row.process) | {"reductions_per_second": rate})
    if sort == "gc":
        speed = None if row.collected is None else round(row.collected)
        found["collected_bytes_per_second"] = speed
    return found
