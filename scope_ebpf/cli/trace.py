# SPDX-License-Identifier: Apache-2.0
"""``scope-trace --pid PID``: what a VM does, for as long as a person watches."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, TextIO

from scope_ebpf import events
from scope_ebpf.beam.atoms import Atoms
from scope_ebpf.beam.discover import inspect
from scope_ebpf.beam.term_text import TermText
from scope_ebpf.cli.surroundings import alone, open_output, output_error
from scope_ebpf.cli.tracing import Trace
from scope_ebpf.errors import ReadRefusedError, ScopeError, UsageError
from scope_ebpf.kernel import host
from scope_ebpf.plan import DEFAULT_EVENTS, EVENTS
from scope_ebpf.sinks.stream import Stream

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from scope_ebpf.beam.target import Target
    from scope_ebpf.summary import Summary


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    host.require()
    wanted = parse_events(arguments.events)
    target = inspect(arguments.pid)
    streams = arguments.format == "jsonl" or arguments.stream
    with open_output(arguments.output) as output, alone(target.pid) as notes:
        trace = Trace(target, wanted, arguments, streamed=streams)
        trace.notes += notes
        who = names_of(target) if streams else None
        sink = Stream(output, TermText(target), arguments.format, who) if streams else None
        error = trace.run(sink)
        error = _finish(trace.summary(), output, arguments) or error
    if error:
        raise error
    return 0


#: Processes that are looked up for one batch of lines: a storm of spawns must not stop the reader.
_LOOKUPS = 64


def names_of(target: Target) -> Callable[[list[int]], dict[int, str | None]] | None:
    """What names processes in a stream; None where the VM's tables cannot be read."""
    from scope_ebpf.beam.code import CodeMap  # noqa: PLC0415 - only for a stream
    from scope_ebpf.labels import Labels  # noqa: PLC0415

    try:
        atoms = Atoms(target)
        labels = Labels(target, atoms, CodeMap(target, atoms))
    except ReadRefusedError:
        return None

    def who(pids: list[int]) -> dict[int, str | None]:
        # A target that has ended has no names any more; its events are still told.
        with contextlib.suppress(ScopeError):
            return {pid: label.who for pid, label in labels.labels(pids, _LOOKUPS).items()}
        return {}

    return who


def parse_events(text: str | None) -> tuple[str, ...]:
    """The events that a comma-separated list names; None means the default ones."""
    if text is None:
        return DEFAULT_EVENTS
    if text == "all":
        return EVENTS
    wanted = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in wanted if name not in EVENTS]
    if unknown or not wanted:
        raise UsageError(
            f"no such event: {', '.join(unknown) or '(none given)'}; "
            f"there are: all, {', '.join(EVENTS)}"
        )
    return wanted


def _finish(summary: Summary, output: TextIO, arguments: argparse.Namespace) -> ScopeError | None:
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
        return None
    except OSError as broken:
        return output_error(broken, arguments.output)
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a trace."""
    parser.add_argument("--pid", type=int, required=True, help="the VM's process")
    parser.add_argument(
        "--duration",
        type=positive,
        default=10.0,
        metavar="SECONDS",
        help="how long (default: %(default)g); 0 for as long as Ctrl-C lets it",
    )
    parser.add_argument(
        "--events",
        metavar="LIST",
        help=f"comma-separated, of: all, {', '.join(events.KINDS)} "
        f"(default: all but {', '.join(e for e in EVENTS if e not in DEFAULT_EVENTS)})",
    )
    parser.add_argument(
        "--format",
        choices=["text", "json", "jsonl"],
        default="text",
        help="text: a summary; json: one document; jsonl: one event a line (default: %(default)s)",
    )
    parser.add_argument("--stream", action="store_true", help="with text: a line for each event")
    parser.add_argument("--output", metavar="FILE", help="write there instead of standard output")
    parser.add_argument(
        "--via",
        choices=["auto", "symbol", "usdt"],
        default="auto",
        help="take this kind of hook only (default: the cheaper one of what is there)",
    )
    parser.add_argument(
        "--slow-call",
        type=positive,
        metavar="MS",
        help="long_call counts NIFs and BIFs of this many milliseconds or more (default: 1)",
    )
    parser.add_argument(
        "--ring",
        type=ring_megabytes,
        default=16,
        metavar="MB",
        help="ring buffer for streamed events, a power of two (default: %(default)s)",
    )


def positive(text: str) -> float | None:
    """A number of 0 or more; 0 means without end."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value or None


def ring_megabytes(text: str) -> int:
    """A power of two from 1 to 1024."""
    value = int(text)
    if value not in [1 << n for n in range(11)]:
        raise ValueError(text)
    return value
