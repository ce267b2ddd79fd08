# SPDX-License-Identifier: Apache-2.0
"""``genservers`` in a terminal: a table that moves, and keys."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.detail import FIELDS, detail
from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.cli.process_text import lines as lines_of
from scope_ebpf.cli.top_keys import Screen
from scope_ebpf.cli.top_live import spaced, wrapped
from scope_ebpf.errors import NoSuchProcessError, ScopeError
from scope_ebpf.runs.genservers import Looking, Pace, counting
from scope_ebpf.runs.loop import Stop, require_target, target_ended
from scope_ebpf.screen import layout
from scope_ebpf.screen.cells import padded, width
from scope_ebpf.screen.layout import Column, Line, Span
from scope_ebpf.screen.terminal import EndedError, Terminal
from scope_ebpf.sinks.plain import plain, spelled
from scope_ebpf.sinks.servers import NARROW, SORTS, answer, cells_of, edge_text, head, ordered
from scope_ebpf.sinks.servers import WIDE_HEADINGS as HEADINGS

if TYPE_CHECKING:
    from scope_ebpf.results.genservers import GenServers, Module
    from scope_ebpf.results.server_events import ServerEvents
    from scope_ebpf.runs.genservers import ServerOptions
    from scope_ebpf.runs.server_events import Counting

#: What each column is worth where there is little room, in the order of HEADINGS.
_RANKS = (99, 5, 17, 10, 8, 16, 12, 15, 11, 18, 9, 14, 13, 19, 2, 1, 7)
#: Those that are cut, and the cells that they keep.
_CUT = {0: 12, 16: 8}
#: The column by which rows are sorted.
_SORTED = dict(zip(SORTS, (13, 9, 2, 12), strict=True))
#: Seconds between two drawings; edges below the table.
_REFRESH, _EDGES = 1.0, 5
#: Seconds of a period where the table moves without an end.
_PERIOD = 10.0
HELP = (
    ("q", "quit"),
    ("?", "help"),
    ("/", "filter by module; Enter keeps it, Esc shows all again"),
    ("Enter", "the server of the selected module that most wait for: stack, mailbox, links"),
    ("Esc", "back; also Backspace"),
    ("Space", "pause, and go on"),
    ("1-4", f"sort by {', '.join(SORTS)}"),
    ("< >", "sort by the one before or after it"),
    ("r", "reverse the order"),
    ("Up Down", "select a module; also k and j"),
    ("PgUp PgDn", "a page up or down"),
    ("Home End", "the first or the last module"),
)
_KEYS = ("q quit", "? help", "/ filter", "Enter details", "1-4 <> sort", "r reverse", "Space pause")
_BACK = "Esc back  Up Down PgUp PgDn Home End scroll  q quit"


def live(viewer: Viewer, options: ServerOptions, sort: str, limit: int | None) -> int:
    """Show the table until the user ends it; the exit code. Raises ScopeError."""
    require_target(viewer.target.identity, "watched")
    with Terminal() as terminal:
        try:
            screen = Screen(sort=sort, sorts=SORTS, checks=False)
            _Live(viewer, options, terminal, screen, limit).run()
        except EndedError as ended:
            return ended.code
        except NoSuchProcessError as gone:
            raise target_ended(viewer.target.pid, gone, "watched") from gone
    return 0


class _Messages:
    """What hooks see, period after period of *seconds*."""

    def __init__(self, viewer: Viewer, options: ServerOptions, seconds: float) -> None:
        self._viewer, self._seconds = viewer, seconds
        self._options = replace(options, duration=seconds)
        self._resources = ExitStack()
        self._counting: Counting | None = None
        self._began = self._until = 0.0
        #: What the last whole period saw, its seconds, and why there are no hooks.
        self.seen: ServerEvents | None = None
        self.seconds = 0.0
        self.why = ""

    def look(self, now: float, became: dict[str, str]) -> None:
        """Observe a window if one is due, and begin a new period at the end of the last one."""
        if self._counting and now >= self._until:
            self._counting.end()
            self.seen = self._counting.result().renamed(became)
            self.seconds = now - self._began
            self.close()
        if self._counting is None and not self.why and self._options.budget is not None:
            self._begin(now)
        if self._counting:
            self._counting.look(now)

    def _begin(self, now: float) -> None:
        found, self.why = counting(self._viewer, self._options, Stop())
        if found:
            self._counting = self._resources.enter_context(found)
            found.begin()
            self._began, self._until = now, now + self._seconds

    def close(self) -> None:
        """Take the hooks out."""
        self._counting = None
        self._resources.close()


class _Live:
    """The loop: looks at random times, a drawing once a second, keys at once."""

    def __init__(
        self,
        viewer: Viewer,
        options: ServerOptions,
        terminal: Terminal,
        screen: Screen,
        limit: int | None,
    ) -> None:
        self._viewer = viewer
        self._terminal, self._screen, self._limit = terminal, screen, limit
        self._looking, self._pace = Looking(viewer, options.by), Pace()
        #: Seconds: figures of looks are of one at most, those of hooks of the last whole one.
        self._period = options.duration or _PERIOD
        self._messages = _Messages(viewer, options, self._period)
        self._detailed: Viewer | None = None
        self._found: GenServers | None = None
        self._rows: list[Module] = []
        self._detail: list[str] = []
        self._began = self._turned = time.monotonic()
        self._before = 0.0
        self._taken = ""
        terminal.watch([viewer.target.identity.pidfd])

    def run(self) -> None:
        """Until a key, a signal or the VM ends it, which are exceptions."""
        due = 0.0
        try:
            while True:
                now = time.monotonic()
                if not self._screen.paused:
                    self._turn(now)
                    if now >= due:
                        self._take(now)
                        due = now + _REFRESH
                self._draw()
                while not self._wait(self._left(due)) and self._screen.paused:
                    pass
        finally:
            self._messages.close()

    def _left(self, due: float) -> float:
        """Seconds to wait for a key, where the next figures are *due*."""
        if self._screen.paused:
            return _REFRESH
        return min(self._pace.due, due) - time.monotonic()

    def _turn(self, now: float) -> None:
        if self._looking.reads_first or now >= self._pace.due:
            self._pace.look(self._looking)
        if not self._looking.reads_first:
            self._messages.look(now, self._looking.became())
        if now - self._turned >= self._period / 2:
            self._looking.turn_over()
            self._before, self._turned = now - self._turned, now

    def _take(self, now: float) -> None:
        """Read what is shown until the next drawing."""
        seconds = now - self._turned + self._before
        found = self._looking.result(self._viewer.target.as_json(), seconds)
        if self._messages.seen:
            found.add_events(self._messages.seen, self._messages.seconds)
        if self._messages.why:
            found.notes.append(f"no hooks: {self._messages.why}")
        self._found, self._taken = found, time.strftime("%H:%M:%S")
        if self._screen.page == "process":
            self._describe()

    def _wait(self, seconds: float) -> bool:
        """Wait for a key or for so long, and do what keys ask for; whether there were any."""
        keys = self._terminal.keys(max(0.0, seconds))
        self._viewer.target.identity.wait(0)
        for key in keys:
            before = self._screen.page
            self._screen.press(key, range(self._screen.first, self._screen.first + len(self._rows)))
            if self._screen.quit:
                raise EndedError(0)
            if self._screen.page == "process" != before:
                self._describe()
        return bool(keys)

    def _describe(self) -> None:
        """Read the details of the server of the selected module that most wait for."""
        place = self._screen.selected - self._screen.first
        if not 0 <= place < len(self._rows):
            return
        name = self._rows[place].module
        pid = self._looking.busiest(name)
        self._detail = [f"no server of {spelled(name)} was seen"]
        if pid is None:
            return
        try:
            self._detailed = self._detailed or Viewer(self._viewer.target, FIELDS)
            self._detailed.refresh()
            rows = self._detailed.table.one(pid)
            found = lines_of(detail(self._detailed, rows)) if len(rows) else ["it has ended"]
        except NoSuchProcessError:
            raise
        except ScopeError as error:
            found = [str(error)]
        self._detail = found

    def _draw(self) -> None:
        cells, rows = self._terminal.size
        if self._screen.page == "table":
            lines = self._table(cells, rows - 1)
        else:
            lines = self._page(self._texts(cells), rows - 1)
        del lines[rows - 1 :]
        lines += [[] for _ in range(rows - 1 - len(lines))]
        self._terminal.draw([*lines, self._last_line(cells)])

    def _texts(self, cells: int) -> list[Line]:
        if self._screen.page == "help":
            return [[Span(f"{keys:<10}", "bold"), Span(f" {text}")] for keys, text in HELP]
        return [[Span(part)] for text in self._detail for part in wrapped(plain(text), cells)]

    def _page(self, lines: list[Line], rows: int) -> list[Line]:
        screen = self._screen
        screen.rows, screen.lines = rows, len(lines)
        screen.line = max(0, min(screen.line, len(lines) - rows))
        return lines[screen.line : screen.line + rows]

    def _table(self, cells: int, rows: int) -> list[Line]:
        found, screen = self._found, self._screen
        if found is None or self._looking.reads_first:
            part = f"{self._looking.read} of {self._looking.parts} parts"
            return [[Span(f"reading the whole process table: {part}")]]
        above: list[Line] = [[Span(head(found))]]
        above += [[Span(text, "bold")] for text in wrapped(plain(answer(found)), cells)]
        above += [[Span(text)] for note in found.notes for text in wrapped(plain(note), cells)]
        below = [[Span(plain(edge_text(edge, found.seconds)))] for edge in found.edges[:_EDGES]]
        if found.unresolved >= 0.05:
            below.append([Span(f"  {found.unresolved:.1f} for a server that was not identified")])
        del above[max(2, rows // 2) :]
        del below[max(0, (rows - len(above)) // 2 - 2) :]
        screen.rows = max(1, rows - len(above) - 1 - (len(below) + 1 if below else 0))
        table = self._module_lines(found, cells)
        if below:
            table += [[Span("who waits for whom, callers that wait at any time", "dim")], *below]
        return [*above, *table]

    def _module_lines(self, found: GenServers, cells: int) -> list[Line]:
        screen = self._screen
        wanted = screen.wanted.lower()
        modules = [one for one in ordered(found, screen.sort) if wanted in one.module.lower()]
        if screen.least:
            modules.reverse()
        modules = modules[: self._limit]
        screen.total = len(modules)
        screen.bound()
        self._rows = modules[screen.first : screen.first + screen.rows]
        shown = tuple(range(len(HEADINGS))) if found.cost else NARROW
        columns = [_column(index) for index in shown]
        texts = [[plain(text) for text in cells_of(one, shown)] for one in self._rows]
        by = _SORTED[screen.sort]
        keep = {0} | ({shown.index(by)} if by in shown else set())
        sizes = layout.fit(columns, texts, cells, keep)
        headings = layout.texts(columns, [column.heading for column in columns], sizes)
        lines = [self._headings({shown[at]: text for at, text in headings.items()}, cells)]
        for place, row in enumerate(texts):
            words = layout.texts(columns, row, sizes)
            if place == screen.selected - screen.first:
                lines.append([Span(padded(" ".join(words.values()), cells), "selected")])
            else:
                lines.append([*spaced(Span(text) for text in words.values())])
        return lines

    def _headings(self, headings: dict[int, str], cells: int) -> Line:
        by = _SORTED[self._screen.sort]
        spans = [
            *spaced(
                Span(text, "sorted" if index == by else "heading")
                for index, text in headings.items()
            )
        ]
        left = cells - width("".join(span.text for span in spans))
        return [*spans, Span(" " * left, "heading")]

    def _last_line(self, cells: int) -> Line:
        screen = self._screen
        if screen.typing:
            return [Span("filter: ", "bold"), Span(escaped(screen.wanted)), Span(" ", "heading")]
        if screen.note:
            return [Span(screen.note, "bold")]
        if screen.page != "table":
            return [Span(_BACK, "dim")]
        said = [Span(f"paused at {self._taken}", "alarm")] if screen.paused else []
        if screen.wanted:
            said.append(Span(f"filter {escaped(screen.wanted)}: {screen.total}", "bold"))
        return layout.flow([*said, *(Span(key, "dim") for key in _KEYS)], cells)[0]


def _column(index: int) -> Column:
    """One column of the table, by its index in HEADINGS."""
    cut = _CUT.get(index)
    return Column(
        HEADINGS[index], _RANKS[index], right=cut is None, least=cut or 0, cut=cut is not None
    )
