# SPDX-License-Identifier: Apache-2.0
"""
What the VMs under observation are called: each by its node's name, and by one name alone.

The name is the VM's own choice, and each new one is some 270 new series for Prometheus. So a VM may
take a few and an owner some more, and none can take what another has.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from scope_ebpf.beam.vm.node import NAMELESS
from scope_ebpf.errors import HostError
from scope_ebpf.metrics.page import label_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.daemon.looks.owners import Owner

#: New names of one VM, and labels of one owner that is not root, in so many seconds.
RENAMES, LABELS, PERIOD = 3, 120, 3600.0
#: Characters of a name before a pid, so that a label has 255 at most.
_LONGEST = 240
#: Owners of whom labels are remembered; beyond it those that had none for an hour are forgotten.
_OWNERS = 1024


class Rate:
    """At most *most* times in *seconds*."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float]) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._times: deque[float] = deque()

    def take(self) -> bool:
        """Whether it may be done once more now; then it counts."""
        now = self._clock()
        while self._times and now - self._times[0] >= self._seconds:
            self._times.popleft()
        if len(self._times) >= self._most:
            return False
        self._times.append(now)
        return True


class _Names:
    """The labels that one VM has had, and how often it may take a new one."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.label, self.had = "", set[str]()
        #: What it wants to be called and may not be.
        self.denied = ""


class NodeLabels:
    """The label of each VM that is observed, by pid."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._names: dict[int, _Names] = {}
        #: By key of an owner: its labels of the last hour, and when each was given.
        self._owners: dict[str, dict[str, float]] = {}
        #: Times that a VM took a new name, and was called by the old one on.
        self.held = 0

    def give(self, pid: int, name: str | None, owner: Owner) -> str:
        """
        Call *pid* by *name*, and by its pid as well if another VM has that label.

        Raises HostError where its owner has had too many labels.
        """
        label = self._free(pid, name)
        self._charge(owner, label)
        names = self._names[pid] = _Names(Rate(RENAMES, PERIOD, self._clock))
        names.label = label
        names.had.add(label)
        return label

    def follow(self, pid: int, name: str) -> str:
        """Call *pid* by *name* from now on, if it has not had too many of late; its label."""
        names, clean = self._names[pid], _clean(name)
        if names.label in (clean, _with_pid(clean, pid)):
            names.denied = ""
            return names.label
        label = self._free(pid, name)
        if label not in names.had and not names.rate.take():
            if names.denied != clean:
                names.denied = clean
                self.held += 1
            return names.label
        names.label = label
        names.had.add(label)
        return label

    def drop(self, pid: int) -> None:
        """*pid* is no longer observed."""
        self._names.pop(pid, None)

    def _free(self, pid: int, name: str | None) -> str:
        clean = _clean(name or NAMELESS)
        others = {names.label for other, names in self._names.items() if other != pid}
        return _with_pid(clean, pid) if clean in others else clean

    def _charge(self, owner: Owner, label: str) -> None:
        now = self._clock()
        kept = {key: _since(now, self._owners.get(key, {})) for key in owner.keys}
        for had in kept.values():
            if label not in had and len(had) >= LABELS:
                raise HostError(
                    f"{owner} has had {LABELS} VMs of different names within an hour, and each has "
                    "series of its own; more are left out until that hour is over"
                )
            had[label] = now
        self._owners |= kept
        if len(self._owners) > _OWNERS:
            self._owners = {k: fresh for k, v in self._owners.items() if (fresh := _since(now, v))}


def _since(now: float, had: dict[str, float]) -> dict[str, float]:
    """Those of the labels *had* that were given within the last hour."""
    return {label: at for label, at in had.items() if now - at < PERIOD}


def _with_pid(clean: str, pid: int) -> str:
    return f"{clean[:_LONGEST]}#{pid}"


def _clean(name: str) -> str:
    """*name* as it stands in a label: a pid is what stands behind the only ``#``."""
    return label_value(name).replace("#", "_")
