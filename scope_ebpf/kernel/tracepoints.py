# SPDX-License-Identifier: Apache-2.0
"""
How the kernel schedules the threads of all targets: one object for the whole host.

The tracepoints run on every switch of the host, so they are attached once, when
the first target comes.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import HostError, NotRootError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.libbpf import check, library
from scope_ebpf.kernel.objects import BpfObject, object_bytes
from scope_ebpf.kernel.perf_events import (
    FREQUENCY,
    SW_CPU_CLOCK,
    TYPE_SOFTWARE,
    Attributes,
    attach,
    online_cpus,
    perf_event_open,
)
from scope_ebpf.kernel.stats import ProgramStats, program_stats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

#: Rows of thread_totals: targets that can be watched, times types of threads (threads.bpf.c).
TYPES = 6
MAX_TARGETS = 64
_PROGRAMS = ("thread_switch", "thread_wakeup", "thread_wakeup_new")
SAMPLER = "thread_sample"
#: How often the clock looks at what runs on each CPU, Hz: a prime, so that nothing keeps step.
SAMPLE_HZ = 97


#: Native functions of all targets that there is room for (threads.bpf.c).
_NATIVES = 4096


class Mfa(NamedTuple):
    """A function of a target: two atoms as the VM has them, and how many arguments it takes."""

    module: int
    function: int
    arity: int


def attach_tracepoint(program: int, name: str) -> int:
    """
    Attach a loaded program to the tracepoint it is for; the link.

    Raises HostError where the kernel refuses it, or where the threads that it tells
    of have other numbers than we know.
    """
    if host.pid_namespace() != (0, 0):
        raise HostError("within a pid namespace threads have other numbers than the kernel's")
    return check(library().bpf_program__attach(program), f"cannot attach to {name}")


class ThreadWatch:
    """
    The scheduler's tracepoints, attached.

    Raises HostError where the kernel refuses them, or where we are in a pid
    namespace of our own, in which threads have other numbers.
    """

    def __init__(self) -> None:
        if host.pid_namespace() != (0, 0):
            raise HostError(
                "the daemon runs in a pid namespace, where it cannot tell the kernel which threads "
                "to watch; run it in the host's (docker: --pid=host)"
            )
        self._object = BpfObject("threads", object_bytes("threads"))
        self._object.load((*_PROGRAMS, SAMPLER))
        self._links = [
            check(
                library().bpf_program__attach(self._object.programs[name]),
                f"cannot attach {name} to the scheduler's tracepoints",
            )
            for name in _PROGRAMS
        ]
        #: Why the clock does not look at what runs; "" if it does.
        self.unsampled = self._sample()
        self._cpus = check(library().libbpf_num_possible_cpus(), "cannot count the CPUs")
        self._free = list(range(MAX_TARGETS))

    def _sample(self) -> str:
        """Let the clock of each CPU look at what runs there; says why it does not."""
        program = self._object.programs[SAMPLER]
        try:
            for cpu in online_cpus():
                attributes = Attributes(
                    type=TYPE_SOFTWARE,
                    config=SW_CPU_CLOCK,
                    period_or_frequency=SAMPLE_HZ,
                    flags=FREQUENCY,
                )
                fd = perf_event_open(attributes, cpu=cpu)
                self._links.append(attach(program, fd, f"the clock of CPU {cpu}"))
        except (HostError, NotRootError) as error:
            return str(error)
        return ""

    def add(self) -> int | None:
        """A place for one more target, with all its totals from 0; None if there is none left."""
        if not self._free:
            return None
        target = self._free.pop(0)
        empty = np.zeros(self._cpus, events.THREAD_TOTALS)
        for row in range(target * TYPES, (target + 1) * TYPES):
            self._update("thread_rows", row, empty)
        return target

    def watch(self, target: int, threads: Mapping[int, NDArray[np.void]]) -> None:
        """
        Watch threads of *target*, by tid.

        Each is one ``events.THREAD`` with the number of its type as its row, and with
        what is known of it as a scheduler.
        """
        for tid, value in threads.items():
            value["row"] = value["row"] + target * TYPES  # not +=, which numpy 1.24 refuses
            value["target"] = target
            self._update("watched", tid, value)

    def unwatch(self, tids: Iterable[int]) -> None:
        """Forget threads; one that is not there is none too many."""
        for tid in tids:
            key = ctypes.c_uint32(tid)
            library().bpf_map_delete_elem(self._object.map_fd("watched"), ctypes.byref(key))

    def remove(self, target: int) -> None:
        """Give the place of *target*, whose threads are no longer watched, to another."""
        for key in self._native_keys(target):
            library().bpf_map_delete_elem(self._object.map_fd("natives"), key.ctypes.data)
        self._free.append(target)

    def natives(self, target: int) -> dict[Mfa, tuple[int, int]]:
        """Native functions that the clock found: samples and long calls of each."""
        found, fd = {}, self._object.map_fd("natives")
        values = np.zeros(self._cpus, events.NATIVE)
        for key in self._native_keys(target):
            if library().bpf_map_lookup_elem(fd, key.ctypes.data, values.ctypes.data) == 0:
                counts = int(values["samples"].sum()), int(values["long_calls"].sum())
                found[Mfa(int(key["module"]), int(key["function"]), int(key["arity"]))] = counts
        return found

    def _native_keys(self, target: int) -> list[NDArray[np.void]]:
        fd = self._object.map_fd("natives")
        found: list[NDArray[np.void]] = []
        last: int | None = None
        for _ in range(_NATIVES):
            key = np.zeros((), events.NATIVE_KEY)
            if library().bpf_map_get_next_key(fd, last, key.ctypes.data):
                break
            found.append(key)
            last = key.ctypes.data
        return [key for key in found if key["target"] == target]

    def totals(self, target: int) -> NDArray[np.void]:
        """Totals by type of thread, shape ``(TYPES,)`` of ``events.THREAD_TOTALS``."""
        result = np.zeros(TYPES, events.THREAD_TOTALS)
        sums = result.view(np.uint64).reshape(TYPES, -1)
        values = np.zeros(self._cpus, events.THREAD_TOTALS)
        for number in range(TYPES):
            key = ctypes.c_uint32(target * TYPES + number)
            check(
                library().bpf_map_lookup_elem(
                    self._object.map_fd("thread_rows"), ctypes.byref(key), values.ctypes.data
                ),
                "cannot read the map thread_rows",
            )
            # All fields are u64.
            sums[number] = values.view(np.uint64).reshape(self._cpus, -1).sum(axis=0)
        return result

    def stats(self) -> dict[str, ProgramStats]:
        """Runs and run time of each program."""
        return {
            name: program_stats(self._object.program_fd(name)) for name in (*_PROGRAMS, SAMPLER)
        }

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        while self._links:
            library().bpf_link__destroy(self._links.pop())
        self._object.close()

    def _update(self, name: str, number: int, value: NDArray[np.void]) -> None:
        key = ctypes.c_uint32(number)
        check(
            library().bpf_map_update_elem(
                self._object.map_fd(name), ctypes.byref(key), value.ctypes.data, 0
            ),
            f"cannot write the map {name}",
        )


def attach_or_reason() -> tuple[ThreadWatch | None, str]:
    """The tracepoints, or why there are none."""
    try:
        return ThreadWatch(), ""
    except (HostError, NotRootError) as error:
        return None, str(error)
