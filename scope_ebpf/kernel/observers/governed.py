# SPDX-License-Identifier: Apache-2.0
"""
A session whose hooks come and go, one event at a time, while the programs stay loaded.

Each event has a quota of hits (``struct quota`` in probes/events.toml). The programs count
it down and stop counting the event when it is spent; its hooks are then still in, and the record
that the programs write makes :meth:`GovernedSession.fileno` readable, so that its owner takes them
out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from scope_ebpf import events
from scope_ebpf.attach import allowlist
from scope_ebpf.kernel.attach.uprobes import wait_gone
from scope_ebpf.kernel.closing import Closing
from scope_ebpf.kernel.observers.loaded_plan import Failure, LoadedPlan, by_program

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Plan
    from scope_ebpf.kernel.attach.uprobes import Attacher, Identity, Uprobes
    from scope_ebpf.kernel.bpf.stats import ProgramStats
    from scope_ebpf.kernel.observers.program_pool import ProgramPool


@dataclass(frozen=True, slots=True)
class WindowBounds:
    """
    The first and the last hit of a window of an event.

    Each is the time, ns, and the sums of both reference counters at that time; None if there was
    no hit, or the counters could not be read.
    """

    begin: tuple[int, int, int] | None
    end: tuple[int, int, int] | None


class _WordRange(Protocol):
    """
    A reference counter of the VM: the sum of *words* words of 8 bytes in its memory.

    ``address`` is that of the first, ``stride`` the distance from one to the next, bytes.
    """

    @property
    def address(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def words(self) -> int: ...


class GovernedSession(Closing):
    """
    The programs of *plan*, loaded for the process of *identity*, with no hook attached at first.

    A context manager. *base*, *settings*, *atoms* and *addresses* are as for
    :class:`~scope_ebpf.kernel.observers.session.Session`. *attacher* holds the hooks and *pool*
    keeps programs for the next session; both are shared by all sessions of a process. Without
    *pool*, closing waits until the last hook is out.

    ``failures`` are the hooks that could not be attached.
    """

    def __init__(
        self,
        plan: Plan,
        identity: Identity,
        base: int,
        settings: NDArray[np.void],
        *,
        attacher: Attacher,
        pool: ProgramPool | None = None,
        atoms: NDArray[np.void] | None = None,
        addresses: dict[str, int] | None = None,
    ) -> None:
        names = allowlist.names("jit")
        self._loaded = LoadedPlan(
            plan, identity, base, settings, names=names, atoms=atoms, addresses=addresses
        )
        self.failures: list[Failure] = []
        self._attacher, self._pool = attacher, pool
        self._items = {item.event: item for item in plan.items if item.attachments}
        self._attached: dict[str, Uprobes] = {}
        #: By event whose hooks are being removed, a descriptor that is readable when they are out.
        self._leaving: dict[str, int] = {}
        self._stats_before: dict[str, ProgramStats] = {}

    def _open(self) -> None:
        if self._pool is None:
            self._loaded.load()
        else:
            self._loaded.load(self._pool.acquire)
        maps = self._loaded.programs.maps
        self._quotas, self._edges = maps["quotas"], maps["counter_samples"]
        self._tallies, self._durations = maps["counters"], maps["histograms"]
        self._stats_before = self._loaded.stats()
        for event, item in self._items.items():
            self.disable(event)
            for attachment in item.attachments:
                self._loaded.describe(attachment)
        self.count(on=True)

    def fileno(self) -> int:
        """A descriptor that is readable when a quota is spent, until :meth:`drain_wakeups`."""
        return self._loaded.programs.ring_fd

    def drain_wakeups(self) -> None:
        """Drain the wake-up records: :meth:`fileno` is then readable at the next spent one only."""
        with self._loaded.programs.ring.batch():
            pass

    # Hooks -----------------------------------------------------------------------------------

    def attach(self, event: str) -> bool:
        """
        Attach the hooks of *event*, which does not count yet; False if that failed.

        Raises as ``Identity.check`` does.
        """
        # Until the old ones are gone each hit would run a program twice.
        wait_gone(self._leaving.pop(event, None))
        uprobes = self._loaded.uprobes(self._attacher)
        groups = by_program(self._items[event].attachments).values()
        results = uprobes.attach([self._loaded.ready(group) for group in groups])
        if any(results):
            wait_gone(uprobes.detach())
            self.failures += [
                Failure(attachment, str(result))
                for group, result in zip(groups, results, strict=True)
                for attachment in group
                if result
            ]
            return False
        self._attached[event] = uprobes
        return True

    def release(self, event: str) -> None:
        """
        Remove the hooks of *event*, without waiting.

        They cost nothing from now on; the kernel's grace period after that passes in the attacher.
        """
        uprobes = self._attached.pop(event, None)
        if uprobes is not None and (leaving := uprobes.detach()) is not None:
            self._leaving[event] = leaving

    @property
    def attached(self) -> Collection[str]:
        """The events whose hooks are attached."""
        return self._attached.keys()

    def detach(self) -> None:
        """Remove every hook; returns when the last one is out."""
        for event in list(self._attached):
            self.release(event)
        while self._leaving:
            wait_gone(self._leaving.popitem()[1])

    # Quotas and windows ---------------------------------------------------------------------------

    def enable(self, event: str, hits: int | None) -> int:
        """Count *event* from now on, for *hits* hits or without limit; returns the time, ns."""
        self._forget_bounds(event)
        now = time.monotonic_ns()
        self._set_quota(event, limited=hits is not None, left=hits or 0, since=now)
        return now

    def open_window(self, event: str, hits: int, seconds: float) -> tuple[int, int]:
        """Count *event* for *seconds*, or *hits* hits; returns the begin and the end, ns."""
        self._forget_bounds(event)
        since = time.monotonic_ns()
        until = since + int(seconds * 1e9)
        self._set_quota(event, limited=True, left=hits, since=since, until=until)
        return since, until

    def disable(self, event: str) -> int:
        """Stop counting *event*; returns the time, ns: now, or when its quota was spent."""
        exhausted = self.exhausted_at(event)
        now = exhausted or time.monotonic_ns()
        self._set_quota(event, limited=True, left=0, since=0, exhausted=now)
        return now

    def refill(self, event: str, hits: int) -> None:
        """Set the quota of *event* to *hits* more hits, unless it is spent already."""
        quota = self._quota(event)
        if not quota["exhausted_ns"]:
            self._set_quota(event, limited=True, left=hits, since=int(quota["opened_ns"]))

    def exhausted_at(self, event: str) -> int:
        """The time at which the quota of *event* was spent, ns; 0 while it is not."""
        return int(self._quota(event)["exhausted_ns"])

    def exhausted_events(self) -> list[str]:
        """The events whose hooks are attached and whose quota is spent."""
        times = self._quotas.values()["exhausted_ns"]
        return [event for event in self._attached if times[events.KINDS[event].id]]

    def _quota(self, event: str) -> NDArray[np.void]:
        return self._quotas[events.KINDS[event].id]

    def _set_quota(
        self,
        event: str,
        *,
        limited: bool,
        left: int,
        since: int,
        exhausted: int = 0,
        until: int = 0,
    ) -> None:
        self._quotas[events.KINDS[event].id] = (limited, left, since, exhausted, until, 0)

    def set_reference_counters(
        self, event: str, first: _WordRange, second: _WordRange | None
    ) -> None:
        """Set the one or two reference counters that programs read at the edges of a window."""
        values = [(of.address, of.stride, of.words) if of else (0, 0, 0) for of in (first, second)]
        self._loaded.programs.maps["reference_counters"][events.KINDS[event].id] = (
            *values[0],
            *values[1],
        )

    def window_bounds(self, event: str) -> WindowBounds:
        """The first and the last hit of the last window of *event*."""
        return WindowBounds(
            *(
                self._bound(events.KINDS[event].id * events.WINDOW_BOUNDS + e)
                for e in range(events.WINDOW_BOUNDS)
            )
        )

    def _forget_bounds(self, event: str) -> None:
        for edge in range(events.WINDOW_BOUNDS):
            self._edges.discard(events.KINDS[event].id * events.WINDOW_BOUNDS + edge)

    def _bound(self, number: int) -> tuple[int, int, int] | None:
        value = self._edges.get(number)
        if value is None:
            return None
        time_ns, first, failed, second = value.tolist()
        return None if failed else (time_ns, first, second)

    # Counts ----------------------------------------------------------------------------------

    def count(self, *, on: bool) -> None:
        """Count events from now on, or no longer: for all hooks at one moment."""
        self._loaded.count(on=on)

    def crashes(self) -> list[tuple[NDArray[np.void], int]]:
        """Each group of crashes, an ``events.CRASH``, and how many were seen of it."""
        return self._loaded.crashes()

    def hits(self) -> dict[str, int]:
        """Number of runs of each program on the target, by its name."""
        return self._loaded.hits()

    def kind(self, event: str) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Tallies and durations of one event from the start, shape ``(classes,)``."""
        first = events.KINDS[event].id * events.CLASSES
        keys = range(first, first + events.CLASSES)
        return _sum_cpus(self._tallies.at(keys)), _sum_cpus(self._durations.at(keys))

    def kinds(self) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Tallies and durations of all events from the start, shape ``(kinds, classes)``."""
        shape = len(events.KINDS), events.CLASSES
        tallies, durations = self._tallies.values(), self._durations.values()
        return _sum_cpus(tallies).reshape(shape), _sum_cpus(durations).reshape(shape)

    def program_stats(self) -> dict[str, ProgramStats]:
        """Runs and run time of each program; 0 while the kernel does not measure them."""
        before = self._stats_before
        stats = self._loaded.stats()
        return {program: now.since(before[program]) for program, now in stats.items()}

    def close(self) -> None:
        """Remove every hook; the programs go to *pool*, or back to the kernel."""
        programs = None if self._pool is None else self._loaded.take_programs()
        if self._pool is None or programs is None:
            self.detach()
            self._loaded.close()
            return
        for event in list(self._attached):
            self.release(event)
        self._pool.release(programs, list(self._leaving.values()))
        self._leaving.clear()


def _sum_cpus(values: NDArray[np.void]) -> NDArray[np.void]:
    """Add up the CPUs: shape ``(n, cpus)`` becomes ``(n,)``."""
    result = np.zeros(len(values), values.dtype)
    for name in values.dtype.names or ():
        result[name] = values[name].sum(axis=1)
    return result
