# SPDX-License-Identifier: Apache-2.0
"""``scope-trace ps``: everything that can be read of one Erlang process."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from scope_ebpf.beam import discover
from scope_ebpf.beam.detail import FIELDS, MAX_MESSAGES, detail, find
from scope_ebpf.beam.schedulers import Schedulers
from scope_ebpf.beam.shapes import escaped
from scope_ebpf.beam.view import Viewer
from scope_ebpf.errors import UsageError

if TYPE_CHECKING:
    import argparse

#: What is shown, in this order: the label, the key, the unit behind it.
_LINES = (
    ("name", "name", ""),
    ("label", "label", ""),
    ("status", "status", ""),
    ("in function", "current_function", ""),
    ("initial call", "initial_call", ""),
    ("behaviour", "behaviour", ""),
    ("module", "module", ""),
    ("parent", "parent", ""),
    ("ancestors", "ancestors", ""),
    ("group leader", "group_leader", ""),
    ("priority", "priority", ""),
    ("trap_exit", "trap_exit", ""),
    ("reductions", "reductions", ""),
    ("memory", "memory_bytes", " bytes"),
    ("heap", "heap_words", " words"),
    ("old heap", "old_heap_words", " words"),
    ("fragments", "fragment_words", " words"),
    ("stack", "stack_words", " words"),
    ("binaries", "binary_bytes", " bytes, off-heap"),
    ("minor GCs", "minor_gcs", " since the last major one"),
    ("links", "links", ""),
    ("monitors", "monitors", " in its tree, its own and by name"),
    ("watched by", "watchers", ""),
    ("mailbox", "message_queue_len", " messages"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ps``."""
    parser.add_argument("process", help="<0.N.S> or a registered name")
    parser.add_argument("--pid", type=int, required=True, help="the VM's process on this host")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    """Show the process; raises ScopeError."""
    target = discover.inspect(args.pid)
    viewer = Viewer(target, FIELDS)
    rows = find(viewer, args.process)
    if not len(rows):
        raise UsageError(
            f"process {target.pid} has no Erlang process {escaped(args.process)}: "
            f"`scope-trace top --pid {target.pid}` lists them"
        )
    described = detail(viewer, rows)
    trouble = None if args.format == "json" else Schedulers(target, viewer).trouble()
    target.identity.check()
    if args.format == "json":
        json.dump({"schema": 1, "target": target.as_json(), "process": described}, sys.stdout)
        print()
        return 0
    if trouble:
        print(trouble)
    print("\n".join(_text(described)))
    return 0


def _text(process: dict[str, Any]) -> list[str]:
    lines = [str(process["pid"])]
    for label, key, unit in _LINES:
        value = process[key]
        if value is not None:
            about = "about " if key == "memory_bytes" and "memory_estimated" in process else ""
            number = f"{value:,}" if type(value) is int else escaped(str(value))
            lines.append(f"  {label:<13} {about}{number}{unit}")
    if process["messages"]:
        lines.append(f"  first messages (their tags, at most {MAX_MESSAGES})")
        lines += [f"    {escaped(shape)}" for shape in process["messages"]]
    lines.append("  stack, innermost first")
    for frame in process["stack"]:
        place = f"  ({frame['location']})" if frame["location"] else ""
        lines.append(escaped(f"    {frame['function']}{place}"))
    return lines
