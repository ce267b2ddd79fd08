# SPDX-License-Identifier: Apache-2.0
"""
The scheduler's tracepoints: attached once for all targets, and paid from all their budgets.

They are detached while they have cost more than their share of the budgets (a duty cycle).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scope_ebpf import events
from scope_ebpf.daemon.looks.owners import OwnerSlots
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.threads import WatchedThreads
from scope_ebpf.errors import HostError
from scope_ebpf.kernel.observers.thread_watch import ThreadWatch, attach_or_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.looks.owners import Owner
    from scope_ebpf.daemon.watch import Watch
    from scope_ebpf.kernel.bpf.stats import ProgramStats

    #: Calls a function with the watch of each target.
    ForEach = Callable[[Callable[[Watch], None]], None]


class SharedTracepoints:
    """
    The tracepoints, attached for the first target.

    Attributes:
        thread_watch: their programs and maps; None before the first target, and where the kernel
            refuses them.
    """

    def __init__(self) -> None:
        self.thread_watch: ThreadWatch | None = None
        #: Why the kernel refuses them.
        self._refused = ""
        #: Owners whose targets have a slot in the maps.
        self._slots = OwnerSlots()

    def watch(self, target: Target, owner: Owner, *, strict: bool) -> WatchedThreads:
        """
        Watch the threads of *target*, if the kernel permits it and there is a free slot.

        With *strict*, raises HostError where the kernel does not permit it.
        """
        self._attach(strict=strict)
        slot = None
        if self.thread_watch and not self._slots.refusal(owner, events.MAX_TARGETS):
            slot = self.thread_watch.add()
        if slot is not None:
            self._slots.enter(target.pid, owner)
        return WatchedThreads(self.thread_watch, target, slot)

    def release(self, pid: int) -> None:
        """The slot of *pid* is free."""
        self._slots.leave(pid)

    def balance(
        self, debts: Iterable[tuple[float, float]], for_each: ForEach, *, strict: bool
    ) -> None:
        """
        Detach the tracepoints while they have cost too much, and attach them again.

        *debts* are, for each target, the seconds of CPU beyond the tracepoints' share of the
        budget, and that share of one second. Tracepoints run for all targets together, so sums are
        compared. Where the kernel refuses to attach them again, targets go on without them; with
        *strict*, HostError is raised.
        """
        watch = self.thread_watch
        if watch is None:
            return
        debt, share = (sum(each) for each in zip((0.0, 0.0), *debts, strict=True))
        if debt > share:
            watch.pause()
        if debt > 0:
            return
        try:
            if watch.resume():
                for_each(lambda one: one.resumed())
        except HostError as error:
            why = self._refused = str(error)
            if strict:
                raise
            self.thread_watch = None
            for_each(lambda one: one.unwatch_threads(why))
            watch.close()

    def stats(self) -> dict[str, ProgramStats]:
        """Runs of the programs, by name."""
        return self.thread_watch.stats() if self.thread_watch else {}

    def close(self) -> None:
        """Detach the tracepoints for good."""
        if self.thread_watch:
            self.thread_watch.close()

    def _attach(self, *, strict: bool) -> None:
        """Attach them, unless they are, or were refused before; log what is refused."""
        if self.thread_watch or self._refused:
            return
        self.thread_watch, self._refused = attach_or_reason()
        what, why = "threads are not watched", self._refused
        if self.thread_watch:
            what, why = "busy waiting and native code are not measured", self.thread_watch.unsampled
        if why:
            say(logging.WARNING, what, why=why)
        if why and strict:
            raise HostError(f"--strict, and {what}: {why}")
