# SPDX-License-Identifier: Apache-2.0
"""The threads of one target: how the kernel schedules them, their page faults, busy waiting."""

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
from scope_ebpf.budget.hit_costs import CostLedger
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.nifs import Nifs
from scope_ebpf.errors import HostError, ReadRefusedError
from scope_ebpf.kernel.bpf.stats import ProgramStats
from scope_ebpf.kernel.observers.thread_watch import SAMPLER
from scope_ebpf.metrics.reading import Sampled, ThreadAccounting

if TYPE_CHECKING:
    from collections.abc import Container

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.scheduler_addresses import SchedulerAddresses
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.observers.thread_watch import ThreadWatch, WorkClock

#: Ticks between two listings of threads: a VM starts nearly all of them at once.
_LIST_TICKS = 10
#: Fields of thread_totals that the sampling timer counts; the tracepoints count the others.
_SAMPLED_FIELDS = ("samples", "busy_waits", "refused")
_WORDS = events.THREAD_TOTALS.itemsize // 8
#: Ticks over which the error of the share of busy waiting is computed.
_ERROR_TICKS = 60

#: Why busy waiting of a scheduler is unknown.
UNSEEN = "these schedulers are not found in the VM's memory"


class _TracepointCost:
    """
    The CPU that the tracepoints and the sampling timer took of one target.

    Attributes:
        seconds: seconds of CPU so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._ledger = CostLedger()
        #: Seconds for one switch and for one sample.
        self._unit_costs: dict[str, float] = {}

    @property
    def known(self) -> bool:
        """False before the first :meth:`update`."""
        return bool(self._unit_costs)

    def update(self, stats: dict[str, ProgramStats]) -> None:
        """Set the costs from the kernel's statistics of the programs."""
        samples = stats.pop(SAMPLER)
        switches = ProgramStats(*map(sum, zip(*stats.values(), strict=True)))
        switch, sample = (of.seconds / (of.runs or 1) for of in (switches, samples))
        # A thread that gets a CPU was woken or had left one before: these are two runs.
        self._unit_costs = {"switches": 2 * switch, "samples": sample}

    def charge(self, totals: NDArray[np.void]) -> None:
        """Charge for *totals* (``events.THREAD_TOTALS``), which only grow."""
        self.seconds = sum(
            self._ledger.total(name, float(totals[name].sum()), cost)
            for name, cost in self._unit_costs.items()
        )


class _Unseen:
    """The schedulers of a VM that are not found in its memory."""

    def __init__(self) -> None:
        self._kinds: dict[int, str] = {}
        self._logged = False

    def __contains__(self, tid: int) -> bool:
        return tid in self._kinds

    def note(self, tid: int, kind: str, *, unseen: bool) -> None:
        """Whether the scheduler with *tid*, of a type, is unseen now."""
        self._kinds.pop(tid, None)
        if unseen:
            self._kinds[tid] = kind

    def keep(self, tids: Container[int]) -> None:
        """Forget those that have ended, which are not in *tids*."""
        self._kinds = {tid: kind for tid, kind in self._kinds.items() if tid in tids}

    def kinds(self) -> set[str]:
        """The types of schedulers whose busy waiting is unknown."""
        return set(self._kinds.values())

    def log(self, pid: int) -> None:
        """Log once the types of schedulers whose busy waiting is unknown."""
        if self._kinds and not self._logged:
            self._logged = True
            what, kinds = "busy waiting is not measured", ",".join(sorted(self.kinds()))
            say(logging.WARNING, what, pid=pid, schedulers=kinds, why=UNSEEN)


class WatchedThreads:
    """
    Watches the threads of *target* through the slot *slot* of *watch*.

    Without *watch* or a slot, and where there is no room for the threads, only ``/proc`` is read.
    If the target ends meanwhile, its slot is freed.

    Attributes:
        totals: totals by type of thread, shape ``(6,)`` of ``events.THREAD_TOTALS``; None where the
            threads are not watched.
        accounting: figures from ``/proc`` and of the sampling timer.
    """

    def __init__(self, watch: ThreadWatch | None, target: Target, slot: int | None) -> None:
        self._watch, self._slot, self._target = watch, slot or 0, target
        self._tids: set[int] = set()
        self._ticks = 0
        self._faults = Faults()
        self._cost = _TracepointCost()
        self._unseen = _Unseen()
        #: Samples, and samples of busy waiting, at the last ticks.
        self._samples: deque[tuple[int, int]] = deque(maxlen=_ERROR_TICKS)
        #: When they were read, and seconds of CPU and of busy waiting of normal schedulers.
        self._work: deque[tuple[float, float, float]] = deque(maxlen=_ERROR_TICKS)
        #: Totals as read, without times at which nothing was counted.
        self._raw: NDArray[np.void] | None = None
        self.totals: NDArray[np.void] | None = None
        self.accounting = ThreadAccounting((), (), ())
        if watch and slot is None:
            self._watch = None
            self._log("there is no place for one more VM")
        now = time.monotonic()
        counted = self._watch.attached(now) if self._watch else 0.0
        self._part_time = PartTime((len(ROLES), _WORDS), counted, now)
        try:
            self._addresses = _addresses(target)
            self._nifs = Nifs(target, 1 / events.SAMPLE_HZ)
            self._list()
            self._read()
        except BaseException:
            self.close()  # a target may end at any moment
            raise

    def tick(self) -> None:
        """Read the totals; now and then list the threads again."""
        self._ticks += 1
        if self._ticks % _LIST_TICKS == 0 or self._ticks < _LIST_TICKS:  # they still start
            self._list()
        self._read()

    def spent(self) -> float:
        """Seconds of CPU that the tracepoints and the sampling timer took of the target so far."""
        if self._watch and self._raw is not None:
            if self._ticks % _LIST_TICKS == 0 or not self._cost.known:
                self._cost.update(self._watch.stats())
            self._cost.charge(self._raw)
        return self._cost.seconds

    def work_clock(self) -> WorkClock | None:
        """What samples the work of the target's processes; None where threads are not sampled."""
        if self._watch is None or self._watch.unsampled or not self._addresses:
            return None
        return self._watch.works.clock(self._slot)

    def close(self) -> None:
        """Stop watching the threads, and free the slot."""
        if self._watch:
            self._watch.remove(self._slot)
            self._watch = None

    def resumed(self) -> None:
        """The tracepoints were attached again: mark the threads that sleep now."""
        if self._watch:
            flags = self._watch.sleep_flags(self._slot)
            for tid in self._tids & flags.keys():
                self._mark_asleep(tid, flags[tid])

    def go_without(self, why: str) -> None:
        """Stop watching the threads, and log *why*."""
        if self._watch is None:
            return
        self.close()
        self.totals, self.accounting = None, replace(self.accounting, sampled=None)
        self._log(why)

    def _log(self, why: str) -> None:
        say(logging.WARNING, "threads are not watched", pid=self._target.pid, why=why)

    def _read(self) -> None:
        if self._watch is None:
            return
        now = time.monotonic()
        self._raw = raw = self._watch.totals(self._slot)
        # An interval that is being added just now may be missing; all fields are u64.
        fields = raw.view(np.uint64).reshape(len(ROLES), -1)
        self._part_time.add(fields, self._watch.attached(now), now)
        words = self._part_time.total.astype(np.uint64)
        self.totals = totals = words.view(events.THREAD_TOTALS).reshape(-1)
        for name in _SAMPLED_FIELDS:  # the timer runs while tracepoints are detached
            totals[name] = raw[name]
        if not self._watch.unsampled and self._addresses:
            self._read_samples(self._watch, totals, now)

    def _read_samples(self, watch: ThreadWatch, totals: NDArray[np.void], now: float) -> None:
        self._samples.append((int(totals["samples"].sum()), int(totals["busy_waits"].sum())))
        (first, waits), (last, waits_now) = self._samples[0], self._samples[-1]
        sampled = self.accounting.sampled
        nifs = sampled.nifs if sampled else {}
        if self._ticks % _LIST_TICKS == 0:
            nifs = self._nifs.update(watch.natives(self._slot))
        unseen = self._unseen.kinds()
        busy = tuple(
            None
            if kind in unseen
            else float(totals["busy_waits"][ROLES.index(kind)]) / events.SAMPLE_HZ
            for kind in KINDS
        )
        error = share_error(waits_now - waits, last - first)
        working = None
        if busy[0] is not None:
            cpu = float(totals["on_ns"][ROLES.index(KINDS[0])]) / 1e9
            self._work.append((now, cpu, busy[0]))
            working = at_work(self._work[0], self._work[-1])
        self.accounting = replace(self.accounting, sampled=Sampled(busy, error, nifs, working))

    def _list(self) -> None:
        """List the threads: watch new ones, forget those that have ended."""
        seen = faults(self._target.pid)
        self.accounting = replace(self._faults.add(seen), sampled=self.accounting.sampled)
        found = {one.tid: one for one in seen if one.role}
        if self._watch:
            self._watch.unwatch(self._slot, self._tids - found.keys())
            self._unseen.keep(found)
            records = {
                tid: self._record(one)
                for tid, one in found.items()
                if tid not in self._tids or tid in self._unseen
            }
            self._unseen.log(self._target.pid)
            try:
                self._watch.watch(self._slot, records)
                self._mark_all_asleep({t: r for t, r in records.items() if t not in self._tids})
            except HostError as error:
                self.go_without(str(error))
        self._tids = set(found)

    def _mark_all_asleep(self, records: dict[int, NDArray[np.void]]) -> None:
        """Mark new threads that sleep: they may not be switched for hours."""
        for tid, record in records.items():
            self._mark_asleep(tid, int(record["sleep_flags"]))

    def _mark_asleep(self, tid: int, sleep_flags: int) -> None:
        reason = self._why_asleep(tid, sleep_flags)
        if reason is not None and self._watch:
            self._watch.asleep(self._slot, tid, reason)

    def _why_asleep(self, tid: int, sleep_flags: int) -> int | None:
        """The reason as the BPF programs decide it; None if it does not sleep, or is unknown."""
        path = f"/proc/{self._target.pid}/task/{tid}/syscall"
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - one for each thread
                call = file.read().partition(b" ")[0]
            if call == b"running\n":
                return None
            waits = not sleep_flags or self._target.memory.u32(sleep_flags) & events.SSI_WAITING
        except (OSError, ReadRefusedError):
            return None
        names = events.OFF_REASONS
        return names.index("idle" if int(call) in events.WAITING_CALLS and waits else "blocked")

    def _record(self, thread: TaskFaults) -> NDArray[np.void]:
        """*thread* as a record for the BPF programs (``events.THREAD``)."""
        record = np.zeros((), events.THREAD)
        role = thread.role or ""
        record["row"] = ROLES.index(role)
        address = self._addresses.find(role, thread.number) if self._addresses else None
        self._unseen.note(thread.tid, role, unseen=_is_unseen(thread, address))
        for name, value in address._asdict().items() if address else ():
            record[name] = value
        return record


def at_work(first: tuple[float, float, float], last: tuple[float, float, float]) -> float | None:
    """
    How many schedulers were at work, on average between two readings; None if no time passed.

    A reading is its time, and the seconds of CPU and of busy waiting until then.
    """
    seconds, cpu, waited = (now - then for then, now in zip(first, last, strict=True))
    return max(0.0, cpu - waited) / seconds if seconds > 0 else None


def _addresses(target: Target) -> SchedulerFinder | None:
    try:
        return SchedulerFinder(target)
    except ReadRefusedError:
        return None


def _is_unseen(thread: TaskFaults, address: SchedulerAddresses | None) -> bool:
    return thread.role in KINDS and address is None


def unseen(target: Target) -> list[str]:
    """The types of schedulers whose busy waiting is unknown; :data:`UNSEEN` is the reason."""
    addresses = _addresses(target)
    found = [one for one in faults(target.pid) if one.role]
    seen = {one: addresses.find(one.role or "", one.number) if addresses else None for one in found}
    return sorted({one.role or "" for one, address in seen.items() if _is_unseen(one, address)})


class Faults:
    """Page faults by type of thread; they keep growing when threads end."""

    def __init__(self) -> None:
        self._last: dict[int, TaskFaults] = {}
        self._minor: Counter[str] = Counter()
        self._major: Counter[str] = Counter()

    def add(self, seen: list[TaskFaults]) -> ThreadAccounting:
        """The totals after a reading of all threads, whose last element is the whole process."""
        threads = {one.tid: one for one in seen if one.role}
        for tid, one in threads.items():
            before = self._last.get(tid, TaskFaults(tid, one.role, 0, 0, 0))
            self._minor[one.role or ""] += max(0, one.minor - before.minor)
            self._major[one.role or ""] += max(0, one.major - before.major)
        self._last = threads
        if seen and not seen[-1].tid:
            for counts, total in ((self._minor, seen[-1].minor), (self._major, seen[-1].major)):
                known = sum(counts[role] for role in ROLES)
                counts["other"] = max(counts["other"], total - known)
        number = Counter(one.role for one in threads.values())
        order = (*ROLES, "other")
        return ThreadAccounting(
            tuple(number[role] for role in ROLES),
            tuple(self._minor[role] for role in order),
            tuple(self._major[role] for role in order),
        )
