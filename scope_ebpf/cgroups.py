# SPDX-License-Identifier: Apache-2.0
"""
The cgroups of a VM: its container, and throttling by a CPU quota (cgroup-v2.rst, sched-bwc.rst).

The quota of any cgroup that contains the VM throttles its threads: that of a container as well as
that of its pod. At each reading, the growth in the cgroup that was throttled most is added to the
totals, so that they only grow, whichever cgroup that is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox.proc import read_bounded, rows

_CGROUPS = Path("/sys/fs/cgroup")
#: Maximum number of cgroups that are read, from the VM's own upwards.
_DEPTH = 16
#: A path may have 4,096 bytes, and there are a dozen hierarchies (proc(5), cgroups(7)).
_MAX_BYTES = 1 << 16

#: The folder that a container runtime makes for a container: its id, behind the runtime's name and
#: before ``.scope`` where systemd makes it (docker, containerd, CRI-O, Podman).
_CONTAINER = re.compile(r"/(?:[a-z-]+-)?([0-9a-f]{64})(?:\.scope)?(?=/|\n|$)")


def container_of(pid: int, proc: Path = Path("/proc")) -> str | None:
    """
    Id of the innermost container of process *pid*, 64 hexadecimal digits; None outside of one.

    Whoever may make cgroups chooses their names, so it is no proof of where a process runs.
    """
    try:
        text = read_bounded(proc / str(pid) / "cgroup", most=_MAX_BYTES).decode("utf-8", "replace")
    except (OSError, RefusedFileError):
        return None
    found = _CONTAINER.findall(text)
    return str(found[-1]) if found else None


@dataclass(frozen=True, slots=True)
class Throttled:
    """Throttling of one cgroup since it was made, or of several added up."""

    #: Periods of the quota in which the cgroup ran.
    periods: int
    #: Periods in which the quota was used up.
    throttled: int
    #: Seconds for which threads were held back.
    seconds: float


class Throttling:
    """The cgroups of process *pid* that may have a quota, of version 2 or 1."""

    def __init__(self, pid: int, proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> None:
        self._files = [f"{folder}/cpu.stat" for folder in _folders(pid, proc, cgroups)]
        self._last: dict[str, Throttled] = {}
        self._total: Throttled | None = None

    def read(self) -> Throttled | None:
        """The totals; None where no cgroup has had a quota."""
        seen = {file: one for file in self._files if (one := _read(file))}
        first, last = self._total is None, self._last
        self._last = last | seen
        # The first reading counts as a whole, later ones by their growth.
        more = [
            one if first else _since(one, last.get(file, one))
            for file, one in seen.items()
            if one.periods
        ]
        if more:
            most = max(more, key=lambda one: (one.seconds, one.throttled, one.periods))
            self._total = _sum(self._total, most) if self._total else most
        return self._total


def _since(now: Throttled, before: Throttled) -> Throttled:
    """Growth since *before*; 0 where the cgroup was created again."""
    return Throttled(
        max(0, now.periods - before.periods),
        max(0, now.throttled - before.throttled),
        max(0.0, now.seconds - before.seconds),
    )


def _sum(one: Throttled, other: Throttled) -> Throttled:
    return Throttled(
        one.periods + other.periods,
        one.throttled + other.throttled,
        one.seconds + other.seconds,
    )


def _folders(pid: int, proc: Path, cgroups: Path) -> list[Path]:
    """Folders of the process in the CPU controller, upwards, without the root."""
    try:
        lines = rows((proc / str(pid) / "cgroup").read_bytes())
    except OSError:
        return []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "cpu" in controllers.split(","):
            return _upwards(cgroups / controllers, path)
    unified = next((line[3:] for line in lines if line.startswith("0::")), None)
    return [] if unified is None else _upwards(cgroups, unified)


def _upwards(root: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:end]) for end in range(len(parts), 0, -1)][:_DEPTH]


def _read(file: str) -> Throttled | None:
    try:
        with open(file, "rb") as stat:  # noqa: PTH123 - read every second
            text = stat.read()
    except OSError:
        return None
    values = dict(line.split(maxsplit=1) for line in rows(text) if " " in line)
    seconds = (
        int(values.get("throttled_usec", 0)) / 1e6 or int(values.get("throttled_time", 0)) / 1e9
    )
    return Throttled(int(values.get("nr_periods", 0)), int(values.get("nr_throttled", 0)), seconds)
