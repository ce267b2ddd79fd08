# SPDX-License-Identifier: Apache-2.0
"""Figures of a VM's process from ``/proc`` (proc(5))."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.errors import NoSuchProcessError
from scope_ebpf.metrics.reading import ProcessReading
from scope_ebpf.sandbox.proc import rows, status_number

if TYPE_CHECKING:
    from scope_ebpf.cgroups import Throttling

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def cgroup_of(pid: int, proc: Path = Path("/proc")) -> str:
    """
    The path of a process's cgroup; "" where it has none.

    Version 1 has a path for each controller; the longest is the most specific (cgroups(7)).
    """
    try:
        lines = rows((proc / str(pid) / "cgroup").read_bytes())
    except OSError:
        return ""
    # hierarchy:controllers:path
    return max((line.split(":", 2)[-1] for line in lines), key=len, default="")


def user_of(pid: int, proc: Path = Path("/proc")) -> str:
    """The real uid of a process in the daemon's user namespace; "" where it has ended."""
    try:
        uid = status_number((proc / str(pid) / "status").read_bytes(), "Uid")
    except OSError:
        return ""
    return "" if uid is None else str(uid)


def read_process(
    pid: int, throttling: Throttling | None = None, proc: Path = Path("/proc")
) -> ProcessReading:
    """The figures now. Raises NoSuchProcessError if the process has ended."""
    try:
        # Read every second, so without a buffer; the text is shorter than 2 KB.
        with open(f"{proc}/{pid}/stat", "rb", buffering=0) as stat:  # noqa: PTH123
            text = stat.read(4096)
    except OSError:
        raise NoSuchProcessError(f"process {pid} has ended") from None
    # The name is in parentheses and may contain any character, parentheses too.
    fields = text.rpartition(b")")[2].split()
    started = int(fields[19]) / _TICKS
    return ProcessReading(
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        user_seconds=int(fields[11]) / _TICKS,
        rss_bytes=int(fields[21]) * _PAGE,
        start_time=_boot_time() + started,
        uptime=time.clock_gettime(time.CLOCK_BOOTTIME) - started,
        throttled=throttling.read() if throttling else None,
    )


@cache
def _boot_time() -> float:
    # Read once: setting the clock must not look like a restart of the VM.
    return round(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME), 1)
