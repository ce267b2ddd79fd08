# SPDX-License-Identifier: Apache-2.0
"""One Erlang process as text, for ``ps`` and for the details in ``top``."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from scope_ebpf.beam.processes.detail import MAX_MESSAGES
from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.sinks.plain import spelled

if TYPE_CHECKING:
    from collections.abc import Mapping

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
#: Those of the processes and ports behind them.
_RELATED = (
    ("linked to", "links"),
    ("watches", "monitors"),
    ("watchers", "watchers"),
    ("holds up", "suspends"),
    ("held up by", "suspended_by"),
)


def _pid(process: Mapping[str, Any]) -> str:
    """The pid, as Elixir writes it if the process runs a module of Elixir."""
    named = (process["name"], process["module"], process["initial_call"])
    elixir = any(str(name).startswith("Elixir.") for name in named)
    return f"{'#PID' * elixir}{process['pid']}"


def _waits_for(found: Mapping[str, Any] | None) -> list[str]:
    """For whom a process waits that has called a server."""
    if found is None:
        return []
    server = " ".join(filter(None, (found["server"], found["name"])))
    timeout = found["timeout_milliseconds"]
    until = "no timeout" if timeout is None else f"timeout {timeout:,} ms"
    asked = f"the reply of {server or 'a server'} to {found['request']}, {until}"
    return [f"  waits for     {escaped(spelled(asked))}"]


def _related(process: Mapping[str, Any]) -> list[str]:
    """Whom the process is linked to, watches, suspends, or is watched by."""
    made = []
    for label, key in _RELATED:
        found = process["related"].get(key)
        if found:
            names = ", ".join(
                " ".join(filter(None, (one["process"], one["name"] or one["initial_call"])))
                for one in found
            )
            more = (process[key] or len(found)) - len(found)
            rest = f" and {more:,} more" if more > 0 else ""
            made.append(f"  {label:<13} {escaped(spelled(names))}{rest}")
    return made


def _held(mailbox: Mapping[str, Any]) -> list[str]:
    """What the messages hold, where they hold anything."""
    if not mailbox["outside_bytes"]:
        return []
    about = "about " * mailbox["estimated"]
    binaries = f", {about}{mailbox['binary_bytes']:,} bytes of binaries"
    held = f"{about}{mailbox['outside_bytes']:,} bytes{binaries * bool(mailbox['binary_bytes'])}"
    return [f"  messages hold {held}"]


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
    text += _held(process["mailbox"])
    text += [f"  {label:<13} {process[key]:,}" for label, key in _RARE if process[key]]
    text += _related(process)
    text += _waits_for(process["waits_for"])
    if process["moved"]:
        moved = ", ".join(process["moved"])
        text.append(
            f"  moved         {moved}: changed each time it was read, and may be of two moments"
        )
    if process["messages"]:
        text.append(f"  first messages (their tags, at most {MAX_MESSAGES})")
        for shape, alike in groupby(process["messages"]):
            count = len(list(alike))
            times = f"{count} x " if count > 1 else ""
            text.append(f"    {times}{escaped(spelled(shape))}")
    text.append("  stack, innermost first")
    for frame in process["stack"]:
        location = f"  ({frame['location']})" if frame["location"] else ""
        text.append(escaped(f"    {spelled(frame['function'])}{location}"))
    return text
