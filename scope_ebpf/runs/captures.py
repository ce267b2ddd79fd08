# SPDX-License-Identifier: Apache-2.0
"""The captures of ``record``: a file that grows, or a flight recorder's memory."""

from __future__ import annotations

import json
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf import pipes
from scope_ebpf.capture.facts import End
from scope_ebpf.capture.frames import BlockKind
from scope_ebpf.capture.store import FileStore, RingStore
from scope_ebpf.capture.writer import Names, end_payload, head_payload
from scope_ebpf.errors import OutputError, ScopeError
from scope_ebpf.output import Document
from scope_ebpf.results.summary import Cost
from scope_ebpf.runs.recorder import Recorder
from scope_ebpf.runs.stall import Stall
from scope_ebpf.runs.terminal import announce, keep_old, open_stream, output_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.observers.session import Session
    from scope_ebpf.results.summary import Summary
    from scope_ebpf.runs.trace import Trace


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """Where a capture is written, and how much of it is kept."""

    #: Path of the file.
    path: str
    #: Whether to replace another user's file.
    force: bool = False
    #: Bytes at which a growing file ends the trace; None for no bound.
    max_bytes: int | None = None
    #: Bytes of memory of a flight recorder; None for a file that grows.
    flight_bytes: int | None = None
    #: Seconds without a schedule, while work waits, after which a flight recorder writes a file;
    #: None for never.
    stall_seconds: float | None = None


def record(
    target: Target, trace: Trace, options: RecordOptions
) -> tuple[Summary, ScopeError | None]:
    """Run *trace* into a capture; its summary, and the error that ended it early, if one did."""
    capture: FileCapture | FlightCapture
    if options.flight_bytes:
        capture = FlightCapture(target, trace, options, options.flight_bytes)
    else:
        capture = FileCapture(target, trace, options)
    with capture.listening():
        error = trace.run(capture.recorder, capture.beat, progress=True)
    summary = trace.summary()
    return summary, capture.finish(summary, error)


class FileCapture:
    """A capture that is written while the trace runs."""

    def __init__(self, target: Target, trace: Trace, options: RecordOptions) -> None:
        self._path = options.path
        self._trace = trace
        keep_old(self._path, force=options.force)
        fd = open_stream(self._path, force=options.force)
        try:
            self._store = FileStore(pipes.open_raw(fd), options.max_bytes)
        except OSError as error:
            raise output_error(error, self._path) from error
        self.recorder = Recorder(target, trace, self._store, Names())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to nothing."""
        yield

    def beat(self, session: Session) -> str | None:
        """Write what is due; the reason to stop once the file is full."""
        self.recorder.beat(session)
        if self.recorder.writer.full:
            return f"the capture reached --max-size ({self._store.bytes:,} bytes)"
        return None

    def finish(self, summary: Summary, error: ScopeError | None) -> ScopeError | None:
        """Write the end, and print what was written; *error*, or that of the last write."""
        try:
            self.recorder.begin()
            if not isinstance(error, OutputError):
                self.recorder.flush()
                self.recorder.samples()
            self.recorder.writer.maps(*self._trace.counted().maps())
            self.recorder.writer.end(_end(summary))
        except OSError as broken:
            error = error or output_error(broken, self._path)
        self._store.close()
        writer = self.recorder.writer
        announce(f"wrote {self._path}: {writer.events:,} events, {self._store.bytes:,} bytes")
        if writer.left_out:
            announce(f"{writer.left_out:,} events found no room in it")
        return error


class FlightCapture:
    """
    The last minutes in memory, written when something happens.

    A file is written when the VM dies, when it stalls, on SIGUSR1, and when the recording ends.
    """

    def __init__(
        self, target: Target, trace: Trace, options: RecordOptions, ring_bytes: int
    ) -> None:
        self._target = target
        self._trace = trace
        self._path = options.path
        self._force = options.force
        try:
            with Document(self._path, force=self._force):
                pass  # an error of the path must be known now, not when the VM dies
        except OSError as error:
            raise output_error(error, self._path) from error
        self._stall = Stall(options.stall_seconds) if options.stall_seconds else None
        self._names = Names()
        self._store = RingStore(ring_bytes, self._lasting)
        self.recorder = Recorder(target, trace, self._store, self._names, flight=True)
        self._began = time.monotonic()
        self._asked = self._stalled = False
        self._written = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGUSR1 asks for a file while the block runs."""
        before = signal.signal(signal.SIGUSR1, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before)

    def _ask(self, _number: int, _frame: object) -> None:
        self._asked = True

    def beat(self, session: Session) -> str | None:
        """Sample what is due, and write a file if there is a reason."""
        self.recorder.beat(session)
        if self._asked:
            self._asked = False
            self._write_now(session, "SIGUSR1 asked for it")
        if self._stall and self._stall.is_due(now := time.monotonic_ns()):
            reason = self._why_stalled(session, self._stall, now)
            if reason and not self._stalled:
                self._write_now(session, reason)
            self._stalled = bool(reason)
        return None

    def _why_stalled(self, session: Session, stall: Stall, now: int) -> str | None:
        """The reason to write a file: work waits, and none was scheduled for too long."""
        waits = self._waiting_work()
        if stall.lasts(now, self.recorder.schedules.last_ns, waits=bool(waits)):
            # Records of schedules before the look may still be in the ring.
            self._trace.catch_up(session, self.recorder)
        scheduled = self.recorder.schedules.last_ns
        if not stall.lasts(now, scheduled, waits=bool(waits)):
            return None
        return f"nothing was scheduled for {(now - scheduled) / 1e9:.1f} s: {waits}"

    def _waiting_work(self) -> str | None:
        """The work that a VM that does not stall would schedule; None if it has none."""
        if _is_stopped(self._target.pid):
            return "the VM is stopped"
        if any(self.recorder.schedules.running.values()):
            return "a process does not leave its scheduler"
        try:
            counters = self.recorder.counters
            waiting = int(sum(counters.read().run_queues)) if counters else 0
        except ScopeError:
            return None
        return f"{waiting} wait in the run queues" if waiting else None

    def _write_now(self, session: Session, reason: str) -> None:
        self._trace.catch_up(session, self.recorder)
        self.recorder.settle(session)
        hits = sum(session.hits().values())
        end = End(time.monotonic() - self._began, reason, Cost(hits, None, None), self._notes())
        self._write(end)

    def _notes(self) -> tuple[str, ...]:
        said = f"a flight recorder: {self._store.dropped:,} blocks before these were dropped"
        return (*self._trace.notes, *([said] if self._store.dropped else []))

    def _lasting(self) -> Iterator[tuple[BlockKind, bytes]]:
        if self.recorder.head:
            yield BlockKind.HEAD, head_payload(self.recorder.head)
        for payload in self._names.all():
            yield BlockKind.NAMES, payload
        yield BlockKind.SAMPLES, json.dumps(self.recorder.threads()).encode()

    def _write(self, end: End) -> None:
        path = self._path
        if self._written:
            known = Path(path)
            path = str(known.with_suffix(f".{self._written + 1}{known.suffix}"))
        with Document(path, force=self._force) as document:
            size = self._store.write(document.file, end_payload(end))
            document.commit()
        self._written += 1
        announce(f"wrote {path}, {size:,} bytes: {end.stopped_because}")

    def finish(self, summary: Summary, error: ScopeError | None) -> ScopeError | None:
        """Write what is in memory, whatever ended the trace; *error*, or that of the write."""
        try:
            self.recorder.begin()
            self.recorder.flush()
            self.recorder.samples()
            self.recorder.writer.maps(*self._trace.counted().maps())
            end = _end(summary)
            self._write(End(end.duration_seconds, end.stopped_because, end.cost, self._notes()))
        except OSError as broken:
            return error or output_error(broken, self._path)
        return error


def _end(summary: Summary) -> End:
    return End(summary.duration_seconds, summary.stopped_because, summary.cost, summary.notes)


def _is_stopped(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return text.rpartition(b")")[2].split()[0] in (b"T", b"t")
