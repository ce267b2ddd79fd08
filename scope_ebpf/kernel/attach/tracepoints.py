# SPDX-License-Identifier: Apache-2.0
"""Programs on tracepoints of the kernel."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scope_ebpf.errors import HostError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.bpf.libbpf import check, library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.kernel.bpf.objects import BpfObject


def attach_tracepoint(program: int, name: str) -> int:
    """
    Attach a loaded *program* (libbpf's handle) to its tracepoint, called *name*; the link.

    Raises HostError where the kernel refuses it, and in a pid namespace of our own, in which
    threads have other numbers than those in the tracepoint's records.
    """
    if host.pid_namespace() != (0, 0):
        raise HostError("within a pid namespace threads have other numbers than the kernel's")
    return check(library().bpf_program__attach(program), f"cannot attach to {name}")


class SchedulerTracepoints:
    """
    The programs *names* of *owner*, which are attached to the scheduler's tracepoints at times.

    ``since`` is when they were attached, monotonic seconds, or None while they are not.
    """

    def __init__(self, owner: BpfObject, names: Sequence[str]) -> None:
        self._owner, self._names = owner, names
        self._links: list[int] = []
        self._seconds = 0.0
        self.since: float | None = None

    def attach(self) -> None:
        """Attach all of them; HostError where the kernel refuses one."""
        self.since = time.monotonic()
        for name in self._names:
            link = library().bpf_program__attach(self._owner.programs[name])
            self._links.append(check(link, f"cannot attach {name} to the scheduler's tracepoints"))

    def detach(self) -> None:
        """Detach all of them."""
        while self._links:
            library().bpf_link__destroy(self._links.pop())
        self._seconds, self.since = self.seconds(time.monotonic()), None

    def seconds(self, now: float) -> float:
        """Total seconds for which they were attached until *now* (monotonic seconds)."""
        return self._seconds + (now - self.since if self.since else 0.0)
