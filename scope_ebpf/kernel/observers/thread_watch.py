# SPDX-License-Identifier: Apache-2.0
"""
How the kernel schedules the threads of all targets: one object for the whole host.

The tracepoints run on every switch of the host, so they are attached once, when the first target is
observed. The totals are read from mapped memory.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import time
from collections import deque
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import HostError, NotRootError
from scope_ebpf.events import MAX_TARGETS, SAMPLE_HZ, THREAD_TYPES
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
from scope_ebpf.kernel.attach.tracepoints import SchedulerTracepoints
from scope_ebpf.kernel.bpf.libbpf import library
from scope_ebpf.kernel.bpf.maps import U32, U64
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.bpf.stats import ProgramStats, program_stats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

_PROGRAMS = ("thread_switch", "thread_wakeup", "thread_wakeup_new")
SAMPLER = "thread_sample"

#: Fields of a thread that user space sets. Once the last one is set the timer samples the thread.
_USER_FIELDS = (
    *("sleep_flags", "at_process", "at_nif", "at_reductions", "at_code", "before_code"),
    *("at_fcalls", "scheduler"),
)


class Mfa(NamedTuple):
    """A function of a target: the terms of two atoms, and the number of its arguments."""

    module: int
    function: int
    arity: int


def possible_cpus(root: Path = Path("/")) -> int:
    """One more than the largest number that a CPU may have."""
    text = (root / "sys/devices/system/cpu/possible").read_text()
    return int(re.split("[-,]", text)[-1]) + 1


class Doing(NamedTuple):
    """
    The current state of threads, a row for each: its type and fields of ``events.THREAD``.

    ``since_ns`` and ``ready_ns`` are CLOCK_MONOTONIC, ns.
    """

    type: NDArray[np.intp]
    since_ns: NDArray[np.uint64]
    ready_ns: NDArray[np.uint64]
    reason: NDArray[np.uint32]
    running: NDArray[np.uint32]


#: Words of thread_totals, u64 each: on_ns comes first, and then off_ns by reason.
_WORDS = events.THREAD_TOTALS.itemsize // 8


def add_open(totals: NDArray[np.uint64], doing: Doing, now: int) -> None:
    """
    Add the time that threads have spent in their current state to *totals*.

    Their shape is ``(THREAD_TYPES, words)``.

    The programs count that time when the state ends. The reason for which a thread is off its CPU
    is known from the beginning, so the time goes to the same word; the time that a thread waits for
    a CPU is left out, since its word is known only at the end. *now* is CLOCK_MONOTONIC, ns.
    """
    end = np.where(doing.ready_ns, doing.ready_ns, np.uint64(now))
    lasted = np.maximum((end - doing.since_ns).view(np.int64), 0) * (doing.since_ns != 0)
    word = (1 + doing.reason) * (doing.running == 0)
    np.add.at(totals, (doing.type, word), lasted.view(np.uint64))


class Works:
    """
    Samples of what processes of targets work on, by the object *threads*.

    What is counted is in maps of each target, so that none takes the room of another.
    """

    def __init__(self, threads: BpfObject) -> None:
        self._gates = threads.map("work_gates", U32, U64)
        self._maps = [threads.map(name, U32, U32) for name in ("target_works", "target_samples")]
        self._clocks: dict[int, WorkClock] = {}

    def clock(self, target: int) -> WorkClock:
        """The clock of *target*, until that is removed."""
        return self._clocks.setdefault(target, WorkClock(self, target))

    def gate(self, target: int, value: int) -> None:
        """Count samples of what *target* begins at this value of its gate; 0 for none."""
        self._gates[target] = value

    def use(self, target: int, fds: Sequence[int]) -> None:
        """Sample *target* by the maps behind *fds*: open works, and samples; none for no more."""
        for own, fd in zip_longest(self._maps, fds):
            if fd is None:
                own.discard(target)
            else:
                own[target] = fd

    def remove(self, target: int) -> None:
        """Count no samples of *target*, and give its maps back."""
        if clock := self._clocks.pop(target, None):
            clock.close()


class WorkClock:
    """Samples what processes of the target with number *target* work on, until closed."""

    def __init__(self, works: Works, target: int) -> None:
        self._works: Works | None = works
        self._target = target

    def use(self, works: int, samples: int) -> None:
        """Sample by these maps from now on, by file descriptor: what is worked on, and samples."""
        if self._works:
            self._works.use(self._target, (works, samples))

    def open(self) -> int:
        """Count samples of what begins from now on; returns the value of the gate for that."""
        gate = time.monotonic_ns()
        if self._works:
            self._works.gate(self._target, gate)
        return gate

    def shut(self) -> None:
        """Count no samples."""
        if self._works:
            self._works.gate(self._target, 0)

    def leave(self) -> None:
        """Count no samples, and give the maps back."""
        self.shut()
        if self._works:
            self._works.use(self._target, ())

    def close(self) -> None:
        """Sample no more."""
        self.leave()
        self._works = None


class ThreadWatch:
    """
    The scheduler's tracepoints, attached.

    Raises HostError where the kernel refuses them, and in a pid namespace of our own, in which
    threads have other numbers.

    ``unsampled`` is the reason why the timer does not sample native functions, or ""; ``works`` are
    samples of what processes work on.
    """

    def __init__(self) -> None:
        host.require_host_pids(
            "the daemon runs in a pid namespace, where it cannot name to the kernel which threads "
            "to watch"
        )
        self._object = BpfObject("threads", object_bytes("threads"))
        cpus = possible_cpus()
        self._object.maps["thread_rows"].set_entries(cpus * MAX_TARGETS * THREAD_TYPES)
        self._object.load((*_PROGRAMS, SAMPLER))
        self._watched_map = self._object.map("watched", U32, U32)
        self._natives = self._object.map("nifs", events.NIF_KEY, events.NIF)
        self.works = Works(self._object)
        self._maps: list[mmap.mmap] = []
        #: By CPU, target and type of thread, as words.
        self._rows = self._mapped(
            "thread_rows", np.uint64, cpus * MAX_TARGETS * THREAD_TYPES * _WORDS
        )
        self._rows = self._rows.reshape(cpus, MAX_TARGETS, THREAD_TYPES, _WORDS)
        room = self._object.maps["threads"].entries
        threads = self._mapped("threads", events.THREAD, room)
        #: The fields of all threads.
        self._fields = {name: threads[name] for name in events.THREAD.names or ()}
        self._tracepoints = SchedulerTracepoints(self._object, _PROGRAMS)
        self._timers: list[int] = []
        self.unsampled = self._sample()
        self._free = deque(range(MAX_TARGETS))
        #: Free indices in the map "threads". Each is used again as late as possible: a program may
        #: still be writing to it.
        self._free_threads = deque(range(room))
        #: The index of each thread that is watched, by tid; and the same by target.
        self._watched: dict[int, int] = {}
        self._targets: dict[int, dict[int, int]] = {}
        #: By target that was read since its threads changed: their indices and types.
        self._known: dict[int, tuple[NDArray[np.intp], NDArray[np.intp]]] = {}
        #: By target, the time that was spent in the current state when tracepoints were removed.
        self._cut = np.zeros((MAX_TARGETS, THREAD_TYPES, _WORDS), np.uint64)
        self.resume()

    def resume(self) -> bool:
        """
        Attach the tracepoints; False if they are attached already. Raises HostError.

        The current state of threads is not known then: call :meth:`asleep` for each that sleeps.
        """
        if self._tracepoints.since is not None:
            return False
        for name in ("since_ns", "ready_ns", "running"):
            self._fields[name][:] = 0
        self._tracepoints.attach()
        self._fields["traced"][:] = 1
        return True

    def pause(self) -> None:
        """Remove the tracepoints for a while; the timer goes on."""
        if self._tracepoints.since is None:
            return
        self._fields["traced"][:] = 0
        self._tracepoints.detach()
        now = time.monotonic_ns()
        for target in self._targets:
            add_open(self._cut[target], self._doing(target), now)

    def attached(self, now: float) -> float:
        """Total seconds for which tracepoints were attached until *now* (monotonic seconds)."""
        return self._tracepoints.seconds(now)

    def _mapped(self, name: str, dtype: Any, entries: int) -> NDArray[Any]:
        """A map of the object as an array in mapped memory; programs change it at any time."""
        size = -(-entries * np.dtype(dtype).itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            mapped = mmap.mmap(self._object.maps[name].fd, size)
        except OSError as error:
            raise HostError(f"cannot map {name} of the BPF object threads: {error}") from None
        self._maps.append(mapped)
        return np.frombuffer(mapped, dtype, entries)

    def _sample(self) -> str:
        """Start the timer of each CPU that samples native functions; why it cannot, or ""."""
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
                self._timers.append(attach(program, fd, f"the clock of CPU {cpu}"))
        except (HostError, NotRootError) as error:
            return str(error)
        return ""

    def add(self) -> int | None:
        """The number of one more target, with all totals 0; None if there are MAX_TARGETS."""
        if not self._free:
            return None
        target = self._free.popleft()
        self._rows[:, target] = 0
        self._cut[target] = 0
        self._targets[target] = {}
        return target

    def watch(self, target: int, threads: Mapping[int, NDArray[np.void]]) -> None:
        """
        Watch *threads* of *target*, by tid.

        Each is one ``events.THREAD`` with the number of its type as its row, and the fields of its
        scheduler, if it is one; for a thread that is watched already only these are set. Raises
        HostError if there is no room for all of them.
        """
        mine = self._targets[target]
        self._known.pop(target, None)
        for tid, value in threads.items():
            if tid not in mine:
                self._begin(target, tid, int(value["row"].item()))
            for name in _USER_FIELDS:
                self._fields[name][mine[tid]] = value[name].item()

    def _begin(self, target: int, tid: int, row: int) -> None:
        if not self._free_threads:
            raise HostError(
                f"{len(self._watched):,} threads are watched, and more there may not be"
            )
        index = self._targets[target][tid] = self._free_threads.popleft()
        for field in self._fields.values():
            field[index] = 0
        self._fields["row"][index] = row + target * THREAD_TYPES
        self._fields["target"][index] = target
        self._fields["traced"][index] = self._tracepoints.since is not None
        self._watched_map[tid] = index
        self._watched[tid] = index

    def sleep_flags(self, target: int) -> dict[int, int]:
        """The address of each scheduler's sleep flags, by tid; 0 for other threads."""
        flags = self._fields["sleep_flags"]
        return {tid: int(flags[index]) for tid, index in self._targets[target].items()}

    def asleep(self, target: int, tid: int, reason: int) -> None:
        """Set the state of a watched thread: it sleeps from now on, for OFF_* *reason*."""
        index, since = self._targets[target][tid], self._fields["since_ns"]
        # Where that is set the thread was switched meanwhile, and the kernel knows its state.
        if since[index] == 0 and self._tracepoints.since is not None:
            self._fields["reason"][index] = reason
            since[index] = time.monotonic_ns()

    def unwatch(self, target: int, tids: Iterable[int]) -> None:
        """Stop watching these threads of *target*. Unknown tids are ignored."""
        self._known.pop(target, None)
        for tid in tids:
            index = self._targets[target].pop(tid, None)
            if index is None:
                continue
            self._free_threads.append(index)
            if self._watched.get(tid) == index:  # else it is another target's by now
                del self._watched[tid]
                self._watched_map.discard(tid)

    def remove(self, target: int) -> None:
        """Stop watching all threads of *target*, and free its number for another one."""
        try:
            self.unwatch(target, list(self._targets[target]))
            for key in self._native_keys(target):
                self._natives.discard(key)
            self.works.remove(target)
        finally:
            del self._targets[target]
            self._free.append(target)

    def natives(self, target: int) -> dict[Mfa, tuple[int, int]]:
        """Native functions that the timer found: numbers of samples and of long calls of each."""
        found = {}
        for key in self._native_keys(target):
            values = self._natives.get(key)
            if values is not None:
                counts = int(values["samples"].sum()), int(values["long_calls"].sum())
                found[Mfa(int(key["module"]), int(key["function"]), int(key["arity"]))] = counts
        return found

    def _native_keys(self, target: int) -> NDArray[np.void]:
        keys = self._natives.keys()
        found: NDArray[np.void] = keys[keys["target"] == target]
        return found

    def totals(self, target: int) -> NDArray[np.void]:
        """
        Totals by type of thread until now, shape ``(THREAD_TYPES,)`` of ``events.THREAD_TOTALS``.

        Time that a program is just counting may be missing from one reading.
        """
        # In this order: time that is counted after the first line is not added by the last again.
        totals = self._rows[:, target].sum(axis=0) + self._cut[target]
        now = time.monotonic_ns()
        if self._tracepoints.since is not None:
            add_open(totals, self._doing(target), now)
        result: NDArray[np.void] = totals.view(events.THREAD_TOTALS).reshape(THREAD_TYPES)
        return result

    def _doing(self, target: int) -> Doing:
        if target not in self._known:
            indices = np.fromiter(self._targets[target].values(), np.intp)
            types = self._fields["row"][indices].astype(np.intp) - target * THREAD_TYPES
            self._known[target] = indices, types
        indices, types = self._known[target]
        since = self._fields["since_ns"][indices]
        ready, reason, running = (
            self._fields[name][indices] for name in ("ready_ns", "reason", "running")
        )
        # A row that changed while it was read is left out.
        since[since != self._fields["since_ns"][indices]] = 0
        return Doing(types, since, ready, reason, running)

    def stats(self) -> dict[str, ProgramStats]:
        """Runs and run time of each program."""
        return {
            name: program_stats(self._object.program_fd(name)) for name in (*_PROGRAMS, SAMPLER)
        }

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        self._tracepoints.detach()
        while self._timers:
            library().bpf_link__destroy(self._timers.pop())
        self._rows = self._rows[:0].copy()
        self._fields.clear()
        while self._maps:
            with contextlib.suppress(BufferError):  # an array of it is still in use
                self._maps.pop().close()
        self._object.close()


def attach_or_reason() -> tuple[ThreadWatch | None, str]:
    """The tracepoints and "", or None and the reason why there are none."""
    try:
        return ThreadWatch(), ""
    except (HostError, NotRootError) as error:
        return None, str(error)
