# SPDX-License-Identifier: Apache-2.0
"""
The cgroups of a VM: its container, and limits of CPU and memory (cgroup-v2.rst, sched-bwc.rst).

The quota of any cgroup that contains the VM throttles its threads: that of a container as well as
that of its pod. At each reading, the growth in the cgroup that was throttled most is added to the
totals, so that they only grow, whichever cgroup that is. Memory limits work alike: the kernel kills
when the first of these cgroups is full.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox.proc import read_bounded, rows

_CGROUPS = Path("/sys/fs/cgroup")
#: Maximum number of cgroups that are read, from the VM's own upwards.
_DEPTH = 16
#: A path may have 4,096 bytes, and there are a dozen hierarchies (proc(5), cgroups(7));
#: memory.stat has some 2,000.
_MAX_BYTES = 1 << 16

#: The folder that a container runtime makes for a container: its id, behind the runtime's name and
#: before ``.scope`` where systemd makes it (docker, containerd, CRI-O, Podman).
_CONTAINER = re.compile(r"/(?:[a-z-]+-)?([0-9a-f]{64})(?:\.scope)?(?=/|\n|$)")
#: The folder of a pod: its uid, with "_" for "-" where systemd makes it.
_POD = re.compile(
    r"/(?:[^/\n]*-)?pod([0-9a-f]{8}[-_](?:[0-9a-f]{4}[-_]){3}[0-9a-f]{12}|[0-9a-f]{32})"
    r"(?:\.slice)?(?=/|\n|$)"
)
#: Version 1 says "no limit" by the largest multiple of a page (mm/page_counter.c).
_NO_LIMIT = 1 << 62


def container_of(pid: int, proc: Path = Path("/proc")) -> str | None:
    """
    Id of the innermost container of process *pid*, 64 hexadecimal digits; None outside of one.

    A user who may make cgroups chooses their names, so it is no proof of where a process runs.
    """
    try:
        text = read_bounded(proc / str(pid) / "cgroup", most=_MAX_BYTES).decode("utf-8", "replace")
    except (OSError, RefusedFileError):
        return None
    found = _CONTAINER.findall(text)
    return str(found[-1]) if found else None


class Throttled(NamedTuple):
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
        self._files = [f"{folder}/cpu.stat" for folder in _folders(pid, proc, cgroups, "cpu")]
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


class MemoryLimit(NamedTuple):
    """Memory of the cgroup around a VM that is nearest to its limit."""

    #: Bytes in use, without file pages that the kernel can drop at once (inactive_file): what
    #: kubelet calls the working set.
    used: int
    #: Bytes at which the kernel kills.
    limit: int
    #: Processes that it killed in the pod of the VM or, outside of pods, in the innermost cgroup
    #: with a limit.
    kills: int


def memory_limit(
    pid: int, proc: Path = Path("/proc"), cgroups: Path = _CGROUPS
) -> MemoryLimit | None:
    """The memory limit around process *pid*, of version 2 or 1; None where there is none."""
    folders = _folders(pid, proc, cgroups, "memory")
    limited = [
        (folder, used, limit)
        for folder in folders
        if (limit := _number(folder, "memory.max", "memory.limit_in_bytes")) is not None
        and 0 < limit < _NO_LIMIT
        and (used := _used(folder)) is not None
    ]
    if not limited:
        return None
    pods = [folder for folder in folders if _POD.fullmatch(f"/{folder.name}")]
    _, used, limit = max(limited, key=lambda one: one[1] / one[2])
    return MemoryLimit(used, limit, _kills((pods or [limited[0][0]])[0]))


def container_and_pod(cgroup: str) -> tuple[str, str]:
    """The id of the innermost container in the path *cgroup*, and the uid of its pod; or ""."""
    ids, pods = _CONTAINER.findall(cgroup), _POD.findall(cgroup)
    return str(ids[-1]) if ids else "", str(pods[-1]).replace("_", "-") if pods else ""


def _used(folder: Path) -> int | None:
    used = _number(folder, "memory.current", "memory.usage_in_bytes")
    if used is None:
        return None
    stat = _values(str(folder / "memory.stat"))
    idle = _whole(stat.get("total_inactive_file", stat.get("inactive_file", "")))
    return max(0, used - (idle or 0))


def _kills(folder: Path) -> int:
    """Processes killed in *folder*, and in version 2 in the cgroups below it."""
    for name in ("memory.events", "memory.oom_control"):
        kills = _whole(_values(str(folder / name)).get("oom_kill", ""))
        if kills is not None:
            return kills
    return 0


def _number(folder: Path, *names: str) -> int | None:
    """The number in the first of the files *names* that has one."""
    for name in names:
        number = _whole(_text(str(folder / name)))
        if number is not None:
            return number
    return None


def _whole(text: str) -> int | None:
    """The number of 64 bits that *text* is, None if it is none."""
    return int(text) if re.fullmatch(r"\s*[0-9]{1,20}\s*", text) else None


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


def _folders(pid: int, proc: Path, cgroups: Path, controller: str) -> list[Path]:
    """Folders of the process in *controller*, upwards, without the root."""
    try:
        lines = rows((proc / str(pid) / "cgroup").read_bytes())
    except OSError:
        return []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return _upwards(cgroups / controllers, path)
    unified = next((line[3:] for line in lines if line.startswith("0::")), None)
    return [] if unified is None else _upwards(cgroups, unified)


def _upwards(root: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:end]) for end in range(len(parts), 0, -1)][:_DEPTH]


def _text(file: str) -> str:
    """The text of *file*; "" where it cannot be read."""
    try:
        with open(file, "rb") as stat:  # noqa: PTH123 - read every second
            return stat.read(_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _values(file: str) -> dict[str, str]:
    """The rows of *file*, each a name and a value."""
    return dict(line.split(maxsplit=1) for line in _text(file).split("\n") if " " in line.strip())


def _read(file: str) -> Throttled | None:
    values = _values(file)
    if not values:
        return None
    seconds = (
        int(values.get("throttled_usec", 0)) / 1e6 or int(values.get("throttled_time", 0)) / 1e9
    )
    return Throttled(int(values.get("nr_periods", 0)), int(values.get("nr_throttled", 0)), seconds)
