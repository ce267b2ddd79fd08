# SPDX-License-Identifier: Apache-2.0
"""
Limits of one inspection of a process: bytes and system calls of its memory, CPU and wall time.

Tables that a process describes itself may be of any size, so those of other users are read
within limits. They hold for one thread, and for every memory that is read in it.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scope_ebpf.errors import TooMuchError
from scope_ebpf.sandbox import client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: System calls between two readings of the CPU's clocks, which cost as much as a small reading;
#: seconds between two calls after which they are read at once: one call can take as many as its
#: target likes.
_CALLS, _SLOW = 32, 0.1


def _cpu() -> float:
    return time.thread_time() + client.cpu_seconds()


class _Current(threading.local):
    limits: LookLimits | None = None


_current = _Current()


class LookLimits:
    """
    Counts what *what* takes, in this thread and from now on.

    *data* is in bytes, *calls* are system calls that read memory, *cpu* and *wall* are seconds.
    Parsing files for this thread counts as *cpu*, too.
    """

    def __init__(
        self,
        what: str,
        *,
        data: int,
        calls: int,
        cpu: float,
        wall: float,
        cpu_clock: Callable[[], float] = _cpu,
        wall_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._left, self._calls_left = data, calls
        self._data, self._calls, self._cpu, self._wall = data, calls, cpu, wall
        self._cpu_clock, self._wall_clock = cpu_clock, wall_clock
        self._cpu_began, self._wall_began = cpu_clock(), wall_clock()
        self._last = self._wall_began

    def spend(self, size: int) -> None:
        """Count a call that has read *size* bytes. Raises TooMuchError beyond the limits."""
        self._left -= size
        self._calls_left -= 1
        if self._left < 0:
            self._refuse(f"{self._data:,} bytes")
        if self._calls_left < 0:
            self._refuse(f"{self._calls:,} readings")
        before, self._last = self._last, self._wall_clock()
        if self._calls_left % _CALLS == 0 or self._last - before > _SLOW:
            self.check()

    def check(self) -> None:
        """Raise TooMuchError if the time is used up."""
        if self._cpu_clock() - self._cpu_began > self._cpu:
            self._refuse(f"{self._cpu:g} s of CPU")
        if self._wall_clock() - self._wall_began > self._wall:
            self._refuse(f"{self._wall:g} s")

    def _refuse(self, limit: str) -> None:
        raise TooMuchError(f"{self._what} takes more than {limit}, so it is not done")


def one_of_many(pid: int) -> LookLimits:
    """Limits of a command for one of all VMs; the most expensive takes 7 MB in 1,700 calls."""
    return LookLimits(f"a look at process {pid}", data=64 << 20, calls=50_000, cpu=1.0, wall=10.0)


@contextmanager
def limited(limits: LookLimits) -> Iterator[LookLimits]:
    """Let *limits* hold for what this thread reads in the block."""
    before, _current.limits = _current.limits, limits
    try:
        yield limits
    finally:
        _current.limits = before


def spend(size: int) -> None:
    """Count a call that has read *size* bytes of another process, where it is limited."""
    limits = _current.limits
    if limits is not None:
        limits.spend(size)
