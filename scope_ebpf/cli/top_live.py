# SPDX-License-Identifier: Apache-2.0
"""``top`` in a terminal: a table that moves, and keys."""

from __future__ import annotations

import textwrap
import time
from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.detail import FIELDS, detail
from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.cli import top_watch
from scope_ebpf.cli.process_text import lines as lines_of
from scope_ebpf.cli.top_cells import LONG_MAILBOX, MAIL, SORTED
from scope_ebpf.cli.top_check import Checks
from scope_ebpf.cli.top_keys import HELP, Screen
from scope_ebpf.cli.top_watch import Watch
from scope_ebpf.errors import NoSuchProcessError, ScopeError
from scope_ebpf.screen import layout
from scope_ebpf.screen.cells import padded, width
from scope_ebpf.screen.layout import Line, Span
from scope_ebpf.screen.terminal import EndedError, Terminal
from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.cli.top_table import Row
    from scope_ebpf.cli.top_watch import View

#: Seconds after which the second turn follows the first: rates take two.
_SOON = 0.3
#: Cells before a line that goes on.
_INDENT = 6
#: The part of a screen that the heading may take.
_HEADING = 0.5
_KEYS = (
    "q quit",
    "? help",
    "/ filter",
    "Enter details",
    "c check",
    "1-5 <> sort",
    "r reverse",
    "Space pause",
)


def live(target: Target, sort: str, interval: float, limit: int | None) -> int:
    """Show the table until the user ends it; the exit code. Raises ScopeError."""
    with Terminal() as terminal:
        try:
            return _Live(target, terminal, Screen(sort=sort), interval, limit).run()
        except EndedError as ended:
            return ended.code


def _spaced(spans: Iterable[Span]) -> Iterator[Span]:
    """*spans* with a space between any two, in the style of the heading where they are one."""
    for number, span in enumerate(spans):
        if number:
            yield Span(" ", "heading" if span.style in ("heading", "sorted") else "")
        yield span


def _wrapped(text: str, cells: int) -> list[str]:
    """*text* in lines of *cells*; those after the first are indented."""
    if width(text) <= cells:
        return [text]
    indent = " " * min(_INDENT, cells // 3)
    return textwrap.wrap(text, max(cells, 2), subsequent_indent=indent, drop_whitespace=False)


class _Live:
    """The loop: a turn once an interval, keys at once."""

    def __init__(
        self,
        target: Target,
        terminal: Terminal,
        screen: Screen,
        interval: float,
        limit: int | None,
    ) -> None:
        self._target, self._terminal, self._screen = target, terminal, screen
        self._limit = limit
        self._checks = Checks(target)
        self._watch = Watch(target, interval, pause=self._pause, checks=self._checks)
        self._viewer: Viewer | None = None
        self._view: View | None = None
        self._rows: list[Row] = []
        #: What was sorted, and read of it, for the screen: once more when that changes.
        self._ordered: object = None
        self._read: object = None
        self._turns = 0
        #: The process in ``_detail``, as a term.
        self._described: int | None = None
        self._detail: list[str] = []
        self._taken = ""
        terminal.watch([target.identity.pidfd])

    def run(self) -> int:
        """Until a key, a signal or the VM ends it."""
        due = time.monotonic() + min(_SOON, self._watch.interval)
        self._turn()
        while True:
            self._draw()
            self._watch.wait(due)
            if not self._screen.paused:
                self._turn()
            due = max(due + self._watch.interval, time.monotonic())

    def _pause(self, seconds: float) -> None:
        """Wait for *seconds* at most, and do what keys ask for."""
        until = time.monotonic() + seconds
        while True:
            keys = self._terminal.keys(until - time.monotonic())
            self._target.identity.wait(0)
            for key in keys:
                self._screen.press(key, [row.term for row in self._rows])
                if self._screen.quit:
                    raise EndedError(0)
                self._follow()
            if keys:
                self._draw()
            if time.monotonic() >= until:
                return

    def _turn(self) -> None:
        state = self._watch.turn(self._screen.sort)
        self._view = self._watch.view(state, at_once=True)
        self._taken = time.strftime("%H:%M:%S")
        self._turns += 1
        if self._screen.page == "process":
            self._describe()

    def _follow(self) -> None:
        """Read what a key has asked for."""
        screen = self._screen
        self._watch.processes.find(screen.wanted)
        if screen.page == "process" and self._described != screen.process:
            self._describe()

    def _describe(self) -> None:
        """Read the details of the process that is shown; the last ones stay once it has ended."""
        term = self._screen.process
        if self._viewer is None:
            self._viewer = Viewer(self._target, FIELDS)
        if term is None:
            return
        if self._described != term:
            self._detail = []
        self._described = term
        try:
            self._viewer.refresh()
            rows = self._viewer.table.one(term)
            if len(rows):
                self._detail = lines_of(detail(self._viewer, rows))
                return
            note = "this process has ended"
        except NoSuchProcessError:
            raise
        except ScopeError as error:
            note = str(error)
        text = self._viewer.pids.text(term)
        self._detail = [f"{text}: {note}", *(one for one in self._detail if note not in one)]

    def _draw(self) -> None:
        if self._view is None:
            return
        cells, rows = self._terminal.size
        if self._screen.page == "table":
            lines = self._table(self._view, cells, rows - 1)
        elif self._screen.page == "process":
            lines = self._texts(self._detail, cells, rows - 1)
        elif self._screen.page == "check":
            lines = self._texts(self._checks.lines(), cells, rows - 1)
        else:
            lines = self._help(rows - 1)
        del lines[rows - 1 :]
        lines += [[] for _ in range(rows - 1 - len(lines))]
        self._terminal.draw([*lines, self._last_line(cells)])

    def _table(self, view: View, cells: int, rows: int) -> list[Line]:
        screen = self._screen
        first, *more = top_watch.heading(self._target, view, self._order(), cells)
        notes = [part for note in view.notes for part in _wrapped(plain(note), cells)]
        verdict = self._checks.span()
        said = [[Span(part, verdict.style)] for part in _wrapped(plain(verdict.text), cells)[:2]]
        head = [first, *said, *([Span(note, "alarm")] for note in notes), *more]
        del head[max(1, int(rows * _HEADING)) :]
        screen.rows = max(1, rows - len(head) - 1)
        self._read_rows()
        headings, texts = top_watch.table(self._rows, screen.sort, cells)
        return [*head, self._headings(headings, cells), *self._lines(texts, cells)]

    def _order(self) -> str:
        screen = self._screen
        order = f"by {screen.sort}, {'least' if screen.least else 'most'} first"
        if screen.sort == "pid":
            order = f"by pid, {'last' if screen.least else 'first'} first"
        return order

    def _read_rows(self) -> None:
        """Sort, and read the rows that are shown, if they are others than before."""
        screen, processes = self._screen, self._watch.processes
        order = (self._turns, screen.sort, screen.least, screen.wanted)
        if self._ordered != order:
            total = processes.order(screen.sort, least=screen.least)
            screen.total = min(total, self._limit or total)
            self._ordered, self._read = order, None
        screen.bound()
        part = screen.first, min(screen.rows, screen.total - screen.first)
        if self._read != part:
            self._rows = processes.page(*part, screen.sort, least=screen.least)
            self._read = part
        # Those that have ended since they were sorted have no row.
        screen.selected = min(screen.selected, screen.first + max(0, len(self._rows) - 1))

    def _headings(self, headings: dict[int, str], cells: int) -> Line:
        by = SORTED[self._screen.sort]
        spans = [
            *_spaced(
                Span(text, "sorted" if index == by else "heading")
                for index, text in headings.items()
            )
        ]
        left = cells - width("".join(span.text for span in spans))
        return [*spans, Span(" " * left, "heading")]

    def _lines(self, texts: list[dict[int, str]], cells: int) -> list[Line]:
        lines = []
        for place, (row, words) in enumerate(zip(self._rows, texts, strict=True)):
            if place == self._screen.selected - self._screen.first:
                lines.append([Span(padded(" ".join(words.values()), cells), "selected")])
                continue
            long = row.process["message_queue_len"] >= LONG_MAILBOX
            red = MAIL if long else None
            lines.append(
                [*_spaced(Span(text, "alarm" if at == red else "") for at, text in words.items())]
            )
        return lines

    def _texts(self, texts: list[str], cells: int, rows: int) -> list[Line]:
        lines = [part for text in texts for part in _wrapped(plain(text), cells)]
        return self._page([[Span(text)] for text in lines], rows)

    def _help(self, rows: int) -> list[Line]:
        keys = [[Span(f"{keys:<10}", "bold"), Span(f" {text}")] for keys, text in HELP]
        return self._page(keys, rows)

    def _page(self, lines: list[Line], rows: int) -> list[Line]:
        screen = self._screen
        screen.rows, screen.lines = rows, len(lines)
        screen.line = max(0, min(screen.line, len(lines) - rows))
        return lines[screen.line : screen.line + rows]

    def _last_line(self, cells: int) -> Line:
        screen = self._screen
        if screen.typing:
            return [Span("filter: ", "bold"), Span(escaped(screen.wanted)), Span(" ", "heading")]
        if screen.note:
            return [Span(screen.note, "bold")]
        if screen.page != "table":
            return [Span("Esc back  Up Down PgUp PgDn Home End scroll  q quit", "dim")]
        return self._status(cells)

    def _status(self, cells: int) -> Line:
        screen = self._screen
        said = []
        if screen.paused:
            said.append(Span(f"paused at {self._taken}", "alarm"))
        if screen.wanted:
            left = self._watch.processes.unsearched
            part = f", {left:,} not searched yet" if left else ""
            said.append(Span(f"filter {escaped(screen.wanted)}: {screen.total:,}{part}", "bold"))
        return layout.flow([*said, *(Span(key, "dim") for key in _KEYS)], cells)[0]
