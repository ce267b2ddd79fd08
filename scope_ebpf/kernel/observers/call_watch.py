# SPDX-License-Identifier: Apache-2.0
"""
Calls of functions, watched by breakpoints: the program of ``function.bpf.c``, its maps, its ring.

Everything lives as long as this process's file descriptors.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import HostError
from scope_ebpf.kernel.attach.breakpoints import Breakpoints
from scope_ebpf.kernel.bpf.libbpf import check, library
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.bpf.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from scope_ebpf.kernel.attach.uprobes import Identity

#: What lies in the ring: the kernel's header, then a call_hit; 1024 bytes.
HIT = np.dtype([("ring_length", "<u4"), ("ring_page", "<u4"), *events.CALL_HIT.descr])
#: Room for 4,096 calls: the reader comes every few ms, and a hit takes microseconds.
_RING_BYTES = 4 << 20
#: What a stop at a breakpoint takes of the VM's CPU (bench/calls.py).
BREAKPOINT_SECONDS = 8e-6
#: Returns that are looked at, for each call that may be: a place that calls return to may be
#: shared by other functions.
_RETURNS_PER_CALL = 10


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where a breakpoint stands. A function has its name's terms and arity, a return address none.
    """

    address: int
    module: int = 0
    function: int = 0
    arity: int = 0

    @property
    def program(self) -> str:
        """The BPF program for it."""
        return "function_entry" if self.module else "function_return"


class CallWatch:
    """
    Watches up to four places of the VM of *identity* at a time.

    *hend* is the offset of that field in struct process, *map_subtag* the tag of a map's header.
    A context manager; :meth:`open` lets calls count.
    """

    def __init__(self, identity: Identity, limit: int, hend: int, map_subtag: int) -> None:
        settings = np.zeros((), events.CALL_SETTINGS)
        settings["limit"] = limit
        settings["return_limit"] = limit * _RETURNS_PER_CALL
        settings["process_hend"], settings["map_subtag"] = hend, map_subtag
        self._object = BpfObject("function", object_bytes("function"))
        self._object.set_constants(settings.tobytes())
        self._object.set_entries("call_ring", _RING_BYTES)
        self._object.load(("function_entry", "function_return"))
        self._ring = Ring(self._object.map_fd("call_ring"), _RING_BYTES, HIT)
        self._cpus = check(library().libbpf_num_possible_cpus(), "cannot count the CPUs")
        self._breakpoints = Breakpoints(identity, self._object.programs, limit * _RETURNS_PER_CALL)
        self._numbers: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set(self, places: Collection[Place], tids: Collection[int]) -> None:
        """Watch these places on these threads, and no others; as ``Breakpoints.set``."""
        for place in places:
            if place.address not in self._numbers:
                self._describe(place)
        self._breakpoints.set({place.address: place.program for place in places}, tids)

    def _describe(self, place: Place) -> None:
        if len(self._numbers) >= events.MAX_BREAKPOINT_SITES:
            raise HostError(
                f"more than {events.MAX_BREAKPOINT_SITES} versions and places in one run"
            )
        number = self._numbers[place.address] = len(self._numbers)
        value = np.zeros((), events.BREAKPOINT_SITE)
        value["module"], value["function"] = place.module, place.function
        value["arity"], value["number"] = place.arity, number
        self._update("breakpoint_sites", ctypes.c_uint64(place.address), value)

    def open(self, *, on: bool) -> None:
        """Let calls count from now on, or no longer."""
        value = np.array(int(on), np.uint64)
        self._update("call_state", ctypes.c_uint32(events.CALL_STATE_OPEN), value)
        if on:
            self._breakpoints.begin()

    def batch(self) -> AbstractContextManager[NDArray[np.void]]:
        """What came since the last time, shape ``(n,)`` of :data:`HIT`; as ``Ring.batch``."""
        return self._ring.batch()

    def taken(self) -> int:
        """Calls that were counted so far, of all functions."""
        key, value = ctypes.c_uint32(events.CALL_STATE_CALLS), ctypes.c_uint64()
        fd = self._object.map_fd("call_state")
        done = library().bpf_map_lookup_elem(fd, ctypes.byref(key), ctypes.byref(value))
        check(done, "cannot read the map call_state")
        return value.value

    def totals(self) -> dict[int, dict[str, int]]:
        """What was counted at each place, by address and then by the names of CALL_TOTALS."""
        found = {}
        values = np.zeros(self._cpus, events.CALL_TOTALS)
        for address, number in self._numbers.items():
            key = ctypes.c_uint32(number)
            fd = self._object.map_fd("call_totals")
            done = library().bpf_map_lookup_elem(fd, ctypes.byref(key), values.ctypes.data)
            check(done, "cannot read the map call_totals")
            names = events.CALL_TOTALS.names or ()
            found[address] = {name: int(values[name].sum()) for name in names}
        return found

    def detach(self) -> None:
        """Take the breakpoints out; what was counted can still be read."""
        self._breakpoints.close()

    def close(self) -> None:
        """Take the breakpoints out and give everything back to the kernel."""
        self.detach()
        self._ring.close()
        self._object.close()

    def _update(
        self, name: str, key: ctypes.c_uint32 | ctypes.c_uint64, value: NDArray[np.generic]
    ) -> None:
        fd = self._object.map_fd(name)
        done = library().bpf_map_update_elem(fd, ctypes.byref(key), value.tobytes(), 0)
        check(done, f"cannot write the map {name}")
