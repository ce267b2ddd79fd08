# SPDX-License-Identifier: Apache-2.0
"""``scope-trace requests``: the slowest requests and those that failed, as trees of spans."""

from __future__ import annotations

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
    time,
)
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.kernel import host
from scope_ebpf.results.requests import Requests
from scope_ebpf.runs.telemetry import TelemetryOptions, TelemetryRun, specs_of
from scope_ebpf.sinks.columns import wall_offset_ns
from scope_ebpf.sinks.plain import say
from scope_ebpf.sinks.requests import lines

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``requests``."""
    add_target(parser)
    add_duration(parser)
    parser.add_argument(
        "--slower",
        type=time,
        default="0s",
        metavar="TIME",
        help="only requests that took so long or longer: 100ms, 2s (default: %(default)s)",
    )
    parser.add_argument(
        "--route", metavar="PATTERN", help="only requests whose route fits, such as '/api/*'"
    )
    parser.add_argument(
        "--limit",
        type=above_zero,
        default=20,
        metavar="N",
        help="the slowest N; those that failed and fit are shown as well (default: %(default)s)",
    )
    add_events_config(parser)
    add_event_budget(parser)
    add_event_via(parser)
    add_max_cost(parser)
    add_format(parser, "text", "json", "jsonl")


def run(arguments: argparse.Namespace) -> int:
    """Collect, then print; raises ScopeError."""
    host.require()
    requests = Requests(arguments.limit, arguments.slower, arguments.route)
    options = TelemetryOptions(
        duration=arguments.duration,
        max_cost=arguments.max_cost,
        budget=arguments.budget,
        via=arguments.via,
    )
    target = target_of(arguments)
    pids = PidCodec.of(target)
    found, error = TelemetryRun(target, specs_of(arguments.config), options, requests).run()
    requests.finish()
    if arguments.format == "text":
        say("\n".join(lines(requests, found, pids.text)), sys.stdout)
    else:
        document = requests.as_json(found, pids.text, wall_offset_ns())
        print_document(document, arguments.format)
    if error:
        raise error
    return 0
