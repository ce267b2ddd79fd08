# SPDX-License-Identifier: Apache-2.0
"""``scope-trace --pid PID``: what a VM does, for as long as a person watches."""

from __future__ import annotations

import contextlib
import json
import sys
from functools import cached_property
from typing import TYPE_CHECKING, TextIO

from scope_ebpf.attach.plan import DEFAULT_EVENTS
from scope_ebpf.beam.memory.terms import PID_TAG
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.term_text import TermText
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.beam.vm.state import StateReader
from scope_ebpf.cli.options import (
    COUNT_ALL,
    DEFAULT_BUDGET,
    add_budget,
    add_duration,
    add_events,
    add_force,
    add_hooks,
    add_max_cost,
    parse_events,
    ring_megabytes,
)
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError, ScopeError, UsageError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.cost import Aside
from scope_ebpf.runs.terminal import alone, open_output, output_error
from scope_ebpf.runs.trace import Trace
from scope_ebpf.sinks.stream import Stream

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.summary import Summary
    from scope_ebpf.runs.budgeted import BudgetedTrace
    from scope_ebpf.sinks.stream import Style


#: The price of a hit is measured beside the VM, which should not feel it.
_NICE = 10


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    host.require()
    wanted = parse_events(arguments.events)
    streams = arguments.format == "jsonl" or arguments.stream
    within = _budget(arguments, streams=streams)
    with contextlib.closing(Aside(_NICE if within else 0)) as aside:
        target = inspect(arguments.pid)
        with (
            open_output(arguments.output, force=arguments.force, whole=not streams) as output,
            alone(target.pid) as notes,
        ):
            arguments.budget = within
            trace: Trace | BudgetedTrace
            if within is None:
                state = StateReader(target)
                trace = Trace(target, wanted, arguments, streamed=streams, aside=aside, state=state)
            else:
                from scope_ebpf.runs.budgeted import BudgetedTrace  # noqa: PLC0415 - not for streams

                trace = BudgetedTrace(target, wanted, arguments, aside)
            trace.notes += notes
            if isinstance(trace, Trace):
                lines = _Lines(lambda: _stream(target, output, wanted, arguments.format))
                error = trace.run(lines, ready=lines.ready) if streams else trace.run(None)
            else:
                error = trace.run()
            _finish(trace.summary(), output, arguments)
    if error:
        raise error
    return 0


def _budget(arguments: argparse.Namespace, *, streams: bool) -> float | None:
    """The budget of a run; None where everything is counted."""
    given: float | None = arguments.budget
    if streams and given is not None:
        raise UsageError(
            "a stream has every event, so it keeps no --budget; --max-cost ends it where it costs "
            "the VM too much"
        )
    if given is None:
        given = None if streams else DEFAULT_BUDGET
    return None if given == COUNT_ALL else given


class _Lines:
    """A stream that is made when there is time for it, or at its first line."""

    def __init__(self, make: Callable[[], Stream]) -> None:
        self._make = make

    @cached_property
    def _stream(self) -> Stream:
        return self._make()

    def ready(self) -> None:
        """Make it, unless it is made."""
        _ = self._stream

    def write(self, records: NDArray[np.void]) -> None:
        """See ``Stream.write``."""
        self._stream.write(records)


def _stream(target: Target, output: TextIO, wanted: Collection[str], form: Style) -> Stream:
    """A line for each event, with the names of this VM."""
    called = None
    if "long_call" in wanted:
        from scope_ebpf.beam.code.tables import CodeMap  # noqa: PLC0415
        from scope_ebpf.beam.processes.called import CalledNames  # noqa: PLC0415 - only for long calls

        with contextlib.suppress(ReadRefusedError):
            called = CalledNames(target, CodeMap(target, Atoms(target)))
    return Stream(output, TermText(target), form, names_of(target), called=called)


#: Processes that are looked up for one batch of lines: a storm of spawns must not stop the reader.
_LOOKUPS = 64


def names_of(target: Target) -> Callable[[list[int]], dict[int, str | None]] | None:
    """What names processes in a stream; None where the VM's tables cannot be read."""
    from scope_ebpf.beam.code.tables import CodeMap  # noqa: PLC0415 - only for a stream
    from scope_ebpf.beam.processes.labels import Labels  # noqa: PLC0415

    try:
        atoms = Atoms(target)
        labels = Labels(target, atoms, CodeMap(target, atoms))
        # The first process: what names come from is read with its own, and stays known.
        labels.label(PID_TAG)
    except (ReadRefusedError, NoSuchProcessError):
        return None

    def who(pids: list[int]) -> dict[int, str | None]:
        # A target that has ended has no names any more; its events are still told.
        with contextlib.suppress(ScopeError):
            return {pid: label.who for pid, label in labels.labels(pids, _LOOKUPS).items()}
        return {}

    return who


def _finish(summary: Summary, output: TextIO, arguments: argparse.Namespace) -> None:
    """The last words: the document, or the report; a stream's report goes to stderr."""
    from scope_ebpf.sinks.report import print_report  # noqa: PLC0415 - rich is slow to import

    streams = arguments.format == "jsonl" or arguments.stream
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a trace."""
    parser.add_argument("--pid", type=int, required=True, help="the VM's process")
    add_duration(parser)
    add_events(parser, DEFAULT_EVENTS)
    parser.add_argument(
        "--format",
        choices=["text", "json", "jsonl"],
        default="text",
        help="text: a summary; json: one document; jsonl: one event a line (default: %(default)s)",
    )
    parser.add_argument("--stream", action="store_true", help="with text: a line for each event")
    parser.add_argument("--output", metavar="FILE", help="write there instead of standard output")
    add_force(parser)
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
