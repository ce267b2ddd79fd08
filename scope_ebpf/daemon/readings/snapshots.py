# SPDX-License-Identifier: Apache-2.0
"""
Snapshots of all targets' process tables, one after the other, in a thread of its own.

A table is read in parts with pauses between them, and less often the larger it is: reading takes
no more than a fixed share of a core, whatever the number of processes.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.memory.look_limits import LookLimits, limited
from scope_ebpf.beam.memory.process_memory import Memory, cpu_seconds
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.blocks import Blocks
from scope_ebpf.beam.processes.labels import Labels
from scope_ebpf.beam.processes.sizes import mailboxes, memory_bytes
from scope_ebpf.beam.processes.table import ALL, CHUNK, LOAD, ProcessTable, base_bytes
from scope_ebpf.daemon.looks.owners import in_turns, queue_of
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.memory import Readers
from scope_ebpf.daemon.readings.thread import ReadingThread, reason
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError, ReadRefusedError, ScopeError
from scope_ebpf.metrics.reading import MemoryReading
from scope_ebpf.metrics.snapshot import Reductions, SnapshotReading
from scope_ebpf.metrics.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.config import Config
    from scope_ebpf.daemon.looks.owners import Owner

#: The share of a core that reading tables may take, for all targets together, and the share that
#: reading other parts of their memory may take.
SHARE, MEMORY_SHARE = 0.004, 0.0005
#: Seconds between two passes over all targets.
_PASS = 1.0
#: Minimum messages of a mailbox whose bytes are summed up, and maximum messages that are read.
_LONG_MAILBOX, _MAX_MESSAGES = 1_000, 200
#: Shorter mailboxes of one part that are read, the longest first, and messages of each: few may be
#: large, and lie outside of heaps.
_SHORT_MAILBOXES, _FEW_MESSAGES = 256, 20
#: Processes with a long mailbox whose bytes are kept for one reading more.
_MOST_KEPT = 4096
#: Seconds until a failed reading is repeated, if it took little: at first, and at most; doubled by
#: each failure, and halved by each success.
_MIN_RETRY, _MAX_RETRY = 60.0, 3600.0
#: Limits of one reading: bytes of memory, system calls, seconds of CPU, seconds of time. A table of
#: a million processes takes a fiftieth of them.
_DATA, _CALLS, _CPU, _WALL = 8 << 30, 5_000_000, 10.0, 120.0
#: Seconds of CPU after which the other targets of an owner wait for the next pass.
_OWNER_CPU = 1.0
#: Maximum processes and slots in one part of a table: a few milliseconds.
_PROCESSES, _SLOTS = CHUNK, 1 << 18


@dataclass(frozen=True, slots=True)
class SnapshotResults:
    """
    The results of one target that this thread hands over to the loop, as one record.

    Attributes:
        snapshot: the process table; None before the first reading, and after one that failed.
        memory: other parts of the VM's memory; None before the first reading.
        error: why the target must be dropped.
    """

    snapshot: SnapshotReading | None = None
    memory: MemoryReading | None = None
    error: ScopeError | None = None


class Subject(Protocol):
    """A target whose memory is read: a ``watch.Watch``."""

    @property
    def target(self) -> Target:
        """The VM."""

    @property
    def owner(self) -> Owner:
        """Whose process it is."""

    def publish(self, results: SnapshotResults) -> None:
        """Take the latest *results*; called by the thread that reads."""


class Table:
    """
    The process table of *target*.

    It has a ``Memory`` of its own: a search for tables tries addresses, which are not failed reads.
    """

    def __init__(self, target: Target) -> None:
        self._target = target = replace(target, memory=Memory(target.pid, target.identity.process))
        self._table = ProcessTable(target, LOAD)
        self._whole = ProcessTable(target, ALL)
        self._atoms = Atoms(target)
        self._labels: Labels | None = None
        self._reductions = Reductions()
        self._blocks = Blocks(target)
        #: Bytes of processes with a long mailbox in this reading, and in the one before.
        self._long: dict[int, int] = {}
        self._before: dict[int, int] = {}

    def read(self, top: int, pause: Callable[[float], None]) -> SnapshotReading:
        """Read the table, calling *pause* after each part. Raises ReadRefusedError."""
        reading = SnapshotReading(top, taken=time.time())
        parts = self._parts()
        self._before, self._long = self._long, {}
        for part in range(parts):
            began = cpu_seconds()
            snapshot = self._table.snapshot(part, parts)
            rows, missed = snapshot.rows, snapshot.missed
            reading.add(rows, len(missed), self._memory(rows))
            reading.add_rates(rows, self._reductions.rates(part, parts, rows, missed))
            took = cpu_seconds() - began
            reading.seconds += took
            pause(took)
        began = cpu_seconds()
        largest = np.array([one.pid for one in reading.memories], np.uint64)
        reading.refine_memory(self._exact_bytes(self._whole.slots_of(largest)))
        reading.seconds += cpu_seconds() - began
        reading.names = self._names(reading)
        return reading

    def _memory(self, rows: NDArray[np.void]) -> NDArray[np.int64]:
        """
        Bytes of each row: struct and heaps, and mailboxes.

        A mailbox that moved on while it was read has the bytes that it had one reading before.
        """
        memory = base_bytes(rows, self._target.layout.size("Process")).astype(np.int64)
        memory += self._short_mailboxes(rows)
        long = np.flatnonzero(rows["mailbox"] >= _LONG_MAILBOX)
        if len(long):
            exact = self._exact_bytes(rows["slot"][long].astype(np.int64))
            fits = not self._blocks.disproves("ErtsMessage")
            for index in long.tolist():
                pid = int(rows["id"][index])
                size = exact.get(pid)
                if size is None:
                    size = max(int(memory[index]), self._before.get(pid, 0))
                elif fits and len(self._long) < _MOST_KEPT:
                    self._long[pid] = size
                memory[index] = size
        return memory

    def _short_mailboxes(self, rows: NDArray[np.void]) -> NDArray[np.int64]:
        """Bytes of the messages of some of the mailboxes that are not long, by row."""
        found = np.zeros(len(rows), np.int64)
        some = np.flatnonzero((rows["mailbox"] > 0) & (rows["mailbox"] < _LONG_MAILBOX))
        some = some[np.argsort(-rows["mailbox"][some], kind="stable")[:_SHORT_MAILBOXES]]
        if not len(some):
            return found
        fresh = self._whole.at(np.sort(rows["slot"][some]).astype(np.int64)).rows
        _, calm = self._whole.still(fresh)
        held = mailboxes(self._target, fresh, _FEW_MESSAGES, self._blocks).bytes
        sizes = dict(zip(fresh["id"][calm].tolist(), held[calm].astype(int).tolist(), strict=True))
        found[some] = [sizes.get(pid, 0) for pid in rows["id"][some].tolist()]
        return found

    def _exact_bytes(self, slots: NDArray[np.int64]) -> dict[int, int]:
        """
        Bytes of the processes in *slots* as in ``process_info(Pid, memory)``, by pid term.

        Where messages do not fit their blocks, at least what was known one reading before.
        """
        rows = self._whole.at(slots).rows
        _, calm = self._whole.still(rows)
        sizes = memory_bytes(self._target, rows, _MAX_MESSAGES, self._blocks).bytes
        found = dict(zip(rows["id"][calm].tolist(), sizes[calm].tolist(), strict=True))
        if self._blocks.disproves("ErtsMessage"):
            return {pid: max(size, self._before.get(pid, 0)) for pid, size in found.items()}
        return found

    def _parts(self) -> int:
        """The number of parts: a power of two, at most the number of blocks."""
        slots = self._table.slots
        wanted = max(self._table.count() / _PROCESSES, slots / _SLOTS)
        return 1 << math.ceil(math.log2(min(max(wanted, 1), max(slots / CHUNK, 1))))

    def _names(self, reading: SnapshotReading) -> dict[int, str]:
        """Names of the processes in rankings; none for those that have ended meanwhile."""
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
class _State:
    """The readers of one target and their last results, by part: ``memory``, ``processes``."""

    readers: Readers | None = None
    table: Table | None = None
    snapshot: SnapshotReading | None = None
    memory: MemoryReading = field(default_factory=MemoryReading)
    error: ScopeError | None = None
    #: Names in rankings.
    names: Values = field(default_factory=Values)
    #: When each part is read next, in seconds of the clock.
    due: dict[str, float] = field(default_factory=dict)
    #: The pause after the next failure of each part, in seconds.
    pauses: dict[str, float] = field(default_factory=dict)
    #: Why each part failed.
    refused: dict[str, str] = field(default_factory=dict)

    def results(self) -> SnapshotResults:
        """What the loop gets."""
        memory = replace(self.memory, refused=self.memory.refused | self.refused)
        return SnapshotResults(self.snapshot, memory, self.error)


class Snapshots(ReadingThread):
    """
    Reads the memory of *subjects*, which returns the targets of this moment, until closed.

    Failed readings are repeated after a minute. Unexpected errors are counted in *errors* under
    ``snapshot``.

    Attributes:
        held: names in rankings that were replaced by ``other``.
    """

    NAME = "snapshots"

    def __init__(
        self,
        subjects: Callable[[], Sequence[Subject]],
        config: Callable[[], Config],
        errors: Counter[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._subjects = subjects
        self._config = config
        self._errors = Counter() if errors is None else errors
        self._clock = clock
        self.held = 0
        # By target, not by pid: another VM may run in the same process.
        self._states: dict[Subject, _State] = {}
        super().__post_init__()

    def look(self) -> None:
        """Read the parts of each target that are due."""
        self._states = {one: self._states.get(one, _State()) for one in self._subjects()}
        taken: defaultdict[str, float] = defaultdict(float)
        for subject in in_turns(self._states, lambda subject: subject.owner):
            state, owner = self._states[subject], queue_of(subject.owner)
            for part, read in (("memory", self._read_memory), ("processes", self._read_table)):
                due = self._clock() >= state.due.get(part, 0.0)
                if due and not self._ended.is_set() and taken[owner] < _OWNER_CPU:
                    taken[owner] += self._read(subject, state, part, read)

    def _run(self) -> None:
        while not self._ended.wait(_PASS):
            self.look()

    def _read(
        self,
        subject: Subject,
        state: _State,
        part: str,
        read: Callable[[Target, _State], float],
    ) -> float:
        """Read one part of a target; the seconds of CPU that it took."""
        pause, began = _MIN_RETRY, cpu_seconds()
        limits = LookLimits(
            f"reading {part} of process {subject.target.pid}",
            data=_DATA, calls=_CALLS, cpu=_CPU, wall=_WALL,
        )  # fmt: skip
        try:
            with limited(limits):
                interval = read(subject.target, state) * len(self._states)
        except (NoSuchProcessError, _EndedError):
            pass  # the loop drops it
        except NoAnswerError as error:
            state.error = error  # the loop drops it when it gets this
            subject.publish(state.results())
        except Exception as error:  # noqa: BLE001 - one target must not take the others along
            if not self._ended.is_set():
                self._failed(subject, state, part, error)
            pause = state.pauses.get(part, _MIN_RETRY)
            state.pauses[part] = min(2 * pause, _MAX_RETRY)
            pause = max(pause, (cpu_seconds() - began) / SHARE)
        else:
            state.refused.pop(part, None)
            state.pauses[part] = max(state.pauses.get(part, 0.0) / 2, _MIN_RETRY)
            subject.publish(state.results())
            pause = max(self._config().snapshot_interval, interval)
        state.due[part] = self._clock() + pause
        return cpu_seconds() - began

    def _read_memory(self, target: Target, state: _State) -> float:
        """Read other parts of memory; the minimum seconds to the next reading."""
        state.readers = state.readers or Readers(target)
        reading = state.readers.read()
        target.identity.check()
        state.memory = reading
        return reading.seconds / MEMORY_SHARE

    def _read_table(self, target: Target, state: _State) -> float:
        """Read the process table; the minimum seconds to the next reading."""
        state.table = state.table or Table(target)
        reading = state.table.read(self._config().top, self._pause)
        target.identity.check()
        held = state.names.held
        reading.names = {pid: state.names.admit(name) for pid, name in reading.names.items()}
        self.held += state.names.held - held
        state.snapshot = reading
        return reading.seconds / SHARE

    def _failed(self, subject: Subject, state: _State, part: str, error: Exception) -> None:
        """Show no *part* until it can be read again; log once why."""
        why = reason(error, self._errors)
        if part not in state.refused:
            say(logging.WARNING, "memory not read", pid=subject.target.pid, part=part, why=why)
        state.refused[part] = why
        if part == "processes":
            state.table = state.snapshot = None
        else:
            state.readers, state.memory = None, MemoryReading()
        subject.publish(state.results())

    def _pause(self, seconds: float) -> None:
        """Wait as long as the part took, so that the loop and scrapes can run."""
        if self._ended.wait(seconds):
            raise _EndedError


class _EndedError(Exception):
    """The daemon ends while a table is read."""
