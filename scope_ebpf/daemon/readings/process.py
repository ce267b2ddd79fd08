# SPDX-License-Identifier: Apache-2.0
"""What ``/proc`` says of a VM's process (proc(5))."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.errors import NoSuchProcessError
from scope_ebpf.metrics.reading import ProcessReading

if TYPE_CHECKING:
    from scope_ebpf.daemon.readings.throttling import Throttling

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def cgroup_of(pid: int, proc: Path = Path("/proc")) -> str:
    """
    The path of a process's cgroup, "" where it has none.

    Of version 1 there is one for each controller; the longest says most (cgroups(7)).
    """
    try:
        lines = (proc / str(pid) / "cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    # hierarchy:controllers:path
    return max((line.split(":", 2)[-1] for line in lines), key=len, default="")


def user_of(pid: int, proc: Path = Path("/proc")) -> str:
    """The real user of a process, by number as we see it; "" where it has ended."""
    try:
        text = (proc / str(pid) / "status").read_text("utf-8", "replace")
    except OSError:
        return ""
    # Real, effective, saved and that of the file system; the name above has no newline in it.
    return next((line.split()[1] for line in text.splitlines() if line.startswith("Uid:")), "")


def read_process(
    pid: int, throttling: Throttling | None = None, proc: Path = Path("/proc")
) -> ProcessReading:
    """Read them. NoSuchProcessError if the process has ended."""
    try:
        # Read every second, so without a buffer; it is shorter than 2 KB.
        with open(f"{proc}/{pid}/stat", "rb", buffering=0) as stat:  # noqa: PTH123
            text = stat.read(4096)
    except OSError:
        raise NoSuchProcessError(f"process {pid} has ended") from None
    # The name stands in brackets and may hold anything, brackets too.
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
    # Asked once: a clock that is set later must not look like a VM that was started again.
    return round(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME), 1)
