# SPDX-License-Identifier: Apache-2.0
"""``scope-trace memory``: where the memory of a VM is, and who holds it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scope_ebpf.beam.held.memory import MemoryReader
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.memory_text import memory_lines
from scope_ebpf.cli.options import above_zero, add_duration, add_format
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.errors import UsageError
from scope_ebpf.runs.held import looks
from scope_ebpf.runs.memory import SORTS, Span, document
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``memory``."""
    add_target(parser)
    add_duration(parser, "1s")
    parser.add_argument(
        "-s",
        "--sort",
        choices=SORTS,
        default="size",
        help="holders by size, or by growth between the looks (default: %(default)s)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="look once, which shows no growth",
    )
    parser.add_argument(
        "--limit", type=above_zero, default=5, help="holders of each kind (default: %(default)s)"
    )
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """Look twice, then print; raises ScopeError."""
    duration: float | None = arguments.duration
    if duration is None:
        raise UsageError("memory looks twice: say how long after the first, such as --duration 1s")
    if arguments.once and arguments.sort == "growth":
        raise UsageError("one look shows no growth: leave out --once, or sort by size")
    target = target_of(arguments)
    reader = MemoryReader(target, arguments.limit)
    first, second, seconds = looks(target, reader.read, 0.0 if arguments.once else duration)
    before = None if second is None else first
    span = Span(target, second or first, before, seconds, arguments.limit, arguments.sort)
    found = document(span)
    if arguments.format == "text":
        say("\n".join(memory_lines(found)), sys.stdout)
    else:
        print_document(found, arguments.format)
    return 0
