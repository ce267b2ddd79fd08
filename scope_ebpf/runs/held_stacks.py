# SPDX-License-Identifier: Apache-2.0
"""All processes of a VM, grouped by what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from scope_ebpf.beam.held.stacks import MOST_GROUPS, MOST_LABELS, StackReader
from scope_ebpf.runs.held import looks

if TYPE_CHECKING:
    from typing import Literal

    from scope_ebpf.beam.held.stacks import Group
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.held import StackGroup, StacksDocument


def stacks_of(target: Target, by: str, limit: int) -> StacksDocument:
    """The *limit* largest groups *by* one of ``beam.held.stacks.KEYS``; raises ScopeError."""
    reader = StackReader(target)
    reading, _, _ = looks(target, lambda: reader.read(by), 0.0)
    notes = []
    if reading.others:
        labels = f" or the first {MOST_LABELS:,} labels" if by == "label" else ""
        notes.append(
            f"{reading.others:,} processes are in none of the first {MOST_GROUPS:,} groups{labels} "
            "that were met, and are not shown"
        )
    return {
        "schema": 1,
        "target": target.as_json(),
        "by": cast("Literal['stack', 'call', 'function', 'label']", by),
        "processes_total": reading.total,
        "read": reading.read,
        "torn": reading.torn,
        "moved": reading.moved,
        "groups_total": len(reading.groups),
        "seconds": round(reading.seconds, 3),
        "groups": [_group(reader, group, by) for group in reading.groups[:limit]],
        "notes": notes,
    }


def _group(reader: StackReader, group: Group, by: str) -> StackGroup:
    frames = reader.frames(group) if by in ("stack", "function") else []
    return {
        "count": group.count,
        "initial_call": str(group.call) if group.call else None,
        "label": group.label,
        "stack": [
            {"function": str(frame), "location": frame.location or None}
            for frame in frames[: 1 if by == "function" else None]
        ],
        "cut": group.cut and by == "stack",
        "messages": group.messages,
        "heap_bytes": group.bytes,
        "example": reader.viewer.pids.text(group.example),
    }
