# SPDX-License-Identifier: Apache-2.0
"""
How the kernel schedules the threads of all targets: one object for the whole host.

The tracepoints run on every switch of the host, so they are attached once, when
the first target comes. What they count is read from mapped memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import HostError, NotRootError
from scope_ebpf.events import MAX_NIFS, MAX_TARGETS, SAMPLE_HZ, THREAD_TYPES
from scope_ebpf.kernel import host
from scope_ebpf.kernel.attach.perf_events import (
    FREQUENCY,
    SW_CPU_CLOCK,
    TYPE_SOFTWARE,
    Attributes,
    attach,
    online_cpus,
    perf_event_open,
)
from scope_ebpf.kernel.bpf.libbpf import check, library
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.bpf.stats import ProgramStats, program_stats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

_PROGRAMS = ("thread_switch", "thread_wakeup", "thread_wakeup_new")
SAMPLER = "thread_sample"

#: What user space tells of a thread; its scheduler comes last, from then on the clock looks.
_TOLD = (
    *("sleep_flags", "at_process", "at_nif", "at_reductions", "at_code", "before_code"),
    *("at_fcalls", "scheduler"),
)


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


def possible_cpus(root: Path = Path("/")) -> int:
    """One more than the largest number that a CPU may have."""
    text = (root / "sys/devices/system/cpu/possible").read_text()
    return int(re.split("[-,]", text)[-1]) + 1


class Doing(NamedTuple):
    """What threads do now: a column for each field of ``events.THREAD``, and of their types."""

    type: NDArray[np.intp]
    since_ns: NDArray[np.uint64]
    ready_ns: NDArray[np.uint64]
    reason: NDArray[np.uint32]
    running: NDArray[np.uint32]


#: Words of thread_totals: on_ns comes first, and then off_ns by reason; all are u64.
_WORDS = events.THREAD_TOTALS.itemsize // 8


def add_open(totals: NDArray[np.uint64], doing: Doing, now: int) -> None:
    """
    Add to *totals*, shape ``(THREAD_TYPES, words)``, the time of what threads do now.

    Why a thread is off is decided when it leaves its CPU, so the time goes where it will be
    counted; but what a wait for a CPU was is known at its end, so that is left out until then.
    *now* is CLOCK_MONOTONIC, ns.
    """
    end = np.where(doing.ready_ns, doing.ready_ns, np.uint64(now))
    lasted = np.maximum((end - doing.since_ns).view(np.int64), 0) * (doing.since_ns != 0)
    word = (1 + doing.reason) * (doing.running == 0)
    np.add.at(totals, (doing.type, word), lasted.view(np.uint64))


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
        cpus = possible_cpus()
        self._object.set_entries("thread_rows", cpus * MAX_TARGETS * THREAD_TYPES)
        self._object.load((*_PROGRAMS, SAMPLER))
        self._maps: list[mmap.mmap] = []
        #: By CPU, target and type of thread, as words.
        self._rows = self._mapped(
            "thread_rows", np.uint64, cpus * MAX_TARGETS * THREAD_TYPES * _WORDS
        ).reshape(cpus, MAX_TARGETS, THREAD_TYPES, _WORDS)
        room = library().bpf_map__max_entries(self._object.maps["threads"])
        threads = self._mapped("threads", events.THREAD, room)
        #: The fields of all threads.
        self._fields = {name: threads[name] for name in events.THREAD.names or ()}
        #: Seconds for which they were attached until they were last taken out, and since when they
        #: are; None while they are not.
        self._attached = 0.0
        self._since: float | None = None
        self._links: list[int] = []
        self._clocks: list[int] = []
        #: Why the clock does not look at what runs; "" if it does.
        self.unsampled = self._sample()
        self._cpus = check(library().libbpf_num_possible_cpus(), "cannot count the CPUs")
        self._free = deque(range(MAX_TARGETS))
        #: Places for threads. Used again as late as can be: a program may just be at one.
        self._room = deque(range(room))
        #: The place of each thread that is watched, by tid, and those of each target.
        self._watched: dict[int, int] = {}
        self._targets: dict[int, dict[int, int]] = {}
        #: Of a target that was read since its threads changed: where they are, and their types.
        self._known: dict[int, tuple[NDArray[np.intp], NDArray[np.intp]]] = {}
        #: By target, what was under way when they were taken out.
        self._cut = np.zeros((MAX_TARGETS, THREAD_TYPES, _WORDS), np.uint64)
        self.resume()

    def resume(self) -> bool:
        """
        Attach the tracepoints; whether they were not. Raises HostError.

        What threads do now is not known then: say of each that sleeps :meth:`asleep`.
        """
        if self._since is not None:
            return False
        for name in ("since_ns", "ready_ns", "running"):
            self._fields[name][:] = 0
        self._since = time.monotonic()
        for name in _PROGRAMS:
            link = library().bpf_program__attach(self._object.programs[name])
            self._links.append(check(link, f"cannot attach {name} to the scheduler's tracepoints"))
        self._fields["traced"][:] = 1
        return True

    def pause(self) -> None:
        """Take the tracepoints out for a while; the clock goes on."""
        if self._since is None:
            return
        self._fields["traced"][:] = 0
        while self._links:
            library().bpf_link__destroy(self._links.pop())
        now = time.monotonic_ns()
        for target in self._targets:
            add_open(self._cut[target], self._doing(target), now)
        self._attached, self._since = self.attached(time.monotonic()), None

    def attached(self, now: float) -> float:
        """Seconds for which tracepoints were attached until *now* (monotonic seconds), in all."""
        return self._attached + (now - self._since if self._since else 0.0)

    def _mapped(self, name: str, dtype: Any, entries: int) -> NDArray[Any]:
        """A map of the kernel's as an array; programs change it while we look."""
        size = -(-entries * np.dtype(dtype).itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            mapped = mmap.mmap(self._object.map_fd(name), size)
        except OSError as error:
            raise HostError(f"cannot map {name} of the BPF object threads: {error}") from None
        self._maps.append(mapped)
        return np.frombuffer(mapped, dtype, entries)

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
                self._clocks.append(attach(program, fd, f"the clock of CPU {cpu}"))
        except (HostError, NotRootError) as error:
            return str(error)
        return ""

    def add(self) -> int | None:
        """A place for one more target, with all its totals from 0; None if there is none left."""
        if not self._free:
            return None
        target = self._free.popleft()
        self._rows[:, target] = 0
        self._cut[target] = 0
        self._targets[target] = {}
        return target

    def watch(self, target: int, threads: Mapping[int, NDArray[np.void]]) -> None:
        """
        Watch threads of *target*, by tid.

        Each is one ``events.THREAD`` with the number of its type as its row, and with
        what is known of it as a scheduler; of those that are watched already only that
        is taken. Raises HostError if there is no room for all of them.
        """
        mine = self._targets[target]
        self._known.pop(target, None)
        for tid, value in threads.items():
            if tid not in mine:
                self._begin(target, tid, int(value["row"].item()))
            for name in _TOLD:
                self._fields[name][mine[tid]] = value[name].item()

    def _begin(self, target: int, tid: int, row: int) -> None:
        if not self._room:
            raise HostError(
                f"{len(self._watched):,} threads are watched, and more there may not be"
            )
        place = self._targets[target][tid] = self._room.popleft()
        for field in self._fields.values():
            field[place] = 0
        self._fields["row"][place] = row + target * THREAD_TYPES
        self._fields["target"][place] = target
        self._fields["traced"][place] = self._since is not None
        key, to = ctypes.c_uint32(tid), ctypes.c_uint32(place)
        check(
            library().bpf_map_update_elem(
                self._object.map_fd("watched"), ctypes.byref(key), ctypes.byref(to), 0
            ),
            "cannot write the map watched",
        )
        self._watched[tid] = place

    def sleep_flags(self, target: int) -> dict[int, int]:
        """Where each scheduler says that it waits, by tid; 0 of other threads."""
        flags = self._fields["sleep_flags"]
        return {tid: int(flags[place]) for tid, place in self._targets[target].items()}

    def asleep(self, target: int, tid: int, reason: int) -> None:
        """A thread that is watched sleeps since now at the latest, for OFF_* *reason*."""
        place, since = self._targets[target][tid], self._fields["since_ns"]
        if (
            since[place] == 0 and self._since is not None
        ):  # else it has moved meanwhile, and the kernel knows
            self._fields["reason"][place] = reason
            since[place] = time.monotonic_ns()

    def unwatch(self, target: int, tids: Iterable[int]) -> None:
        """Forget threads of *target*; one that is not there is none too many."""
        self._known.pop(target, None)
        for tid in tids:
            place = self._targets[target].pop(tid, None)
            if place is None:
                continue
            self._room.append(place)
            if self._watched.get(tid) == place:  # else it is another target's by now
                del self._watched[tid]
                key = ctypes.c_uint32(tid)
                library().bpf_map_delete_elem(self._object.map_fd("watched"), ctypes.byref(key))

    def remove(self, target: int) -> None:
        """Watch no thread of *target* any more, and give its place to another."""
        self.unwatch(target, list(self._targets[target]))
        del self._targets[target]
        for key in self._native_keys(target):
            library().bpf_map_delete_elem(self._object.map_fd("nifs"), key.ctypes.data)
        self._free.append(target)

    def natives(self, target: int) -> dict[Mfa, tuple[int, int]]:
        """Native functions that the clock found: samples and long calls of each."""
        found, fd = {}, self._object.map_fd("nifs")
        values = np.zeros(self._cpus, events.NIF)
        for key in self._native_keys(target):
            if library().bpf_map_lookup_elem(fd, key.ctypes.data, values.ctypes.data) == 0:
                counts = int(values["samples"].sum()), int(values["long_calls"].sum())
                found[Mfa(int(key["module"]), int(key["function"]), int(key["arity"]))] = counts
        return found

    def _native_keys(self, target: int) -> list[NDArray[np.void]]:
        fd = self._object.map_fd("nifs")
        found: list[NDArray[np.void]] = []
        last: int | None = None
        for _ in range(MAX_NIFS):
            key = np.zeros((), events.NIF_KEY)
            if library().bpf_map_get_next_key(fd, last, key.ctypes.data):
                break
            found.append(key)
            last = key.ctypes.data
        return [key for key in found if key["target"] == target]

    def totals(self, target: int) -> NDArray[np.void]:
        """
        Totals by type of thread, shape ``(THREAD_TYPES,)`` of ``events.THREAD_TOTALS``, up to now.

        Time that is just being counted may be missing from one reading.
        """
        # In this order: what is counted after the first line is not open at the last any more.
        totals = self._rows[:, target].sum(axis=0) + self._cut[target]
        now = time.monotonic_ns()
        if self._since is not None:
            add_open(totals, self._doing(target), now)
        result: NDArray[np.void] = totals.view(events.THREAD_TOTALS).reshape(THREAD_TYPES)
        return result

    def _doing(self, target: int) -> Doing:
        if target not in self._known:
            places = np.fromiter(self._targets[target].values(), np.intp)
            types = self._fields["row"][places].astype(np.intp) - target * THREAD_TYPES
            self._known[target] = places, types
        places, types = self._known[target]
        since = self._fields["since_ns"][places]
        ready, reason, running = (
            self._fields[name][places] for name in ("ready_ns", "reason", "running")
        )
        # What was changing while it was read is not known.
        since[since != self._fields["since_ns"][places]] = 0
        return Doing(types, since, ready, reason, running)

    def stats(self) -> dict[str, ProgramStats]:
        """Runs and run time of each program."""
        return {
            name: program_stats(self._object.program_fd(name)) for name in (*_PROGRAMS, SAMPLER)
        }

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        for links in (self._links, self._clocks):
            while links:
                library().bpf_link__destroy(links.pop())
        self._rows = self._rows[:0].copy()
        self._fields.clear()
        while self._maps:
            with contextlib.suppress(BufferError):  # somebody looks at it yet
                self._maps.pop().close()
        self._object.close()


def attach_or_reason() -> tuple[ThreadWatch | None, str]:
    """The tracepoints, or why there are none."""
    try:
        return ThreadWatch(), ""
    except (HostError, NotRootError) as error:
        return None, str(error)
