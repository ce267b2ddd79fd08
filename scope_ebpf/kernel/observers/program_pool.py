# SPDX-License-Identifier: Apache-2.0
"""
Loaded programs that wait for their next target.

Loading takes tens of milliseconds, nearly all of it the verifier's. Where VMs come and go that
would be most of the cost of observing, so the programs of a target that has ended are kept for a
while, and observe the next target of the same build.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.errors import HostError
from scope_ebpf.kernel.attach.uprobes import wait_gone
from scope_ebpf.kernel.observers.programs import Programs

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.kernel.observers.programs import Build


class _Idle(NamedTuple):
    """
    Programs without a target.

    ``since`` is the time of their release, monotonic seconds; ``leaving`` are descriptors that
    become readable when the hooks of their last target are out.
    """

    programs: Programs
    since: float
    leaving: list[int]


class ProgramPool:
    """
    At most *room* programs without a target, each kept for at most *seconds*.

    Where none fit, new ones are loaded, with *on_progress* as in :class:`Programs`.
    """

    def __init__(
        self, room: int, seconds: float, on_progress: Callable[[], None] | None = None
    ) -> None:
        self._room, self._seconds, self._on_progress = room, seconds, on_progress
        self._idle: list[_Idle] = []

    def __len__(self) -> int:
        """Number of programs without a target."""
        return len(self._idle)

    def acquire(self, build: Build) -> Programs:
        """Programs of that *build*: idle ones, cleared, or new ones."""
        for idle in reversed(self._idle):
            if idle.programs.build == build and _gone(idle.leaving):
                self._idle.remove(idle)
                try:
                    idle.programs.clear()
                except HostError:
                    idle.programs.close()
                    break
                return idle.programs
        return Programs(build, self._on_progress)

    def release(self, programs: Programs, leaving: list[int]) -> None:
        """Keep *programs*, whose hooks are out when all of *leaving* are readable."""
        self._idle.append(_Idle(programs, time.monotonic(), leaving))
        self.expire()

    def expire(self, *, everything: bool = False) -> None:
        """Close programs that have been idle for too long or are too many, or all of them."""
        late = time.monotonic() - self._seconds
        over = len(self._idle) - (0 if everything else self._room)
        for number, idle in enumerate(list(self._idle)):
            # The longest unused come first.
            if number < over or idle.since < late:
                self._idle.remove(idle)
                for fd in idle.leaving:
                    os.close(fd)  # not waited for: the kernel keeps the programs until then
                idle.programs.close()


def _gone(leaving: list[int]) -> bool:
    """Whether all hooks are out; if so, the descriptors are closed."""
    poll = select.poll()
    for fd in leaving:
        poll.register(fd, select.POLLIN)
    if len(poll.poll(0)) < len(leaving):
        return False
    for fd in leaving:
        wait_gone(fd)
    leaving.clear()
    return True
