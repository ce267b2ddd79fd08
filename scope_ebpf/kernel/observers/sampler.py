# SPDX-License-Identifier: Apache-2.0
"""
The profiler's BPF objects, loaded and attached: samples come out as bytes.

``sample`` runs on a timer of each CPU and takes whatever thread of the target it
meets.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
from typing import TYPE_CHECKING, Self

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import HostError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.attach import perf_events
from scope_ebpf.kernel.bpf.libbpf import check, library
from scope_ebpf.kernel.bpf.long_ring import LongRing
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.bpf.stats import ProgramStats, program_stats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from scope_ebpf.kernel.attach.uprobes import Identity

#: Room for the samples of a second at 99 Hz and 20 KB each, for every CPU.
_RING_PER_CPU = 2 << 20
_MAX_RING = 256 << 20
#: How far a timer's period moves from the one that was asked for, up and down.
_SHIFT = 0.25


class Sampler:
    """
    Samples the process of *identity* *hz* times a second on every CPU, while it is open.

    A CPU's timer runs twice as often, and one tick of two is drawn.

    *settings* is one ``events.SAMPLE_SETTINGS``. Raises NotRootError or HostError where the
    kernel refuses.
    """

    def __init__(self, identity: Identity, settings: NDArray[np.void], hz: int) -> None:
        if host.pid_namespace() != (0, 0):
            raise HostError(
                "this runs in a pid namespace, where the kernel's numbers of threads are others; "
                "run it in the host's (docker: --pid=host)"
            )
        self._identity = identity
        self._settings = settings.copy()
        self._settings["period_ns"] = round(1e9 / hz)
        self._tick = round(1e9 / hz / events.TICKS_PER_SAMPLE)
        self._links: list[int] = []
        self._timers: list[int] = []
        self._possible = check(library().libbpf_num_possible_cpus(), "cannot count the CPUs")
        size = min(_MAX_RING, _RING_PER_CPU * self._possible)
        self._ring_bytes = 1 << (size - 1).bit_length()
        self._object = BpfObject("sample", object_bytes("sample"))

    def __enter__(self) -> Self:
        try:
            self._object.set_constants(self._settings.tobytes())
            self._object.set_entries("samples", self._ring_bytes)
            self._object.set_entries("scratch", self._possible)
            self._object.load(("take_sample",))
            self._ring = LongRing(self._object.map_fd("samples"), self._ring_bytes)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the timers; raises as ``Identity.check`` does."""
        self._identity.check()
        for cpu in perf_events.online_cpus():
            attributes = perf_events.Attributes(
                type=perf_events.TYPE_SOFTWARE,
                config=perf_events.SW_CPU_CLOCK,
                period_or_frequency=self._tick,
            )
            fd = perf_events.perf_event_open(attributes, cpu=cpu)
            program = self._object.programs["take_sample"]
            self._links.append(perf_events.attach(program, fd, f"the timer of CPU {cpu}"))
            self._timers.append(fd)  # the link owns it

    def stop(self) -> None:
        """Stop the timers; what is in the ring can still be read."""
        self._timers.clear()
        while self._links:
            library().bpf_link__destroy(self._links.pop())

    def know(self, schedulers: Mapping[int, tuple[int, int]]) -> None:
        """Tell of scheduler threads: by tid, ErtsSchedulerData and where the C stack begins."""
        for tid, (address, top) in schedulers.items():
            key = ctypes.c_uint32(tid)
            value = np.array([(address, top)], events.SAMPLED_THREAD)
            check(
                library().bpf_map_update_elem(
                    self._object.map_fd("threads"), ctypes.byref(key), value.ctypes.data, 0
                ),
                "cannot tell the kernel of a scheduler",
            )

    def records(self) -> Iterator[bytes]:
        """Give the samples since the last call, each an ``events.SAMPLE`` and its words."""
        self._shift()
        return self._ring.records()

    def _shift(self) -> None:
        """
        Let each timer run a little faster or slower from now on.

        A program that repeats itself as often as the timer would be met at the same place
        over and over.
        """
        for fd in self._timers:
            share = 1 + _SHIFT * (2 * random.random() - 1)  # noqa: S311 - nobody is to be kept out
            with contextlib.suppress(OSError):  # a CPU that went offline
                perf_events.set_period(fd, round(self._tick * share))

    def counts(self) -> dict[str, int]:
        """How many samples were ``taken``, and of these ``lost`` for want of room."""
        result = {}
        values = np.zeros(self._possible, np.uint64)
        for number, name in enumerate(events.SAMPLE_COUNTS):
            key = ctypes.c_uint32(number)
            check(
                library().bpf_map_lookup_elem(
                    self._object.map_fd("counts"), ctypes.byref(key), values.ctypes.data
                ),
                "cannot read how many samples were taken",
            )
            result[name] = int(values.sum())
        return result

    def stats(self) -> ProgramStats:
        """Runs and run time of the program, where the kernel measures them."""
        return program_stats(self._object.program_fd("take_sample"))

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        self.stop()
        if hasattr(self, "_ring"):
            self._ring.close()
        self._object.close()
