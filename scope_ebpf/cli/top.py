# SPDX-License-Identifier: Apache-2.0
"""``scope-trace top``: the processes of a VM, read from its memory."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import TYPE_CHECKING, cast

import numpy as np

from scope_ebpf.arrays import distinct, within
from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.beam.processes.sizes import Sizes
from scope_ebpf.beam.processes.sweep import SORTS, State, Sweep, Top, collected
from scope_ebpf.beam.processes.table import CHUNK, LOAD, ProcessTable
from scope_ebpf.beam.processes.view import Viewer, document
from scope_ebpf.cli.options import add_interval
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.cli.trouble import Troubles
from scope_ebpf.errors import NoSuchProcessError, UsageError
from scope_ebpf.runs.loop import target_ended
from scope_ebpf.sinks.plain import plain, say, short, spelled

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.processes import ProcessRow, TopRow

#: CPU seconds per second that a live table may take.
BUDGET = 0.1
#: Messages of a mailbox that are read to compute the memory of a shown process.
_WALK = 200
_HEADINGS = ("PID", "NAME OR INITIAL CALL", "REDS/S", "MEMORY", "MAIL", "STATUS", "IN FUNCTION")
#: The heading that replaces REDS/S in a table that is sorted by collections.
_COLLECTED = "GC/S"
_RIGHT = (2, 3, 4)
_PLAIN = "{:<11} {:<20} {:>6} {:>6} {:>4} {:<9.9} {}"
#: The fields of a row by which rows are sorted once they are read in full.
_SHOWN = {"mailbox": "message_queue_len", "memory": "memory_bytes"}
_NAME = 20
#: Processes whose collections are counted more closely in a table sorted by collections.
_CLOSER = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``top``."""
    add_target(parser)
    parser.add_argument("-s", "--sort", choices=tuple(SORTS), default="reductions")
    parser.add_argument("--limit", type=int, help="rows (default: 20; all in JSON)")
    parser.add_argument("--once", action="store_true", help="print once and end")
    add_interval(parser, "1s", "time between two tables (default: %(default)s)")
    parser.add_argument("-f", "--format", choices=("text", "json"), default="text")


def run(arguments: argparse.Namespace) -> int:
    """Show the table; raises ScopeError."""
    if arguments.limit is not None and arguments.limit <= 0:
        raise UsageError("--limit wants a number above 0")
    target = target_of(arguments)
    if arguments.format == "json":
        return _print_json(target, arguments)
    try:
        if arguments.once or not sys.stdout.isatty():
            return _print_text(target, arguments)
        return _live(target, arguments)
    except NoSuchProcessError as error:
        raise target_ended(target.pid, error, "watched") from error


def _print_json(target: Target, arguments: argparse.Namespace) -> int:
    if not arguments.once:
        raise UsageError("--format json goes with --once: one document, then the end")
    viewer = Viewer(target)
    speeds = _collected(viewer, arguments.interval) if arguments.sort == "gc" else {}
    snapshot = viewer.table.snapshot()
    rows = snapshot.rows
    sizes = viewer.sizes(rows)
    key = {"memory": sizes.bytes, "mailbox": rows["mailbox"], "reductions": rows["reductions"]}
    key["gc"] = np.array([speeds.get(pid, 0.0) for pid in rows["id"].tolist()])
    order = np.argsort(-key[arguments.sort].astype(np.float64), kind="stable")[: arguments.limit]
    head = json.dumps(document(target, snapshot))
    target.identity.check()
    print(head[:-1], end=', "processes": [')
    # In parts: a million of them would not fit in memory as objects.
    for first in range(0, len(order), CHUNK):
        part = order[first : first + CHUNK]
        shown = Sizes(sizes.bytes[part], sizes.exact[part])
        described = cast("list[TopRow]", viewer.describe(rows[part], sizes=shown))
        if arguments.sort == "gc":
            for one, pid in zip(described, rows["id"][part].tolist(), strict=True):
                one["collected_bytes_per_second"] = round(speeds.get(pid, 0.0))
        target.identity.check()
        print(", " * (first > 0) + json.dumps(described)[1:-1], end="")
    print("]}")
    return 0


def _collected(viewer: Viewer, interval: float) -> dict[int, float]:
    """Bytes per second that processes collected, by pid term."""
    sweep = Sweep(viewer.table, viewer.heaps, math.inf)
    sweep.turn()
    time.sleep(interval)
    sweep.turn()
    top = _closer(sweep, interval, _CLOSER)
    speeds = dict(zip(top.slots.tolist(), top.collected.tolist(), strict=True))
    rows = viewer.table.at(top.slots).rows
    return {int(row["id"]): speeds[int(row["slot"])] for row in rows}


def _closer(sweep: Sweep, interval: float, limit: int) -> Top:
    """Rank by collections, from a closer look, half an *interval* long, at those that collect."""
    closer = sweep.collectors(_CLOSER)
    top = sweep.of(distinct(np.concatenate((closer, sweep.top("gc", limit).slots))))
    speeds = top.collected.copy()
    speeds[within(top.slots, closer)] = collected(sweep.table, closer, interval / 2)
    order = np.argsort(-speeds, kind="stable")[:limit]
    return Top(top.slots[order], top.rates[order], speeds[order])


def _print_text(target: Target, arguments: argparse.Namespace) -> int:
    """Print tables one after the other; with --once the one after the first interval."""
    for number, (state, trouble, rows) in enumerate(
        _turns(target, arguments, arguments.limit or 20)
    ):
        if arguments.once and number == 0:
            continue  # reductions per second take two looks
        lines = [
            *_header(target, state, trouble, arguments.sort),
            _PLAIN.format(*_headings(arguments.sort)),
        ]
        lines += [_PLAIN.format(pid, _cut(name), *rest).rstrip() for pid, name, *rest in rows]
        say("\n".join(lines), sys.stdout)
        if arguments.once:
            break
    return 0


def _live(target: Target, arguments: argparse.Namespace) -> int:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    console = Console()
    limit = arguments.limit or max(5, console.height - 6)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for state, trouble, rows in _turns(target, arguments, limit):
            table = Table(box=None, expand=True, pad_edge=False)
            for column, heading in enumerate(_headings(arguments.sort)):
                justify = "right" if column in _RIGHT else "left"
                table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
            for row in rows:
                # As text, not as markup: the words are the VM's.
                table.add_row(*(Text(cell) for cell in row))
            header = Text("\n".join(_header(target, state, trouble, arguments.sort)))
            live.update(Group(header, table), refresh=True)
    return 0


def _turns(
    target: Target, arguments: argparse.Namespace, limit: int
) -> Iterator[tuple[State, str | None, list[tuple[str, ...]]]]:
    """Look once an interval; yield the state of the sweep, what is wrong, and the rows to show."""
    viewer = Viewer(target)
    troubles = Troubles(target, viewer)
    by_memory = arguments.sort == "memory"
    table = viewer.table if by_memory else ProcessTable(target, LOAD)
    # A single table may take a whole reading; one that goes on for hours may not.
    budget = math.inf if arguments.once else BUDGET * arguments.interval
    sweep = Sweep(
        table, (lambda rows: viewer.sizes(rows, _WALK).bytes) if by_memory else viewer.heaps, budget
    )
    due = time.monotonic()
    while True:
        state = sweep.turn()
        if arguments.sort == "gc":
            top = _closer(sweep, arguments.interval, limit)
        else:
            top = sweep.top(arguments.sort, limit)
        viewer.refresh()
        turn = state, troubles.now(), _rows(viewer, top, arguments.sort)
        target.identity.check()
        yield turn
        due = max(due + arguments.interval, time.monotonic())
        target.identity.wait(max(0.0, due - time.monotonic()))


def _rows(viewer: Viewer, top: Top, sort: str) -> list[tuple[str, ...]]:
    """Read the processes to be shown again, in full, and write their cells."""
    rows = viewer.table.at(top.slots).rows
    described = dict(zip(rows["slot"].tolist(), viewer.describe(rows, _WALK), strict=True))
    speeds = top.collected if sort == "gc" else top.rates
    found = [
        (described[slot], speed)
        for slot, speed in zip(top.slots.tolist(), speeds.tolist(), strict=True)
        if slot in described
    ]
    if sort in _SHOWN:  # by the value that is shown, which is that of now
        found.sort(key=lambda one: -one[0][_SHOWN[sort]])
    return [_cells(process, speed) for process, speed in found]


def _headings(sort: str) -> tuple[str, ...]:
    return tuple(_COLLECTED if h == "REDS/S" and sort == "gc" else h for h in _HEADINGS)


def _cut(name: str) -> str:
    """Cut a name to its column, and show that it is cut."""
    return name if len(name) <= _NAME else name[: _NAME - 1] + "\u2026"


def _cells(process: ProcessRow, rate: float) -> tuple[str, ...]:
    module = process["module"] if process["behaviour"] else None
    name = process["name"] or process["label"] or module or process["initial_call"] or "?"
    if process["name"] == "":
        name = "''"  # that is a name, too
    if module and module != name:
        name += f" ({module})"
    about = "~" if process.get("memory_estimated") else ""
    return (
        process["pid"],
        escaped(spelled(name)),
        short(rate),
        about + short(process["memory_bytes"]),
        short(process["message_queue_len"]),
        process["status"],
        escaped(spelled(process["current_function"] or "?")),
    )


def _header(target: Target, state: State, trouble: str | None, sort: str) -> list[str]:
    release = f"OTP {target.otp_release} ({target.flavor})"
    read = f"read {state.read} in {state.seconds:.2f} s of CPU, torn {state.torn}"
    lines = [
        f"{escaped(target.node or '?')}  pid {target.pid}  {release}, by {sort}",
        f"{state.total} processes, {read}",
    ]
    if state.parts > 1:
        lines.append(
            f"Read in {state.parts} parts, one per turn: a row may be that many turns old."
        )
    return list(map(plain, [*lines, trouble] if trouble else lines))
