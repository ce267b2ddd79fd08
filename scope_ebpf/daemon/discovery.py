# SPDX-License-Identifier: Apache-2.0
"""
VMs that start and end: the kernel tells of those that start, a look at ``/proc`` finds the rest.

A look costs a few microseconds for a process that was seen before; only
processes with threads of a BEAM are looked into.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from scope_ebpf.beam.binary import Binary
from scope_ebpf.beam.discover import SCHEDULER_THREAD, Refusal, inspect, program_of
from scope_ebpf.beam.node import NodeName
from scope_ebpf.daemon.process import cgroup_of
from scope_ebpf.errors import NoSuchProcessError, NotABeamError, TargetChangedError
from scope_ebpf.sandbox.refusals import Key, Refusals, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.beam.target import Target
    from scope_ebpf.daemon.config import Config

#: Looks at a process before it counts as no BEAM: an emulator starts its schedulers within one.
_LOOKS = 3
#: Seconds until a VM that nobody wants is looked at again: its node may get another name.
RENAMED = 5.0
#: Seconds until a VM that could not be observed is tried again.
RETRY = 60.0
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
        key = key_of(path.stat())
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
    """Remembers what it has seen; *seconds* is the CPU time that looking took."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._files = Files()
        #: By pid: the program that ran, and how often it is still looked at.
        self._seen: dict[int, tuple[str, int]] = {}
        #: VMs that nobody has, by pid: when each is looked into, in seconds of the monotonic clock.
        self._due: dict[int, float] = {}
        #: Those of them that are not wanted, by pid: what they were called, and who tells it now.
        self._unwanted: dict[int, tuple[str | None, NodeName]] = {}
        self.seconds = 0.0

    def started(self, pid: int, when: float) -> None:
        """Look into *pid*, a VM that has just started, once it is *when*."""
        self._due[pid] = when

    def scan(self) -> None:
        """Look for VMs that nobody told us of, and forget those that have ended."""
        self._files.tidy()
        with self._timed():
            pids = {int(n) for n in os.listdir(self._proc) if n.isdecimal()}  # noqa: PTH208 - fast
            for gone in (self._seen.keys() | self._due.keys()) - pids:
                self.ended(gone)
            for pid in pids - self._due.keys():
                self._glance(pid)

    def next_due(self) -> float | None:
        """When :meth:`take` may have something, monotonic seconds."""
        return min(self._due.values(), default=None)

    def take(self, config: Config) -> Target | Refusal | None:
        """
        The next VM that *config* wants and that is old enough, if there is one now.

        One at a time: to begin with a VM takes tens of milliseconds, in which those
        that are observed already would have to wait.
        """
        now = time.monotonic()
        due = [pid for pid, when in self._due.items() if when <= now]
        if not due:
            return None
        with self._timed():
            for pid in due:
                found = self._look_into(pid, config, now)
                if found:
                    return found
        return None

    def again(self, pid: int, seconds: float) -> None:
        """Look into *pid* again after so many seconds."""
        self._due[pid] = time.monotonic() + seconds

    def ended(self, pid: int) -> None:
        """Forget *pid*: whoever has that number next is somebody else."""
        for known in (self._seen, self._due, self._unwanted):
            known.pop(pid, None)

    def forget(self) -> None:
        """Look at everything again as if it were new."""
        self._seen.clear()
        self._due.clear()
        self._unwanted.clear()

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
        found = _has_schedulers(self._proc / str(pid))
        if found:
            self._due[pid] = 0.0
        self._seen[pid] = (exe, 0 if found else left - 1)

    def _look_into(self, pid: int, config: Config, now: float) -> Target | Refusal | None:
        del self._due[pid]
        try:
            return self._wanted(pid, config, now)
        except TargetChangedError:
            self.ended(pid)  # it is looked at as what it is now with the next scan
            return None
        except (NoSuchProcessError, NotABeamError):
            return None
        except Exception as error:  # noqa: BLE001 - one process must not take the others along
            self._due[pid] = now + RETRY
            return Refusal(pid, error)

    def _wanted(self, pid: int, config: Config, now: float) -> Target | None:
        if self._is_called_as_before(pid):
            self._due[pid] = now + RENAMED
            return None
        target = inspect(pid, self._proc, self._files.open)
        self._seen[pid] = (target.exe, 0)
        young = config.min_age - (time.clock_gettime(time.CLOCK_BOOTTIME) - target.started)
        if young > 0:
            self._due[pid] = now + young
            return None
        if config.wants(target.node or "", target.exe, cgroup_of(pid, self._proc)):
            return target
        self._unwanted[pid] = target.node, NodeName(target)
        self._due[pid] = now + RENAMED
        return None

    def _is_called_as_before(self, pid: int) -> bool:
        """Whether *pid* was not wanted, and nothing has changed that could make it so."""
        name, now = self._unwanted.get(pid, (None, None))
        with suppress(NoSuchProcessError):  # it may be another program by now
            if now is not None and name is not None and now.read() == name:
                return True
        self._unwanted.pop(pid, None)
        return False

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.thread_time()
        yield
        self.seconds += time.thread_time() - began


def _has_schedulers(folder: Path) -> bool:
    try:
        threads = os.listdir(folder / "task")  # noqa: PTH208 - fast
    except OSError:
        return False
    # The first scheduler is among the first threads, whatever else the program starts.
    return any(_is_scheduler(folder / "task" / tid / "comm") for tid in threads[:64])


def _is_scheduler(path: Path) -> bool:
    try:
        return SCHEDULER_THREAD.match(path.read_text("utf-8", "replace").strip()) is not None
    except OSError:
        return False
