# SPDX-License-Identifier: Apache-2.0
"""``scope-trace stacks``: all processes of a VM, grouped by what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.held.stacks import KEYS, MOST_WORDS
from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.cli.documents import print_either
from scope_ebpf.cli.options import above_zero, add_format
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.runs.held_stacks import stacks_of
from scope_ebpf.sinks.plain import plain, short, spelled

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.results.documents.held import StackGroup, StacksDocument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``stacks``."""
    add_target(parser)
    parser.add_argument(
        "--by",
        choices=KEYS,
        default="stack",
        help="group by whole stack, initial call, function or label (default: %(default)s)",
    )
    parser.add_argument(
        "--limit", type=above_zero, default=10, help="groups (default: %(default)s)"
    )
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """Look once, then print; raises ScopeError."""
    found = stacks_of(target_of(arguments), arguments.by, arguments.limit)
    print_either(found, arguments.format, _lines)
    return 0


def _lines(document: StacksDocument) -> list[str]:
    target = document["target"]
    head = (
        f"{escaped(target['node'] or '?')}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{document['read']:,} processes in {document['groups_total']:,} groups by "
        f"{document['by']}"
    )
    lines = [head]
    for group in document["groups"]:
        lines += ["", *_written(group)]
    left = document["groups_total"] - len(document["groups"])
    if left > 0:
        lines += ["", f"and {left:,} groups more"]
    if document["moved"]:
        lines.append(f"{document['moved']:,} processes ran meanwhile, and have no stack")
    if document["torn"]:
        lines.append(f"{document['torn']:,} processes changed too fast to be read")
    return [plain(line) for line in [*lines, *document["notes"]]]


def _written(group: StackGroup) -> list[str]:
    messages = f", {short(group['messages'])} messages" if group["messages"] else ""
    label = "" if group["label"] is None else f"label {escaped(group['label'])}: "
    head = (
        f"{label}{group['count']:,} processes such as {group['example']}, "
        f"{escaped(spelled(group['initial_call'] or '?'))}: "
        f"{short(group['heap_bytes'])} bytes of heaps{messages}"
    )
    lines = [head]
    for depth, frame in enumerate(group["stack"]):
        where = f"  ({escaped(frame['location'])})" if frame["location"] else ""
        function = escaped(spelled(frame["function"]))
        lines.append(f"    called by {function}{where}" if depth else f"    in {function}{where}")
    if group["cut"]:
        lines.append(f"    (further frames lie beyond the first {MOST_WORDS} words)")
    return lines
