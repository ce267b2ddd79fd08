# SPDX-License-Identifier: Apache-2.0
"""Everything that can be read of one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf.beam.memory import column
from scope_ebpf.beam.processes import ALL, DETAIL, PRIORITY
from scope_ebpf.beam.sizes import LIMIT, ring, tree
from scope_ebpf.beam.walk import pointers, walk
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.code import Mfa
    from scope_ebpf.beam.view import Viewer

#: The columns that :func:`detail` needs.
FIELDS = (*ALL, *DETAIL)
#: Frames, words of stack and messages that are looked at.
MAX_FRAMES = 50
_MAX_STACK = 1 << 16
MAX_MESSAGES = 10
_WORD = 8
#: F_TRAP_EXIT and ERTS_PSFLG_OFF_HEAP_MSGQ (OTP-25.2.3 and 27.3.4.1 erl_process.h).
_TRAP_EXIT, _OFF_HEAP = 1 << 22, 1 << 24
_USER_PRIORITY = 2  # bits to the left


def detail(viewer: Viewer, rows: NDArray[np.void]) -> dict[str, Any]:
    """
    Describe one process, given as rows of shape ``(1,)`` with the columns FIELDS.

    Its message shapes are those of the messages that wait longest; a count of
    links or monitors is None where there are more than LIMIT. The VM keeps no
    time of birth, so there is no age.
    """
    row, target = rows[0], viewer.target
    described = viewer.describe(rows, 100 * LIMIT)[0]
    ancestors = viewer.names.dictionary(rows, "$ancestors")[0]
    counts = {
        name: _count(*walker(target, rows[name], LIMIT)[::3])
        for name, walker in (("links", tree), ("monitors", tree), ("watchers", ring))
    }
    old = int(row["old_hend"] - row["old_heap"]) // _WORD if row["old_heap"] else 0
    return described | {
        "priority": PRIORITY[int(row["state"]) >> _USER_PRIORITY & 3],
        "trap_exit": bool(row["flags"] & _TRAP_EXIT),
        "message_queue_data": "off_heap" if row["state"] & _OFF_HEAP else "on_heap",
        "old_heap_words": old,
        "fragment_words": int(row["fragment_words"]),
        "binary_bytes": _WORD * int(row["off_heap_words"] + row["old_binaries"]),
        "fullsweep_after": int(row["max_minor_gcs"]),
        "ancestors": viewer.terms.text(int(ancestors)) if ancestors else None,
        **counts,
        "messages": messages(viewer, row),
        "stack": [{"function": str(f), "location": f.location or None} for f in stack(viewer, row)],
    }


def stack(viewer: Viewer, row: np.void) -> list[Mfa]:
    """
    Walk the stack of a process, innermost function first.

    Like the VM's own: every word that may be an address of code and is one.
    A process that runs keeps its true stack in registers, so the stack is as
    of when it was last scheduled out.
    """
    if row["current"]:
        inner = viewer.code.location(int(row["pc"])) or viewer.code.mfa(int(row["current"]))
    else:
        inner = viewer.code.location(int(row["pc"]))
    frames = [inner] if inner else []
    size = min(int(row["stack_words"]), _MAX_STACK)
    try:
        words = viewer.target.memory.words(int(row["stop"]), size)
    except ReadRefusedError:
        return frames
    words = words[words & np.uint64(3) == 0]
    previous = int(row["pc"])
    for address in words[viewer.code.inside(words)].tolist():
        if address != previous and len(frames) < MAX_FRAMES:
            # A return address may be the start of the next function's code.
            frame = viewer.code.location(address - 1)
            frames += [frame] if frame else []
        previous = address
    return frames


def messages(viewer: Viewer, row: np.void) -> list[str]:
    """Tell the shapes of the first messages, in the order in which they wait."""
    layout, memory = viewer.target.layout, viewer.target.memory
    follow = pointers(layout.offset("ErtsMessage", "next"))
    body = layout.offset("ErtsMessage", "m")
    shapes: list[str] = []
    for queue in ("first_message", "middle_message", "outer_message"):
        nodes = walk(
            memory, np.array([row[queue]], np.uint64), body + _WORD, follow, 10 * MAX_MESSAGES
        ).nodes
        terms = column(nodes, body, np.uint64)
        # A header is a signal that is no message; 0 is one that nobody has decoded.
        for term in terms[(terms & np.uint64(3) != 0) | (terms == 0)].tolist():
            if len(shapes) < MAX_MESSAGES:
                shapes.append(viewer.terms.shape(term) if term else "not decoded yet")
    return shapes


def find(viewer: Viewer, wanted: str) -> NDArray[np.void]:
    """
    Find a process by ``<0.N.S>`` or by its registered name, shape ``(1,)``.

    Shape ``(0,)`` if there is no such process.
    """
    rows = viewer.table.snapshot().rows
    if wanted.startswith("<"):
        texts: list[str | None] = [*viewer.pids.texts(rows["id"])]
    else:
        texts = viewer.names.registered(rows)
    place = texts.index(wanted) if wanted in texts else None
    return rows[:0] if place is None else viewer.table.one(int(rows["id"][place]))


def _count(owners: NDArray[np.int64], whole: NDArray[np.bool_]) -> int | None:
    return len(owners) if whole.all() else None
