# SPDX-License-Identifier: Apache-2.0
"""``scope-trace genservers``: servers by module, how busy they are, and who waits for whom."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.servers.looks import FIELDS
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import (
    above_zero,
    add_duration,
    add_format,
    add_max_cost,
    add_once,
    budget,
)
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.runs.genservers import GROUPS, ServerOptions, watch
from scope_ebpf.sinks.plain import say
from scope_ebpf.sinks.servers import SORTS, lines

if TYPE_CHECKING:
    import argparse

#: Rows of a table that is printed.
_ROWS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``genservers``."""
    add_target(parser)
    add_duration(parser)
    parser.add_argument(
        "-s",
        "--sort",
        choices=SORTS,
        default="waiting",
        help="by callers and messages that wait, busy time, calls a second, or the longest "
        "mailbox (default: %(default)s)",
    )
    parser.add_argument(
        "--by", choices=GROUPS, default="module", help="what a row is (default: %(default)s)"
    )
    parser.add_argument(
        "--limit",
        type=above_zero,
        help=f"rows (default: {_ROWS}; all in JSON and in a table that moves)",
    )
    hooks = parser.add_mutually_exclusive_group()
    hooks.add_argument(
        "--budget",
        type=budget,
        default="1",
        metavar="SHARE",
        help="of the VM's CPU, what hooks may take: rates and times of messages are estimated from "
        "moments (default: %(default)s%%); none counts everything",
    )
    hooks.add_argument(
        "--no-hooks",
        dest="budget",
        action="store_const",
        const=None,
        help="read memory only: no rates and times of messages",
    )
    add_max_cost(parser)
    add_once(parser)
    add_format(parser, "text", "json", "jsonl")


def run(arguments: argparse.Namespace) -> int:
    """Look, then print; or show a table that moves. Raises ScopeError."""
    viewer = Viewer(target_of(arguments), FIELDS)
    options = ServerOptions(arguments.duration, arguments.by, arguments.budget, arguments.max_cost)
    if _moves(arguments):
        from scope_ebpf.cli.genservers_live import live

        return live(viewer, options, arguments.sort, arguments.limit)
    found, error = watch(viewer, options)
    if arguments.format == "text":
        limit = arguments.limit or _ROWS
        say("\n".join(lines(found, arguments.sort, limit, arguments.by)), sys.stdout)
    else:
        print_document(found.as_json(), arguments.format)
    if error:
        raise error
    return 0


def _moves(arguments: argparse.Namespace) -> bool:
    """Whether there is a terminal for a table that moves, and it is wanted."""
    once = arguments.count is not None or (arguments.budget or 0) > 1 or arguments.by == "tag"
    if once or arguments.format != "text" or not sys.stdout.isatty():
        return False
    from scope_ebpf.screen import terminal

    return terminal.usable()
