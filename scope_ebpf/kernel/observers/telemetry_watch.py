# SPDX-License-Identifier: Apache-2.0
"""
The events of one VM's telemetry library: the ``telemetry`` object at its lookups of handlers, or at
a breakpoint on the function that every event passes.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from scope_ebpf import events
from scope_ebpf.attach.allowlist import TELEMETRY
from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.attach.breakpoints import MOST, Breakpoints
from scope_ebpf.kernel.attach.uprobes import (
    TRACE_UPROBE_MULTI,
    Attacher,
    Uprobes,
    has_multi,
    wait_gone,
)
from scope_ebpf.kernel.bpf.long_ring import LongRing
from scope_ebpf.kernel.bpf.maps import U32, U64
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.kernel.attach.uprobes import Identity
    from scope_ebpf.kernel.bpf.maps import Map

#: Room for spans, 340 bytes each, until they are read.
_RING_BYTES = 8 << 20
#: Rows that are counted at a time, 1.1 KB each; events of others are counted together.
ROWS = 16384
#: The program of breakpoints.
_EXECUTE = "telemetry_execute"
#: Hits of a breakpoint before Linux 6.10, where the kernel limits them: as many as there can be.
_NO_LIMIT = (1 << 31) - 1


class Clock(Protocol):
    """What samples the work of one target: a ``thread_watch.WorkClock``."""

    def use(self, works: int, samples: int) -> None:
        """Sample by these maps from now on, by file descriptor: what is worked on, and samples."""

    def open(self) -> int:
        """Count samples of what begins from now on; returns the value of the gate for that."""

    def shut(self) -> None:
        """Count no samples."""

    def leave(self) -> None:
        """Count no samples, and give the maps back."""


class Work(NamedTuple):
    """What is noted of what processes work on."""

    #: Works that differ in their labels; others have no name.
    rows: int
    #: Processes at work at a time; of others it is not known.
    open: int
    #: What samples it; None if others do, by :attr:`TelemetryWatch.works_fd`.
    clock: Clock | None = None


#: The value of the gate where a profile samples work (WORK_GATE in sample.bpf.h).
_PROFILED = 1


class TelemetryWatch(Closing):
    """
    Counts events of the process of *identity* while hooks are attached and it is started.

    *hooks* are of one program, with names of ``allowlist.TELEMETRY``, none where breakpoints are
    the only way; *settings* is one ``events.TELEMETRY_SETTINGS``. *rows* is the most rows;
    *attacher* holds the breakpoints, one of its own without it; *work* says where it is noted what
    processes work on. HostError where the kernel refuses.
    """

    def __init__(
        self,
        identity: Identity,
        settings: NDArray[np.void],
        hooks: Sequence[Attachment],
        rows: int = ROWS,
        *,
        attacher: Attacher | None = None,
        work: Work | None = None,
    ) -> None:
        host.require_host_pids(
            "this runs in a pid namespace, where the kernel's numbers of processes are others"
        )
        if strange := [hook.name for hook in hooks if hook.name not in TELEMETRY]:
            raise NothingToAttachError(f"{strange[0]} is not on the list of permitted hooks")
        self._identity, self._hooks, self._most = identity, hooks, rows
        self._attacher, self._work = attacher, work
        self._programs = {_EXECUTE, *(hook.program for hook in hooks)}
        #: Readable when the hooks are out that were released last.
        self._leaving: int | None = None
        self._wants_spans = bool(settings["spans"])
        self._resources = ExitStack()
        self._object = self._resources.enter_context(
            closing(BpfObject("telemetry", object_bytes("telemetry")))
        )
        self._object.set_constants(settings.tobytes())

    def _open(self) -> None:
        self._object.maps["rows"].set_entries(self._most)
        if self._wants_spans:
            self._object.maps["spans"].set_entries(_RING_BYTES)
        self._prepare_work()
        multi = has_multi()
        self._object.load(self._programs, TRACE_UPROBE_MULTI if multi else None)
        self._begin_samples()
        self._gate = self._object.map("gate", U32, U64)
        self._specs = self._object.map("specs", events.TELEMETRY_EVENT, events.TELEMETRY_SPEC)
        self._rows = self._object.map("rows", events.TELEMETRY_ROW, events.TELEMETRY_TOTALS)
        if self._wants_spans:
            ring = LongRing(self._object.maps["spans"].fd, _RING_BYTES)
            self._ring = self._resources.enter_context(closing(ring))
        attacher = self._attacher or self._resources.enter_context(Attacher())
        self._uprobes = Uprobes(self._identity, attacher, multi=multi)
        self._breakpoints = Breakpoints(self._identity, self._object.programs, _NO_LIMIT)
        self._resources.callback(self._detach)

    def _prepare_work(self) -> None:
        self._object.maps["works"].set_entries(self._work.open if self._work else 1)
        if self._work is None:
            return
        self._object.maps["work_rows"].set_entries(self._work.rows)

    def _begin_samples(self) -> None:
        clock = self._work.clock if self._work else None
        if clock is None:
            return
        samples = self._samples_map
        for number in (events.WORK_OUTSIDE, events.WORK_OTHER):
            samples[number] = 0
        clock.use(self.works_fd, samples.fd)
        self._resources.callback(clock.leave)

    @property
    def works_fd(self) -> int:
        """The map of what processes work on, for samplers; while this is open."""
        return self._object.maps["works"].fd

    def work_samples(self) -> dict[int, int]:
        """Samples of processes by what they work on, a number; with a clock only."""
        numbers, samples = self._samples_map.entries()
        return dict(zip(numbers.tolist(), samples.tolist(), strict=True))

    def work_row(self, number: int) -> np.void | None:
        """The TELEMETRY_ROW that has this number among works; None if it has none."""
        found: Any = self._work_rows_map.get(number)
        return None if found is None else found[()]

    def forget_work(self, number: int) -> None:
        """Remove what has this number among works; when it begins again it is there anew."""
        self._samples_map.discard(number)
        self._work_rows_map.discard(number)

    @property
    def _samples_map(self) -> Map:
        return self._object.map("work_samples", U64, U64)

    @property
    def _work_rows_map(self) -> Map:
        return self._object.map("work_rows", U64, events.TELEMETRY_ROW)

    def attach(self) -> None:
        """Attach to the functions that look handlers up; NothingToAttachError, HostError."""
        wait_gone(self._leaving)
        self._leaving = None
        ready = [(self._object.program_fd(self._hooks[0].program), self._hooks)]
        failed = [error for error in self._uprobes.attach(ready) if error]
        if failed:
            raise NothingToAttachError(f"telemetry cannot be seen: {failed[0]}")

    def arm(self, addresses: Sequence[int], tids: Collection[int]) -> None:
        """
        Set breakpoints at these *addresses* and no others, on the threads *tids*.

        The first four are set. Raises as ``Breakpoints.set``.
        """
        self._breakpoints.set(dict.fromkeys(addresses[:MOST], _EXECUTE), tids)

    def release(self) -> None:
        """Remove every hook, without waiting: they cost nothing from now on."""
        self._shut()
        self._breakpoints.close()
        if self._leaving is None:
            self._leaving = self._uprobes.detach()

    def specify(
        self,
        event: NDArray[np.void],
        spec: NDArray[np.void],
        other: NDArray[np.void] | None = None,
    ) -> None:
        """
        Count *event*, a TELEMETRY_EVENT, as *spec* says, a TELEMETRY_SPEC.

        *other* is the TELEMETRY_ROW of what finds no room; it keeps its counts.
        """
        if other is not None and self._rows.get(other) is None:
            self._rows[other] = np.zeros((), events.TELEMETRY_TOTALS)
        self._specs[event] = spec

    def start(self) -> None:
        """Count from now on; what processes work on counts if it begins from now on."""
        clock = self._work.clock if self._work else None
        self._gate[0] = clock.open() if clock else _PROFILED

    def stop(self) -> None:
        """Remove the breakpoints; the counts can still be read."""
        self._shut()
        self._detach()

    def _shut(self) -> None:
        self._gate[0] = 0
        if self._work and self._work.clock:
            self._work.clock.shut()

    def _detach(self) -> None:
        self._breakpoints.close()
        wait_gone(self._leaving)
        self._leaving = None
        wait_gone(self._uprobes.detach())

    def rows(self) -> Iterator[tuple[np.void, np.void]]:
        """Each TELEMETRY_ROW with its TELEMETRY_TOTALS."""
        for row, totals in self._rows.items():
            yield row, totals[()]

    def by_row(self) -> dict[bytes, int]:
        """Events by row, the bytes of a TELEMETRY_ROW."""
        return {row.tobytes(): int(totals["count"]) for row, totals in self.rows()}

    def table(self) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Every TELEMETRY_ROW, and their TELEMETRY_TOTALS, shapes ``(rows,)``; read at once."""
        return self._rows.entries()

    def forget(self, row: bytes) -> None:
        """Remove a row, the bytes of a TELEMETRY_ROW; its next event makes it anew."""
        self._rows.discard(np.frombuffer(row, events.TELEMETRY_ROW)[0])

    def spans(self) -> NDArray[np.void]:
        """The spans since the last call, TELEMETRY_SPAN each, where the settings ask for them."""
        records = b"".join(self._ring.records())
        return np.frombuffer(records, events.TELEMETRY_SPAN)

    def counts(self) -> dict[str, int]:
        """Hits by what became of them: the names of ``events.TELEMETRY_COUNTS``."""
        values = self._object.map("counts", U32, U64).at(range(len(events.TELEMETRY_COUNTS)))
        return dict(zip(events.TELEMETRY_COUNTS, values.sum(axis=1).tolist(), strict=True))

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        self._resources.close()
