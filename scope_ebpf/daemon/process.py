# SPDX-License-Identifier: Apache-2.0
"""What ``/proc`` and the cgroup say of a VM's process (proc(5), cgroup-v2.rst)."""

from __future__ import annotations

import os
import time
from pathlib import Path

from scope_ebpf.errors import NoSuchProcessError
from scope_ebpf.metrics.reading import ProcessReading

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CGROUPS = Path("/sys/fs/cgroup")


def cgroup_of(pid: int, proc: Path = Path("/proc")) -> str:
    """The path of a process's cgroup (version 2), "" where it has none."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line[3:] for line in lines if line.startswith("0::")), "")


def read_process(
    pid: int, cgroup: str = "", proc: Path = Path("/proc"), cgroups: Path = _CGROUPS
) -> ProcessReading:
    """Read them. NoSuchProcessError if the process has ended."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as stat:  # noqa: PTH123 - read every second
            text = stat.read()
    except OSError:
        raise NoSuchProcessError(f"process {pid} has ended") from None
    # The name stands in brackets and may hold anything, brackets too.
    fields = text.rpartition(b")")[2].split()
    return ProcessReading(
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        minor_faults=int(fields[7]),
        major_faults=int(fields[9]),
        rss_bytes=int(fields[21]) * _PAGE,
        start_time=_boot_time() + int(fields[19]) / _TICKS,
        throttled_seconds=_throttled(f"{cgroups}{cgroup}") if cgroup else None,
    )


def _boot_time() -> float:
    return round(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME), 1)


def _throttled(folder: str) -> float | None:
    """Seconds for which a cgroup's quota was used up; None where it has no quota."""
    try:
        with open(f"{folder}/cpu.stat") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "throttled_usec":
            return int(value) / 1e6
    return None
