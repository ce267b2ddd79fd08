# SPDX-License-Identifier: Apache-2.0
"""
VMs that start and end, found by looking at ``/proc`` now and then.

A look costs a few microseconds for a process that was seen before; only
processes with threads of a BEAM are looked into.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.beam.discover import SCHEDULER_THREAD, Refusal, Target, inspect
from scope_ebpf.daemon.process import cgroup_of
from scope_ebpf.errors import NoSuchProcessError, NotABeamError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.daemon.config import Config

#: Looks at a process before it counts as no BEAM: an emulator starts its schedulers within one.
_LOOKS = 3
#: What a node is called that has no name yet, and seconds until it is asked again.
NAMELESS, RENAMED = "nonode@nohost", 2.0


class Scanner:
    """Remembers what it has seen; *seconds* is the CPU time that looking took."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        #: By pid: the program that ran, and how often it is still looked at.
        self._seen: dict[int, tuple[str, int]] = {}
        self._not_before: dict[int, float] = {}
        self.seconds = 0.0

    def scan(self, config: Config) -> list[Target | Refusal]:
        """Every VM that was not found before, wanted by *config* and old enough."""
        began = time.thread_time()
        found = list(self._new(config))
        self.seconds += time.thread_time() - began
        return found

    def forget(self, pid: int | None = None) -> None:
        """Look at *pid* again as if it were new, or at everything."""
        if pid is None:
            self._seen.clear()
            self._not_before.clear()
        else:
            self._seen.pop(pid, None)
            self._not_before.pop(pid, None)

    def _new(self, config: Config) -> Iterator[Target | Refusal]:
        pids = [int(name) for name in os.listdir(self._proc) if name.isdecimal()]  # noqa: PTH208 - fast
        for gone in self._seen.keys() - set(pids):
            del self._seen[gone]
            self._not_before.pop(gone, None)
        for pid in pids:
            try:
                exe = os.readlink(self._proc / str(pid) / "exe")  # noqa: PTH115 - any text is fine
            except OSError:
                continue  # a thread of the kernel, or it has ended
            seen, left = self._seen.get(pid, ("", _LOOKS))
            if seen != exe:
                left = _LOOKS
            if left <= 0 or self._not_before.get(pid, 0.0) > time.monotonic():
                continue
            self._seen[pid] = (exe, left - 1)
            if _has_schedulers(self._proc / str(pid)):
                yield from self._inspected(pid, exe, config)

    def _inspected(self, pid: int, exe: str, config: Config) -> Iterator[Target | Refusal]:
        try:
            target = inspect(pid, self._proc)
        except (NoSuchProcessError, NotABeamError):
            return
        except ScopeError as error:
            self._seen[pid] = (exe, 0)
            yield Refusal(pid, error)
            return
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - target.started
        if age < config.min_age:
            self._seen[pid] = (exe, _LOOKS)  # its time will come
            return
        if config.wants(target.node or "", target.exe, cgroup_of(pid, self._proc)):
            self._seen[pid] = (exe, 0)
            yield target
        elif (target.node or NAMELESS) == NAMELESS:
            # It may get its name later: a node has none until its distribution has started.
            self._seen[pid] = (exe, _LOOKS)
            self._not_before[pid] = time.monotonic() + RENAMED
        else:
            self._seen[pid] = (exe, 0)


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
