# SPDX-License-Identifier: Apache-2.0
"""
Schedules looks into processes: those that the kernel reports, and those that a scan finds.

A scan of ``/proc`` takes a few microseconds for a process that was seen before. Only processes
that have threads of a BEAM are looked into, by ``inspector``.
"""

from __future__ import annotations

import heapq
import math
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.beam.vm.discover import SCHEDULER_THREAD, program_of
from scope_ebpf.errors import NoSuchProcessError
from scope_ebpf.sandbox.files import status_of
from scope_ebpf.sandbox.refusals import Key, Refusals, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Scans in which a process must have no scheduler until it is ignored: a VM starts its schedulers
#: within the time of one scan.
_SCANS = 3
#: Seconds until a VM that is not wanted is looked at again: its node may get another name.
RENAMED = 5.0
#: Seconds until a process is scheduled again that is being looked into.
_BUSY = 0.1
#: Maximum bytes of a thread's name with the end of the line (TASK_COMM_LEN).
_MAX_COMM = 64
#: Minimum number of outdated heap entries at which the heap is rebuilt.
_OUTDATED = 64
#: Seconds for which the file of a program stays open after its VMs have ended, and the maximum
#: number of such files.
_KEPT, _KEPT_FILES = 60.0, 8


class Files:
    """
    The programs that VMs run; each is read once, and stays open for a minute after its last use.

    Not longer, since an open file keeps its filesystem from being unmounted.
    """

    def __init__(self) -> None:
        self._open: WeakValueDictionary[Key, Binary] = WeakValueDictionary()
        self._recent: dict[Binary, float] = {}
        self._refusals = Refusals()

    def open(self, path: Path) -> Binary:
        """As ``Binary.open``; the same object for the same file while it is open."""
        key = key_of(status_of(path))
        self._refusals.check(key)
        binary = self._open.get(key)
        if binary is None:
            # No metric needs separate debug files, whose path a tenant could choose.
            binary = Binary.open(path, debug_files=False, refusals=self._refusals)
            if binary.inode != key[:2]:
                raise NoSuchProcessError(f"{path} leads to another file by now")
            self._open[key] = binary
        binary.path = path  # the path of the first VM may have ended with it
        self._recent[binary] = time.monotonic()
        return binary

    def expire(self) -> None:
        """Close files that were not used for a minute."""
        late = time.monotonic() - _KEPT
        newest = sorted(self._recent.items(), key=lambda item: item[1])[-_KEPT_FILES:]
        self._recent = {binary: used for binary, used in newest if used > late}


class Scanner:
    """
    Which processes are to be looked into, and when.

    A process is not returned again by :meth:`due` before :meth:`looked` was called for it.

    Attributes:
        seconds: seconds of CPU that scans took.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        #: By pid: the program that it ran, and the number of scans in which it is still checked.
        self._seen: dict[int, tuple[str, int]] = {}
        #: By pid: when it is looked into, monotonic seconds; then the same as a heap, which may
        #: contain outdated entries.
        self._due: dict[int, float] = {}
        self._order: list[tuple[float, int]] = []
        self._under_way: set[int] = set()
        self.seconds = 0.0

    def started(self, pid: int, when: float) -> None:
        """Look into *pid* at *when*, monotonic seconds."""
        self._due[pid] = when
        heapq.heappush(self._order, (when, pid))
        if len(self._order) > 2 * len(self._due) + _OUTDATED:
            self._order = [(due, one) for one, due in self._due.items()]
            heapq.heapify(self._order)

    def scan(self) -> None:
        """Check all processes for schedulers, and forget those that have ended."""
        with self._timed():
            pids = {int(n) for n in os.listdir(self._proc) if n.isdecimal()}  # noqa: PTH208 - fast
            for gone in (self._seen.keys() | self._due.keys()) - pids:
                self.ended(gone)
            for pid in pids - self._due.keys() - self._under_way:
                self._check(pid)

    def next_due(self) -> float | None:
        """When :meth:`due` may return a process, monotonic seconds."""
        while self._order and self._due.get(self._order[0][1]) != self._order[0][0]:
            heapq.heappop(self._order)
        return self._order[0][0] if self._order else None

    def due(self, most: int) -> list[int]:
        """At most *most* pids of processes that are to be looked into now."""
        found: list[int] = []
        now = time.monotonic()
        while len(found) < most and (when := self.next_due()) is not None and when <= now:
            _, pid = heapq.heappop(self._order)
            del self._due[pid]
            if pid in self._under_way:
                self.started(pid, now + _BUSY)
                continue
            found.append(pid)
        self._under_way.update(found)
        return found

    def looked(self, pid: int, again: float | None, exe: str | None) -> None:
        """*pid* was looked into; it runs *exe*, and is to be looked into again at *again*."""
        self._under_way.discard(pid)
        if exe is not None:
            self._seen[pid] = (exe, 0)
        if again is not None and again < self._due.get(pid, math.inf):
            self.started(pid, again)

    def again(self, pid: int, seconds: float) -> None:
        """Look into *pid* again after *seconds*."""
        self.started(pid, time.monotonic() + seconds)

    def ended(self, pid: int) -> None:
        """Forget *pid*: the next process with that number is another one."""
        self._seen.pop(pid, None)
        self._due.pop(pid, None)

    def forget(self) -> None:
        """Forget all processes, so that the next scan finds them again."""
        self._seen.clear()
        self._due.clear()
        self._order.clear()

    def _check(self, pid: int) -> None:
        try:
            exe = program_of(f"{self._proc}/{pid}")
        except OSError:
            return  # a kernel thread, or it has ended
        seen, left = self._seen.get(pid, (exe, _SCANS))
        if seen != exe:
            left = _SCANS
        if left <= 0:
            return
        found = _has_schedulers(f"{self._proc}/{pid}/task")
        if found:
            self.started(pid, 0.0)
        self._seen[pid] = (exe, 0 if found else left - 1)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.thread_time()
        yield
        self.seconds += time.thread_time() - began


def _has_schedulers(folder: str) -> bool:
    try:
        threads = os.listdir(folder)  # noqa: PTH208 - fast
    except OSError:
        return False
    # The first scheduler is among the first threads, whatever else the program starts.
    return any(_is_scheduler(f"{folder}/{tid}/comm") for tid in threads[:64])


def _is_scheduler(path: str) -> bool:
    try:
        with open(path, "rb", buffering=0) as comm:  # noqa: PTH123 - fast
            name = comm.read(_MAX_COMM).decode("utf-8", "replace").strip()
        return SCHEDULER_THREAD.match(name) is not None
    except OSError:
        return False
