# SPDX-License-Identifier: Apache-2.0
"""``scope-trace --pid PID``: what a VM does, for as long as a person watches."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, TextIO

from scope_ebpf.attach.plan import DEFAULT_EVENTS
from scope_ebpf.beam.vm.state import StateReader
from scope_ebpf.cli.options import (
    COUNT_ALL,
    DEFAULT_BUDGET,
    add_budget,
    add_duration,
    add_events,
    add_format,
    add_hooks,
    add_max_cost,
    add_output,
    parse_events,
    ring_megabytes,
)
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.errors import UsageError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.cost import CostMeasurement
from scope_ebpf.runs.streaming import LazyStream
from scope_ebpf.runs.terminal import alone, open_output, output_error
from scope_ebpf.runs.trace import Trace, TraceOptions

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.summary import Summary
    from scope_ebpf.runs.budgeted import BudgetedTrace

#: Nice value of the process that measures the cost of a hit beside the VM.
_NICE = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a trace."""
    add_target(parser)
    add_duration(parser)
    add_events(parser, DEFAULT_EVENTS)
    formats = "text: a summary; json: one document; jsonl: one event a line"
    add_format(parser, "text", "json", "jsonl", text=formats)
    parser.add_argument("--stream", action="store_true", help="with text: a line for each event")
    add_output(parser)
    add_hooks(parser)
    add_budget(parser)
    add_max_cost(parser)
    parser.add_argument(
        "--ring",
        type=ring_megabytes,
        default=16,
        metavar="MB",
        help="ring buffer for streamed events, a power of two (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    host.require()
    wanted = parse_events(arguments.events)
    streams, budget = _streams(arguments), _budget(arguments)
    with contextlib.closing(CostMeasurement(_NICE if budget else 0)) as measurement:
        target = target_of(arguments)
        with (
            open_output(arguments.output, force=arguments.force, whole=not streams) as output,
            alone(target.pid) as notes,
        ):
            trace = _trace(target, wanted, arguments, budget, measurement)
            trace.notes += notes
            if streams and isinstance(trace, Trace):
                lines = LazyStream(target, output, wanted, arguments.format)
                error = trace.run(lines, ready=lines.ready)
            else:
                error = trace.run()
            _finish(trace.summary(), output, arguments)
    if error:
        raise error
    return 0


def _streams(arguments: argparse.Namespace) -> bool:
    """Whether each event is written as a line."""
    return arguments.format == "jsonl" or bool(arguments.stream)


def _budget(arguments: argparse.Namespace) -> float | None:
    """The budget of a run; None where everything is counted."""
    given: float | None = arguments.budget
    streams = _streams(arguments)
    if streams and given is not None:
        raise UsageError(
            "a stream has every event, so it keeps no --budget; --max-cost ends it where it costs "
            "the VM too much"
        )
    if given is None:
        given = None if streams else DEFAULT_BUDGET
    return None if given == COUNT_ALL else given


def _trace(
    target: Target,
    wanted: tuple[str, ...],
    arguments: argparse.Namespace,
    budget: float | None,
    measurement: CostMeasurement,
) -> Trace | BudgetedTrace:
    """The run: one that counts every event, or one within the share *budget* of the VM's CPU."""
    if budget is None:
        options = TraceOptions(
            duration=arguments.duration,
            via=arguments.via,
            slow_call_ms=arguments.slow_call,
            max_cost=arguments.max_cost,
            ring_bytes=arguments.ring << 20,
            output=arguments.output,
        )
        streamed, state = _streams(arguments), StateReader(target)
        return Trace(
            target, wanted, options, streamed=streamed, measurement=measurement, state=state
        )
    from scope_ebpf.runs.budgeted import (
        BudgetedTrace,
        BudgetOptions,
    )

    within = BudgetOptions(arguments.duration, budget, arguments.via, arguments.slow_call)
    return BudgetedTrace(target, wanted, within, measurement)


def _finish(summary: Summary, output: TextIO, arguments: argparse.Namespace) -> None:
    """Write the document or the report; a stream's report goes to stderr."""
    from scope_ebpf.sinks.report import print_report

    streams = _streams(arguments)
    try:
        if arguments.format == "json":
            json.dump(summary.as_json(), output, indent=2)
            output.write("\n")
        else:
            print_report(summary, sys.stderr if streams else output)
        if not streams:
            output.flush()
    except BrokenPipeError:
        return
    except OSError as broken:
        raise output_error(broken, arguments.output) from broken
