# SPDX-License-Identifier: Apache-2.0
"""``scope-trace top``: the processes of a VM, read from its memory."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf.beam import discover
from scope_ebpf.beam.processes import CHUNK, LOAD, ProcessTable
from scope_ebpf.beam.schedulers import Schedulers
from scope_ebpf.beam.shapes import escaped
from scope_ebpf.beam.sizes import memory_bytes
from scope_ebpf.beam.sweep import SORTS, State, Sweep
from scope_ebpf.beam.view import Viewer, document
from scope_ebpf.cli.surroundings import target_ended
from scope_ebpf.errors import NoSuchProcessError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scope_ebpf.beam.target import Target

#: CPU seconds per second that a live table may take.
BUDGET = 0.1
#: Of a mailbox this many messages are looked at when a shown process is weighed.
_WALK = 200
_HEADINGS = ("PID", "NAME OR INITIAL CALL", "REDS/S", "MEMORY", "MAIL", "STATUS", "IN FUNCTION")
_RIGHT = (2, 3, 4)
_PLAIN = "{:<11} {:<20.20} {:>6} {:>6} {:>4} {:<9.9} {}"
_KEYS = {"reductions": "reductions", "mailbox": "mailbox", "gc": "minor_gcs"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``top``."""
    parser.add_argument("--pid", type=int, required=True, help="the VM's process on this host")
    parser.add_argument("--sort", choices=tuple(SORTS), default="reductions")
    parser.add_argument("--limit", type=int, help="rows (default: 20; all in JSON)")
    parser.add_argument("--once", action="store_true", help="print once and end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    """Show the table; raises ScopeError."""
    if args.interval <= 0 or (args.limit is not None and args.limit <= 0):
        raise UsageError("--interval and --limit want a number above 0")
    target = discover.inspect(args.pid)
    if args.format == "json":
        return _print_json(target, args)
    try:
        if args.once or not sys.stdout.isatty():
            return _print_text(target, args)
        return _live(target, args)
    except NoSuchProcessError as error:
        raise target_ended(target.pid, error, "watched") from error


def _print_json(target: Target, args: argparse.Namespace) -> int:
    if not args.once:
        raise UsageError("--format json goes with --once: one document, then the end")
    viewer = Viewer(target)
    snapshot = viewer.table.snapshot()
    rows = snapshot.rows
    key = memory_bytes(target, rows).bytes if args.sort == "memory" else rows[_KEYS[args.sort]]
    order = np.argsort(-key.astype(np.int64), kind="stable")[: args.limit]
    head = json.dumps(document(target, snapshot))
    target.identity.check()
    print(head[:-1], end=', "processes": [')
    # Some at a time: a million of them would not fit in memory as objects.
    for first in range(0, len(order), CHUNK):
        described = json.dumps(viewer.describe(rows[order[first : first + CHUNK]]))
        target.identity.check()
        print(", " * (first > 0) + described[1:-1], end="")
    print("]}")
    return 0


def _print_text(target: Target, args: argparse.Namespace) -> int:
    """Print tables one after the other; with --once the one after the first interval."""
    for number, (state, trouble, rows) in enumerate(_turns(target, args, args.limit or 20)):
        if args.once and number == 0:
            continue  # reductions per second take two looks
        print("\n".join(_header(target, state, trouble, args.sort)))
        print(_PLAIN.format(*_HEADINGS))
        for row in rows:
            print(_PLAIN.format(*row).rstrip())
        sys.stdout.flush()
        if args.once:
            break
    return 0


def _live(target: Target, args: argparse.Namespace) -> int:
    from rich.console import Console, Group  # noqa: PLC0415 - only for a terminal
    from rich.live import Live  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    limit = args.limit or max(5, console.height - 6)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for state, trouble, rows in _turns(target, args, limit):
            table = Table(box=None, expand=True, pad_edge=False)
            for place, heading in enumerate(_HEADINGS):
                justify = "right" if place in _RIGHT else "left"
                table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
            for row in rows:
                # As text, not as markup: the words are the VM's.
                table.add_row(*(Text(cell) for cell in row))
            header = Text("\n".join(_header(target, state, trouble, args.sort)))
            live.update(Group(header, table), refresh=True)
    return 0


def _turns(
    target: Target, args: argparse.Namespace, limit: int
) -> Iterator[tuple[State, str | None, list[tuple[str, ...]]]]:
    """Look again and again; yield what was seen, what is wrong, and the rows to show."""
    viewer = Viewer(target)
    schedulers = Schedulers(target, viewer)
    table = ProcessTable(target, LOAD)
    # One picture is worth a whole reading; what goes on for hours is not.
    budget = math.inf if args.once else BUDGET * args.interval
    sweep = Sweep(table, target.layout.size("Process"), budget)
    due = time.monotonic()
    while True:
        state = sweep.turn()
        slots, rates = sweep.top(args.sort, limit)
        viewer.refresh()
        turn = state, schedulers.trouble(), _rows(viewer, slots, rates)
        target.identity.check()
        yield turn
        due = max(due + args.interval, time.monotonic())
        target.identity.wait(max(0.0, due - time.monotonic()))


def _rows(
    viewer: Viewer, slots: NDArray[np.int64], rates: NDArray[np.float32]
) -> list[tuple[str, ...]]:
    """Read the processes to be shown again, in full, and write their cells."""
    rows = viewer.table.at(slots).rows
    described = dict(zip(rows["slot"].tolist(), viewer.describe(rows, _WALK), strict=True))
    return [
        _cells(described[slot], rate)
        for slot, rate in zip(slots.tolist(), rates.tolist(), strict=True)
        if slot in described
    ]


def _cells(process: dict[str, Any], rate: float) -> tuple[str, ...]:
    module = process["module"] if process["behaviour"] else None
    name = process["name"] or process["label"] or module or process["initial_call"] or "?"
    if module and module != name:
        name += f" ({module})"
    about = "~" if process.get("memory_estimated") else ""
    return (
        process["pid"],
        escaped(name),
        short(rate),
        about + short(process["memory_bytes"]),
        short(process["message_queue_len"]),
        process["status"],
        escaped(process["current_function"] or "?"),
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
    return [*lines, trouble] if trouble else lines


def short(number: float) -> str:
    """Write a number in at most five characters: 999, 9.9k, 99M."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.1f}{unit}" if unit and number < 9.95 else f"{number:.0f}{unit}"
        number /= 1000
    return f"{number:.0f}P"
