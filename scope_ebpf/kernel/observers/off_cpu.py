# SPDX-License-Identifier: Apache-2.0
"""
What Erlang processes wait in: the ``wait`` object on the two functions of the VM's scheduler.

They are the hottest of the VM, so this is for as long as a person asks for it.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import HostError, NothingToAttachError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.attach.uprobes import (
    TRACE_UPROBE_MULTI,
    Attacher,
    Uprobes,
    has_multi,
    wait_gone,
)
from scope_ebpf.kernel.bpf.libbpf import check, library
from scope_ebpf.kernel.bpf.long_ring import LongRing
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.bpf.stats import ProgramStats, program_stats
from scope_ebpf.kernel.observers.session import PT_REGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.kernel.attach.uprobes import Identity

#: A second of as many samples as user space can name, 9 KB each.
_RING_BYTES = 32 << 20
#: Our program for each hook of the event "schedule".
_PROGRAMS = {"schedule_in": "wait_in", "schedule_out": "wait_out"}


class Waits:
    """
    Watches processes go off the schedulers of *identity* and come back, while it is open.

    *places* are the hooks of the event "schedule"; *settings* is one ``events.SAMPLE_SETTINGS``
    with its period. Raises HostError where the kernel refuses.
    """

    def __init__(
        self, identity: Identity, settings: NDArray[np.void], places: Sequence[Attachment]
    ) -> None:
        if host.pid_namespace() != (0, 0):
            raise HostError(
                "this runs in a pid namespace, where the kernel's numbers of processes are others; "
                "run it in the host's (docker: --pid=host)"
            )
        self._identity = identity
        self._settings = settings.copy()
        self._places = [replace(place, program=_PROGRAMS[place.program]) for place in places]
        for place in places:
            for name, register in place.registers:
                self._settings[name] = PT_REGS[register]
        self._possible = check(library().libbpf_num_possible_cpus(), "cannot count the CPUs")
        self._object = BpfObject("wait", object_bytes("wait"))

    def __enter__(self) -> Self:
        try:
            self._object.set_constants(self._settings.tobytes())
            self._object.set_entries("samples", _RING_BYTES)
            multi = has_multi()
            self._object.load(_PROGRAMS.values(), TRACE_UPROBE_MULTI if multi else None)
            self._ring = LongRing(self._object.map_fd("samples"), _RING_BYTES)
            self._attach(multi=multi)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attach(self, *, multi: bool) -> None:
        self._attacher = Attacher()
        self._uprobes = Uprobes(self._identity, self._attacher, multi=multi)
        ready = [(self._object.program_fd(place.program), [place]) for place in self._places]
        failed = [error for error in self._uprobes.attach(ready) if error]
        if failed:
            raise NothingToAttachError(f"waiting cannot be seen: {failed[0]}")

    def know(self, processes: NDArray[np.uint64], places: NDArray[np.uint64], now_ns: int) -> None:
        """Tell of processes that wait already: addresses, and where each will go on."""
        value = np.zeros(1, events.WAITING)
        value["since_ns"] = now_ns
        period = int(self._settings["period_ns"])
        points = np.random.default_rng().integers(0, period, len(processes))
        for process, place, point in zip(
            processes.tolist(), places.tolist(), points.tolist(), strict=True
        ):
            value["i"], value["point_ns"] = place, point
            self._update("processes", ctypes.c_uint64(process), value)

    def start(self) -> None:
        """Let waits count from now on."""
        self._update("gate", ctypes.c_uint32(0), np.ones(1, np.uint64))

    def stop(self) -> None:
        """Take the breakpoints out; what was counted can still be read."""
        self._update("gate", ctypes.c_uint32(0), np.zeros(1, np.uint64))
        wait_gone(self._uprobes.detach())

    def _update(self, name: str, key: object, value: NDArray[np.generic]) -> None:
        check(
            library().bpf_map_update_elem(
                self._object.map_fd(name),
                ctypes.byref(key),  # type: ignore[arg-type]
                value.ctypes.data,
                0,
            ),
            f"cannot write the map {name}",
        )

    def records(self) -> Iterator[bytes]:
        """Give the samples since the last call, each an ``events.SAMPLE`` and its words."""
        return self._ring.records()

    def sites(self) -> dict[tuple[int, int], tuple[int, int]]:
        """All waiting by code address and reason: nanoseconds, and how often."""
        rows = self._rows("wait_sites", events.WAIT_SITE, events.WAIT_TOTAL)
        return {
            (int(key["i"]), int(key["reason"])): (int(value["ns"]), int(value["count"]))
            for key, value in rows
        }

    def pending(self) -> list[tuple[int, np.void]]:
        """Processes that wait now: address, and one ``events.WAITING``."""
        rows = self._rows("processes", np.dtype([("process", "<u8")]), events.WAITING)
        return [(int(key["process"]), value) for key, value in rows if value["since_ns"]]

    def _rows(
        self, name: str, key: np.dtype[np.void], value: np.dtype[np.void]
    ) -> list[tuple[np.void, np.void]]:
        fd = self._object.map_fd(name)
        found: list[tuple[np.void, np.void]] = []
        before: NDArray[np.void] | None = None
        while True:
            this = np.zeros(1, key)
            place = None if before is None else before.ctypes.data
            if library().bpf_map_get_next_key(fd, place, this.ctypes.data) != 0:
                return found
            row = np.zeros(1, value)
            if library().bpf_map_lookup_elem(fd, this.ctypes.data, row.ctypes.data) == 0:
                found.append((this[0], row[0]))
            before = this

    def counts(self) -> dict[str, int]:
        """How many samples were ``taken``, and how many waits or samples ``lost``."""
        result = {}
        values = np.zeros(self._possible, np.uint64)
        for number, name in enumerate(events.SAMPLE_COUNTS):
            key = ctypes.c_uint32(number)
            fd = self._object.map_fd("counts")
            check(
                library().bpf_map_lookup_elem(fd, ctypes.byref(key), values.ctypes.data),
                "cannot read how many samples were taken",
            )
            result[name] = int(values.sum())
        return result

    def stats(self) -> list[ProgramStats]:
        """Runs and run time of both programs, where the kernel measures them."""
        return [program_stats(self._object.program_fd(name)) for name in _PROGRAMS.values()]

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        if hasattr(self, "_uprobes"):
            wait_gone(self._uprobes.detach())
        if hasattr(self, "_attacher"):
            self._attacher.close()
        if hasattr(self, "_ring"):
            self._ring.close()
        self._object.close()
