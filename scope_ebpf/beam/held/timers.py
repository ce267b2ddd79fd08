# SPDX-License-Identifier: Apache-2.0
"""
Timers of ``erlang:send_after`` and ``start_timer``, by the process that they will send to.

Each process has a tree of those that name it by its pid. A node counts if it is a timer of that
kind, active, and names the process whose tree it is in. Timers to registered names are in no such
tree.

Sources: erts/emulator/beam/erl_hl_timer.c (ErtsBifTimer and ErtsTmrHead, which are the same in
OTP-23.2.6, 24.0-rc0, 25.2.3, 27.3.4.1 and 29.1.1, so on both sides of 24, 26 and 28: their parts
are those of 64 bits), erl_process.h (bif_timers), erl_time.h and
erl_time_sup.c (ERTS_MONOTONIC_BEGIN, minit).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.memory.process_memory import column, cpu_seconds
from scope_ebpf.beam.processes.table import Field
from scope_ebpf.beam.vm.threads import uptime
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

#: The column of the process table that leads to them.
TIMERS = (Field("timers", "bif_timers", np.uint64),)
#: ErtsBifTimer: flags, receiver, when it is due (milliseconds of the VM's clock), state, children.
_FLAGS, _RECEIVER, _DUE, _STATE, _RIGHT, _LEFT, _SIZE = 0, 16, 24, 72, 96, 104, 112
#: ERTS_TMR_ROFLG_BIF_TMR and ERTS_TMR_ROFLG_REG_NAME.
_BIF, _REGISTERED = 1 << 12, 1 << 14
#: What the VM's own clock, in milliseconds, is when it begins.
_BEGIN = 1000
#: Timers of all processes that are read, and levels of a tree: a balanced one has fewer.
MOST, _LEVELS = 1 << 19, 64


class Timers(NamedTuple):
    """Timers by receiver; those with most of them first."""

    #: Where the receivers are in the rows of the look, shape ``(n,)``.
    rows: NDArray[np.int64]
    counts: NDArray[np.int64]
    #: Seconds until the first of each is due; less than 0 for one that waits for its scheduler.
    due: NDArray[np.float64]
    #: Nodes that changed while they were read.
    torn: int
    #: Whether there are more timers than MOST.
    cut: bool
    #: CPU seconds.
    seconds: float


def timers(target: Target, rows: NDArray[np.void]) -> Timers:
    """
    Count the timers for each process of *rows*, which have the columns TIMERS.

    Raises ReadRefusedError where most of what is read is no timer.
    """
    began = cpu_seconds()
    now = _BEGIN + 1000 * uptime(target.pid)
    counts = np.zeros(len(rows), np.int64)
    due = np.full(len(rows), np.inf)
    owners = np.flatnonzero(rows["timers"])
    nodes = rows["timers"][owners]
    left, torn = MOST, 0
    for _ in range(_LEVELS):
        nodes, owners = nodes[:left], owners[:left]
        left -= len(nodes)
        if not len(nodes):
            break
        raw, good = target.memory.gather(nodes, _SIZE)
        flags = column(raw, _FLAGS, np.uint32)
        good &= flags & np.uint32(_BIF | _REGISTERED) == _BIF
        good &= column(raw, _RECEIVER, np.uint64) == rows["pointer"][owners]
        good &= column(raw, _STATE, np.uint32) == 0
        torn += int((~good).sum())
        owners, raw = owners[good], raw[good]
        counts += np.bincount(owners, minlength=len(rows))
        np.minimum.at(due, owners, column(raw, _DUE, np.int64))
        nodes = np.concatenate([column(raw, at, np.uint64) for at in (_RIGHT, _LEFT)])
        owners = np.concatenate([owners, owners])[nodes != 0]
        nodes = nodes[nodes != 0]
    found = np.flatnonzero(counts)
    if torn > counts.sum():
        raise ReadRefusedError(
            f"process {target.pid}: most timers of its processes do not fit, so none is counted"
        )
    found = found[np.argsort(-counts[found], kind="stable")]
    seconds = (due[found] - now) / 1000
    return Timers(found, counts[found], seconds, torn, left == 0, cpu_seconds() - began)
