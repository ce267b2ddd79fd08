# SPDX-License-Identifier: Apache-2.0
"""Calls of functions as they happen, a line each, and the tables at the end."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scope_ebpf.results.calls import TOP, Call, CallSummary, Return, Totals, Upgrade
from scope_ebpf.sinks.columns import wall_offset_ns
from scope_ebpf.sinks.plain import duration, plain, spelled
from scope_ebpf.sinks.report import WIDTH

if TYPE_CHECKING:
    from typing import TextIO

    from scope_ebpf.results.documents.calls import CallLine, CodeLine, ReturnLine

_EVENTS = {Call: "call", Return: "return", Upgrade: "code"}
#: Colours of a live line, on a terminal.
_STYLES = {Call: "", Return: "dim", Upgrade: "bold yellow"}


class CallLines:
    """Writes calls to *output* as they happen, as text or as one JSON object a line."""

    def __init__(self, output: TextIO, form: str) -> None:
        self._output = output
        self._json = form == "jsonl"
        self._offset = wall_offset_ns()
        terminal = output.isatty() and not self._json
        self._console = (
            Console(file=output, emoji=False, highlight=False, soft_wrap=True) if terminal else None
        )

    def write(self, seen: Call | Return | Upgrade) -> None:
        """Write one line."""
        moment = seen.time_ns + self._offset
        if self._json:
            self._output.write(json.dumps(_document(seen, moment)) + "\n")
            return
        text = plain(f"{_clock(moment)} {spelled(_text(seen))}")
        if self._console:
            self._console.print(escape(text), style=_STYLES[type(seen)])
        else:
            self._output.write(text + "\n")

    def flush(self) -> None:
        """Flush, so that a reader of the stream sees the last call."""
        self._output.flush()


def _clock(moment: int) -> str:
    seconds, rest = divmod(moment, 1_000_000_000)
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest // 1000:06d}"


def _text(seen: Call | Return | Upgrade) -> str:
    name = _named(seen.function, seen.version)
    if isinstance(seen, Upgrade):
        return f"-- {name}: other code was loaded; {_gap(seen.gap_ns)}"
    head = f"{seen.pid:<12} {seen.who or '-'}"
    if isinstance(seen, Return):
        return f"{head}  {name} returned after {duration(seen.duration_ns / 1e9)}"
    arguments = ", ".join(seen.shapes)
    line = f" ({seen.line.rpartition('/')[2]})" if seen.line else ""
    return f"{head}  {name}({arguments}) <- {seen.caller}{line}"


def _named(function: str, version: int) -> str:
    return function if version == 1 else f"{function} v{version}"


def _gap(gap_ns: int | None) -> str:
    if gap_ns is None:
        return "its calls are counted from now on"
    if gap_ns == 0:
        return "it was watched before it ran, so no call is missing"
    return f"its calls of the first {duration(gap_ns / 1e9)} at most are not counted"


def _document(seen: Call | Return | Upgrade, moment: int) -> CallLine | ReturnLine | CodeLine:
    fields = asdict(seen)
    fields.pop("time_ns")
    for name in ("duration", "gap"):
        if f"{name}_ns" in fields:
            value = fields.pop(f"{name}_ns")
            fields[f"{name}_seconds"] = None if value is None else value / 1e9
    if "shapes" in fields:
        fields["arguments"] = list(fields.pop("shapes"))
    made = {"time": moment / 1e9, "event": _EVENTS[type(seen)], **fields}
    return cast("CallLine | ReturnLine | CodeLine", made)


def print_calls(summary: CallSummary, output: TextIO) -> None:
    """Print the tables; colours only where *output* is a terminal."""
    console = Console(file=output, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print()
    console.print(_functions(summary))
    if summary.durations:
        console.print(_durations(summary))
    for title, counts in (
        ("process", _processes(summary)),
        ("caller (where it returns to)", summary.callers),
    ):
        if counts:
            console.print(_counts(title, counts))
    for note in summary.notes:
        console.print(f"note: {escape(plain(spelled(note)))}", style="yellow")
    lost = sum(t.lost for t in summary.functions.values())
    refused = sum(t.refused for t in summary.functions.values())
    missing = summary.missing
    counted = f"counted: {summary.calls:,} calls"
    if missing.error:
        counted += f"; missing: about {missing.calls:,} ± {missing.error:,}"
    why = escape(plain(summary.stopped_because))
    console.print(
        f"stopped: {why}, after {summary.duration_seconds:.1f} s\n"
        f"{counted}; without a line: {lost:,}; not readable: {refused:,}",
        style="bold",
    )


def _functions(summary: CallSummary) -> Table:
    table = _table("function", "calls", "per second")
    for _, totals in sorted(summary.functions.items()):
        rate = totals.calls / summary.duration_seconds if summary.duration_seconds else 0
        table.add_row(_name_of(totals), f"{totals.calls:,}", f"{rate:,.1f}")
    return table


def _durations(summary: CallSummary) -> Table:
    table = _table("durations", "measured", "p50", "p99", "max")
    for _, totals in sorted(summary.functions.items()):
        values = totals.percentiles()
        cells = [duration(value) for value in values] if values else ["-"] * 3
        table.add_row(_name_of(totals), f"{len(totals.durations_ns):,}", *cells)
    return table


def _name_of(totals: Totals) -> str:
    return escape(plain(spelled(_named(totals.function, totals.version))))


def _table(title: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(title, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _processes(summary: CallSummary) -> Counter[str]:
    return Counter({" ".join(filter(None, key)): count for key, count in summary.processes.items()})


def _counts(title: str, counts: Counter[str]) -> Table:
    table = _table(title, "calls")
    for name, count in counts.most_common(TOP):
        table.add_row(escape(plain(spelled(name))), f"{count:,}")
    if len(counts) > TOP:
        rest = sum(counts.values()) - sum(count for _, count in counts.most_common(TOP))
        table.add_row(f"{len(counts) - TOP:,} more", f"{rest:,}")
    return table
