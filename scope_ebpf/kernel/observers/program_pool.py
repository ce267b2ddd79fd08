# SPDX-License-Identifier: Apache-2.0
"""
The programs and maps of one plan, loaded.

To load them takes tens of milliseconds, nearly all of it the verifier's. Where VMs come
and go that would be most of what observing costs, so programs whose target has ended
are kept for a while and look at the next one of the same build.
"""

from __future__ import annotations

import ctypes
import os
import select
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import HostError, NothingToAttachError
from scope_ebpf.kernel.attach.uprobes import TRACE_UPROBE_MULTI, wait_gone
from scope_ebpf.kernel.bpf.libbpf import check, library
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.bpf.ring import Ring
from scope_ebpf.kernel.interrupts import held_back

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Plan

#: Maps that every probe shares; the first object makes them.
SHARED = (
    "ring",
    "counters",
    "histograms",
    "hits",
    "gate",
    "quotas",
    "reference_counters",
    "counter_samples",
)


class Build(NamedTuple):
    """What programs are loaded for; equal ones can take each other's place."""

    #: Family and name of each program, and whether it is at a tracepoint.
    programs: tuple[tuple[str, str, bool], ...]
    settings: bytes
    ring_bytes: int
    multi: bool


def build_of(plan: Plan, settings: NDArray[np.void], ring_bytes: int, *, multi: bool) -> Build:
    """What *plan* needs, with *settings* as constants and breakpoints in *multi* links."""
    programs = dict.fromkeys((a.family, a.program, a.tracepoint) for a in plan.attachments)
    if not programs:
        raise NothingToAttachError(
            "none of the events that were asked for has a hook on this target; "
            "`scope-trace doctor PID` says why"
        )
    return Build(tuple(programs), settings.tobytes(), ring_bytes, multi)


class Programs:
    """
    What *build* says, in the kernel; *breathe* is called now and then while it is loaded.

    Without *breathe* two CPUs load it, since somebody waits. HostError where libbpf or the kernel
    refuses.
    """

    def __init__(self, build: Build, breathe: Callable[[], None] | None = None) -> None:
        self.build = build
        self.objects: dict[str, BpfObject] = {}
        self.cpus = check(library().libbpf_num_possible_cpus(), "cannot count the CPUs")
        try:
            families = list(dict.fromkeys(family for family, _, _ in build.programs))
            if breathe:
                for family in families:
                    self._load(family)
                    breathe()
            else:
                self._load(families[0])  # makes the maps that the others share
                with held_back():  # also in the second thread, which inherits that
                    _by_two(self._load, families[1:])
            self.ring = Ring(self.map_fd("ring"), build.ring_bytes)
        except BaseException:
            self.close()
            raise

    def _load(self, family: str) -> None:
        opened = BpfObject(family, object_bytes(family))
        opened.set_constants(self.build.settings)
        if self.objects:
            for name in SHARED:
                opened.share(name, self.map_fd(name))
        else:
            opened.set_entries("ring", self.build.ring_bytes)
        self.objects[family] = opened
        wanted = {name: tracepoint for of, name, tracepoint in self.build.programs if of == family}
        multi = self.build.multi and not any(wanted.values())
        opened.load(wanted, TRACE_UPROBE_MULTI if multi else None)

    def map_fd(self, name: str) -> int:
        """The file descriptor of a map: one that all share, or one of the first object."""
        return next(iter(self.objects.values())).map_fd(name)

    def look_at(self, pid: int, base: int) -> None:
        """Let every program look at process *pid*, whose file is loaded at *base*."""
        whom = np.zeros((), events.TARGET)
        whom["tgid"], whom["base"] = pid, base
        key = ctypes.c_uint32(0)
        for owner in self.objects.values():
            fd = owner.variables()
            result = library().bpf_map_update_elem(fd, ctypes.byref(key), whom.ctypes.data, 0)
            check(result, f"cannot tell {owner.family} whom to look at")

    def clear(self) -> None:
        """Let all maps be as after loading. No hook may be in."""
        with self.ring.batch():
            pass  # whoever rang has been heard
        seen: set[str] = set()
        for owner in self.objects.values():
            for name in owner.maps.keys() - seen:
                owner.clear(name, self.cpus)
            seen.update(SHARED)

    def close(self) -> None:
        """Give everything back to the kernel."""
        if hasattr(self, "ring"):
            self.ring.close()
            del self.ring
        while self.objects:
            self.objects.popitem()[1].close()


def _by_two(do: Callable[[str], None], names: list[str]) -> None:
    """Do it with each of *names*, in two threads; raises the first error when both have ended."""
    waiting, errors = deque(names), list[BaseException]()

    def work() -> None:
        with suppress(IndexError):
            while not errors:
                name = waiting.popleft()
                try:
                    do(name)
                except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                    errors.append(error)

    helper = threading.Thread(target=work) if len(names) > 1 else None
    if helper:
        with suppress(RuntimeError):  # "can't start new thread": then we do it all
            helper.start()
    work()
    if helper and helper.ident:
        helper.join()
    if errors:
        raise errors[0]


class _Spare(NamedTuple):
    programs: Programs
    since: float
    #: What tells that the last hook of their target is gone.
    leaving: list[int]


class Spares:
    """
    At most *room* programs without a target, kept for at most so many *seconds*.

    New ones are loaded where there are none that fit, with *breathe* as in :class:`Programs`.
    """

    def __init__(
        self, room: int, seconds: float, breathe: Callable[[], None] | None = None
    ) -> None:
        self._room, self._seconds, self._breathe = room, seconds, breathe
        self._spares: list[_Spare] = []

    def __len__(self) -> int:
        return len(self._spares)

    def take(self, build: Build) -> Programs:
        """Programs of that *build*: spare ones as good as new, or new ones."""
        for spare in reversed(self._spares):
            if spare.programs.build == build and _gone(spare.leaving):
                self._spares.remove(spare)
                try:
                    spare.programs.clear()
                except HostError:
                    spare.programs.close()
                    break
                return spare.programs
        return Programs(build, self._breathe)

    def give(self, programs: Programs, leaving: list[int]) -> None:
        """Keep *programs*, whose hooks are out when *leaving* tells."""
        self._spares.append(_Spare(programs, time.monotonic(), leaving))
        self.tidy()

    def tidy(self, *, everything: bool = False) -> None:
        """Close those that nobody needed for long, those for which there is no room, or all."""
        late = time.monotonic() - self._seconds
        over = len(self._spares) - (0 if everything else self._room)
        for number, spare in enumerate(list(self._spares)):
            # The longest unused stand first.
            if number < over or spare.since < late:
                self._spares.remove(spare)
                for fd in spare.leaving:
                    os.close(fd)  # not waited for: the kernel has the programs until they are gone
                spare.programs.close()


def _gone(leaving: list[int]) -> bool:
    """Whether all hooks are out; then what told it is closed."""
    poll = select.poll()
    for fd in leaving:
        poll.register(fd, select.POLLIN)
    if len(poll.poll(0)) < len(leaving):
        return False
    for fd in leaving:
        wait_gone(fd)
    leaving.clear()
    return True
