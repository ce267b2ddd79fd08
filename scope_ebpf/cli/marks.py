# SPDX-License-Identifier: Apache-2.0
"""``scope-trace marks``: calls of functions that ``scope-mark`` has marked."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import TYPE_CHECKING

from scope_ebpf.beam.code.functions import parse
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import above_zero, add_duration, add_format, add_max_cost, budget
from scope_ebpf.cli.target import add_target, find_vm, words_of
from scope_ebpf.errors import UsageError
from scope_ebpf.kernel import host
from scope_ebpf.runs.mark_hooks import CLASSES
from scope_ebpf.runs.mark_run import MarkOptions
from scope_ebpf.runs.marks import say_started, watch
from scope_ebpf.sinks.columns import wall_offset_ns
from scope_ebpf.sinks.marks import SORTS, call_line, lines
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from scope_ebpf.results.marks import MarkedCall

#: Patterns of a command line.
_MOST_PATTERNS = 64
#: The part of the VM's CPU that hooks may take, where nothing is said.
_BUDGET = 0.01
#: A function as Elixir writes it.
_ELIXIR = re.compile(r"[A-Z][^@]*\.[^.@]+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``marks``."""
    add_target(parser, "PATTERN...")
    parser.epilog = (
        "PATTERN is MODULE:FUNCTION/ARITY, * for anything; for Elixir 'MyApp.*:handle_*'. Without "
        "one, every marked function. Marks are written into compiled code by scope-mark."
    )
    add_duration(parser)
    parser.add_argument(
        "--class",
        dest="kind",
        choices=CLASSES,
        default="callbacks",
        help="which markers: those of callbacks, or of every marked function as well "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "-s",
        "--sort",
        choices=SORTS,
        default="calls",
        help="by calls, time in all calls, or failures (default: %(default)s)",
    )
    parser.add_argument(
        "--limit", type=above_zero, default=20, help="rows (default: %(default)s; all in JSON)"
    )
    parser.add_argument(
        "--budget",
        type=budget,
        metavar="SHARE",
        help="of the VM's CPU, what hooks may take: calls and durations are estimated from "
        "moments (default: 1%%); none counts everything",
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="a line for each call when it ends, then the table; counts everything; with jsonl in "
        "JSON, the document last",
    )
    add_max_cost(parser)
    add_format(parser, "text", "json", "jsonl")


def _lines_of(form: str) -> Callable[[MarkedCall], None]:
    """What prints each call on a line, in JSON if *form* is ``jsonl``."""
    offset = wall_offset_ns()

    def show(call: MarkedCall) -> None:
        if form == "jsonl":
            print(json.dumps(call.as_json(offset)), flush=True)
        else:
            say(call_line(call, offset), sys.stdout)

    return show


def _is_pattern(word: str) -> bool:
    """Whether a first word is a PATTERN and not TARGET: no name of a node is written like that."""
    return ":" in word or _ELIXIR.fullmatch(word) is not None


def run(arguments: argparse.Namespace) -> int:
    """Watch, then print; raises ScopeError."""
    if arguments.stream and arguments.format == "json":
        raise UsageError("--stream prints lines: --format jsonl has them in JSON")
    if arguments.stream and (arguments.budget or math.inf) <= 1:
        raise UsageError("--stream shows every call: it cannot keep a --budget, only a --max-cost")
    vm, words = words_of(arguments, "PATTERN...", most=_MOST_PATTERNS, is_own=_is_pattern)
    patterns = [parse(text) for text in words]
    host.require()
    target = find_vm(vm)
    share = math.inf if arguments.stream else arguments.budget or _BUDGET
    options = MarkOptions(arguments.duration, arguments.kind, share, arguments.max_cost)
    found, error = watch(
        target,
        patterns,
        options,
        lambda: say_started(target.pid, arguments.duration),
        _lines_of(arguments.format) if arguments.stream else None,
    )
    if arguments.format == "text":
        say("\n".join(lines(found, arguments.sort, arguments.limit)), sys.stdout)
    else:
        print_document(found.as_json(), arguments.format)
    if error:
        raise error
    return 0
