# SPDX-License-Identifier: Apache-2.0
"""The end of a run of a user's probe: its counts, its histograms, what was lost, what it cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scope_ebpf.results.summary import Histogram
from scope_ebpf.sinks.plain import plain, spelled
from scope_ebpf.sinks.report import print_histogram
from scope_ebpf.user_probes.source import fields_of, is_term

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TextIO

    from scope_ebpf.results.documents.traces import HistogramLine
    from scope_ebpf.sinks.columns import Terms
    from scope_ebpf.user_probes.outcome import Outcome

    Who = Callable[[list[int]], dict[int, str | None]]

#: Keys of a count that a person sees; the others are added up. In JSON all of them are there.
SHOWN = 20


def write_report(report: Outcome, output: TextIO, terms: Terms, who: Who | None, style: str) -> str:
    """
    Write counts and histograms to *output*; returns the last words, for stderr.

    With *style* ``jsonl`` each key of a count and each histogram is a line.
    """
    if style == "jsonl":
        _write_lines(report, output, terms, who)
    else:
        _print_tables(report, output, terms, who)
    output.flush()
    losses = f"{report.lost:,} events"
    if report.unread:
        losses += f"; {report.unread:,} reads of the VM's memory failed"
    if report.full:
        losses += f"; {report.full:,} counts had no room in their table"
    events = f"{report.events:,} events"
    return (
        f"stopped: {plain(report.stopped)}, after {report.seconds:.1f} s and {events}\n"
        f"lost: {losses}\n"
        f"cost: {_cost(report)}"
    )


def _cost(report: Outcome) -> str:
    if report.hits is None or report.cost_seconds is None:
        return "not known: the kernel shows it only with CAP_SYS_ADMIN"
    share = "" if report.cost_share is None else f", {report.cost_share:.1%} of the target's"
    least = "" if report.measured else "at least "
    return f"{report.hits:,} hits, {least}{report.cost_seconds:.3f} s of CPU{share}"


def _rows(
    items: Sequence[tuple[object, int]], terms: Terms, who: Who | None
) -> list[tuple[dict[str, Any], int]]:
    """Each key with its fields as text, the most frequent first."""
    ordered = sorted(items, key=lambda item: -item[1])
    words = [
        getattr(key, field).word
        for key, _ in ordered
        for field, kind, _ in fields_of(type(key))  # type: ignore[arg-type]
        if is_term(kind)
    ]
    distinct = list(dict.fromkeys(words))
    texts = dict(zip(distinct, terms.texts(distinct, text_pids=False), strict=True))
    names = who(distinct) if who else {}
    return [(_cells(key, texts, names), count) for key, count in ordered]


def _cells(
    key: object, texts: Mapping[int, str | None], names: Mapping[int, str | None]
) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for field, kind, _ in fields_of(type(key)):  # type: ignore[arg-type]
        value = getattr(key, field)
        if is_term(kind):
            text, name = texts[value.word], names.get(value.word)
            cells[field] = f"{text} {name}" if text and name else text
        elif isinstance(value, bytes):
            cells[field] = value.decode("latin-1")
        else:
            cells[field] = value if isinstance(value, (int, bool)) else str(value)
    return cells


def _write_lines(report: Outcome, output: TextIO, terms: Terms, who: Who | None) -> None:
    for name, items in report.counts.items():
        output.writelines(
            json.dumps({"count": name, **cells, "n": count}) + "\n"
            for cells, count in _rows(items, terms, who)
        )
    for name, (total, slots) in report.histograms.items():
        document: HistogramLine = {"histogram": name, **Histogram(total, slots).as_json()}
        output.write(json.dumps(document) + "\n")


def _print_tables(report: Outcome, output: TextIO, terms: Terms, who: Who | None) -> None:
    console = Console(file=output, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 80
    for name, items in report.counts.items():
        rows = _rows(items, terms, who)
        console.print(f"\n[bold]{name}[/bold]: {sum(n for _, n in rows):,} of {len(rows):,} kinds")
        if rows:
            console.print(_table(rows))
    for name, (total, slots) in report.histograms.items():
        if any(slots):
            print_histogram(console, name, Histogram(total, slots))
        else:
            console.print(f"\n[bold]{name}[/bold]: none")


def _table(rows: list[tuple[dict[str, Any], int]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    fields = list(rows[0][0])
    for field in fields:
        table.add_column(field, overflow="fold")
    table.add_column("count", justify="right")
    for cells, count in rows[:SHOWN]:
        values = ("-" if cells[f] is None else spelled(str(cells[f])) for f in fields)
        texts = map(escape, map(plain, values))
        table.add_row(*texts, f"{count:,}")
    rest = sum(count for _, count in rows[SHOWN:])
    if rest:
        table.add_row("other", *[""] * (len(fields) - 1), f"{rest:,}")
    return table
