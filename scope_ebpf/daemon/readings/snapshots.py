# SPDX-License-Identifier: Apache-2.0
"""
Snapshots of all targets' process tables, one after the other, in a thread of its own.

A table is read in parts with pauses between them, and the larger it is, the rarer:
reading takes no more than a fixed share of a core, whatever the number of processes.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.memory.look_limits import LookLimits, limited
from scope_ebpf.beam.memory.process_memory import Memory, cpu_seconds
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.labels import Labels
from scope_ebpf.beam.processes.sizes import memory_bytes
from scope_ebpf.beam.processes.table import ALL, CHUNK, LOAD, ProcessTable, base_bytes
from scope_ebpf.daemon.looks.owners import in_turns
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.memory import Readers
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError, ReadRefusedError, ScopeError
from scope_ebpf.metrics.reading import MemoryReading
from scope_ebpf.metrics.snapshot import Reductions, SnapshotReading
from scope_ebpf.metrics.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.config import Config
    from scope_ebpf.daemon.looks.owners import Owner
    from scope_ebpf.daemon.watch import Watch

#: The share of a core that reading tables may take, over all targets.
SHARE = 0.004
#: The same for reading the VM's own memory besides.
MEMORY_SHARE = 0.0005
#: Seconds between two looks at whose turn it is.
_LOOK = 1.0
#: Messages from which on a mailbox is weighed, and how many of them are looked at.
_LONG_MAILBOX, _WALK = 1_000, 200
#: Seconds until what failed is tried again: at first, and at most; doubled in between.
_RETRY, _MOST_RETRY = 60.0, 3600.0
#: What one reading may take: bytes of memory, system calls, seconds of CPU and in all. A table of a
#: million processes takes a fiftieth of it.
_DATA, _CALLS, _CPU, _WALL = 8 << 30, 5_000_000, 10.0, 120.0
#: Seconds of CPU after which an owner's other targets wait for the next look at whose turn it is.
_OWNERS_TURN = 1.0
#: Processes and slots in one part of a table, at most: a few milliseconds.
_PROCESSES, _SLOTS = CHUNK, 1 << 18


class Table:
    """One target's table."""

    def __init__(self, target: Target) -> None:
        # A memory of its own: looking for hidden tables tries addresses, and that is no failure.
        self._target = target = replace(target, memory=Memory(target.pid, target.identity.process))
        self._table = ProcessTable(target, LOAD)
        self._whole = ProcessTable(target, ALL)
        self._atoms = Atoms(target)
        self._labels: Labels | None = None
        self._reductions = Reductions()

    def read(self, top: int, pause: Callable[[float], None]) -> SnapshotReading:
        """Read it all, with a *pause* after each part. Raises ReadRefusedError."""
        reading = SnapshotReading(top, taken=time.time())
        parts = self._parts()
        for part in range(parts):
            began = cpu_seconds()
            snapshot = self._table.snapshot(part, parts)
            rows, missed = snapshot.rows, snapshot.missed
            reading.take_in(rows, len(missed), self._memory(rows))
            reading.take_in_rates(rows, self._reductions.rates(part, parts, rows, missed))
            took = cpu_seconds() - began
            reading.seconds += took
            pause(took)
        began = cpu_seconds()
        largest = np.array([one.pid for one in reading.memories], np.uint64)
        reading.weigh(self._weighed(self._whole.slots_of(largest)))
        reading.seconds += cpu_seconds() - began
        reading.names = self._names(reading)
        return reading

    def _memory(self, rows: NDArray[np.void]) -> NDArray[np.int64]:
        """Bytes of each: struct and heaps, and the mailbox of whoever has a long one."""
        memory = base_bytes(rows, self._target.layout.size("Process")).astype(np.int64)
        long = np.flatnonzero(rows["mailbox"] >= _LONG_MAILBOX)
        if len(long):
            weighed = self._weighed(rows["slot"][long].astype(np.int64))
            for place in long.tolist():
                memory[place] = weighed.get(int(rows["id"][place]), memory[place])
        return memory

    def _weighed(self, slots: NDArray[np.int64]) -> dict[int, int]:
        """Bytes of the processes in some slots as ``process_info`` tells them, by pid term."""
        rows = self._whole.at(slots).rows
        _, calm = self._whole.still(rows)
        sizes = memory_bytes(self._target, rows, _WALK).bytes
        pairs = zip(rows["id"][calm].tolist(), sizes[calm].tolist(), strict=True)
        return dict(pairs)

    def _parts(self) -> int:
        """In how many parts it is read: a power of two, and no more than it has blocks."""
        slots = self._table.slots
        wanted = max(self._table.count() / _PROCESSES, slots / _SLOTS)
        return 1 << math.ceil(math.log2(min(max(wanted, 1), max(slots / CHUNK, 1))))

    def _names(self, reading: SnapshotReading) -> dict[int, str]:
        """Names of those that are shown; one that has ended meanwhile has none."""
        pids = {one.pid for one in (*reading.mailboxes, *reading.memories, *reading.rates)}
        try:
            if self._labels is None:
                self._labels = Labels(self._target, self._atoms, CodeMap(self._target, self._atoms))
            began = cpu_seconds()
            labels = self._labels.labels(pids)
            reading.seconds += cpu_seconds() - began
        except ReadRefusedError:
            return {}
        return {pid: label.who for pid, label in labels.items() if label.who}


@dataclass(slots=True)
class _Kept:
    """What is kept of one watch: who reads it, when each part is due, what failed and why."""

    readers: Readers | None = None
    table: Table | None = None
    memory: MemoryReading = field(default_factory=MemoryReading)
    values: Values = field(default_factory=Values)
    due: dict[str, float] = field(default_factory=dict)
    #: For how long each part was not read again when it had failed, doubled each time.
    pauses: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


class Snapshots:
    """
    Takes them until closed; *watches* gives the targets of this moment.

    What fails is tried again after a minute. Failures that nobody expected are counted
    in *errors*.
    """

    def __init__(
        self,
        watches: Callable[[], list[Watch]],
        config: Callable[[], Config],
        errors: Counter[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watches = watches
        self._config = config
        self._errors = Counter() if errors is None else errors
        self._clock = clock
        #: How often a process in a ranking was not called by its name.
        self.held = 0
        # By watch, not by pid: another VM may run in the same process.
        self._kept: dict[Watch, _Kept] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; a table that is being read is left in the middle."""
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """Read what is due of each target."""
        self._kept = {watch: self._kept.get(watch, _Kept()) for watch in self._watches()}
        taken: Counter[Owner] = Counter()
        for watch in in_turns(self._kept, lambda watch: watch.owner):
            kept = self._kept[watch]
            for part, read in (("memory", self._read), ("processes", self._take)):
                due = self._clock() >= kept.due.get(part, 0.0)
                if due and not self._ended.is_set() and taken[watch.owner] < _OWNERS_TURN * 1000:
                    began = cpu_seconds()
                    self._turn(watch, kept, part, read)
                    taken[watch.owner] += int(1000 * (cpu_seconds() - began))

    def _run(self) -> None:
        while not self._ended.wait(_LOOK):
            self.look()

    def _turn(
        self, watch: Watch, kept: _Kept, part: str, read: Callable[[Watch, _Kept], float]
    ) -> None:
        pause = _RETRY
        limits = LookLimits(
            f"reading {part} of process {watch.target.pid}",
            data=_DATA, calls=_CALLS, cpu=_CPU, wall=_WALL,
        )  # fmt: skip
        try:
            with limited(limits):
                rarely = read(watch, kept) * len(self._kept)
        except (NoSuchProcessError, _EndedError):
            pass  # the loop drops it
        except NoAnswerError as error:
            watch.trouble = error  # and so does it then
        except Exception as error:  # noqa: BLE001 - one target must not take the others along
            self._failed(watch, kept, part, error)
            pause = kept.pauses[part] = min(2 * kept.pauses.get(part, _RETRY / 2), _MOST_RETRY)
        else:
            kept.refused.pop(part, None)
            kept.pauses.pop(part, None)
            _tell(watch, kept)
            pause = max(self._config().snapshot_interval, rarely)
        kept.due[part] = self._clock() + pause

    def _read(self, watch: Watch, kept: _Kept) -> float:
        """Read the VM's own memory; how many seconds later it may be read again."""
        kept.readers = kept.readers or Readers(watch.target)
        reading = kept.readers.read()
        watch.target.identity.check()
        kept.memory = reading
        return kept.memory.seconds / MEMORY_SHARE

    def _take(self, watch: Watch, kept: _Kept) -> float:
        """Read the process table; how many seconds later it may be read again."""
        kept.table = kept.table or Table(watch.target)
        reading = kept.table.read(self._config().top, self._pause)
        watch.target.identity.check()
        held = kept.values.held
        reading.names = {pid: kept.values.admit(name) for pid, name in reading.names.items()}
        self.held += kept.values.held - held
        watch.snapshot = reading
        return reading.seconds / SHARE

    def _failed(self, watch: Watch, kept: _Kept, part: str, error: Exception) -> None:
        """Show no *part* of it until it can be read again; say once why."""
        known = isinstance(error, ScopeError)
        if not known:
            self._errors["snapshot"] += 1
        why = str(error) if known else repr(error)
        if part not in kept.refused:
            say(logging.WARNING, "memory not read", pid=watch.target.pid, part=part, why=why)
        kept.refused[part] = why
        if part == "processes":
            kept.table = watch.snapshot = None
        else:
            kept.readers, kept.memory = None, MemoryReading()
        _tell(watch, kept)

    def _pause(self, seconds: float) -> None:
        """As long as the part took: the loop and scrapes come in between."""
        if self._ended.wait(seconds):
            raise _EndedError


class _EndedError(Exception):
    """The daemon ends in the middle of a table."""


def _tell(watch: Watch, kept: _Kept) -> None:
    watch.memory = replace(kept.memory, refused=kept.memory.refused | kept.refused)
