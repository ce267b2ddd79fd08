# SPDX-License-Identifier: Apache-2.0
"""``scope-trace top``: the processes of a VM, read from its memory."""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from typing import TYPE_CHECKING, cast

import numpy as np

from scope_ebpf.beam.processes.table import CHUNK, binary_bytes
from scope_ebpf.beam.processes.view import Viewer, document
from scope_ebpf.cli import top_watch
from scope_ebpf.cli.options import add_count, add_format, add_interval, add_once
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.cli.top_cells import SORTED
from scope_ebpf.cli.top_table import unbounded
from scope_ebpf.cli.top_watch import Watch
from scope_ebpf.errors import NoSuchProcessError, UsageError
from scope_ebpf.runs.loop import target_ended
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.cli.top_table import Row
    from scope_ebpf.cli.top_watch import View
    from scope_ebpf.results.documents.processes import TopRow

#: Rows of a table that is printed; cells of its lines where there is no terminal, and above it.
_ROWS, _CELLS, _HEADING = 20, 160, 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``top``."""
    add_target(parser)
    parser.add_argument("-s", "--sort", choices=tuple(SORTED), default="reductions")
    parser.add_argument("--limit", type=int, help="rows (default: 20; all in JSON)")
    add_once(parser)
    add_interval(parser, "1s", "time between two tables (default: %(default)s)")
    add_count(parser, "tables, which are printed one below the other")
    add_format(parser, "text", "json", "jsonl")


def run(arguments: argparse.Namespace) -> int:
    """Show the table; raises ScopeError."""
    if arguments.limit is not None and arguments.limit <= 0:
        raise UsageError("--limit wants a number above 0")
    if arguments.format == "json" and arguments.count != 1:
        raise UsageError(
            "--format json goes with --once: one document, then the end; "
            "--format jsonl prints one for each interval"
        )
    target = target_of(arguments)
    if arguments.format == "json":
        return _print_json(target, arguments)
    try:
        if arguments.format == "text" and arguments.count is None and sys.stdout.isatty():
            from scope_ebpf.screen import terminal

            if terminal.usable():
                from scope_ebpf.cli.top_live import live

                return live(target, arguments.sort, arguments.interval, arguments.limit)
        return _print_turns(target, arguments)
    except NoSuchProcessError as error:
        raise target_ended(target.pid, error, "watched") from error


def _print_json(target: Target, arguments: argparse.Namespace) -> int:
    viewer = Viewer(target)
    speeds = _collected(target, viewer, arguments.interval) if arguments.sort == "gc" else {}
    snapshot = viewer.table.snapshot()
    rows = snapshot.rows
    sizes = viewer.sizes(rows)
    key = {"memory": sizes.bytes, "mailbox": rows["mailbox"], "reductions": rows["reductions"]}
    key["binary"] = binary_bytes(rows)
    key["gc"] = np.array([speeds.get(pid, 0.0) for pid in rows["id"].tolist()])
    if arguments.sort == "pid":
        order = np.argsort(rows["id"])[: arguments.limit]
    else:
        values = -key[arguments.sort].astype(np.float64)
        order = np.argsort(values, kind="stable")[: arguments.limit]
    head = json.dumps(document(target, snapshot))
    target.identity.check()
    print(head[:-1], end=', "processes": [')
    # In parts: a million of them would not fit in memory as objects.
    for first in range(0, len(order), CHUNK):
        part = order[first : first + CHUNK]
        shown = sizes.some(part)
        described = cast("list[TopRow]", viewer.describe(rows[part], sizes=shown))
        if arguments.sort == "gc":
            for one, pid in zip(described, rows["id"][part].tolist(), strict=True):
                one["collected_bytes_per_second"] = round(speeds.get(pid, 0.0))
        target.identity.check()
        print(", " * (first > 0) + json.dumps(described)[1:-1], end="")
    print("]}")
    return 0


def _collected(target: Target, viewer: Viewer, interval: float) -> dict[int, float]:
    """Bytes per second that processes collected, by pid term."""
    processes = unbounded(target, viewer)
    processes.turn("gc")
    time.sleep(interval)
    processes.turn("gc")
    processes.look_closer(interval / 2)
    return processes.speeds()


def _print_turns(target: Target, arguments: argparse.Namespace) -> int:
    """Print tables, or lines of JSON, one after the other."""
    for view, rows in islice(_turns(target, arguments), arguments.count):
        if arguments.format == "jsonl":
            print(json.dumps(top_watch.document(target, view, rows, arguments.sort)), flush=True)
        else:
            _print_text(target, view, rows, arguments.sort)
    return 0


def _print_text(target: Target, view: View, rows: list[Row], sort: str) -> None:
    cells = _cells()
    lines = top_watch.heading(target, view, f"by {sort}", min(cells, _HEADING))
    headings, shown = top_watch.table(rows, sort, cells)
    texts = ["".join(span.text for span in line) for line in lines] + [*view.notes]
    texts += [" ".join(words.values()).rstrip() for words in (headings, *shown)]
    say("\n".join(texts), sys.stdout)


def _cells() -> int:
    """The width of the terminal, or that of lines in a pipe or a file."""
    if not sys.stdout.isatty():
        return _CELLS
    from scope_ebpf.screen import terminal

    return terminal.columns(_CELLS)


def _turns(target: Target, arguments: argparse.Namespace) -> Iterator[tuple[View, list[Row]]]:
    """Look once an interval; a single look is at the end of the first one."""
    once = arguments.count == 1
    watch = Watch(target, arguments.interval, once=once)
    sort, limit = arguments.sort, arguments.limit or _ROWS
    due = time.monotonic()
    if once:
        watch.turn("memory" if sort == "memory" else "reductions")  # rates take two looks
        due += arguments.interval
        watch.wait(due)
    while True:
        state = watch.turn(sort)
        watch.processes.order(sort)
        rows = watch.processes.page(0, limit, sort)
        view = watch.view(state, at_once=False)
        target.identity.check()
        yield view, rows
        due = max(due + arguments.interval, time.monotonic())
        watch.wait(due)
