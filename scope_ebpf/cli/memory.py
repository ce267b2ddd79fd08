# SPDX-License-Identifier: Apache-2.0
"""``scope-trace memory``: where the memory of a VM is, and who holds it."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from typing import TYPE_CHECKING

from scope_ebpf.beam.held.memory import MemoryReader
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.memory_text import memory_lines
from scope_ebpf.cli.options import above_zero, add_duration, add_format
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.errors import ScopeError, UsageError
from scope_ebpf.runs.held import looks
from scope_ebpf.runs.memory import SORTS, Span, document
from scope_ebpf.sandbox.files import open_regular
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.results.documents.memory import MemoryDocument

#: A file of the daemon is smaller (daemon.blackbox.MOST_BYTES).
_MOST_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``memory``."""
    add_target(parser)
    parser.add_argument(
        "--from",
        dest="file",
        metavar="FILE",
        help="print what the daemon kept of a VM that was near the limit of its memory",
    )
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
    if arguments.file is not None:
        kept = read_snapshot(arguments.file)
        return _print(kept, arguments.format, f"kept at {_when(kept)}")
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
    return _print(document(span), arguments.format)


def _when(found: MemoryDocument) -> str:
    """When it was read, as ISO 8601 has it."""
    moment = dt.datetime.fromtimestamp(found["time"], dt.UTC)
    return moment.isoformat(timespec="seconds")


def _print(found: MemoryDocument, form: str, heading: str = "") -> int:
    if form == "text":
        say("\n".join([heading] * bool(heading) + memory_lines(found)), sys.stdout)
    else:
        print_document(found, form)
    return 0


def read_snapshot(path: str) -> MemoryDocument:
    """
    Read a file of the daemon, which may be any other file. Raises UsageError.

    A file is taken for a snapshot if it can be shown as one.
    """
    try:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_regular(root, os.path.realpath(path), most=_MOST_BYTES)
        finally:
            os.close(root)
        with os.fdopen(fd, "rb") as file:
            found: MemoryDocument = json.loads(file.read(_MOST_BYTES))
        memory_lines(found)
        _when(found)
    except (OSError, ScopeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read {path}: {why}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UsageError(f"{path} is no snapshot of a VM's memory") from None
    return found
