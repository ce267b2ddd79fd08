# SPDX-License-Identifier: Apache-2.0
"""
Hardware breakpoints on code of some threads, each with a BPF program.

The debug registers of the CPU stop a thread before it executes an instruction at any address, and
nothing is written to the target. x86 has four of them, which the kernel loads for each thread when
it runs. The breakpoints go when their file descriptors are closed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from typing import TYPE_CHECKING

from scope_ebpf.errors import HostError, NothingToAttachError, ScopeError
from scope_ebpf.kernel.attach.perf_events import (
    DISABLED,
    EXCLUDE_HV,
    EXCLUDE_KERNEL,
    REMOVE_ON_EXEC,
    TYPE_BREAKPOINT,
    Attributes,
    attach,
    perf_event_open,
)
from scope_ebpf.kernel.bpf.libbpf import library

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from scope_ebpf.kernel.attach.uprobes import Identity

#: Debug registers for addresses: DR0 to DR3.
MOST = 4
#: include/uapi/linux/hw_breakpoint.h: HW_BREAKPOINT_X, whose length is that of a long.
_EXECUTE = 4
_LONG = 8
#: include/uapi/linux/perf_event.h: PERF_EVENT_IOC_REFRESH lets an event overflow a given number of
#: times more, then the kernel disables it.
_REFRESH = 0x2402


def program_decides(release: str | None = None) -> bool:
    """
    Whether a hit counts as an overflow only if its program returns 1, on this kernel or *release*.

    Then the program can disable its own breakpoint. Before Linux 6.10 each hit counts.
    """
    return _is_at_least((6, 10), release)


def _is_at_least(least: tuple[int, int], release: str | None = None) -> bool:
    match = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return match is not None and (int(match[1]), int(match[2])) >= least


class Breakpoints:
    """
    Breakpoints on threads of *identity*, of which each takes at most *limit* hits in a thread.

    *programs* are libbpf's handles by the names that :meth:`set` takes.
    """

    def __init__(self, identity: Identity, programs: Mapping[str, int], limit: int) -> None:
        self._identity = identity
        self._programs = programs
        self._flags = DISABLED | EXCLUDE_KERNEL | EXCLUDE_HV
        if _is_at_least((5, 13)):
            self._flags |= REMOVE_ON_EXEC
        self._overflows = 1 if program_decides() else limit
        #: By address and tid: the link, and the descriptor of the event that it owns.
        self._links: dict[tuple[int, int], tuple[int, int]] = {}

    def __len__(self) -> int:
        """Number of breakpoints, over all threads."""
        return len(self._links)

    def set(self, wanted: Mapping[int, str], tids: Collection[int]) -> None:
        """
        Set breakpoints at the *wanted* addresses, each with its program's name, and no others.

        A thread that has ended is left out. Raises NotRootError, NothingToAttachError where
        another tool holds the debug registers, and as ``Identity.check`` does; then all
        breakpoints are removed.
        """
        for site in [p for p in self._links if p[0] not in wanted or p[1] not in tids]:
            library().bpf_link__destroy(self._links.pop(site)[0])
        try:
            self._identity.check()
            for address, program in wanted.items():
                for tid in tids:
                    if (address, tid) not in self._links:
                        self._open(address, tid, program)
            self._identity.check()
        except ScopeError:
            self.close()
            raise

    def begin(self) -> None:
        """
        Let each breakpoint take *limit* hits from now on.

        Where every hit counts, the hits since :meth:`set` have used up a part of its limit.
        """
        if not program_decides():
            for _, fd in self._links.values():
                self._allow(fd)

    def close(self) -> None:
        """Remove all breakpoints."""
        while self._links:
            library().bpf_link__destroy(self._links.popitem()[1][0])

    def _open(self, address: int, tid: int, program: str) -> None:
        attributes = Attributes(
            type=TYPE_BREAKPOINT,
            period_or_frequency=1,
            flags=self._flags,
            breakpoint_type=_EXECUTE,
            breakpoint_address=address,
            breakpoint_length=_LONG,
        )
        try:
            fd = perf_event_open(attributes, pid=tid)
        except HostError as error:
            code = getattr(error.__cause__, "errno", 0)
            if code == errno.ESRCH:
                return
            raise _explained(code, error) from error
        if not os.path.exists(f"/proc/{self._identity.pid}/task/{tid}"):  # noqa: PTH110 - fast
            os.close(fd)  # the thread has ended, and its number may be another process's
            return
        link = attach(self._programs[program], fd, f"thread {tid}")
        self._links[address, tid] = link, fd
        self._allow(fd)

    def _allow(self, fd: int) -> None:
        """Enable an event for its limit of overflows."""
        with contextlib.suppress(OSError):  # then it counts without a limit of its own
            fcntl.ioctl(fd, _REFRESH, self._overflows)


def _explained(code: int, error: HostError) -> HostError | NothingToAttachError:
    if code in (errno.ENOSPC, errno.EBUSY):
        return NothingToAttachError(
            "the CPU's four debug registers are taken: a debugger, another scope-trace calls or "
            "the telemetry of scope-ebpfd watches this process, or perf the whole host; end that, "
            "or ask for fewer functions"
        )
    if code in (errno.EOPNOTSUPP, errno.ENODEV, errno.ENOENT, errno.EINVAL):
        return NothingToAttachError(
            "this CPU, or the virtual machine's host, gives no hardware breakpoints, and there is "
            "no other way into code that the JIT made"
        )
    return error
