# SPDX-License-Identifier: Apache-2.0
"""VMs that come up anywhere on the host, told by the kernel: ``probes/starts.bpf.c``."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from scope_ebpf import events
from scope_ebpf.errors import HostError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.bpf.libbpf import check, library
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.bpf.ring import Ring
from scope_ebpf.kernel.bpf.stats import ProgramStats, program_stats

_PROGRAM = "vm_start"


class Start(NamedTuple):
    """A VM came up: its pid on the host, and when, in seconds of the monotonic clock."""

    pid: int
    at: float


class Starts:
    """
    Hears of every VM whose first scheduler starts, from now on.

    Raises HostError where the kernel refuses, or where we are in a pid namespace
    of our own, in which processes have other numbers.
    """

    def __init__(self) -> None:
        if host.pid_namespace() != (0, 0):
            raise HostError(
                "the daemon runs in a pid namespace of its own, where the kernel's pids mean "
                "nothing to it and VMs outside are not seen; run it in the host's "
                "(docker: --pid=host)"
            )
        self._object = BpfObject("starts", object_bytes("starts"))
        self._object.load([_PROGRAM])
        self._link = check(
            library().bpf_program__attach(self._object.programs[_PROGRAM]),
            "cannot attach to the names of threads",
        )
        self._ring = Ring(self._object.map_fd("ring"), events.STARTS_RING_BYTES)

    def fileno(self) -> int:
        """Readable when VMs have started."""
        return self._object.map_fd("ring")

    def take(self) -> list[Start]:
        """Who started since this was called last, in order."""
        with self._ring.batch() as batch:
            pids, times = batch["tid"].tolist(), (batch["time_ns"] / 1e9).tolist()
        return [Start(pid, at) for pid, at in zip(pids, times, strict=True)]

    def missed(self) -> int:
        """How many starts found no room in the ring, from the first."""
        key, value = ctypes.c_uint32(0), ctypes.c_uint64()
        check(
            library().bpf_map_lookup_elem(
                self._object.map_fd("missed"), ctypes.byref(key), ctypes.byref(value)
            ),
            "cannot read the map missed",
        )
        return value.value

    def stats(self) -> dict[str, ProgramStats]:
        """Runs and run time of the program."""
        return {_PROGRAM: program_stats(self._object.program_fd(_PROGRAM))}

    def close(self) -> None:
        """Hear no more."""
        self._ring.close()
        library().bpf_link__destroy(self._link)
        self._object.close()
