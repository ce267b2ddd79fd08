# SPDX-License-Identifier: Apache-2.0
"""``scope-trace links``: the connections of a VM to other nodes, one by one."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.table import ALL
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.cli.options import above_zero, add_count, add_format, add_interval, add_once
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.errors import NoSuchProcessError
from scope_ebpf.runs.links import Looking
from scope_ebpf.runs.loop import target_ended
from scope_ebpf.sinks.links import lines
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.links import Links

#: Seconds between two looks, and with --once.
_INTERVAL, _ONCE = 1.0, 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``links``."""
    add_target(parser)
    add_interval(parser, None, "time between two looks (default: 1s; with --once 300ms)")
    add_count(parser, "tables")
    add_once(parser)
    parser.add_argument(
        "--limit", type=above_zero, default=20, help="rows (default: %(default)s; all in JSON)"
    )
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: a document a line, each turn")


def run(arguments: argparse.Namespace) -> int:
    """Show the links; raises ScopeError."""
    interval: float = arguments.interval or (_ONCE if arguments.count == 1 else _INTERVAL)
    target = target_of(arguments)
    with closing(Looking(Viewer(target, ALL))) as looking:
        try:
            for found in islice(_looks(looking, target, interval), arguments.count):
                _show(found, arguments.format, arguments.limit)
        except NoSuchProcessError as error:
            raise target_ended(target.pid, error, "watched") from error
    return 0


def _looks(looking: Looking, target: Target, interval: float) -> Iterator[Links]:
    """Look again and again; the first two looks make the first result."""
    looking.look()
    while True:
        target.identity.wait(interval)
        yield looking.look()


def _show(found: Links, form: str, limit: int) -> None:
    if form != "text":
        print(json.dumps(found.as_json()), flush=True)
        return
    if sys.stdout.isatty():
        print("\x1b[H\x1b[2J", end="")
    say("\n".join(lines(found, limit)), sys.stdout)
