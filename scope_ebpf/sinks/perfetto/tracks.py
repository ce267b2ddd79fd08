# SPDX-License-Identifier: Apache-2.0
"""The tracks of a timeline: the VM, its threads, its busiest processes; and their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.capture.terms import CapturedTerms
from scope_ebpf.sinks.perfetto import schema
from scope_ebpf.sinks.perfetto.rows import MOST, TEXT_PID, UNKNOWN
from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.capture.reader import Contents
    from scope_ebpf.sinks.perfetto.file import PerfettoFile
    from scope_ebpf.sinks.perfetto.nodes import NodeFile
    from scope_ebpf.sinks.perfetto.rows import Row

#: Numbers of tracks. Of the second line's there are many, each with a number of its own added.
VM, _PROCESSES, LOST, BUSY, CALLS = range(1, 6)
_THREAD, PROCESS, MAILBOX, QUEUE, PORT, CALL, MARKED = (n << 40 for n in range(1, 8))
#: Threads that have a track of their own; a VM has some thousands at most.
MOST_THREADS = 1 << 16
_ROLES = {
    "normal": "scheduler",
    "dirty_cpu": "dirty CPU scheduler",
    "dirty_io": "dirty IO scheduler",
}


class Tracks:
    """The tracks of *file*; *processes* have tracks of their own, in this order."""

    def __init__(
        self, file: PerfettoFile | NodeFile, contents: Contents, processes: Iterable[int]
    ) -> None:
        self.file = file
        self.to_boot = contents.head.clocks.to_boot
        self.terms = CapturedTerms(contents)
        self._contents = contents
        self._ranks = {pid: rank for rank, pid in enumerate(processes, 1)}
        self._texts: dict[int, tuple[str, str]] = {}
        self._known: set[int] = set()

    @property
    def shown(self) -> Iterable[int]:
        """The processes that have tracks of their own."""
        return self._ranks

    def describe(self) -> None:
        """Write the tracks of the VM, its threads and its busiest processes."""
        file, target = self.file, self._contents.head.target
        vm = file.track(VM)
        vm.process.pid = int(target["pid"])
        vm.process.process_name = plain(str(target["node"] or "a node without a name"))
        file.describe(vm)
        for tid in sorted(self._contents.threads, key=self._rank):
            self.thread(tid)
        if self._ranks:
            group = file.track(_PROCESSES, VM, "Erlang processes")
            group.child_ordering = schema.EXPLICIT
            file.describe(group)
        for pid, rank in self._ranks.items():
            who, text = self.name(pid)
            name = f"{who} {text}" if who != text else text
            file.describe(file.track(PROCESS + rank, _PROCESSES, name, rank))

    def _rank(self, tid: int) -> tuple[int, int]:
        role, number = self._contents.threads[tid]
        return (list(_ROLES).index(role) if role in _ROLES else len(_ROLES), number)

    def thread_name(self, tid: int) -> str:
        """The track of a thread of the VM."""
        if tid not in self._contents.threads:
            return "a thread of the VM"
        role, number = self._contents.threads[tid]
        return plain(f"{_ROLES.get(role, role)} {number}")

    def thread(self, tid: int) -> int:
        """The track of a thread of the VM; those of a capture that makes them up share one."""
        if tid not in self._known and len(self._known) >= MOST_THREADS:
            tid = 0
        if tid not in self._known:
            self._known.add(tid)
            track = self.file.track(_THREAD + tid, VM)
            track.thread.pid = int(self._contents.head.target["pid"])
            track.thread.tid = tid
            track.thread.thread_name = self.thread_name(tid)
            self.file.describe(track)
        return _THREAD + tid

    def name(self, process: int) -> tuple[str, str]:
        """Label and pid of a process; for one without a name both are the pid."""
        known = self._texts.get(process)
        if known is None:
            text_pid = process >= TEXT_PID
            word = process & UNKNOWN
            text = plain(str(self.terms.texts([word], text_pids=text_pid)[0] or "-"))
            who = None if text_pid else self.terms.who([word]).get(word)
            known = (plain(who) if who else text, text)
            if len(self._texts) < MOST:
                self._texts[process] = known
        return known

    def process(self, process: int) -> int | None:
        """The track of a process, if it has one of its own."""
        rank = self._ranks.get(process)
        return None if rank is None else PROCESS + rank

    def track_of(self, row: Row) -> int:
        """The track for an event of a process: its own, else that of its thread."""
        return self.process(row.process) or self.thread(row.tid)

    def counter(self, uuid: int, name: str) -> None:
        """Describe a track of numbers."""
        track = self.file.track(uuid, VM, name)
        track.counter.unit = schema.UNIT_COUNT
        self.file.describe(track)
