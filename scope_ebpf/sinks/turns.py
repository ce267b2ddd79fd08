# SPDX-License-Identifier: Apache-2.0
"""Summaries that follow each other, a line of text for each, as vmstat prints them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scope_ebpf.sinks.plain import say, short

if TYPE_CHECKING:
    from typing import TextIO

    from scope_ebpf.results.summary import Summary

#: Lines between two headings: a terminal has 24.
_LINES = 20
_EVENTS = ("spawn", "send", "schedule", "gc")
_HEADINGS = (
    *("TIME", "UTIL%", "RUNQ", "PROCS", "MEM", "MAIL"),
    *("SPAWN/S", "SEND/S", "SCHED/S", "GC/S", "COST%"),
)
_FORM = "{:<8} {:>5} {:>5} {:>5} {:>5} {:>5} {:>7} {:>7} {:>7} {:>6} {:>5}"


class TurnLines:
    """Prints lines of summaries to *output*, and headings where they are due."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._printed = 0

    def write(self, summary: Summary) -> None:
        """One line; ``~`` marks an estimate, ``?`` too little seen for one, ``-`` no figure."""
        if self._printed % _LINES == 0:
            say(_FORM.format(*_HEADINGS), self._output)
        self._printed += 1
        say(_FORM.format(*_cells(summary)), self._output)


def _cells(summary: Summary) -> tuple[str, ...]:
    state, share = summary.state, summary.cost.share_of_target
    used = mail = waiting = None
    if state is not None:
        normal = (state.utilization or {}).get("normal")
        used = None if normal is None else f"{100 * normal:.0f}"
        waiting = None if state.waiting is None else f"{state.waiting:.1f}"
        mail = short(state.mailbox.messages) if state.mailbox else None
        if mail is None and state.processes is not None:
            mail = "0"
    sizes = (state.processes, state.memory_bytes) if state else (None, None)
    return (
        time.strftime("%H:%M:%S"),
        used or "-",
        waiting or "-",
        *("-" if number is None else short(number) for number in sizes),
        mail or "-",
        *(_rate(summary, event) for event in _EVENTS),
        "-" if share is None else f"{100 * share:.1f}",
    )


def _rate(summary: Summary, name: str) -> str:
    event = summary.events.get(name)
    if event is None or not event.item.attachments or not summary.duration_seconds:
        return "-"
    if event.error_ratio >= 1:
        return "?"
    about = "~" if event.error_ratio else ""
    return about + short(event.count / summary.duration_seconds)
