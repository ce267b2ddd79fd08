# SPDX-License-Identifier: Apache-2.0
"""
VMs that start and end: the kernel tells of those that start, a look at ``/proc`` finds the rest.

A glance costs a few microseconds for a process that was seen before; only
processes with threads of a BEAM are looked into, by ``inspector``.
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

#: Looks at a process before it counts as no BEAM: an emulator starts its schedulers within one.
_LOOKS = 3
#: Seconds until a VM that nobody wants is looked at again: its node may get another name.
RENAMED = 5.0
#: Seconds until a process is asked for again that is being looked into.
_BUSY = 0.1
#: Bytes of a thread's name and the end of its line (TASK_COMM_LEN).
_MAX_COMM = 64
#: Entries that were put off and are kept in order, at least.
_PUT_OFF = 64
#: Seconds for which a program is kept whose VMs have ended, and programs that are kept so.
_KEPT, _KEPT_FILES = 60.0, 8


class Files:
    """
    The programs that VMs run, each read once while anybody uses it and for a minute after that.

    Not longer: a file that is open keeps its filesystem from being unmounted.
    """

    def __init__(self) -> None:
        self._open: WeakValueDictionary[Key, Binary] = WeakValueDictionary()
        self._recent: dict[Binary, float] = {}
        self._refusals = Refusals()

    def open(self, path: Path) -> Binary:
        """Open *path* as ``Binary.open`` does, or give what is open of the same file."""
        key = key_of(status_of(path))
        self._refusals.check(key)
        binary = self._open.get(key)
        if binary is None:
            # No metric needs the symbols of other files, which a tenant could point anywhere.
            binary = Binary.open(path, debug_files=False, refusals=self._refusals)
            if binary.inode != key[:2]:
                raise NoSuchProcessError(f"{path} leads to another file by now")
            self._open[key] = binary
        binary.path = path  # that of the first VM may have ended with it
        self._recent[binary] = time.monotonic()
        return binary

    def tidy(self) -> None:
        """Let go of files that were not asked for lately."""
        late = time.monotonic() - _KEPT
        newest = sorted(self._recent.items(), key=lambda item: item[1])[-_KEPT_FILES:]
        self._recent = {binary: used for binary, used in newest if used > late}


class Scanner:
    """
    Knows which processes are to be looked into, and when; *seconds* is the CPU time that it took.

    Who is being looked into is not given again before :meth:`looked` says that it is done.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        #: By pid: the program that ran, and how often it is still looked at.
        self._seen: dict[int, tuple[str, int]] = {}
        #: By pid: when each is looked into, in seconds of the monotonic clock; then the same in
        #: order, with what was put off since.
        self._due: dict[int, float] = {}
        self._order: list[tuple[float, int]] = []
        self._under_way: set[int] = set()
        self.seconds = 0.0

    def started(self, pid: int, when: float) -> None:
        """Look into *pid*, a VM that has just started, once it is *when*."""
        self._due[pid] = when
        heapq.heappush(self._order, (when, pid))
        if len(self._order) > 2 * len(self._due) + _PUT_OFF:
            self._order = [(due, one) for one, due in self._due.items()]
            heapq.heapify(self._order)

    def scan(self) -> None:
        """Look for VMs that nobody told us of, and forget those that have ended."""
        with self._timed():
            pids = {int(n) for n in os.listdir(self._proc) if n.isdecimal()}  # noqa: PTH208 - fast
            for gone in (self._seen.keys() | self._due.keys()) - pids:
                self.ended(gone)
            for pid in pids - self._due.keys() - self._under_way:
                self._glance(pid)

    def next_due(self) -> float | None:
        """When :meth:`due` may have something, monotonic seconds."""
        while self._order and self._due.get(self._order[0][1]) != self._order[0][0]:
            heapq.heappop(self._order)
        return self._order[0][0] if self._order else None

    def due(self, most: int) -> list[int]:
        """Who is to be looked into now, *most* of them; they are under way then."""
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
        """*pid* was looked into: it runs *exe*, and is to be looked into *again* at a time."""
        self._under_way.discard(pid)
        if exe is not None:
            self._seen[pid] = (exe, 0)
        if again is not None and again < self._due.get(pid, math.inf):
            self.started(pid, again)

    def again(self, pid: int, seconds: float) -> None:
        """Look into *pid* again after so many seconds."""
        self.started(pid, time.monotonic() + seconds)

    def ended(self, pid: int) -> None:
        """Forget *pid*: whoever has that number next is somebody else."""
        self._seen.pop(pid, None)
        self._due.pop(pid, None)

    def forget(self) -> None:
        """Look at everything again as if it were new."""
        self._seen.clear()
        self._due.clear()
        self._order.clear()

    def _glance(self, pid: int) -> None:
        try:
            exe = program_of(f"{self._proc}/{pid}")
        except OSError:
            return  # a thread of the kernel, or it has ended
        seen, left = self._seen.get(pid, (exe, _LOOKS))
        if seen != exe:
            left = _LOOKS
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
