# SPDX-License-Identifier: Apache-2.0
"""``scope-trace ps``: everything that can be read of one Erlang process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from scope_ebpf.beam.processes.detail import FIELDS, MAX_MESSAGES, detail, find, near
from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import add_format
from scope_ebpf.cli.target import add_target, find_vm, words_of
from scope_ebpf.cli.trouble import Troubles
from scope_ebpf.errors import UsageError
from scope_ebpf.sinks.plain import plain, say, spelled
from scope_ebpf.suggestions import did_you_mean

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from scope_ebpf.results.documents.processes import PsDocument

#: The lines in their order: the label, the key, the unit.
_LINES = (
    ("name", "name", ""),
    ("label", "label", ""),
    ("status", "status", ""),
    ("why", "status_reason", ""),
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
    ("monitors", "monitors", ""),
    ("watched by", "watchers", ""),
    ("mailbox", "message_queue_len", " messages"),
)
#: Labels and keys that are shown if they are not 0.
_RARE = (
    ("aliases", "aliases"),
    ("suspends", "suspends"),
    ("suspended by", "suspended_by"),
    ("node monitors", "node_monitors"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ps``."""
    add_target(parser, "PROCESS")
    parser.epilog = "PROCESS is <0.N.S> or a registered name, as Erlang or Elixir write it."
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """Show the process; raises ScopeError."""
    vm, (process,) = words_of(arguments, "PROCESS", least=1, most=1)
    target = find_vm(vm)
    viewer = Viewer(target, FIELDS)
    rows = find(viewer, process)
    if not len(rows):
        raise UsageError(
            f"process {target.pid} has no Erlang process {escaped(process)}"
            f"{did_you_mean(map(escaped, near(viewer, process)))}: "
            f"`scope-trace top --pid {target.pid}` lists them; wanted is a pid such as <0.97.0> "
            "or a registered name such as my_server or MyApp.Worker"
        )
    described = detail(viewer, rows)
    trouble = None if arguments.format != "text" else Troubles(target, viewer).now()
    target.identity.check()
    if arguments.format != "text":
        document: PsDocument = {"schema": 1, "target": target.as_json(), "process": described}
        print_document(document, arguments.format)
        return 0
    if trouble:
        say(plain(trouble), sys.stdout)
    say("\n".join(lines(described)), sys.stdout)
    return 0


def _pid(process: Mapping[str, Any]) -> str:
    """The pid, as Elixir writes it if the process runs a module of Elixir."""
    named = (process["name"], process["module"], process["initial_call"])
    elixir = any(str(name).startswith("Elixir.") for name in named)
    return f"{'#PID' * elixir}{process['pid']}"


def lines(process: Mapping[str, Any]) -> list[str]:
    """Write one process, as ``beam.processes.detail`` describes it, line by line."""
    text = [_pid(process)]
    for label, key, unit in _LINES:
        value = "''" if process[key] == "" else process[key]  # a name may be empty
        if value is not None:
            about = "about " if key == "memory_bytes" and "memory_estimated" in process else ""
            shown = str(value).lower() if isinstance(value, bool) else spelled(str(value))
            number = f"{value:,}" if type(value) is int else escaped(shown)
            text.append(f"  {label:<13} {about}{number}{unit}")
    text += [f"  {label:<13} {process[key]:,}" for label, key in _RARE if process[key]]
    if process["moved"]:
        moved = ", ".join(process["moved"])
        text.append(
            f"  moved         {moved}: changed each time it was read, and may be of two moments"
        )
    if process["messages"]:
        text.append(f"  first messages (their tags, at most {MAX_MESSAGES})")
        text += [f"    {escaped(spelled(shape))}" for shape in process["messages"]]
    text.append("  stack, innermost first")
    for frame in process["stack"]:
        location = f"  ({frame['location']})" if frame["location"] else ""
        text.append(escaped(f"    {spelled(frame['function'])}{location}"))
    return text
