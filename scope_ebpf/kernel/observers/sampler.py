# SPDX-License-Identifier: Apache-2.0
"""
The profiler's BPF object, loaded and attached: it gives samples as bytes.

Its program runs on a timer of each CPU and samples the thread of the target that runs there.
"""

from __future__ import annotations

import contextlib
import random
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from scope_ebpf import events
from scope_ebpf.kernel import host
from scope_ebpf.kernel.attach import perf_events
from scope_ebpf.kernel.bpf.libbpf import library
from scope_ebpf.kernel.bpf.long_ring import LongRing
from scope_ebpf.kernel.bpf.maps import U32, U64, possible_cpus
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.bpf.stats import ProgramStats, program_stats
from scope_ebpf.kernel.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.kernel.attach.uprobes import Identity

#: Room for the samples of a second at 99 Hz and 20 KB each, for every CPU.
_RING_PER_CPU = 2 << 20
_MAX_RING = 256 << 20
#: Largest deviation of a timer's period from the requested one, as a share, up and down.
_SHIFT = 0.25


class Sampler(Closing):
    """
    Samples the process of *identity* *hz* times a second on every CPU, while it is open.

    A CPU's timer runs twice as often, and one tick of two is drawn.

    *settings* is one ``events.SAMPLE_SETTINGS``; *works* is the map of what processes work on, None
    without. Raises NotRootError or HostError where the kernel refuses.
    """

    def __init__(
        self, identity: Identity, settings: NDArray[np.void], hz: int, works: int | None = None
    ) -> None:
        host.require_host_pids(
            "this runs in a pid namespace, where the kernel's numbers of threads are others"
        )
        self._identity, self._works = identity, works
        self._settings = settings.copy()
        self._settings["period_ns"] = round(1e9 / hz)
        self._tick = round(1e9 / hz / events.TICKS_PER_SAMPLE)
        self._links: list[int] = []
        self._timers: list[int] = []
        size = min(_MAX_RING, _RING_PER_CPU * possible_cpus())
        self._ring_bytes = 1 << (size - 1).bit_length()
        self._resources = ExitStack()
        self._object = self._resources.enter_context(
            closing(BpfObject("sample", object_bytes("sample")))
        )

    def _open(self) -> None:
        self._object.set_constants(self._settings.tobytes())
        self._object.maps["samples"].set_entries(self._ring_bytes)
        self._object.maps["scratch"].set_entries(possible_cpus())
        share_works(self._object, self._works)
        self._object.load(("take_sample",))
        self._threads = self._object.map("threads", U32, events.SAMPLED_THREAD)
        ring = LongRing(self._object.maps["samples"].fd, self._ring_bytes)
        self._ring = self._resources.enter_context(closing(ring))

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

    def add_schedulers(self, schedulers: Mapping[int, tuple[int, int]]) -> None:
        """Set the scheduler threads: by tid, ErtsSchedulerData and where the C stack begins."""
        for tid, addresses in schedulers.items():
            self._threads[tid] = addresses

    def records(self) -> Iterator[bytes]:
        """The samples since the last call, each an ``events.SAMPLE`` and its words."""
        self._shift()
        return self._ring.records()

    def _shift(self) -> None:
        """
        Change the period of each timer a little, at random.

        Otherwise a program that repeats itself as often as the timer would always be sampled at
        the same instruction.
        """
        for fd in self._timers:
            share = 1 + _SHIFT * (2 * random.random() - 1)  # noqa: S311 - it guards no secret
            with contextlib.suppress(OSError):  # a CPU that went offline
                perf_events.set_period(fd, round(self._tick * share))

    def counts(self) -> dict[str, int]:
        """How many samples were ``taken``, and of these ``lost`` because the ring was full."""
        return per_cpu_counts(self._object)

    def stats(self) -> ProgramStats:
        """Runs and run time of the program, where the kernel measures them."""
        return program_stats(self._object.program_fd("take_sample"))

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        self.stop()
        self._resources.close()


def share_works(owner: BpfObject, works: int | None) -> None:
    """Let *owner* use the map of what processes work on; None for an empty one."""
    if works is None:
        owner.maps["works"].set_entries(1)
    else:
        owner.maps["works"].share(works)


def per_cpu_counts(owner: BpfObject) -> dict[str, int]:
    """The numbers in the map "counts" of *owner*, by name, summed over the CPUs."""
    values = owner.map("counts", U32, U64).at(range(len(events.SAMPLE_COUNTS)))
    return dict(zip(events.SAMPLE_COUNTS, values.sum(axis=1).tolist(), strict=True))
