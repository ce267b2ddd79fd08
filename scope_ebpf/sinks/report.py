# SPDX-License-Identifier: Apache-2.0
"""The summary as text: a table of counts with their classes, and the histograms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scope_ebpf.sinks.plain import duration, of_target, plain, spelled

if TYPE_CHECKING:
    from typing import TextIO

    from scope_ebpf.beam.vm.state import VmState
    from scope_ebpf.results.documents import traces
    from scope_ebpf.results.summary import EventSummary, Histogram, Summary

#: Plain output is for files and pipes, and fits a terminal of this width.
WIDTH = 80
_BAR = 32
#: Characters of a line of a histogram that are no bar.
_BESIDE_BAR = 38
_SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
#: Smallest share of a class that is shown.
_SOME = 0.01
#: Processes that come and go while others are read; below that a reading was of a part of them.
_NEARLY = 0.9
_PARTLY = " (of {:,} processes that were looked at)"
_LEGEND = (
    "~ comes from moments with hooks in; the truth is within ± in 95 of 100 cases.\n"
    "Their parts and durations are estimates, too. --exact counts everything."
)


def print_report(summary: Summary, output: TextIO) -> None:
    """Print the whole summary; colours only where *output* is a terminal."""
    console = Console(file=output, emoji=False, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = WIDTH
    node, rest = map(escape, of_target(summary.target))
    console.print(f"[bold]{node}[/bold] {rest}\n")
    if summary.state:
        console.print("\n".join(state_lines(summary)) + "\n")
    console.print(_table(summary))
    _print_absent(console, summary)
    for event in summary.events.values():
        for name, histogram in event.histograms.items():
            print_histogram(console, f"{event.item.event} {name}", histogram)
    if summary.crashes:
        _print_crashes(console, summary.crashes)
    if summary.calls:
        _print_calls(console, summary.calls)
    _print_unavailable(console, summary)
    if any(event.sampling_ratio < 1 for event in summary.events.values()):
        console.print(_LEGEND, style="dim")
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


def state_lines(summary: Summary) -> list[str]:
    """The state of the VM, a line for each part that could be read."""
    state, lines = summary.state, []
    if state is None:
        return []
    if state.utilization is not None:
        normal, *others = state.utilization.items()
        busy = [f"{name.replace('_', ' ')} {part:.0%}" for name, part in others if part >= _SOME]
        more = f" ({', '.join(busy)})" if busy else ""
        lines.append(f"utilization      {normal[1]:.0%}{more}, without busy waiting")
    if state.waiting is not None:
        lines.append(
            f"run queues       {state.waiting:,.1f} waiting on average, "
            f"{state.most_waiting:,} at most"
        )
    if state.counted is not None and summary.duration_seconds:
        rate = state.counted["reductions"] / summary.duration_seconds
        lines.append(f"reductions       {about(rate)} a second")
    if state.processes is not None:
        of = "" if state.process_limit is None else f" of {state.process_limit:,} at most"
        lines.append(f"processes        {state.processes:,}{of}")
    sizes = [("", state.memory_bytes), ("resident ", state.resident_bytes)]
    shown = [f"{name}{size(value)}" for name, value in sizes if value is not None]
    if shown:
        lines.append(f"memory           {', '.join(shown)}")
    lines.append(f"longest mailbox  {_mailbox(state)}")
    return lines


def _mailbox(state: VmState) -> str:
    box = state.mailbox
    if box is None:
        return "no message waits" if state.processes is not None else "not known"
    who = f" {escape(plain(spelled(box.who)))}" if box.who else ""
    part = "" if state.processes is None or box.seen >= state.processes * _NEARLY else _PARTLY
    return f"{box.messages:,}: {box.pid}{who}{part.format(box.seen)}"


def _table(summary: Summary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("event")
    for name in ("total", "per second", "lost"):
        table.add_column(name, justify="right")
    table.add_column("of which")
    for name, event in summary.events.items():
        if event.item.attachments and not did_not_happen(event):
            rate = event.count / summary.duration_seconds if summary.duration_seconds else 0
            lost = f"[red]{event.lost:,}[/red]" if event.lost else "0"
            per_second = f"~ {about(rate)}" if event.error_ratio else f"{rate:,.1f}"
            table.add_row(name, total(event), per_second, lost, _parts(event))
    return table


def did_not_happen(event: EventSummary) -> bool:
    """True if an event certainly has nothing to show."""
    return not (event.count or event.lost or event.refused or event.error_ratio)


def total(event: EventSummary) -> str:
    """How often it happened; where that is an estimate, by how much it may be off."""
    if not event.error_ratio:
        return f"{event.count:,}"
    if event.error_ratio >= 1:
        return f"~ {about(event.count)} ± ?"
    digits = 1 if event.error_ratio < _SOME else 0
    return f"~ {about(event.count)} ± {event.error_ratio * 100:.{digits}f} %"


def about(number: float) -> str:
    """Three digits of a number, with k, M or G: ``3.1 M``."""
    for scale, unit in _SCALES:
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.3g}"


def size(number: float) -> str:
    """Bytes with three digits and the unit that fits."""
    for scale, unit in _SCALES:
        if number >= scale:
            return f"{number / scale:.3g} {unit}B"
    return f"{number:.0f} B"


def _print_absent(console: Console, summary: Summary) -> None:
    absent = [n for n, e in summary.events.items() if e.item.attachments and did_not_happen(e)]
    if absent:
        console.print(f"\n[bold]did not happen[/bold]: {', '.join(absent)}")


def _parts(event: EventSummary) -> str:
    guess = event.sampling_ratio < 1
    parts = [
        f"{n} ~{about(count)}" if guess else f"{n} {count:,}"
        for n, count in event.by_class.items()
        if count
    ]
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
    most, room = max(histogram.slots), max(1, min(_BAR, console.width - _BESIDE_BAR))
    for slot in range(used[0], used[-1] + 1):
        count = histogram.slots[slot]
        bar = "#" * round(room * count / most)
        low, high = duration(2**slot / 1e9), duration(2 ** (slot + 1) / 1e9)
        console.print(f"  {low:>8} .. {high:<8} {count:>12,} |{bar:<{room}}|", style="dim")


#: Groups of crashes that are shown.
_CRASHES = 10


def _print_crashes(console: Console, crashes: list[traces.CrashGroup]) -> None:
    """The crashes that were seen most often: where, why, and whose they were."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("crashed in, or started with", overflow="fold")
    table.add_column("seen", justify="right")
    for name in ("kind", "reason", "name"):
        table.add_column(name, overflow="fold")
    for row in crashes[:_CRASHES]:
        where = ":".join(
            str(part) for part in (row["module"], row["function"], row["line"]) if part is not None
        )
        texts = (spelled(str(row[key] or "-")) for key in ("exit_reason", "name"))
        cells = [escape(plain(text)) for text in (spelled(where or "-"), *texts)]
        table.add_row(cells[0], f"{row['seen']:,}", row["kind"], *cells[1:])
    console.print()
    console.print(table)
    if len(crashes) > _CRASHES:
        console.print(f"and {len(crashes) - _CRASHES:,} other groups of crashes")


#: Servers whose calls are shown.
_SERVERS = 10


def _print_calls(console: Console, calls: list[traces.CallsOfServer]) -> None:
    """Calls of the servers for which callers waited longest: medians, and how calls ended."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("calls of")
    for name in ("calls", "in queue", "in server", "in all", "p99"):
        table.add_column(name, justify="right")
    table.add_column("of which")
    for row in calls[:_SERVERS]:
        whole = row["call_seconds"]
        times = [row["queue_seconds"], row["service_seconds"], whole]
        texts = [_seconds(one and one["p50"]) for one in times]
        ends = [f"{end} {row[end]:,}" for end in ("down", "unanswered") if row[end]]
        name = escape(plain(spelled(row["server"])))
        p99 = _seconds(whole and whole["p99"])
        table.add_row(name, f"{row['calls']:,}", *texts, p99, ", ".join(ends))
    console.print()
    console.print(table)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _print_unavailable(console: Console, summary: Summary) -> None:
    gone = [event.item for event in summary.events.values() if not event.item.attachments]
    if gone:
        console.print("\n[bold]not available[/bold]")
    for item in gone:
        console.print(f"  {item.event}: {escape(plain(item.reason))}")
    console.print()
