# SPDX-License-Identifier: Apache-2.0
"""
The programs and maps of one plan, loaded.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from scope_ebpf import events
from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.kernel.attach.uprobes import TRACE_UPROBE_MULTI
from scope_ebpf.kernel.bpf.maps import U32, U64
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.bpf.ring import Ring
from scope_ebpf.kernel.interrupts import held_back

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Plan
    from scope_ebpf.kernel.bpf.maps import Map

#: The arrays and the hash that every probe shares with the others, and the type of a value.
_VALUES = {
    "counters": events.COUNTERS,
    "histograms": events.HISTOGRAM,
    "hits": U64,
    "gate": U64,
    "quotas": events.QUOTA,
    "reference_counters": events.REFERENCE_COUNTER,
    "counter_samples": events.COUNTER_SAMPLE,
}
#: All maps that the probes share; the first object makes them.
SHARED = ("ring", *_VALUES)


class Build(NamedTuple):
    """
    What is loaded; programs of equal builds can take each other's place.

    ``programs`` are the family and the name of each program, and whether it is at a tracepoint;
    ``settings`` the bytes of their constants; ``ring_bytes`` the size of their ring; ``multi``
    whether their breakpoints are uprobe_multi links.
    """

    programs: tuple[tuple[str, str, bool], ...]
    settings: bytes
    ring_bytes: int
    multi: bool


def build_of(plan: Plan, settings: NDArray[np.void], ring_bytes: int, *, multi: bool) -> Build:
    """
    The build for *plan*, with *settings* as constants.

    NothingToAttachError if the plan has no program.
    """
    programs = dict.fromkeys((a.family, a.program, a.tracepoint) for a in plan.attachments)
    if not programs:
        raise NothingToAttachError(
            "none of the events that were asked for has a hook on this target; "
            "`scope-trace doctor PID` says why"
        )
    return Build(tuple(programs), settings.tobytes(), ring_bytes, multi)


class Programs:
    """
    The programs of *build*, in the kernel, with their maps.

    *on_progress* is called after each object that is loaded. Without it two CPUs load them, since
    a user waits. HostError where libbpf or the kernel refuses.

    ``objects`` are the objects by family, ``ring`` the ring that all share, which lies behind
    ``ring_fd``, and ``maps`` the other maps that all share, by name; their keys are indices.
    """

    def __init__(self, build: Build, on_progress: Callable[[], None] | None = None) -> None:
        self.build = build
        self.objects: dict[str, BpfObject] = {}
        self._first_family = build.programs[0][0]
        self._resources = ExitStack()
        try:
            families = list(dict.fromkeys(family for family, _, _ in build.programs))
            if on_progress:
                for family in families:
                    self._load(family)
                    on_progress()
            else:
                self._load(self._first_family)  # makes the maps that the others share
                with held_back():  # also in the second thread, which inherits that
                    _by_two(self._load, families[1:])
            self.maps = {name: self._first.map(name, U32, of) for name, of in _VALUES.items()}
            self.ring_fd = self._first.maps["ring"].fd
            ring = Ring(self.ring_fd, build.ring_bytes)
            self.ring = self._resources.enter_context(closing(ring))
        except BaseException:
            self.close()
            raise

    @property
    def _first(self) -> BpfObject:
        return self.objects[self._first_family]

    def _load(self, family: str) -> None:
        opened = BpfObject(family, object_bytes(family))
        opened.set_constants(self.build.settings)
        if self.objects:
            for name in SHARED:
                opened.maps[name].share(self._first.maps[name].fd)
        else:
            opened.maps["ring"].set_entries(self.build.ring_bytes)
        self.objects[family] = opened
        wanted = {name: tracepoint for of, name, tracepoint in self.build.programs if of == family}
        multi = self.build.multi and not any(wanted.values())
        opened.load(wanted, TRACE_UPROBE_MULTI if multi else None)

    def map(self, name: str, key: np.dtype[Any], value: np.dtype[Any]) -> Map:
        """A map of the first object, with its types."""
        return self._first.map(name, key, value)

    def set_target(self, target: NDArray[np.void]) -> None:
        """Let every program observe *target*, one ``events.TARGET``."""
        for owner in self.objects.values():
            owner.variables(events.TARGET)[0] = target

    def clear(self) -> None:
        """Reset all maps to their state after loading. No hook may be attached."""
        with self.ring.batch():
            pass  # drains the ring
        seen: set[str] = set()
        for owner in self.objects.values():
            for name in owner.maps.keys() - seen:
                owner.maps[name].clear()
            seen.update(SHARED)

    def close(self) -> None:
        """Give everything back to the kernel."""
        self._resources.close()
        while self.objects:
            self.objects.popitem()[1].close()


def _by_two(do: Callable[[str], None], names: list[str]) -> None:
    """Call *do* with each of *names*, in two threads; raise the first error when both ended."""
    waiting, errors = deque(names), list[BaseException]()

    def work() -> None:
        with suppress(IndexError):
            while not errors:
                name = waiting.popleft()
                try:
                    do(name)
                except BaseException as error:  # noqa: BLE001 - raised by the caller's thread
                    errors.append(error)

    helper = threading.Thread(target=work) if len(names) > 1 else None
    if helper:
        with suppress(RuntimeError):  # "can't start new thread": then this one does it all
            helper.start()
    work()
    if helper and helper.ident:
        helper.join()
    if errors:
        raise errors[0]
