# SPDX-License-Identifier: Apache-2.0
"""
Snapshots of all targets' process tables, one after the other, in a thread of its own.

A table is read in parts with pauses between them, and the larger it is, the rarer:
reading takes no more than a fixed share of a core, whatever the number of processes.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from scope_ebpf.beam.atoms import Atoms
from scope_ebpf.beam.code import CodeMap
from scope_ebpf.beam.memory import Memory
from scope_ebpf.beam.processes import CHUNK, LOAD, ProcessTable
from scope_ebpf.daemon.readers import Readers
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError, ScopeError
from scope_ebpf.labels import Labels
from scope_ebpf.metrics.snapshot import Reductions, SnapshotReading

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.target import Target
    from scope_ebpf.daemon.config import Config
    from scope_ebpf.daemon.watch import Watch

#: The share of a core that reading tables may take, over all targets.
SHARE = 0.004
#: The same for reading the VM's own memory besides.
MEMORY_SHARE = 0.0005
#: Seconds between two looks at whose turn it is.
_LOOK = 1.0
#: Blocks of the table in one part: 16,384 slots, a few milliseconds.
_BLOCKS = 4


class Table:
    """One target's table."""

    def __init__(self, target: Target) -> None:
        # A memory of its own: looking for hidden tables tries addresses, and that is no failure.
        self._target = target = replace(target, memory=Memory(target.pid))
        self._table = ProcessTable(target, LOAD)
        self._atoms = Atoms(target)
        self._labels: Labels | None = None
        self._reductions = Reductions()
        self.due = 0.0

    def read(self, top: int, pause: Callable[[float], None]) -> SnapshotReading:
        """Read it all, with a *pause* after each part. Raises ReadRefusedError."""
        reading = SnapshotReading(top)
        parts = max(1, -(-self._table.slots // (CHUNK * _BLOCKS)))
        size = self._target.layout.size("Process")
        for part in range(parts):
            began = time.thread_time()
            snapshot = self._table.snapshot(part, parts)
            reading.take_in(snapshot.rows, snapshot.torn + snapshot.unreadable, size)
            reading.take_in_rates(snapshot.rows, *self._reductions.since(part, snapshot.rows))
            took = time.thread_time() - began
            reading.seconds += took
            pause(took)
        reading.names = self._names(reading)
        reading.taken = time.time()
        return reading

    def _names(self, reading: SnapshotReading) -> dict[int, str]:
        """Names of those that are shown; one that has ended meanwhile has none."""
        pids = {one.pid for one in (*reading.mailboxes, *reading.memories, *reading.rates)}
        try:
            if self._labels is None:
                self._labels = Labels(self._target, self._atoms, CodeMap(self._target, self._atoms))
            labels = self._labels.labels(pids)
        except ReadRefusedError:
            return {}
        return {pid: label.who for pid, label in labels.items() if label.who}


class Snapshots:
    """Takes them until closed; *watches* gives the targets of this moment."""

    def __init__(self, watches: Callable[[], list[Watch]], config: Callable[[], Config]) -> None:
        self._watches = watches
        self._config = config
        self._tables: dict[int, Table | None] = {}
        self._readers: dict[int, Readers] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; a table that is being read is left in the middle."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_LOOK):
            watches = self._watches()
            here = {watch.target.pid for watch in watches}
            for kept in (self._tables, self._readers):
                for gone in kept.keys() - here:
                    kept.pop(gone)
            for watch in watches:
                if not self._ended.is_set():
                    self._read(watch, len(watches))
                    self._take(watch, len(watches))

    def _read(self, watch: Watch, targets: int) -> None:
        pid = watch.target.pid
        try:
            if pid not in self._readers:
                self._readers[pid] = Readers(watch.target)
            readers = self._readers[pid]
            if time.monotonic() < readers.due:
                return
            watch.memory = readers.read()
        except NoSuchProcessError:
            return  # the loop drops it
        rarely = readers.seconds * targets / MEMORY_SHARE
        readers.due = time.monotonic() + max(self._config().snapshot_interval, rarely)

    def _take(self, watch: Watch, targets: int) -> None:
        pid = watch.target.pid
        try:
            if pid not in self._tables:
                self._tables[pid] = Table(watch.target)
            table = self._tables[pid]
            if table is None or time.monotonic() < table.due:
                return
            reading = table.read(self._config().top, self._pause)
        except NoSuchProcessError:
            return  # the loop drops it
        except _EndedError:
            return
        except ScopeError as error:
            self._tables[pid] = None
            self._readers[pid].refuse("processes", error)
            return
        watch.snapshot = reading
        rarely = reading.seconds * targets / SHARE
        table.due = time.monotonic() + max(self._config().snapshot_interval, rarely)

    def _pause(self, seconds: float) -> None:
        """As long as the part took: the loop and scrapes come in between."""
        if self._ended.wait(seconds):
            raise _EndedError


class _EndedError(Exception):
    """The daemon ends in the middle of a table."""
