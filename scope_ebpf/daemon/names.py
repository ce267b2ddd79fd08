# SPDX-License-Identifier: Apache-2.0
"""
Labels of the VMs under observation: the node's name, made unique.

A VM chooses its name itself, and each new name makes some 270 new series for Prometheus. So the
number of new names of a VM and of an owner is limited, and no VM can take the label of another.
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

#: Maximum new names of one VM, and labels of one owner other than root, in a period of seconds.
RENAMES, LABELS, PERIOD = 3, 120, 3600.0
#: Maximum characters of a name before a pid, so that a label has at most 255.
_MAX_NAME = 240
#: Number of owners above which those that had no new label for an hour are forgotten.
_OWNERS = 1024


class Rate:
    """A rate limit: *most* times in *seconds*."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float]) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._times: deque[float] = deque()

    def take(self) -> bool:
        """True if it may be done once more now; this is counted."""
        now = self._clock()
        while self._times and now - self._times[0] >= self._seconds:
            self._times.popleft()
        if len(self._times) >= self._most:
            return False
        self._times.append(now)
        return True


class _Names:
    """The labels that one VM has had, and the rate limit of new ones."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.label, self.had = "", set[str]()
        #: The name that was denied to it.
        self.denied = ""


class NodeLabels:
    """
    The label of each observed VM, by pid.

    Attributes:
        held: number of new names that were denied.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._names: dict[int, _Names] = {}
        #: By key of an owner: its labels of the last hour, and when each was assigned.
        self._owners: dict[str, dict[str, float]] = {}
        self.held = 0

    def assign(self, pid: int, name: str | None, owner: Owner) -> str:
        """
        Label *pid* with *name*, and with its pid as well if another VM has that label.

        Raises HostError where *owner* has had too many labels.
        """
        label = self._free(pid, name)
        self._charge(owner, label)
        names = self._names[pid] = _Names(Rate(RENAMES, PERIOD, self._clock))
        names.label = label
        names.had.add(label)
        return label

    def follow(self, pid: int, name: str) -> str:
        """Label *pid* with its new *name*, unless it had too many; returns its label."""
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
        """Free the label of *pid*."""
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
    """Those of the labels *had* that were assigned within the last hour."""
    return {label: at for label, at in had.items() if now - at < PERIOD}


def _with_pid(clean: str, pid: int) -> str:
    return f"{clean[:_MAX_NAME]}#{pid}"


def _clean(name: str) -> str:
    """
    *name* as a label without ``#``, which only separates a pid, and without the quote of PromQL's
    raw strings, in which the dashboards write chosen nodes. Erlang allows neither in a name.
    """
    return label_value(name).replace("#", "_").replace("`", "_")
