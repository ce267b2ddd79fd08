# SPDX-License-Identifier: Apache-2.0
"""``scope-trace --pid PID``: what a VM does, for as long as a person watches."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import TYPE_CHECKING, TextIO

from scope_ebpf.attach.plan import DEFAULT_EVENTS
from scope_ebpf.beam.vm.state import StateReader
from scope_ebpf.cli.options import (
    COUNT_ALL,
    DEFAULT_BUDGET,
    above_zero,
    add_budget,
    add_count,
    add_events,
    add_format,
    add_hooks,
    add_interval,
    add_max_cost,
    add_output,
    interval,
    milliseconds,
    parse_events,
    ring_megabytes,
    time,
)
from scope_ebpf.cli.target import WordsError, add_target, find_vm, words_of
from scope_ebpf.errors import UsageError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.cost import CostMeasurement
from scope_ebpf.runs.filters import Filter
from scope_ebpf.runs.streaming import LazyStream
from scope_ebpf.runs.terminal import alone, open_output, output_error
from scope_ebpf.runs.trace import Trace, TraceOptions

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.summary import Summary
    from scope_ebpf.runs.budgeted import BudgetedTrace

#: Nice value of the process that measures the cost of a hit beside the VM.
_NICE = 10
#: Seconds of a trace where nothing else is asked for.
_DURATION = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a trace."""
    add_target(parser, "[INTERVAL [COUNT]]")
    parser.add_argument(
        "-d",
        "--duration",
        type=time,
        metavar="TIME",
        help=f"how long: 10, 10s, 500ms, 2m (default: {_DURATION:g}s, with --interval without "
        "end); 0 for as long as Ctrl-C lets it",
    )
    add_interval(parser, None, "a summary of each such time, a line for each (json: a document)")
    add_count(parser, "summaries; with --interval")
    add_events(parser, DEFAULT_EVENTS)
    formats = "text: a summary; json: one document; jsonl: one event a line"
    add_format(parser, "text", "json", "jsonl", text=formats)
    parser.add_argument("--stream", action="store_true", help="with text: a line for each event")
    add_output(parser)
    add_hooks(parser)
    _add_filters(parser)
    add_budget(parser)
    add_max_cost(parser)
    parser.add_argument(
        "--ring",
        type=ring_megabytes,
        default=16,
        metavar="MB",
        help="ring buffer for streamed events, a power of two (default: %(default)s)",
    )


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--process",
        metavar="WHO",
        help="count events of one Erlang process alone, by its pid or name, or of all that run one "
        "module; decided in the kernel, and everything of them is counted, as with --exact",
    )
    parser.add_argument(
        "--min-duration",
        type=milliseconds,
        metavar="TIME",
        help="gc and schedule count what takes so long or longer; a number alone is milliseconds. "
        "Everything of it is counted, as with --exact",
    )


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    vm = _take_words(arguments)
    host.require()
    wanted = parse_events(arguments.events)
    streams, budget = _streams(arguments), _budget(arguments, _only(arguments, wanted))
    if arguments.interval is not None and budget is not None:
        from scope_ebpf.cli.follow import follow

        follow(find_vm(vm), wanted, arguments, budget)
        return 0
    with contextlib.closing(CostMeasurement(_NICE if budget else 0)) as measurement:
        target = find_vm(vm)
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


def _take_words(arguments: argparse.Namespace) -> str | None:
    """TARGET; INTERVAL and COUNT, words as vmstat has them, become the options."""
    vm, words = words_of(arguments, "[INTERVAL [COUNT]]", most=2)
    try:
        parsers = (("interval", interval), ("count", above_zero))
        for (name, parse), word in zip(parsers, words, strict=False):
            if getattr(arguments, name) is not None:
                raise WordsError(f"--{name} is given twice: {word}")
            setattr(arguments, name, parse(word))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise WordsError(f"behind TARGET are INTERVAL and COUNT, such as 1s 10: {error}") from None
    if arguments.count is not None and arguments.interval is None:
        raise UsageError("--count is of summaries: say with --interval how long each takes")
    if arguments.interval is not None and arguments.budget == COUNT_ALL:
        raise UsageError("--interval has summaries within a --budget, not those of --exact")
    if arguments.interval is not None and arguments.stream:
        raise UsageError("--stream has a line for each event, and --interval one for each summary")
    return vm


def _streams(arguments: argparse.Namespace) -> bool:
    """Whether each event is written as a line."""
    if arguments.interval is not None:
        return False
    return arguments.format == "jsonl" or bool(arguments.stream)


def _only(arguments: argparse.Namespace, wanted: tuple[str, ...]) -> Filter:
    """What alone is counted; raises UsageError where it can be said of nothing that is wanted."""
    only = Filter(arguments.process, arguments.min_duration)
    if only.shortest_ms and not {"gc", "schedule"} & {*wanted}:
        raise UsageError("--min-duration is of gc and schedule; long_call has --slow-call")
    if only and arguments.interval is not None:
        raise UsageError(
            "--interval has summaries within a --budget; --process and --min-duration count "
            "everything of what they name: leave --interval out"
        )
    return only


def _budget(arguments: argparse.Namespace, only: Filter) -> float | None:
    """The budget of a run; None where everything is counted."""
    given: float | None = arguments.budget
    streams = _streams(arguments)
    if streams and given is not None:
        raise UsageError(
            "a stream has every event, so it keeps no --budget; --max-cost ends it where it costs "
            "the VM too much"
        )
    if only and given not in (None, COUNT_ALL):
        raise UsageError(
            "--process and --min-duration count everything of what they name, so they keep no "
            "--budget; --max-cost ends the run where it costs the VM too much"
        )
    if given is None:
        given = None if streams or only else DEFAULT_BUDGET
    return None if given == COUNT_ALL else given


def _trace(
    target: Target,
    wanted: tuple[str, ...],
    arguments: argparse.Namespace,
    budget: float | None,
    measurement: CostMeasurement,
) -> Trace | BudgetedTrace:
    """The run: one that counts every event, or one within the share *budget* of the VM's CPU."""
    seconds = _DURATION if arguments.duration is None else arguments.duration or None
    if budget is None:
        options = TraceOptions(
            duration=seconds,
            via=arguments.via,
            slow_call_ms=arguments.slow_call,
            max_cost=arguments.max_cost,
            ring_bytes=arguments.ring << 20,
            output=arguments.output,
            only=_only(arguments, wanted),
        )
        streamed, state = _streams(arguments), StateReader(target)
        return Trace(
            target, wanted, options, streamed=streamed, measurement=measurement, state=state
        )
    from scope_ebpf.runs.budgeted import (
        BudgetedTrace,
        BudgetOptions,
    )

    within = BudgetOptions(seconds, budget, arguments.via, arguments.slow_call)
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
