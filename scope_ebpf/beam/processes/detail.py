# SPDX-License-Identifier: Apache-2.0
"""Everything that can be read of one process."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

import numpy as np

from scope_ebpf.arrays import distinct
from scope_ebpf.beam.memory.moment import HEAPS, MAX_MESSAGES, Moment, moments, stood
from scope_ebpf.beam.memory.terms import PortCodec, is_pid
from scope_ebpf.beam.processes.monitors import counts, related
from scope_ebpf.beam.processes.reasons import status_reason
from scope_ebpf.beam.processes.table import ALL, DETAIL, PRIORITY
from scope_ebpf.beam.servers.waiting import calls, of_stack
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.suggestions import bare, close

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.code.tables import Mfa
    from scope_ebpf.beam.memory.moment import Message
    from scope_ebpf.beam.memory.walk import Walk
    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.results.documents.processes import ProcessDetail, Related, WaitsFor

__all__ = ["FIELDS", "MAX_MESSAGES", "PID", "detail", "find", "frames", "near"]

#: The columns that :func:`detail` needs.
FIELDS = (*ALL, *DETAIL)
#: A pid of the VM itself, as Erlang, Elixir or a person writes it.
PID = re.compile(r"(?:#PID)?<?(\d+\.\d+\.\d+)>?")
#: Frames that are shown, and processes that one is linked to or has a monitor with, of each kind.
MAX_FRAMES, MAX_RELATED = 50, 10
_WORD = 8
#: F_TRAP_EXIT and ERTS_PSFLG_OFF_HEAP_MSGQ (OTP-25.2.3 and 27.3.4.1 erl_process.h).
_TRAP_EXIT, _OFF_HEAP = 1 << 22, 1 << 24
_USER_PRIORITY = 2  # bits to the left
#: Fields that must not change while terms on the heap are written as text.
_NAMES = ("dictionary", *HEAPS)


def detail(viewer: Viewer, rows: NDArray[np.void]) -> ProcessDetail:
    """
    Describe the process of *rows*, shape ``(1,)``, with the columns FIELDS, as it is now.

    All of it is of one moment, but for what ``moved`` names: that changed each time it was read.
    Its message shapes are those of the messages that wait longest; a count of links or monitors
    is None where there are more than LIMIT. The VM keeps no time of birth, so there is no age.
    Raises ReadRefusedError where the process has ended.
    """
    best: Moment | None = None
    for moment in moments(viewer, rows):
        if best is None or len(moment.moved) < len(best.moved):
            best = moment
        if not moment.moved:
            found = _describe(viewer, moment)
            if not found["moved"]:
                return found
    if best is None:
        raise ReadRefusedError("the process has ended")
    return _describe(viewer, best)


def _describe(viewer: Viewer, moment: Moment) -> ProcessDetail:
    rows, row = moment.rows, moment.rows[0]
    sizes = viewer.sizes(rows)
    described = viewer.describe(rows, sizes=sizes)[0]
    ancestors = viewer.names.dictionary(rows, "$ancestors")[0]
    named = viewer.terms.text(int(ancestors)) if ancestors else None
    moved = moment.moved
    if not stood(rows, viewer.table.one(int(row["id"])), _NAMES):
        moved = (*moved, "names")
    old = int(row["old_hend"] - row["old_heap"]) // _WORD if row["old_heap"] else 0
    found = dict(described) | {
        "priority": PRIORITY[int(row["state"]) >> _USER_PRIORITY & 3],
        "trap_exit": bool(row["flags"] & _TRAP_EXIT),
        "message_queue_data": "off_heap" if row["state"] & _OFF_HEAP else "on_heap",
        "old_heap_words": old,
        "fragment_words": int(row["fragment_words"]),
        "fullsweep_after": int(row["max_minor_gcs"]),
        "ancestors": named,
        "status_reason": status_reason(viewer, moment),
        "waits_for": _waits_for(viewer, moment),
        **_counts(viewer, moment),
        "related": _related(viewer, moment),
        "mailbox": {
            "outside_bytes": int(sizes.mailboxes.bytes[0]),
            "binary_bytes": int(sizes.mailboxes.binaries[0]),
            "estimated": not (sizes.mailboxes.whole[0] and sizes.exact[0]),
        },
        "messages": [_message(viewer, message) for message in moment.messages],
        "stack": [
            {"function": str(frame), "location": frame.location or None}
            for frame in frames(viewer, moment)
        ],
        "moved": list(moved),
    }
    return cast("ProcessDetail", found)


def frames(viewer: Viewer, moment: Moment) -> list[Mfa]:
    """
    Name the frames of a stack, innermost first.

    Like the VM's own: every word that may be an address of code and is one. In a native function
    only the function that the VM noted before the call is current; the instruction pointer is from
    when the process last left a scheduler.
    """
    row = moment.rows[0]
    inner = viewer.code.mfa(int(row["current"])) if row["current"] else None
    if not moment.native:
        inner = viewer.code.location(int(row["pc"])) or inner
    found = [inner] if inner else []
    words = moment.stack[moment.stack & np.uint64(3) == 0]
    previous = 0 if moment.native else int(row["pc"])
    for address in words[viewer.code.inside(words)].tolist():
        if address != previous and len(found) < MAX_FRAMES:
            # A return address may be the start of the next function's code.
            frame = viewer.code.location(address - 1)
            found += [frame] if frame else []
        previous = address
    return found


def _waits_for(viewer: Viewer, moment: Moment) -> WaitsFor | None:
    """Whose reply the process waits for, if it has called a server."""
    row = moment.rows[0]
    if not calls(viewer.names.current_functions(moment.rows)[0]):
        return None
    found = of_stack(viewer, int(row["id"]), moment.stack, {})
    if found is None:
        return None
    return {
        "server": None if found.server is None else viewer.pids.text(found.server),
        "name": found.name,
        "request": found.request,
        "timeout_milliseconds": found.timeout,
    }


def _counts(viewer: Viewer, moment: Moment) -> dict[str, int | None]:
    """Count links and monitors; None where they were not all read."""
    tree, ring = moment.monitors, moment.watchers
    found = counts(viewer.target, tree.nodes, ring.nodes)
    whole = bool(tree.whole.all()), bool(tree.whole.all() and ring.whole.all())
    return {
        "links": _count(moment.links),
        "monitors": found.monitors if whole[0] else None,
        "watchers": found.watchers if whole[1] else None,
        "aliases": found.aliases if whole[0] else None,
        "suspends": found.suspends if whole[0] else None,
        "suspended_by": found.suspended_by if whole[1] else None,
        "node_monitors": found.nodes if whole[0] else None,
    }


def _related(viewer: Viewer, moment: Moment) -> dict[str, list[Related] | None]:
    """The first of those that the process is linked to, watches, suspends, or is watched by."""
    target = viewer.target
    nodes = moment.monitors.nodes, moment.watchers.nodes, moment.links.nodes
    found = {
        name: None if terms is None else terms[:MAX_RELATED].tolist()
        for name, terms in related(target, *nodes).items()
    }
    pids = [term for terms in found.values() for term in terms or () if is_pid(term)]
    slots = distinct(viewer.table.slots_of(np.array(pids, np.uint64)))
    rows = viewer.table.at(slots).rows
    named = viewer.names.registered(rows), viewer.names.initial_calls(rows)
    known = dict(zip(rows["id"].tolist(), zip(*named, strict=True), strict=True))
    ports = PortCodec.of(target)

    def text(term: int) -> Related:
        name, call = known.get(term, (None, None))
        who = viewer.pids.text(term) if is_pid(term) else ports.text(term)
        return {"process": who, "name": name, "initial_call": str(call) if call else None}

    return {
        name: None if terms is None else list(map(text, terms)) for name, terms in found.items()
    }


def _count(walk: Walk) -> int | None:
    return len(walk.owners) if walk.whole.all() else None


def _message(viewer: Viewer, message: Message) -> str:
    return viewer.terms.shape(*message) if message.term else "not decoded yet"


def find(viewer: Viewer, wanted: str) -> NDArray[np.void]:
    """
    Find a process by its pid or by its registered name, shape ``(1,)``.

    Both as Erlang or Elixir write them: ``<0.97.0>``, ``#PID<0.97.0>``, ``0.97.0``; ``my_name``,
    ``'my name'``, ``MyApp.Worker``. Shape ``(0,)`` if there is no such process.
    """
    rows = viewer.table.snapshot().rows
    pid = PID.fullmatch(wanted)
    if pid:
        texts: list[str | None] = [*viewer.pids.texts(rows["id"])]
        spelled = [f"<{pid[1]}>"]
    else:
        texts = viewer.names.registered(rows)
        spelled = [wanted, f"Elixir.{wanted}"]
        if len(wanted) > 1 and wanted[0] == wanted[-1] == "'":
            spelled.append(wanted[1:-1])
    index = next((texts.index(name) for name in spelled if name in texts), None)
    return rows[:0] if index is None else viewer.table.one(int(rows["id"][index]))


def near(viewer: Viewer, wanted: str) -> list[str]:
    """Registered names that are like *wanted*, as Elixir or Erlang write them."""
    if PID.fullmatch(wanted):
        return []
    registered = viewer.names.registered(viewer.table.snapshot().rows)
    return [bare(name) for name in close(wanted.strip("'"), filter(None, registered))]
