# SPDX-License-Identifier: Apache-2.0
"""
The figures above the table of ``top``: the VM as a whole, read from its memory and ``/proc``.

Schedulers are sampled at irregular times, as ``beam.vm.state`` does it: one that spins because it
has nothing to do does not work.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, cast

from scope_ebpf.beam.layouts.checks import KINDS
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.cli.top_cells import LONG_MAILBOX, name_of
from scope_ebpf.cli.top_memory import MemoryLimits
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.screen.layout import Span
from scope_ebpf.sinks.plain import short, size

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.counters import Counters
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.cli.top_memory import Confined
    from scope_ebpf.cli.top_table import Row
    from scope_ebpf.results.documents.processes import Utilization, VmFigures

#: Seconds between two samples of the schedulers, and for how long a sample counts.
_SHORTEST, _LONGEST, _WINDOW = 0.02, 0.06, 5.0
#: Shares from which on a figure is shown in red.
BUSY, FULL, MANY = 0.85, 0.9, 0.8
_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


class _Sample(NamedTuple):
    """Working and online schedulers by :data:`KINDS`, and what waits in the run queues."""

    at: float
    working: tuple[int, ...]
    online: tuple[int, ...]
    waiting: int


class Reading(NamedTuple):
    """A VM as a whole; None for what could not be read."""

    uptime: float
    #: Whether the VM is stopped: then its schedulers do nothing.
    stopped: bool
    #: CPU seconds per second, busy waiting included; None before the second reading.
    cpu: float | None
    #: Share of the time in which the online schedulers of a kind worked, of the last seconds.
    utilization: dict[str, float] | None
    #: Normal schedulers that are online.
    online: int | None
    #: Processes and ports in the run queues, on average.
    waiting: float | None
    processes: int | None
    process_limit: int | None
    resident_bytes: int | None
    confined: Confined | None

    def as_json(self, longest_mailbox: str | None) -> VmFigures:
        """The object ``vm`` of a line of ``top --format jsonl``."""
        return {
            "uptime_seconds": round(self.uptime, 1),
            "stopped": self.stopped,
            "cpu_cores": None if self.cpu is None else round(self.cpu, 3),
            "utilization": cast("Utilization | None", self.utilization),
            "schedulers_online": self.online,
            "run_queue": None if self.waiting is None else round(self.waiting, 3),
            "processes": self.processes,
            "process_limit": self.process_limit,
            "resident_bytes": self.resident_bytes,
            "cgroup_bytes": self.confined.used if self.confined else None,
            "cgroup_limit_bytes": self.confined.limit if self.confined else None,
            "longest_mailbox": longest_mailbox,
        }


class Head:
    """Reads them of *target*; :attr:`refused` says why the schedulers cannot be read, or ""."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._limits = MemoryLimits(target.pid)
        self._samples: deque[_Sample] = deque(maxlen=int(_WINDOW / _SHORTEST))
        self._used: tuple[float, float] | None = None
        #: When the next :meth:`sample` is due, monotonic seconds.
        self.due = 0.0
        self.refused = ""
        self._counters: CounterReader | None = None
        self._last: Counters | None = None
        self._process_limit: int | None = None
        try:
            self._counters = CounterReader(target)
            self._process_limit = self._counters.limits().processes
        except ReadRefusedError as error:
            self.refused = str(error)
        self._stat()

    def sample(self) -> None:
        """Look once at schedulers and run queues."""
        now = time.monotonic()
        # Irregular; importing random takes longer than all samples of a table.
        self.due = now + _SHORTEST + (_LONGEST - _SHORTEST) * os.urandom(1)[0] / 255
        if self._counters is None:
            return
        try:
            self._last = found = self._counters.read()
        except ReadRefusedError as error:
            self.refused, self._counters, self._last = str(error), None, None
            self._samples.clear()
            return
        self._samples.append(_Sample(now, found.working, found.online, sum(found.waiting)))
        while self._samples[0].at < now - _WINDOW:
            self._samples.popleft()

    def read(self) -> Reading:
        """All figures now; raises NoSuchProcessError where the VM has ended."""
        state, cpu, resident = self._stat()
        self.sample()
        if state in b"Tt":
            self._samples.clear()
        last = self._last
        return Reading(
            uptime=time.clock_gettime(time.CLOCK_BOOTTIME) - self._target.started,
            stopped=state in b"Tt",
            cpu=cpu,
            utilization=self._utilization(),
            online=last.online[0] if last else None,
            waiting=self._mean_waiting(),
            processes=last.processes if last else None,
            process_limit=self._process_limit,
            resident_bytes=resident,
            confined=self._limits.read(),
        )

    def _stat(self) -> tuple[bytes, float | None, int | None]:
        """The letter of the VM's state, its CPU seconds per second, its resident bytes."""
        try:
            # The text is shorter than 2 KB.
            with open(f"/proc/{self._target.pid}/stat", "rb", buffering=0) as stat:  # noqa: PTH123
                text = stat.read(4096)
        except OSError:
            text = b""
        self._target.identity.check()
        # The name is in parentheses and may contain any character, parentheses too.
        fields = text.rpartition(b")")[2].split()
        now, before = time.monotonic(), self._used
        used = (int(fields[11]) + int(fields[12])) / _TICKS
        self._used = now, used
        share = max(0.0, used - before[1]) / (now - before[0]) if before else None
        return fields[0], share, int(fields[21]) * _PAGE

    def _utilization(self) -> dict[str, float] | None:
        if not self._samples:
            return None
        shares = {}
        for index, kind in enumerate(KINDS):
            online = sum(sample.online[index] for sample in self._samples)
            working = sum(sample.working[index] for sample in self._samples)
            shares[kind] = round(working / online, 4) if online else 0.0
        return shares

    def _mean_waiting(self) -> float | None:
        waiting = [sample.waiting for sample in self._samples]
        return sum(waiting) / len(waiting) if waiting else None


def spans(reading: Reading, longest: Row | None) -> list[Span]:
    """The figures as texts, each to be shown whole; ``alarm`` is the style past a threshold."""
    return [
        _schedulers(reading),
        _queue(reading),
        _count(reading),
        *_memory(reading),
        _mailbox(longest),
        *_dirty(reading),
        *([] if reading.cpu is None else [Span(f"CPU {reading.cpu:.2f} cores")]),
        Span(f"up {ago(reading.uptime)}"),
    ]


def ago(seconds: float) -> str:
    """A time of running, in its two largest units: ``3d 4h``, ``5m 7s``."""
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    units = [(days, "d"), (hours, "h"), (minutes, "m"), (left, "s")]
    first = next((index for index, (count, _) in enumerate(units) if count), 3)
    return " ".join(f"{count}{unit}" for count, unit in units[first : first + 2])


def _alarm(text: str, *, wrong: bool) -> Span:
    return Span(text, "alarm" if wrong else "")


def _schedulers(reading: Reading) -> Span:
    if reading.stopped:
        return Span("schedulers stopped", "alarm")
    if reading.utilization is None:
        return Span("schedulers not known")
    share = reading.utilization["normal"]
    return _alarm(f"schedulers {share:.0%} of {reading.online}", wrong=share >= BUSY)


def _dirty(reading: Reading) -> list[Span]:
    return [
        _alarm(f"{kind.replace('_', ' ')} {share:.0%}", wrong=share >= BUSY)
        for kind, share in (reading.utilization or {}).items()
        if kind != "normal"
    ]


def _queue(reading: Reading) -> Span:
    if reading.waiting is None:
        return Span("run queue not known")
    many = bool(reading.online) and reading.waiting > (reading.online or 1)
    waiting = f"{reading.waiting:.1f}" if reading.waiting < 9.95 else short(reading.waiting)
    return _alarm(f"run queue {waiting}", wrong=many)


def _count(reading: Reading) -> Span:
    if reading.processes is None or reading.process_limit is None:
        return Span("processes not known")
    many = reading.processes >= MANY * reading.process_limit
    return _alarm(f"processes {reading.processes:,}/{reading.process_limit:,}", wrong=many)


def _memory(reading: Reading) -> list[Span]:
    found = []
    if reading.resident_bytes is not None:
        found.append(Span(f"memory {size(reading.resident_bytes)}"))
    if reading.confined:
        used, limit = reading.confined
        share = used / limit if limit else 1.0
        text = f"cgroup {size(used)}/{size(limit)} ({share:.0%})"
        found.append(_alarm(text, wrong=share >= FULL))
    return found


def _mailbox(longest: Row | None) -> Span:
    if longest is None:
        return Span("mailboxes empty")
    process = longest.process
    module = process["module"] if process["behaviour"] else None
    who = name_of(process["name"], process["label"], module, process["initial_call"])
    count = process["message_queue_len"]
    text = f"mailbox {short(count)} of {process['pid']} {who}"
    return _alarm(text, wrong=count >= LONG_MAILBOX)
