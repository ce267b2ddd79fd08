# SPDX-License-Identifier: Apache-2.0
"""
Where Erlang processes wait: the ``wait`` object on the two functions of the VM's scheduler.

These functions are the most frequent ones of the VM, so this runs only while a user asks for it.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.kernel import host
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
from scope_ebpf.kernel.bpf.stats import ProgramStats, program_stats
from scope_ebpf.kernel.closing import Closing
from scope_ebpf.kernel.observers.loaded_plan import set_registers
from scope_ebpf.kernel.observers.sampler import per_cpu_counts, share_works

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.kernel.attach.uprobes import Identity

#: Room for a second of as many samples as user space can symbolize, 9 KB each.
_RING_BYTES = 32 << 20
#: The program of ``wait.bpf.c`` for each hook of the event "schedule".
_PROGRAMS = {"schedule_in": "wait_in", "schedule_out": "wait_out"}


class OffCpuSampler(Closing):
    """
    Watches processes leave the schedulers of *identity* and come back, while it is open.

    *hooks* are those of the event "schedule"; *settings* is one ``events.SAMPLE_SETTINGS``
    with its period; *works* is the map of what processes work on, None without. Raises HostError
    where the kernel refuses.
    """

    def __init__(
        self,
        identity: Identity,
        settings: NDArray[np.void],
        hooks: Sequence[Attachment],
        works: int | None = None,
    ) -> None:
        host.require_host_pids(
            "this runs in a pid namespace, where the kernel's numbers of processes are others"
        )
        self._identity, self._works = identity, works
        self._settings = settings.copy()
        self._attachments = [hook._replace(program=_PROGRAMS[hook.program]) for hook in hooks]
        set_registers(self._settings, hooks)
        self._resources = ExitStack()
        self._object = self._resources.enter_context(
            closing(BpfObject("wait", object_bytes("wait")))
        )

    def _open(self) -> None:
        self._object.set_constants(self._settings.tobytes())
        self._object.maps["samples"].set_entries(_RING_BYTES)
        share_works(self._object, self._works)
        multi = has_multi()
        self._object.load(_PROGRAMS.values(), TRACE_UPROBE_MULTI if multi else None)
        self._gate = self._object.map("gate", U32, U64)
        self._processes = self._object.map("processes", U64, events.WAITING)
        ring = LongRing(self._object.maps["samples"].fd, _RING_BYTES)
        self._ring = self._resources.enter_context(closing(ring))
        self._attach(multi=multi)

    def _attach(self, *, multi: bool) -> None:
        attacher = self._resources.enter_context(Attacher())
        self._uprobes = Uprobes(self._identity, attacher, multi=multi)
        self._resources.callback(self._detach)
        ready = [(self._object.program_fd(hook.program), [hook]) for hook in self._attachments]
        failed = [error for error in self._uprobes.attach(ready) if error]
        if failed:
            raise NothingToAttachError(f"waiting cannot be seen: {failed[0]}")

    def add_waiting(
        self, processes: NDArray[np.uint64], addresses: NDArray[np.uint64], now_ns: int
    ) -> None:
        """
        Set the wait of each of *processes*, by address, to have begun at *now_ns*.

        *addresses* are those of the code at which they will continue.
        """
        value = np.zeros((), events.WAITING)
        value["since_ns"] = now_ns
        period = int(self._settings["period_ns"])
        points = np.random.default_rng().integers(0, period, len(processes))
        for process, address, point in zip(
            processes.tolist(), addresses.tolist(), points.tolist(), strict=True
        ):
            value["i"], value["point_ns"] = address, point
            self._processes[process] = value

    def start(self) -> None:
        """Count waits from now on."""
        self._gate[0] = 1

    def stop(self) -> None:
        """Remove the breakpoints; the counts can still be read."""
        self._gate[0] = 0
        self._detach()

    def _detach(self) -> None:
        wait_gone(self._uprobes.detach())

    def records(self) -> Iterator[bytes]:
        """The samples since the last call, each an ``events.SAMPLE`` and its words."""
        return self._ring.records()

    def sites(self) -> dict[tuple[int, int], tuple[int, int]]:
        """All waiting by code address and reason: nanoseconds, and number of waits."""
        rows = self._object.map("wait_sites", events.WAIT_SITE, events.WAIT_TOTAL).items()
        return {
            (int(key["i"]), int(key["reason"])): (int(value["ns"]), int(value["count"]))
            for key, value in rows
        }

    def pending(self) -> list[tuple[int, np.void]]:
        """Processes that wait now: address, and one ``events.WAITING``."""
        rows = self._processes.items()
        return [(int(process), value[()]) for process, value in rows if value["since_ns"]]

    def counts(self) -> dict[str, int]:
        """How many samples were ``taken``, and how many waits or samples ``lost``."""
        return per_cpu_counts(self._object)

    def stats(self) -> list[ProgramStats]:
        """Runs and run time of both programs, where the kernel measures them."""
        return [program_stats(self._object.program_fd(name)) for name in _PROGRAMS.values()]

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        self._resources.close()
