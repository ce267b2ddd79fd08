# SPDX-License-Identifier: Apache-2.0
"""``scope-trace record``: a trace into a file, or its last minutes when something goes wrong."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from scope_ebpf.attach.plan import DEFAULT_EVENTS
from scope_ebpf.cli.options import (
    add_duration,
    add_events,
    add_force,
    add_hooks,
    add_max_cost,
    duration,
    parse_events,
    ring_megabytes,
)
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.errors import UsageError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.cost import CostMeasurement
from scope_ebpf.runs.captures import RecordOptions, record
from scope_ebpf.runs.terminal import alone
from scope_ebpf.runs.trace import Trace, TraceOptions

if TYPE_CHECKING:
    from scope_ebpf.results.summary import Summary

_IF_MARKED = ("mark_callback",)
#: Events that are recorded by default: those of a trace, the threads that run them, and packets to
#: and from other nodes, by which captures of several nodes are merged; and callbacks, where code is
#: marked.
RECORDED = (*DEFAULT_EVENTS, "thread", "dist_out", "dist_in", *_IF_MARKED)
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_EXAMPLES = """\
examples:
  sudo scope-trace record shop -d 5s -o run.scope
  scope-trace summary run.scope
  scope-trace export run.scope --to perfetto -o run.pftrace
  sudo scope-trace record shop -d 0 --ring 64MB --stall 5s
                                     keep the last minutes until something goes wrong
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a recording."""
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_target(parser)
    parser.add_argument(
        "-o", "--output", default="run.scope", metavar="FILE", help="(default: %(default)s)"
    )
    add_duration(parser)
    add_force(parser)
    add_events(parser, RECORDED)
    parser.add_argument(
        "--max-size",
        type=size,
        metavar="SIZE",
        help="stop when the file has this size, such as 500MB (default: no bound)",
    )
    parser.add_argument(
        "--ring",
        dest="flight_bytes",
        type=size,
        metavar="SIZE",
        help="keep the last events in this much memory, compressed, and write them when the VM "
        "dies or stalls, on SIGUSR1, and at the end",
    )
    parser.add_argument(
        "--stall",
        type=duration,
        metavar="TIME",
        help="with --ring: write when nothing was scheduled for so long though something could be",
    )
    add_hooks(parser)
    add_max_cost(parser)
    parser.add_argument(
        "--buffer",
        dest="buffer",
        type=ring_megabytes,
        default=32,
        metavar="MB",
        help="room for events on their way from the kernel, a power of two (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    host.require()
    wanted = RECORDED if arguments.events is None else parse_events(arguments.events)
    if arguments.stall and not (arguments.flight_bytes and "schedule" in wanted):
        raise UsageError("--stall needs the event schedule and --ring")
    with closing(CostMeasurement()) as measurement:
        target = target_of(arguments)
        with alone(target.pid) as notes:
            options = _trace_options(arguments)
            optional = _IF_MARKED if arguments.events is None else ()
            trace = Trace(
                target,
                wanted,
                options,
                streamed=True,
                measurement=measurement,
                optional=optional,
            )
            trace.notes += notes
            summary, error = record(target, trace, _record_options(arguments))
    _report(summary)
    if error:
        raise error
    return 0


def _trace_options(arguments: argparse.Namespace) -> TraceOptions:
    return TraceOptions(
        duration=arguments.duration,
        via=arguments.via,
        slow_call_ms=arguments.slow_call,
        max_cost=arguments.max_cost,
        ring_bytes=arguments.buffer << 20,
        output=arguments.output,
    )


def _record_options(arguments: argparse.Namespace) -> RecordOptions:
    return RecordOptions(
        path=arguments.output,
        force=arguments.force,
        max_bytes=arguments.max_size,
        flight_bytes=arguments.flight_bytes,
        stall_seconds=arguments.stall,
    )


def _report(summary: Summary) -> None:
    from scope_ebpf.sinks.report import print_report

    print_report(summary, sys.stdout)
    sys.stdout.flush()


def size(text: str) -> int:
    """Bytes, from a number with K, M or G behind it."""
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or not int(match[1]):
        raise ValueError(text)
    return int(match[1]) * _SIZES[match[2].upper()]
