# SPDX-License-Identifier: Apache-2.0
"""The threads of one target, as the kernel schedules them."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.layouts.checks import KINDS
from scope_ebpf.beam.vm.scheduler_addresses import SchedulerFinder
from scope_ebpf.beam.vm.threads import ROLES, TaskFaults, faults
from scope_ebpf.budget.estimate import PartTime, share_error
from scope_ebpf.budget.hit_costs import Bill
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.nifs import Natives
from scope_ebpf.errors import HostError, ReadRefusedError
from scope_ebpf.kernel.bpf.stats import ProgramStats
from scope_ebpf.kernel.observers.tracepoints import SAMPLE_HZ, SAMPLER
from scope_ebpf.metrics.reading import Sampled, ThreadBooks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.scheduler_addresses import SchedulerAddresses
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.observers.tracepoints import ThreadWatch

#: Ticks between two looks at which threads there are: a VM starts nearly all of them at once.
_LOOK = 10
#: System calls in which a thread waits for work, as probes/threads.bpf.c has them, and SSI_WAITING.
_FOR_WORK = frozenset((202, 7, 271, 23, 270, 232, 281, 441))
_WAITING = 1 << 3
#: What the clock counts, of thread_totals; the tracepoints count the rest.
_BY_THE_CLOCK = ("samples", "busy_waits", "refused")
_WORDS = events.THREAD_TOTALS.itemsize // 8
#: Ticks for which samples tell the error of the share of busy waiting.
_MEMORY = 60


#: Why nobody can tell whether a scheduler spins.
UNSEEN = "these schedulers are not found in the VM's memory"


class WatchedThreads:
    """
    Watches the threads of *target* through *watch*, as its target number *place*.

    Without them only ``/proc`` tells, and *totals* is None; so it is where there is no place
    left, or no room for the threads. If the target ends meanwhile, its place is given back.
    """

    def __init__(self, watch: ThreadWatch | None, target: Target, place: int | None) -> None:
        self._watch, self._place, self._target = watch, place or 0, target
        self._tids: set[int] = set()
        self._ticks = 0
        self._faults = Faults()
        self._bill = Bill()
        self._prices: dict[str, float] = {}
        self._spent = 0.0
        #: The type of each scheduler that is not found in the VM's memory, by its tid.
        self._unseen: dict[int, str] = {}
        self._told = False
        self._samples: deque[tuple[int, int]] = deque(maxlen=_MEMORY)
        self._raw: NDArray[np.void] | None = None
        self.totals: NDArray[np.void] | None = None
        self.books = ThreadBooks((), (), ())
        if watch and place is None:
            self._watch = None
            self._say("there is no place for one more VM")
        now = time.monotonic()
        counted = self._watch.attached(now) if self._watch else 0.0
        self._part_time = PartTime((len(ROLES), _WORDS), counted, now)
        try:
            self._places = _places(target)
            self._natives = Natives(target, 1 / SAMPLE_HZ)
            self._look()
            self._read()
        except BaseException:
            self.close()  # a target may end at any moment
            raise

    def tick(self) -> None:
        """Read the totals; now and then look for threads that came or went."""
        self._ticks += 1
        if self._ticks % _LOOK == 0 or self._ticks < _LOOK:  # at first threads still come
            self._look()
        self._read()

    def spent(self) -> float:
        """
        Seconds of CPU that the tracepoints and the clock took of the target.

        Each time a thread is given a CPU it was woken or had left one before, so
        that is two runs.
        """
        if self._watch is None or self._raw is None:
            return self._spent
        if self._ticks % _LOOK == 0 or not self._prices:
            stats = self._watch.stats()
            samples = stats.pop(SAMPLER)
            switches = ProgramStats(*map(sum, zip(*stats.values(), strict=True)))
            switch, sample = (of.seconds / (of.runs or 1) for of in (switches, samples))
            self._prices = {"switches": 2 * switch, "samples": sample}
        self._spent = sum(
            self._bill.total(name, float(self._raw[name].sum()), price)
            for name, price in self._prices.items()
        )
        return self._spent

    def close(self) -> None:
        """Watch them no longer."""
        if self._watch:
            self._watch.remove(self._place)
            self._watch = None

    def resumed(self) -> None:
        """The tracepoints were out for a while: what sleeps has to be told again."""
        if self._watch:
            flags = self._watch.sleep_flags(self._place)
            for tid in self._tids & flags.keys():
                self._asleep(tid, flags[tid])

    def go_without(self, why: str) -> None:
        """Watch them no longer, and say why."""
        if self._watch is None:
            return
        self.close()
        self.totals, self.books = None, replace(self.books, sampled=None)
        self._say(why)

    def _say(self, why: str) -> None:
        say(logging.WARNING, "threads are not watched", pid=self._target.pid, why=why)

    def _read(self) -> None:
        if self._watch is None:
            return
        now = time.monotonic()
        self._raw = raw = self._watch.totals(self._place)
        # Time that was just being counted may be missing; all fields are u64.
        fields = raw.view(np.uint64).reshape(len(ROLES), -1)
        self._part_time.add(fields, self._watch.attached(now), now)
        words = self._part_time.total.astype(np.uint64)
        self.totals = totals = words.view(events.THREAD_TOTALS).reshape(-1)
        for name in _BY_THE_CLOCK:  # which goes on
            totals[name] = raw[name]
        if self._watch.unsampled or self._places is None:
            return
        self._samples.append((int(totals["samples"].sum()), int(totals["busy_waits"].sum())))
        (first, waits), (last, waits_now) = self._samples[0], self._samples[-1]
        sampled = self.books.sampled
        natives = sampled.natives if sampled else {}
        if self._ticks % _LOOK == 0:
            natives = self._natives.take(self._watch.natives(self._place))
        unseen = set(self._unseen.values())
        busy = tuple(
            None if kind in unseen else float(totals["busy_waits"][ROLES.index(kind)]) / SAMPLE_HZ
            for kind in KINDS
        )
        error = share_error(waits_now - waits, last - first)
        self.books = replace(self.books, sampled=Sampled(busy, error, natives))

    def _look(self) -> None:
        seen = faults(self._target.pid)
        self.books = replace(self._faults.add(seen), sampled=self.books.sampled)
        found = {one.tid: one for one in seen if one.role}
        if self._watch:
            self._watch.unwatch(self._place, self._tids - found.keys())
            self._unseen = {tid: kind for tid, kind in self._unseen.items() if tid in found}
            records = {
                tid: self._record(one)
                for tid, one in found.items()
                if tid not in self._tids or tid in self._unseen
            }
            self._tell()
            try:
                self._watch.watch(self._place, records)
                self._note_asleep({t: r for t, r in records.items() if t not in self._tids})
            except HostError as error:
                self.go_without(str(error))
        self._tids = set(found)

    def _note_asleep(self, records: dict[int, NDArray[np.void]]) -> None:
        """A thread that is watched from now on may not be switched for hours."""
        for tid, record in records.items():
            self._asleep(tid, int(record["sleep_flags"]))

    def _asleep(self, tid: int, sleep_flags: int) -> None:
        reason = self._why_asleep(tid, sleep_flags)
        if reason is not None and self._watch:
            self._watch.asleep(self._place, tid, reason)

    def _why_asleep(self, tid: int, sleep_flags: int) -> int | None:
        """As the programs decide it; None if it does not sleep, or we may not know."""
        path = f"/proc/{self._target.pid}/task/{tid}/syscall"
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - one for each thread
                call = file.read().partition(b" ")[0]
            if call == b"running\n":
                return None
            waits = not sleep_flags or self._target.memory.u32(sleep_flags) & _WAITING
        except (OSError, ReadRefusedError):
            return None
        names = events.OFF_REASONS
        return names.index("idle" if int(call) in _FOR_WORK and waits else "blocked")

    def _tell(self) -> None:
        """Say once of which schedulers nobody can tell whether they spin."""
        if self._unseen and not self._told:
            self._told = True
            kinds = ",".join(sorted(set(self._unseen.values())))
            what = "busy waiting is not told"
            say(logging.WARNING, what, pid=self._target.pid, schedulers=kinds, why=UNSEEN)

    def _record(self, thread: TaskFaults) -> NDArray[np.void]:
        """One thread for the kernel side, with what it may look at."""
        record = np.zeros((), events.THREAD)
        role = thread.role or ""
        record["row"] = ROLES.index(role)
        place = self._places.find(role, thread.number) if self._places else None
        self._unseen.pop(thread.tid, None)
        if _is_unseen(thread, place):
            self._unseen[thread.tid] = role
        for name, value in place._asdict().items() if place else ():
            record[name] = value
        return record


def _places(target: Target) -> SchedulerFinder | None:
    try:
        return SchedulerFinder(target)
    except ReadRefusedError:
        return None


def _is_unseen(thread: TaskFaults, place: SchedulerAddresses | None) -> bool:
    return thread.role in KINDS and place is None


def unseen(target: Target) -> list[str]:
    """The types of schedulers of which nobody can tell whether they spin: :data:`UNSEEN`."""
    places = _places(target)
    found = [one for one in faults(target.pid) if one.role]
    seen = {one: places.find(one.role or "", one.number) if places else None for one in found}
    return sorted({one.role or "" for one, place in seen.items() if _is_unseen(one, place)})


class Faults:
    """Page faults by type of thread, which grow also when threads end."""

    def __init__(self) -> None:
        self._last: dict[int, TaskFaults] = {}
        self._minor: Counter[str] = Counter()
        self._major: Counter[str] = Counter()

    def add(self, seen: list[TaskFaults]) -> ThreadBooks:
        """Take in a reading of all threads; the whole process is its last."""
        threads = {one.tid: one for one in seen if one.role}
        for tid, one in threads.items():
            before = self._last.get(tid, TaskFaults(tid, one.role, 0, 0, 0))
            self._minor[one.role or ""] += max(0, one.minor - before.minor)
            self._major[one.role or ""] += max(0, one.major - before.major)
        self._last = threads
        if seen and not seen[-1].tid:
            for books, total in ((self._minor, seen[-1].minor), (self._major, seen[-1].major)):
                known = sum(books[role] for role in ROLES)
                books["other"] = max(books["other"], total - known)
        counts = Counter(one.role for one in threads.values())
        order = (*ROLES, "other")
        return ThreadBooks(
            tuple(counts[role] for role in ROLES),
            tuple(self._minor[role] for role in order),
            tuple(self._major[role] for role in order),
        )
