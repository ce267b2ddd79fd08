# SPDX-License-Identifier: Apache-2.0
"""The VM's threads as the kernel sees them: role, state, CPU time."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from scope_ebpf.sandbox.proc import status_number

#: Names that the VM gives its threads, up to OTP 25 and since OTP 26; the kernel cuts at 15.
_ROLES = (
    (re.compile(r"^(?:(\d+)_scheduler|erts_sched_(\d+))$"), "normal"),
    (re.compile(r"^(?:(\d+)_dirty_cpu_s\w*|erts_dcpus_(\d+))$"), "dirty_cpu"),
    (re.compile(r"^(?:(\d+)_dirty_io_s\w*|erts_dios_(\d+))$"), "dirty_io"),
    (re.compile(r"^(?:(\d+)_poller|erts_poll_(\d+))$"), "poll"),
    (re.compile(r"^(?:(\d+)_aux|erts_aux_(\d+))$"), "aux"),
    (re.compile(r"^(?:erts_)?async_(\d+)$"), "async"),
)
#: Order in which threads are shown.
ROLES = tuple(role for _, role in _ROLES)


class Thread(NamedTuple):
    """One thread of the VM."""

    tid: int
    #: Its kind, such as ``normal`` or ``dirty_cpu``.
    role: str
    #: The VM's own number, from 1 for schedulers.
    number: int
    #: The kernel's letter: R, S, D, T, t.
    state: str
    #: CPU time since it began.
    cpu_seconds: float
    #: Voluntary context switches since it began.
    waits: int


def role_of(name: str) -> tuple[str, int] | None:
    """Return the role of a thread, by its name; None for one that is not the VM's own."""
    for pattern, role in _ROLES:
        match = pattern.match(name)
        if match:
            return role, int(next(group for group in match.groups() if group is not None))
    return None


def threads(pid: int, proc: Path = Path("/proc")) -> list[Thread]:
    """Read the threads of a VM, in the order of :data:`ROLES`; those that end are left out."""
    tick = os.sysconf("SC_CLK_TCK")
    found = []
    folder = f"{proc}/{pid}/task"
    for tid in _tids(folder):
        try:
            stat = _read(f"{folder}/{tid}/stat")
            role = role_of(stat.partition(b"(")[2].rpartition(b")")[0].decode("utf-8", "replace"))
            if role is None:
                continue
            fields = stat.rpartition(b")")[2].decode().split()
            waits = status_number(_read(f"{folder}/{tid}/status"), "voluntary_ctxt_switches")
        except OSError:
            continue
        used = (int(fields[11]) + int(fields[12])) / tick
        found.append(Thread(int(tid), *role, fields[0], used, waits or 0))
    return sorted(found, key=lambda thread: (ROLES.index(thread.role), thread.number))


def uptime(pid: int, proc: str = "/proc") -> float:
    """
    Seconds since the VM began its clock, by the age of its oldest thread besides the first.

    That one is older than the VM where another program was executed before it. The VM begins its
    clock just before it starts threads, and the kernel counts their age in hundredths of a second.
    """
    tick, starts = os.sysconf("SC_CLK_TCK"), [2**63]
    for tid in _tids(f"{proc}/{pid}/task"):
        if tid == str(pid):
            continue
        try:
            fields = _read(f"{proc}/{pid}/task/{tid}/stat").rpartition(b")")[2].split()
        except OSError:
            continue
        starts.append(int(fields[19]))
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - min(starts) / tick)


def number_of_threads(pid: int, proc: Path = Path("/proc")) -> int:
    """How many threads a process has, of any kind; 0 for one that has ended."""
    return len(_tids(f"{proc}/{pid}/task"))


def _tids(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - fast
    except OSError:
        return []


def _read(path: str) -> bytes:
    """A small file of a thread: schedulers are looked at again and again."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - two for each thread
        return file.read()


class TaskFaults(NamedTuple):
    """Page faults of one thread since it began."""

    tid: int
    #: Its kind; None for a thread that is not the VM's own.
    role: str | None
    #: The VM's own number.
    number: int
    minor: int
    major: int


def faults(pid: int, proc: str = "/proc") -> list[TaskFaults]:
    """
    Read the page faults of every thread, and last those of the whole process under its pid's 0.

    One file for each thread; those that end meanwhile are left out.
    """
    found = []
    folder = f"{proc}/{pid}"
    tids = _tids(f"{folder}/task")
    if not tids:
        return []
    for tid in [f"task/{tid}" for tid in tids] + ["."]:
        try:
            with open(f"{folder}/{tid}/stat", "rb") as stat:  # noqa: PTH123 - one for each thread
                head, _, rest = stat.read().rpartition(b")")
        except OSError:
            continue
        fields = rest.split()
        role, number = role_of(head.partition(b"(")[2].decode("utf-8", "replace")) or (None, 0)
        found.append(TaskFaults(int(tid[5:] or 0), role, number, int(fields[7]), int(fields[9])))
    return found
