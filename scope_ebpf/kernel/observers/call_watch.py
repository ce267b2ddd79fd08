# SPDX-License-Identifier: Apache-2.0
"""
Calls of functions, watched by breakpoints: the program of ``function.bpf.c``, its maps, its ring.

Everything lives as long as this process's file descriptors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import HostError
from scope_ebpf.kernel.attach.breakpoints import Breakpoints
from scope_ebpf.kernel.bpf.maps import U32, U64
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.bpf.ring import Ring
from scope_ebpf.kernel.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from scope_ebpf.kernel.attach.uprobes import Identity

#: Layout of a record in the ring: the kernel's header, then a call_hit; 1024 bytes.
HIT = np.dtype([("ring_length", "<u4"), ("ring_page", "<u4"), *events.CALL_HIT.descr])
#: Room for 4,096 calls: the ring is read every few ms, and a hit takes microseconds.
_RING_BYTES = 4 << 20
#: CPU time of the VM that a hit of a breakpoint takes (bench/calls.py).
BREAKPOINT_SECONDS = 8e-6
#: Returns that are examined, for each call of the limit: other functions may share the address
#: to which calls return.
_RETURNS_PER_CALL = 10


@dataclass(frozen=True, slots=True)
class BreakpointSite:
    """
    The address of a breakpoint, and the function that begins there.

    ``module`` and ``function`` are the terms of its name; 0, as ``arity``, for a return address.
    """

    address: int
    module: int = 0
    function: int = 0
    arity: int = 0

    @property
    def program(self) -> str:
        """The name of the BPF program that handles its hits."""
        return "function_entry" if self.module else "function_return"


class CallWatch(Closing):
    """
    Watches up to four addresses of the VM of *identity* at a time, for at most *limit* calls.

    *hend* is the offset of that field in struct process, bytes, *map_subtag* the tag of a map's
    header. A context manager; calls count from :meth:`open` on.
    """

    def __init__(self, identity: Identity, limit: int, hend: int, map_subtag: int) -> None:
        settings = np.zeros((), events.CALL_SETTINGS)
        settings["limit"] = limit
        settings["return_limit"] = limit * _RETURNS_PER_CALL
        settings["process_hend"], settings["map_subtag"] = hend, map_subtag
        self._object = BpfObject("function", object_bytes("function"))
        self._object.set_constants(settings.tobytes())
        self._object.maps["call_ring"].set_entries(_RING_BYTES)
        self._object.load(("function_entry", "function_return"))
        self._ring = Ring(self._object.maps["call_ring"].fd, _RING_BYTES, HIT)
        self._sites = self._object.map("breakpoint_sites", U64, events.BREAKPOINT_SITE)
        self._state = self._object.map("call_state", U32, U64)
        self._totals = self._object.map("call_totals", U32, events.CALL_TOTALS)
        self._breakpoints = Breakpoints(identity, self._object.programs, limit * _RETURNS_PER_CALL)
        #: Index in call_totals by address.
        self._numbers: dict[int, int] = {}

    def set(self, sites: Collection[BreakpointSite], tids: Collection[int]) -> None:
        """Watch these *sites* on the threads *tids*, and no others; as ``Breakpoints.set``."""
        for site in sites:
            if site.address not in self._numbers:
                self._describe(site)
        self._breakpoints.set({site.address: site.program for site in sites}, tids)

    def _describe(self, site: BreakpointSite) -> None:
        if len(self._numbers) >= events.MAX_BREAKPOINT_SITES:
            raise HostError(
                f"more than {events.MAX_BREAKPOINT_SITES} versions and places in one run"
            )
        number = self._numbers[site.address] = len(self._numbers)
        value = np.zeros((), events.BREAKPOINT_SITE)
        value["module"], value["function"] = site.module, site.function
        value["arity"], value["number"] = site.arity, number
        self._sites[site.address] = value

    def open(self, *, on: bool) -> None:
        """Count calls from now on, or no longer."""
        self._state[events.CALL_STATE_OPEN] = int(on)
        if on:
            self._breakpoints.begin()

    def batch(self) -> AbstractContextManager[NDArray[np.void]]:
        """The new records, shape ``(n,)`` of :data:`HIT`; as ``Ring.batch``."""
        return self._ring.batch()

    def taken(self) -> int:
        """Number of calls counted so far, of all functions."""
        return int(self._state[events.CALL_STATE_CALLS])

    def totals(self) -> dict[int, dict[str, int]]:
        """The counts at each address, by the names of CALL_TOTALS."""
        names = events.CALL_TOTALS.names or ()
        found = {}
        for address, number in self._numbers.items():
            values = self._totals[number]
            found[address] = {name: int(values[name].sum()) for name in names}
        return found

    def detach(self) -> None:
        """Remove the breakpoints; the counts can still be read."""
        self._breakpoints.close()

    def close(self) -> None:
        """Remove the breakpoints and give everything back to the kernel."""
        self.detach()
        self._ring.close()
        self._object.close()
