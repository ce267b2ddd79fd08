# SPDX-License-Identifier: Apache-2.0
"""How the kernel scheduled the threads of the VM, as Perfetto knows it of any trace."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.capture.facts import PID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.sinks.perfetto.tracks import Tracks

#: The kernel's states of a thread that all kernels have alike (include/linux/sched.h).
_STATES = 0x7F
#: Priority of a thread with nice 0, in the kernel's numbers: the actual one is not recorded.
_PRIORITY = 120
#: CPUs whose running thread is stored; Linux has 8,192 at most.
_MOST_CPUS = 1 << 16
_OFF, _WOKEN = (events.KINDS["thread"].classes.index(name) for name in ("off", "woken"))


class Threads:
    """Writes what the kernel did with the threads *tids*."""

    def __init__(self, tracks: Tracks, tids: set[int]) -> None:
        self._tracks = tracks
        self._file = tracks.file
        self._tids = tids
        self._cpus: dict[int, int] = {}

    def write(self, batch: NDArray[np.void]) -> None:
        """Write the switches and wakeups of a batch."""
        rows = batch[batch["kind"] == events.KINDS["thread"].id].view(events.RECORDS["thread"])
        by_cpu: dict[int, list[tuple[int, int, str, Any]]] = defaultdict(list)
        columns = [rows[name].tolist() for name in ("time_ns", "class", "cpu", "state")]
        columns += [np.minimum(rows[name], PID).tolist() for name in ("tid", "other")]
        for time, cls, cpu, state, tid, other in zip(*columns, strict=True):
            if cls == _WOKEN:
                woken = self._file.pb.SchedWakeupFtraceEvent(
                    comm=self._comm(tid), pid=tid, prio=_PRIORITY, success=1
                )
                by_cpu[cpu].append((time + self._tracks.to_boot, tid, "sched_wakeup", woken))
                continue
            # What else runs on a CPU is not known, so it is all one: Perfetto's idle thread.
            before, after = (tid, other) if cls == _OFF else (self._cpus.get(cpu, 0), tid)
            after = after if after in self._tids else 0
            if cpu in self._cpus or len(self._cpus) < _MOST_CPUS:
                self._cpus[cpu] = after
            if before != after:  # else the record of the thread that left has said it
                event = self._switch(before, after, state)
                by_cpu[cpu].append((time + self._tracks.to_boot, before, "sched_switch", event))
        for cpu, found in by_cpu.items():
            self._file.scheduling(cpu, found)

    def _switch(self, before: int, after: int, state: int) -> Any:
        return self._file.pb.SchedSwitchFtraceEvent(
            prev_comm=self._comm(before),
            prev_pid=before,
            prev_prio=_PRIORITY,
            prev_state=state & _STATES,
            next_comm=self._comm(after),
            next_pid=after,
            next_prio=_PRIORITY,
        )

    def _comm(self, tid: int) -> str:
        return self._tracks.thread_name(tid) if tid else "swapper"
