# SPDX-License-Identifier: Apache-2.0
"""``scope-trace memory``: where the memory of a VM is, and who holds it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from scope_ebpf.beam.held.memory import MemoryReader
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.held import pause
from scope_ebpf.cli.memory_text import memory_lines
from scope_ebpf.cli.options import Agreeing, above_zero, add_duration, add_format
from scope_ebpf.cli.snapshots import read_snapshot, when
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.errors import UsageError
from scope_ebpf.runs.held import looks
from scope_ebpf.runs.memory import SORTS, Span, beyond_rows, document
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.results.documents.memory import MemoryDocument

#: Lists of holders of a document.
_HOLDERS = ("newest_atoms", "processes", "binaries", "ets_tables")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``memory``."""
    add_target(parser)
    parser.add_argument(
        "--from",
        dest="file",
        metavar="FILE",
        help="print what the daemon kept of a VM that was near the limit of its memory",
    )
    add_duration(parser, "1s", action=Agreeing)
    parser.add_argument(
        "-s",
        "--sort",
        action=Agreeing,
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
        "--limit",
        action=Agreeing,
        type=above_zero,
        default=5,
        help="holders of each kind (default: %(default)s; with --from all that were kept)",
    )
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """Look twice, then print; raises ScopeError."""
    if arguments.file is not None:
        return _print_kept(arguments)
    seconds = pause(arguments, "memory", unseen="growth", instead="size")
    target = target_of(arguments)
    reader = MemoryReader(target, arguments.limit)
    first, second, seconds = looks(target, reader.read, seconds)
    before = None if second is None else first
    span = Span(target, second or first, before, seconds, arguments.limit, arguments.sort)
    return _print(document(span), arguments.format)


def _print_kept(arguments: argparse.Namespace) -> int:
    """Print a file of the daemon; raises UsageError for options of a look."""
    looking = {
        "TARGET": bool(arguments.words),
        "--pid": arguments.pid is not None,
        "--duration": hasattr(arguments, "duration_given_by"),
        "--sort": hasattr(arguments, "sort_given_by"),
        "--once": arguments.once,
    }
    given = [name for name, is_given in looking.items() if is_given]
    if given:
        raise UsageError(f"--from prints a look that was kept: leave out {' and '.join(given)}")
    found = read_snapshot(arguments.file)
    if hasattr(arguments, "limit_given_by"):
        found = _cut(found, arguments.limit)
    return _print(found, arguments.format, f"kept at {when(found)}")


def _cut(found: MemoryDocument, limit: int) -> MemoryDocument:
    """*found* with *limit* holders of each kind at most."""
    cut: dict[str, Any] = {**found}
    cut |= {name: cut[name][:limit] for name in _HOLDERS}
    cut["processes_beyond_rows_bytes"] = beyond_rows(found["kinds"]["processes"], cut["processes"])
    terms = found["persistent_terms"]
    if terms:
        cut["persistent_terms"] = {**terms, "largest": terms["largest"][:limit]}
    return cast("MemoryDocument", cut)


def _print(found: MemoryDocument, form: str, heading: str = "") -> int:
    if form == "text":
        say("\n".join([heading] * bool(heading) + memory_lines(found)), sys.stdout)
    else:
        print_document(found, form)
    return 0
