# SPDX-License-Identifier: Apache-2.0
"""
Why a process that does not wait for a message does not run.

A suspended one is in a list of what it waits for: a port, the connection to a node
(OTP-25.2.3 erts/emulator/beam/erl_port.h and erl_node_tables.h, *suspended*), or has a monitor of
the process that suspended it. A runnable one is in a run queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.layouts.checks import check_ports, port_addresses, schedulers
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import PortCodec
from scope_ebpf.beam.processes.monitors import suspenders
from scope_ebpf.beam.processes.table import ACTIVE_SYS, DIRTY_ACTIVE_SYS, statuses
from scope_ebpf.beam.vm.connections import MOST, ConnectionReader, waiters
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.memory.moment import Moment
    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.beam.vm.target import Target

#: ERTS_PSFLG_IN_RUNQ, and those that say that it waits for a dirty scheduler, which a system task
#: comes before (OTP-25.2.3 erts/emulator/beam/erl_process.h and, for the order, in erl_process.c
#: check_dirty_enqueue_in_prio_queue; the same in OTP 24 to 29).
_QUEUED = 1 << 14
_DIRTY = {"dirty_cpu": 1 << 26 | DIRTY_ACTIVE_SYS, "dirty_io": 1 << 27}
#: A pointer to a run queue, and a slot of a table, may have flags below.
_FLAGS = 7
#: Slots of a port table that are read.
_MOST_PORTS = 1 << 20
_MAX_NAME = 64
_WORD = 8


def status_reason(viewer: Viewer, moment: Moment) -> str | None:
    """
    Say why the process of *moment* is suspended, or where it waits for its turn.

    None for every other status, and where the memory does not show it or it has changed meanwhile.
    """
    rows = moment.rows
    (status,) = statuses(rows["state"])
    if status not in ("suspended", "runnable"):
        return None
    try:
        suspended = status == "suspended"
        said = _suspended(viewer, moment) if suspended else _queued(viewer.target, rows[0])
        after = viewer.table.one(int(rows["id"][0]))
    except ReadRefusedError:
        return None
    return said if statuses(after["state"]) == [status] else None


def _suspended(viewer: Viewer, moment: Moment) -> str | None:
    target, pid = viewer.target, int(moment.rows["id"][0])
    found = [f"by {_who(viewer, by)}" for by in suspenders(target, moment.watchers.nodes)]
    # "Nothing was found" is certain only if all was read.
    whole = bool(moment.watchers.whole.all())
    try:
        port = _port(target, pid)
        if port is not None:
            found.append(f"waits for port {port}, which is busy")
    except ReadRefusedError:
        whole = False
    try:
        node = ConnectionReader(target).waited_for(pid)
        if node is not None:
            name = viewer.atoms.text(node[0])
            found.append(f"waits for the connection to {name}, which has {node[1]:,} bytes to send")
    except ReadRefusedError:
        whole = False
    return ", ".join(found) or (
        "by nobody and for nothing that the memory shows" if whole else None
    )


def _who(viewer: Viewer, pid: int) -> str:
    """Write a pid, with the name or initial call of its process."""
    text = str(viewer.pids.text(pid))
    rows = viewer.table.one(pid)
    if not len(rows):
        return text
    name = viewer.names.registered(rows)[0] or viewer.names.initial_calls(rows)[0]
    return f"{text} {name}" if name else text


def _port(target: Target, pid: int) -> str | None:
    """Find the port that the process *pid* waits for; its name is that of its driver or program."""
    memory, layout = target.memory, target.layout
    check_ports(target)
    ports = port_addresses(target, _MOST_PORTS)
    raw, read = memory.gather(ports + np.uint64(layout.offset("Port", "suspended")), _WORD)
    lists, left = column(raw, 0, np.uint64), MOST
    for row in np.flatnonzero(read & (lists != 0)).tolist():
        found = waiters(memory, int(lists[row]), left)
        left -= len(found)
        if pid in found:
            port = int(ports[row])
            name = _text(target, memory.u64(port + layout.offset("Port", "name")))
            return f"{PortCodec.of(target).text(memory.u64(port))} ({name})"
    return None


def _text(target: Target, address: int) -> str:
    raw = target.memory.read(address, _MAX_NAME).partition(b"\0")[0]
    return raw.decode("utf-8", "replace")


def _queued(target: Target, row: np.void) -> str | None:
    """Return the run queue that it is in, and the queue's length."""
    state, memory, layout = int(row["state"]), target.memory, target.layout
    if not state & _QUEUED:
        return None
    dirty = () if state & ACTIVE_SYS else _DIRTY.items()
    kind = next((kind for kind, flags in dirty if state & flags), None)
    if kind is None:
        at = int(row["pointer"]) + layout.offset("Process", "run_queue")
    else:
        first = int(schedulers(target)[kind][0])
        at = first + layout.offset("ErtsSchedulerData", "run_queue")
    queue = memory.u64(at) & ~_FLAGS
    length = memory.u32(queue + layout.offset("ErtsRunQueue", "len"))
    whose = kind or f"normal {memory.u32(queue + layout.offset('ErtsRunQueue', 'ix')) + 1}"
    return f"in the run queue of {whose}, with {length} in it"
