# SPDX-License-Identifier: Apache-2.0
"""The summary as text: a table, what makes the counts up, and the histograms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scope_ebpf.sinks.plain import of_target, plain

if TYPE_CHECKING:
    from typing import TextIO

    from scope_ebpf.summary import EventSummary, Histogram, Summary

#: Plain output is for files and pipes, and fits a terminal of this width.
WIDTH = 80
_BAR = 32
_UNITS = ((1e-9, "ns"), (1e-6, "us"), (1e-3, "ms"), (1.0, "s"))


def print_report(summary: Summary, output: TextIO) -> None:
    """Print the whole summary; colours only where *output* is a terminal."""
    console = Console(file=output, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = WIDTH
    node, rest = map(escape, of_target(summary.target))
    console.print(f"[bold]{node}[/bold] {rest}\n")
    console.print(_table(summary))
    for event in summary.events.values():
        for name, histogram in event.histograms.items():
            print_histogram(console, f"{event.item.event} {name}", histogram)
    _print_unavailable(console, summary)
    for note in summary.notes:
        console.print(f"note: {escape(plain(note))}", style="yellow")
    console.print(escape(last_lines(summary)), style="bold")


def last_lines(summary: Summary) -> str:
    """Why it stopped, what was lost, what it cost: a line of plain text each."""
    cost = summary.cost
    cpu = "" if cost.cpu_seconds is None else f", {cost.cpu_seconds:.3f} s of CPU"
    share = "" if cost.share_of_target is None else f", {cost.share_of_target:.1%} of the target's"
    return (
        f"stopped: {plain(summary.stopped_because)}, after {summary.duration_seconds:.1f} s\n"
        f"lost: {summary.lost_total:,} records\n"
        f"cost: {cost.hits:,} hits{cpu}{share}"
    )


def _table(summary: Summary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("event")
    for name in ("total", "per second", "lost"):
        table.add_column(name, justify="right")
    table.add_column("of which")
    for name, event in summary.events.items():
        if event.item.attachments:
            rate = event.count / summary.duration_seconds if summary.duration_seconds else 0
            lost = f"[red]{event.lost:,}[/red]" if event.lost else "0"
            table.add_row(name, f"{event.count:,}", f"{rate:,.1f}", lost, _parts(event))
    return table


def _parts(event: EventSummary) -> str:
    parts = [f"{n} {count:,}" for n, count in event.by_class.items() if count]
    if event.refused:
        parts.append(f"[yellow]unread {event.refused:,}[/yellow]")
    return ", ".join(parts)


def print_histogram(console: Console, title: str, histogram: Histogram) -> None:
    """Durations that are there, a line for each power of two."""
    used = [n for n, count in enumerate(histogram.slots) if count]
    mean = histogram.total_seconds / histogram.count
    console.print(
        f"\n[bold]{title}[/bold]: {histogram.count:,}, mean {duration(mean)}, "
        f"in all {duration(histogram.total_seconds)}"
    )
    most = max(histogram.slots)
    for slot in range(used[0], used[-1] + 1):
        count = histogram.slots[slot]
        bar = "#" * round(_BAR * count / most)
        low, high = duration(2**slot / 1e9), duration(2 ** (slot + 1) / 1e9)
        console.print(f"  {low:>8} .. {high:<8} {count:>12,} |{bar:<{_BAR}}|", style="dim")


def _print_unavailable(console: Console, summary: Summary) -> None:
    gone = [event.item for event in summary.events.values() if not event.item.attachments]
    if gone:
        console.print("\n[bold]not available[/bold]")
    for item in gone:
        console.print(f"  {item.event}: {escape(plain(item.reason))}")
    console.print()


def duration(seconds: float) -> str:
    """*seconds* with three digits and the unit that fits."""
    scale, unit = next((u for u in reversed(_UNITS) if seconds >= u[0]), _UNITS[0])
    return f"{seconds / scale:.3g} {unit}"
