# SPDX-License-Identifier: Apache-2.0
"""
The memory limit of a VM's cgroups, and how much of it is in use (cgroup-v2.rst, memory.rst).

The limit of any cgroup that contains the VM can end it. The one that has least left counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from scope_ebpf.sandbox.proc import rows

_CGROUPS = Path("/sys/fs/cgroup")
#: Cgroups that are read, from the VM's own upwards, and bytes of one of their files.
_DEPTH, _MOST = 16, 1 << 16
#: Files of limit and use, and the row of memory.stat for what the kernel gives up first.
_V2 = "memory.max", "memory.current", "inactive_file"
_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
#: Version 1 writes the largest number of pages for no limit.
_NONE = 1 << 60


class Confined(NamedTuple):
    """Memory of the cgroup that has least left, bytes."""

    #: In use, without the file cache that is given up first.
    used: int
    limit: int


class MemoryLimits:
    """The cgroups of process *pid* that may limit its memory, of version 2 or 1."""

    def __init__(self, pid: int, proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> None:
        self._folders, self._names = _folders(pid, proc, cgroups)

    def read(self) -> Confined | None:
        """The one that has least left; None where none has a limit."""
        found = [one for folder in self._folders if (one := _read(folder, self._names))]
        return min(found, key=lambda one: one.limit - one.used, default=None)


def _folders(pid: int, proc: Path, cgroups: Path) -> tuple[list[Path], tuple[str, str, str]]:
    try:
        lines = rows((proc / str(pid) / "cgroup").read_bytes())
    except OSError:
        return [], _V2
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if "memory" in controllers.split(","):
            return _upwards(cgroups / controllers, path), _V1
    unified = next((line[3:] for line in lines if line.startswith("0::")), None)
    return ([] if unified is None else _upwards(cgroups, unified)), _V2


def _upwards(root: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:end]) for end in range(len(parts), -1, -1)][:_DEPTH]


def _read(folder: Path, names: tuple[str, str, str]) -> Confined | None:
    limit_file, use_file, cache = names
    try:
        limit, used = (_bytes(folder / name).strip() for name in (limit_file, use_file))
        stat = _bytes(folder / "memory.stat")
    except OSError:
        return None
    if not (limit.isdigit() and used.isdigit() and int(limit) < _NONE):
        return None
    values = dict(line.split(maxsplit=1) for line in rows(stat) if " " in line)
    cached = values.get(cache, "0")
    spare = int(cached) if cached.isdigit() else 0
    return Confined(max(0, int(used) - spare), int(limit))


def _bytes(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read(_MOST)
