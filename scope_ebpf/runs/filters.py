# SPDX-License-Identifier: Apache-2.0
"""
What a trace leaves out in the kernel: processes that nobody asked for, and what is too short.

A filtered trace counts a part of what the VM counts, so its hooks are not compared with the VM's
counters meanwhile: those that were found without a symbol must have agreed before.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf import events
from scope_ebpf.beam.processes.chosen import Chosen
from scope_ebpf.errors import NothingToAttachError, UsageError
from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Item, Plan
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.observers.session import Session

#: Seconds between two looks for new processes, and of these the part that a look may take.
_BETWEEN, _PART = 0.2, 0.05
#: Events that belong to no Erlang process, and those whose USDT probes do not name theirs.
_OF_NONE = ("thread", "dist_out", "dist_in", "dist_down")
_UNNAMED = ("spawn", "port_busy", "dist_output")
#: Keys of one process in the map.
_KEYS = 2


class Filter(NamedTuple):
    """What alone a trace counts."""

    #: A pid, registered name or module; None for all processes.
    process: str | None = None
    #: Milliseconds that collections and schedules take at least.
    shortest_ms: float | None = None

    def __bool__(self) -> bool:
        """Whether it leaves anything out."""
        return self.process is not None or bool(self.shortest_ms)

    def plan(self, plan: Plan) -> Plan:
        """The events of *plan* that can be filtered; raises NothingToAttachError for none."""
        if self.process is None:
            return plan
        left = plan.refuse({i.event: reason for i in plan.items if (reason := _unfit(i))})
        if not left.attachments:
            why = "; ".join(f"{item.event}: {item.reason}" for item in left.items)
            raise NothingToAttachError(f"nothing of it can be seen of one process ({why})")
        return left

    def set(self, settings: NDArray[np.void]) -> None:
        """Let programs with *settings* leave out what it leaves out."""
        settings["filtered"] = self.process is not None
        settings["shortest_ns"] = int((self.shortest_ms or 0) * 1e6)

    def notes(self, plan: Plan, settings: NDArray[np.void]) -> list[str]:
        """What *plan* with *settings* leaves out besides."""
        sends = any(
            (item.event, item.via) == ("send", "symbol") and item.attachments for item in plan.items
        )
        if self.process is None or not sends or settings["dsig_from"]:
            return []
        return ["sends to other nodes are not counted: their sender is not known on this release"]


def _unfit(item: Item) -> str | None:
    """Why *item* cannot be seen of one process alone; None where it can."""
    if item.event in _OF_NONE:
        return "it belongs to no Erlang process"
    if item.via == "usdt" and item.event in _UNNAMED:
        return "its USDT probe does not name the process"
    return None


class Wanted:
    """
    Keeps the processes that *process* names in a session's map; None: does nothing.

    Raises UsageError if there is none now.
    """

    def __init__(self, target: Target, process: str | None) -> None:
        self._chosen = None if process is None else Chosen(target, process)
        self._keys: set[int] = set()
        self._due = 0.0
        #: Processes at most at one look, and all of which events were counted.
        self._most, self._left_out = 0, 0
        if self._chosen is not None:
            self._found = self._chosen.look()
            if not len(self._found):
                raise UsageError(
                    f"process {target.pid} has no Erlang process {plain(str(process))}: wanted is "
                    "a pid such as <0.97.0>, a registered name, or the module that processes run"
                )

    def begin(self, session: Session) -> None:
        """Fill the map, before anything counts."""
        if self._chosen is not None:
            self._set(session, self._chosen, self._found)

    def look(self, session: Session, now: float) -> None:
        """Find processes that are new, if it is due."""
        if self._chosen is None or not self._chosen.may_grow or now < self._due:
            return
        self._set(session, self._chosen, self._chosen.look())

    def notes(self) -> list[str]:
        """What a reader of the figures should know."""
        if self._chosen is None:
            return []
        counted = f"events of {self._most:,} processes at most at one time were counted"
        later = ", of one that is new from the next look on" if self._chosen.may_grow else ""
        found = [f"{counted}{later}; of others nothing was"]
        if self._left_out:
            found.append(f"{self._left_out:,} more were meant, for which there was no room")
        return found

    def _set(self, session: Session, chosen: Chosen, found: NDArray[np.uint64]) -> None:
        room = events.MAX_WANTED // _KEYS
        self._left_out = max(self._left_out, len(found) - room)
        self._most = max(self._most, min(len(found), room))
        keys = chosen.keys(found[:room])
        session.want(keys - self._keys, self._keys - keys)
        self._keys = keys
        self._due = time.monotonic() + max(_BETWEEN, chosen.seconds / _PART)
