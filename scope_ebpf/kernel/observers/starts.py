# SPDX-License-Identifier: Apache-2.0
"""Starts of VMs anywhere on the host, reported by the kernel: ``probes/starts.bpf.c``."""

from __future__ import annotations

from typing import NamedTuple

from scope_ebpf import events
from scope_ebpf.kernel import host
from scope_ebpf.kernel.bpf.libbpf import check, library
from scope_ebpf.kernel.bpf.maps import U32, U64
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.bpf.ring import Ring
from scope_ebpf.kernel.bpf.stats import ProgramStats, program_stats

_PROGRAM = "vm_start"


class Start(NamedTuple):
    """
    The start of a VM.

    ``pid`` is its number on the host, ``at`` the time in seconds of the monotonic clock.
    """

    pid: int
    at: float


class Starts:
    """
    Reports every VM whose first scheduler starts, from now on.

    Raises HostError where the kernel refuses, and in a pid namespace of our own, in which
    processes have other numbers.
    """

    def __init__(self) -> None:
        host.require_host_pids(
            "the daemon runs in a pid namespace of its own, where the kernel's pids mean "
            "nothing to it and VMs outside are not seen"
        )
        self._object = BpfObject("starts", object_bytes("starts"))
        self._object.load([_PROGRAM])
        self._link = check(
            library().bpf_program__attach(self._object.programs[_PROGRAM]),
            "cannot attach to the names of threads",
        )
        self._ring = Ring(self._object.maps["ring"].fd, events.STARTS_RING_BYTES)
        self._missed = self._object.map("missed", U32, U64)

    def fileno(self) -> int:
        """A descriptor that is readable when VMs have started."""
        return self._object.maps["ring"].fd

    def take(self) -> list[Start]:
        """The starts since the last call, in order."""
        with self._ring.batch() as batch:
            pids, times = batch["tid"].tolist(), (batch["time_ns"] / 1e9).tolist()
        return [Start(pid, at) for pid, at in zip(pids, times, strict=True)]

    def missed(self) -> int:
        """Number of starts that found no room in the ring, from the first on."""
        return int(self._missed[0])

    def stats(self) -> dict[str, ProgramStats]:
        """Runs and run time of the program."""
        return {_PROGRAM: program_stats(self._object.program_fd(_PROGRAM))}

    def close(self) -> None:
        """Detach the program and give everything back to the kernel."""
        self._ring.close()
        library().bpf_link__destroy(self._link)
        self._object.close()
