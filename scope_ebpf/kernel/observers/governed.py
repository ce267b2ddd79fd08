# SPDX-License-Identifier: Apache-2.0
"""
A session whose hooks come and go, one event at a time, while the programs stay loaded.

The gate of an event counts down an allowance and closes itself when that is spent
(``struct allowance`` in probes/events.toml); taking the hooks out is up to us,
and a full allowance wakes whoever polls :meth:`GovernedSession.fileno`.
"""

from __future__ import annotations

import ctypes
import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from scope_ebpf import events
from scope_ebpf.kernel.attach.uprobes import wait_gone
from scope_ebpf.kernel.bpf.libbpf import check, library
from scope_ebpf.kernel.bpf.stats import program_stats
from scope_ebpf.kernel.observers.session import Failure, Session

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment, Item, Plan
    from scope_ebpf.kernel.attach.uprobes import Attacher, Identity, Uprobes
    from scope_ebpf.kernel.bpf.stats import ProgramStats
    from scope_ebpf.kernel.observers.program_pool import Build, Programs, Spares


@dataclass(frozen=True, slots=True)
class Edges:
    """
    When the edges of a window of an event were, ns, and what its measures were there.

    None for an edge at which nothing was hit, and where the measure could not be read.
    """

    begin: tuple[int, int, int] | None
    end: tuple[int, int, int] | None


class _Words(Protocol):
    """Where a sum lies in the VM's memory: *words* of 8 bytes, each *stride* behind the last."""

    @property
    def address(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def words(self) -> int: ...


class GovernedSession(Session):
    """
    A :class:`Session` that starts with every gate closed and no hook attached.

    *attacher* puts hooks in and takes them out, and *spares* keeps programs for the next
    session; both are shared by all sessions of a process. Without spares closing waits until
    the last hook is out.
    """

    def __init__(
        self,
        plan: Plan,
        identity: Identity,
        base: int,
        settings: NDArray[np.void],
        *,
        attacher: Attacher,
        spares: Spares | None = None,
        addresses: dict[str, int] | None = None,
    ) -> None:
        super().__init__(plan, identity, base, settings, addresses=addresses, attacher=attacher)
        self._items = {item.event: item for item in plan.items if item.attachments}
        self._attached: dict[str, Uprobes] = {}
        #: Of events whose hooks are on their way out, what tells when they are.
        self._leaving: dict[str, int] = {}
        self._one_by_one = False
        self._spares = spares
        self._ran_before: dict[str, ProgramStats] = {}

    def _load(self, build: Build) -> Programs:
        return super()._load(build) if self._spares is None else self._spares.take(build)

    def _attach(self) -> None:
        self._ran_before = self._ran()
        for event in self._items:
            self.close_gate(event)
        for item in self._items.values():
            for attachment in item.attachments:
                if attachment.arguments:
                    self._describe(attachment)
        self.count(on=True)

    def fileno(self) -> int:
        """Readable when an allowance was spent; :meth:`quiet` makes it wait again."""
        return self.map_fd("ring")

    def quiet(self) -> None:
        """Take the bell's ringing for heard."""
        with self.ring.batch():
            pass

    def attach(self, event: str) -> bool:
        """
        Put the hooks of *event* in, its gate still closed; False if that failed.

        Raises as ``Identity.check`` does.
        """
        # Until the old ones are gone each hit would run a program twice.
        wait_gone(self._leaving.pop(event, None))
        uprobes = self._make_uprobes()
        wanted = self._by_program(self._items[event])
        results = uprobes.attach(wanted)
        if any(results):
            wait_gone(uprobes.detach())
            self.failures += [
                Failure(place, str(result))
                for (_, places), result in zip(wanted, results, strict=True)
                for place in places
                if result
            ]
            return False
        self._attached[event] = uprobes
        return True

    def _by_program(self, item: Item) -> list[tuple[int, Sequence[Attachment]]]:
        places: dict[str, list[Attachment]] = {}
        for attachment in item.attachments:
            places.setdefault(attachment.program, []).append(attachment)
        return [
            (self._objects[group[0].family].program_fd(program), group)
            for program, group in places.items()
        ]

    def release(self, event: str) -> None:
        """
        Take the hooks of *event* out, without waiting for it.

        They stop costing at once; the kernel's grace period after that passes
        elsewhere.
        """
        uprobes = self._attached.pop(event, None)
        if uprobes is not None and (leaving := uprobes.detach()) is not None:
            self._leaving[event] = leaving

    @property
    def attached(self) -> Collection[str]:
        """The events whose hooks are in."""
        return self._attached.keys()

    def open_gate(self, event: str, hits: int | None) -> int:
        """Let *event* count, for *hits* more hits or without end; when that was, ns."""
        self._forget_edges(event)
        now = time.monotonic_ns()
        self._allow(event, limited=hits is not None, left=hits or 0, since=now)
        return now

    def measure(self, event: str, first: _Words, second: _Words | None) -> None:
        """Tell the programs where the VM counts what goes along with *event*: one or two sums."""
        values = [(of.address, of.stride, of.words) if of else (0, 0, 0) for of in (first, second)]
        value = np.array([(*values[0], *values[1])], events.REFERENCE_COUNTER)
        self._put("reference_counters", events.KINDS[event].id, value)

    def open_window(self, event: str, hits: int, seconds: float) -> tuple[int, int]:
        """Let *event* count for *seconds*, or *hits* hits; its beginning and its end, ns."""
        self._forget_edges(event)
        since = time.monotonic_ns()
        until = since + int(seconds * 1e9)
        self._allow(event, limited=True, left=hits, since=since, until=until)
        return since, until

    def edges(self, event: str) -> Edges:
        """What the hits at the edges of the last window of *event* found."""
        return Edges(
            *(
                self._edge(events.KINDS[event].id * events.WINDOW_BOUNDS + e)
                for e in range(events.WINDOW_BOUNDS)
            )
        )

    def _forget_edges(self, event: str) -> None:
        for edge in range(events.WINDOW_BOUNDS):
            key = ctypes.c_uint32(events.KINDS[event].id * events.WINDOW_BOUNDS + edge)
            library().bpf_map_delete_elem(self.map_fd("counter_samples"), ctypes.byref(key))

    def _edge(self, number: int) -> tuple[int, int, int] | None:
        value = np.zeros(1, events.COUNTER_SAMPLE)
        key = ctypes.c_uint32(number)
        absent = library().bpf_map_lookup_elem(
            self.map_fd("counter_samples"), ctypes.byref(key), value.ctypes.data
        )
        time_ns, measure, refused, second = value[0].tolist()
        return None if absent or refused else (time_ns, measure, second)

    def close_gate(self, event: str) -> int:
        """Let *event* count no longer; when it stopped, ns: now, or when its gate shut itself."""
        tripped = self.tripped(event)
        now = tripped or time.monotonic_ns()
        self._allow(event, limited=True, left=0, since=0, tripped=now)
        return now

    def refill(self, event: str, hits: int) -> None:
        """Let *event*, whose gate is open, be hit *hits* times from now on."""
        allowance = self._allowance(event)
        if not allowance["exhausted_ns"]:
            self._allow(event, limited=True, left=hits, since=int(allowance["opened_ns"]))

    def tripped(self, event: str) -> int:
        """When the gate of *event* shut itself, ns; 0 while it has not."""
        return int(self._allowance(event)["exhausted_ns"])

    def all_tripped(self) -> list[str]:
        """The events whose hooks are in and whose gate has shut itself."""
        values = self._values("quotas", events.QUOTA, len(events.KINDS), 1)
        if values is None:
            return [event for event in self._attached if self.tripped(event)]
        shut = values["exhausted_ns"][:, 0]
        return [event for event in self._attached if shut[events.KINDS[event].id]]

    def kind(self, event: str) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Tallies and durations of one event from the start, shape ``(classes,)``."""
        first = events.KINDS[event].id * events.CLASSES
        keys = range(first, first + events.CLASSES)
        tallies = self._per_cpu("counters", events.COUNTERS, keys)
        durations = self._per_cpu("histograms", events.HISTOGRAM, keys)
        return _sum_cpus(tallies, events.COUNTERS), _sum_cpus(durations, events.HISTOGRAM)

    def kinds(self) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Tallies and durations of all events from the start, shape ``(kinds, classes)``."""
        shape = len(events.KINDS), events.CLASSES
        every = range(shape[0] * shape[1])
        return (
            _sum_cpus(self._per_cpu("counters", events.COUNTERS, every), events.COUNTERS).reshape(
                shape
            ),
            _sum_cpus(
                self._per_cpu("histograms", events.HISTOGRAM, every), events.HISTOGRAM
            ).reshape(shape),
        )

    def _per_cpu(
        self, name: str, dtype: np.dtype[np.void], keys: Iterable[int]
    ) -> NDArray[np.void]:
        """As the base class; a whole map is read in one call where the kernel can (5.13)."""
        wanted = list(keys)
        values = None if wanted[0] else self._values(name, dtype, len(wanted), self._cpus)
        return super()._per_cpu(name, dtype, wanted) if values is None else values

    def _values(
        self, name: str, dtype: np.dtype[np.void], size: int, each: int
    ) -> NDArray[np.void] | None:
        """A whole array, *each* values at a key, in one call; None where the kernel cannot."""
        if self._one_by_one:
            return None
        values, numbers = np.zeros((size, each), dtype), np.zeros(size, np.uint32)
        count, after = ctypes.c_uint32(size), ctypes.c_uint32()
        result = library().bpf_map_lookup_batch(
            self.map_fd(name),
            None,
            ctypes.byref(after),
            numbers.ctypes.data,
            values.ctypes.data,
            ctypes.byref(count),
            None,
        )
        # ENOENT says that this was the end of the map.
        if count.value == size and result in (0, -errno.ENOENT):
            return values
        self._one_by_one = True
        return None

    def program_stats(self) -> dict[str, ProgramStats]:
        """Runs and run time of each program; nothing while the kernel does not measure them."""
        before = self._ran_before
        return {program: stats.since(before[program]) for program, stats in self._ran().items()}

    def _ran(self) -> dict[str, ProgramStats]:
        """The same since they were loaded."""
        wanted = {a.program: a.family for a in self._plan.attachments}
        return {
            program: program_stats(self._objects[family].program_fd(program))
            for program, family in wanted.items()
        }

    def close(self) -> None:
        """Take every hook out, and leave the programs to the next session if there may be one."""
        if self._spares is None or self._programs is None:
            super().close()
            return
        for event in list(self._attached):
            self.release(event)
        self._spares.give(self._programs, list(self._leaving.values()))
        self._leaving.clear()
        self._programs = None

    def detach(self) -> None:
        """Take every hook out; returns when the last one is gone."""
        for event in list(self._attached):
            self.release(event)
        while self._leaving:
            wait_gone(self._leaving.popitem()[1])

    def _allowance(self, event: str) -> np.void:
        value = np.zeros(1, events.QUOTA)
        key = ctypes.c_uint32(events.KINDS[event].id)
        check(
            library().bpf_map_lookup_elem(
                self.map_fd("quotas"), ctypes.byref(key), value.ctypes.data
            ),
            "cannot read an allowance",
        )
        found: np.void = value[0]
        return found

    def _allow(
        self, event: str, *, limited: bool, left: int, since: int, tripped: int = 0, until: int = 0
    ) -> None:
        value = np.array([(limited, left, since, tripped, until, 0)], events.QUOTA)
        self._put("quotas", events.KINDS[event].id, value)

    def _put(self, name: str, number: int, value: NDArray[np.void]) -> None:
        key = ctypes.c_uint32(number)
        check(
            library().bpf_map_update_elem(
                self.map_fd(name), ctypes.byref(key), value.ctypes.data, 0
            ),
            f"cannot write the map {name}",
        )


def _sum_cpus(values: NDArray[np.void], dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """Add up the CPUs: shape ``(classes, cpus)`` becomes ``(classes,)``."""
    result = np.zeros(len(values), dtype)
    for name in dtype.names or ():
        result[name] = values[name].sum(axis=1)
    return result
