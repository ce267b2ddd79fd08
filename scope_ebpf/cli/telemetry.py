# SPDX-License-Identifier: Apache-2.0
"""``scope-trace telemetry``: the events of Elixir's libraries, with their labels."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from scope_ebpf.beam.memory.terms import PidCodec
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import (
    above_zero,
    add_duration,
    add_event_budget,
    add_event_via,
    add_events_config,
    add_format,
    add_max_cost,
)
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.errors import UsageError
from scope_ebpf.kernel import host
from scope_ebpf.runs.telemetry import TelemetryOptions, TelemetryRun, specs_of
from scope_ebpf.sinks.columns import wall_offset_ns
from scope_ebpf.sinks.plain import say
from scope_ebpf.sinks.telemetry import event_line, lines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.telemetry import Happened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``telemetry``."""
    add_target(parser)
    add_duration(parser)
    parser.add_argument(
        "--events",
        metavar="LIST",
        help="comma-separated patterns of names, such as 'phoenix.*,*.query' (default: all)",
    )
    parser.add_argument(
        "--limit",
        type=above_zero,
        default=100,
        metavar="ROWS",
        help="rows of one event; those with fewest events are shown together (default: "
        "%(default)s)",
    )
    add_events_config(parser)
    parser.add_argument(
        "--stream",
        action="store_true",
        help="a line for each event, then the table; with jsonl in JSON, the document last",
    )
    add_event_budget(parser)
    add_event_via(parser)
    add_max_cost(parser)
    add_format(parser, "text", "json", "jsonl")


def run(arguments: argparse.Namespace) -> int:
    """Count, then print; raises ScopeError."""
    if arguments.stream and arguments.format == "json":
        raise UsageError("--stream prints lines: --format jsonl has them in JSON")
    host.require()
    patterns = [name.strip() for name in (arguments.events or "").split(",")]
    options = TelemetryOptions(
        duration=arguments.duration,
        patterns=tuple(filter(None, patterns)),
        most_rows=arguments.limit,
        max_cost=arguments.max_cost,
        budget=arguments.budget,
        via=arguments.via,
    )
    specs, target = specs_of(arguments.config), target_of(arguments)
    stream = _lines_of(target, arguments.format) if arguments.stream else None
    found, error = TelemetryRun(target, specs, options, stream=stream).run()
    if arguments.format == "text":
        say("\n".join(lines(found)), sys.stdout)
    else:
        print_document(found.as_json(), arguments.format)
    if error:
        raise error
    return 0


def _lines_of(target: Target, form: str) -> Callable[[Happened], None]:
    """What prints each event of *target* on a line, in JSON if *form* is ``jsonl``."""
    pids, offset = PidCodec.of(target), wall_offset_ns()

    def show(event: Happened) -> None:
        if form == "jsonl":
            print(json.dumps(event.as_json(pids.text(event.pid), offset)), flush=True)
        else:
            say(event_line(event, pids.text(event.pid), offset), sys.stdout)

    return show
