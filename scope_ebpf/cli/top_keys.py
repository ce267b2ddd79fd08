# SPDX-License-Identifier: Apache-2.0
"""What the keys of ``top`` do: the state of its screen, without the screen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from scope_ebpf.cli.top_cells import SORTED

if TYPE_CHECKING:
    from collections.abc import Sequence

SORTS = tuple(SORTED)
#: Keys as the help shows them, and what they do; the first ones are in the last line, too.
HELP = (
    ("q", "quit"),
    ("?", "help"),
    ("/", "filter by name or pid; Enter keeps it, Esc shows all again"),
    ("c", "findings of the check, with what to type next"),
    ("Enter", "details of the selected process: stack, mailbox, links"),
    ("Esc", "back; also Backspace"),
    ("Space", "pause, and go on"),
    ("1-6", f"sort by {', '.join(SORTS)}"),
    ("< >", "sort by the one before or after it"),
    ("r", "reverse the order"),
    ("Up Down", "select a process; also k and j"),
    ("PgUp PgDn", "a page up or down"),
    ("Home End", "the first or the last process"),
)
_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1}
_PAGES = {"page_up": -1, "page_down": 1}
#: Characters of a filter.
_LONGEST = 80


@dataclass(slots=True)
class Screen:
    """
    What the user has chosen.

    *page* is what is shown; of the table *total* processes are to be shown, and *rows* fit.
    """

    sort: str = SORTS[0]
    sorts: tuple[str, ...] = SORTS
    #: Whether there are findings of the check.
    checks: bool = True
    least: bool = False
    wanted: str = ""
    #: Whether keys are letters of the filter.
    typing: bool = False
    paused: bool = False
    page: Literal["table", "process", "check", "help"] = "table"
    #: The first process that is shown, and the selected one, by their index in the order.
    first: int = 0
    selected: int = 0
    #: The first line of help or of details that is shown, and how many there are.
    line: int = 0
    lines: int = 0
    total: int = 0
    rows: int = 1
    #: The process that is shown in detail, as a term.
    process: int | None = None
    #: Why a key did nothing; for one drawing.
    note: str = ""
    quit: bool = False
    _before: Literal["table", "process", "check"] = field(default="table", repr=False)

    def press(self, key: str, shown: Sequence[int] = ()) -> None:
        """Do what *key* does; *shown* are the processes on the screen, as terms."""
        self.note = ""
        if self.typing:
            self._type(key)
        elif key == "q":
            self.quit = True
        elif key in ("?", "h") and self.page != "help":
            self._before, self.page, self.line = self.page, "help", 0
        elif key in ("escape", "backspace", "?", "h"):
            self._back(key)
        elif key == " ":
            self.paused = not self.paused
        elif self.page == "table":
            self._table(key, shown)
        else:
            self._scroll(key)

    def _type(self, key: str) -> None:
        if key == "enter":
            self.typing = False
        elif key == "escape":
            self.typing, self.wanted = False, ""
        elif key == "backspace":
            self.wanted = self.wanted[:-1]
        elif len(key) == 1 and key.isprintable():
            self.wanted = (self.wanted + key)[:_LONGEST]
        self.first = self.selected = 0

    def _back(self, key: str) -> None:
        if self.page == "help":
            self.page, self.line = self._before, 0
        elif self.page in ("process", "check"):
            self.page, self.process = "table", None
        elif key == "escape" and self.wanted:
            self.wanted, self.first, self.selected = "", 0, 0

    def _table(self, key: str, shown: Sequence[int]) -> None:
        if key == "/":
            self.typing = True
        elif key == "c" and self.checks:
            self.page, self.line = "check", 0
        elif key == "r":
            self.least = not self.least
            self.first = self.selected = 0
        elif key in ("<", ">"):
            step = 1 if key == ">" else -1
            self._sort(self.sorts[(self.sorts.index(self.sort) + step) % len(self.sorts)])
        elif key.isdecimal() and key.isascii():
            if not 0 < int(key) <= len(self.sorts):
                self.note = f"1 to {len(self.sorts)} sort the table: {', '.join(self.sorts)}"
            else:
                self._sort(self.sorts[int(key) - 1])
        elif key == "enter":
            place = self.selected - self.first
            if 0 <= place < len(shown):
                self.page, self.line, self.process = "process", 0, shown[place]
        else:
            self._select(key)

    def _sort(self, sort: str) -> None:
        self.sort, self.least = sort, False
        self.first = self.selected = 0

    def _select(self, key: str) -> None:
        if key in _PAGES:
            self.selected += _PAGES[key] * self.rows
            self.first += _PAGES[key] * self.rows
        elif key in ("home", "end"):
            self.selected = 0 if key == "home" else self.total - 1
        else:
            self.selected += _STEPS.get(key, 0)
        self.bound()

    def bound(self) -> None:
        """Keep the selected process within the table, and on the screen."""
        self.selected = max(0, min(self.selected, self.total - 1))
        last = max(0, self.total - self.rows)
        self.first = max(0, min(self.first, last))
        self.first = min(max(self.first, self.selected - self.rows + 1), self.selected)

    def _scroll(self, key: str) -> None:
        steps = _STEPS | {name: sign * self.rows for name, sign in _PAGES.items()}
        line = {"home": 0, "end": self.lines}.get(key, self.line + steps.get(key, 0))
        self.line = max(0, min(line, self.lines - self.rows))
