# SPDX-License-Identifier: Apache-2.0
"""``scope-trace record``: a trace into a file, or its last minutes when something goes wrong."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.attach.plan import DEFAULT_EVENTS
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.capture.facts import End
from scope_ebpf.capture.frames import BlockKind
from scope_ebpf.capture.store import FileStore, RingStore
from scope_ebpf.capture.writer import Names, end_payload, head_payload
from scope_ebpf.cli.options import (
    add_duration,
    add_events,
    add_force,
    add_hooks,
    add_max_cost,
    parse_events,
    positive,
    ring_megabytes,
)
from scope_ebpf.errors import OutputError, ScopeError, UsageError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.cost import Aside
from scope_ebpf.output import Document, set_aside
from scope_ebpf.results.summary import Cost
from scope_ebpf.runs.recorder import Recorder
from scope_ebpf.runs.stall import Stall
from scope_ebpf.runs.terminal import alone, open_stream, output_error
from scope_ebpf.runs.trace import Trace
from scope_ebpf.sinks.plain import plain, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.observers.session import Session
    from scope_ebpf.results.summary import Summary

#: What is recorded unless it is told: the default events, and the threads beneath them.
RECORDED = (*DEFAULT_EVENTS, "thread")
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    host.require()
    wanted = RECORDED if arguments.events is None else parse_events(arguments.events)
    if arguments.stall and not (arguments.flight and "schedule" in wanted):
        raise UsageError("--stall is told by the event schedule, with --ring; ask for both")
    with closing(Aside()) as aside:
        target = inspect(arguments.pid)
        with alone(target.pid) as notes:
            trace = Trace(target, wanted, arguments, streamed=True, aside=aside)
            trace.notes += notes
            kind = Flight if arguments.flight else File
            recording = kind(target, trace, arguments)
            with recording.listening():
                error = trace.run(recording.recorder, recording.beat, progress=True)
            summary = trace.summary()
            error = recording.finish(summary, error)
    _report(summary)
    if error:
        raise error
    return 0


def keep_old(path: str, *, force: bool = False) -> None:
    """Keep a capture that is there already, as perf does: it may be the only one of its kind."""
    try:
        old = set_aside(path, force=force)
    except OSError as error:
        raise output_error(error, path) from error
    if old:
        _say(f"{path} was there: it is {old} now")


class File:
    """A capture that is written while it happens."""

    def __init__(self, target: Target, trace: Trace, arguments: argparse.Namespace) -> None:
        self._path: str = arguments.output
        self._trace = trace
        keep_old(self._path, force=arguments.force)
        fd = open_stream(self._path, force=arguments.force)
        try:
            self._store = FileStore(os.fdopen(fd, "wb", buffering=0), arguments.max_size)
        except OSError as error:
            raise output_error(error, self._path) from error
        self.recorder = Recorder(target, trace, self._store, Names())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Nothing is listened to."""
        yield

    def beat(self, session: Session) -> str | None:
        """Write what is due; the reason to stop once the file is full."""
        self.recorder.beat(session)
        if self.recorder.writer.full:
            return f"the capture reached --max-size ({self._store.bytes:,} bytes)"
        return None

    def finish(self, summary: Summary, error: ScopeError | None) -> ScopeError | None:
        """Write the end, and say what there is."""
        try:
            self.recorder.begin()
            if not isinstance(error, OutputError):
                self.recorder.flush()
                self.recorder.samples()
            self.recorder.writer.maps(*self._trace.maps())
            self.recorder.writer.end(_end(summary))
        except OSError as broken:
            error = error or output_error(broken, self._path)
        self._store.close()
        writer = self.recorder.writer
        _say(f"wrote {self._path}: {writer.events:,} events, {self._store.bytes:,} bytes")
        if writer.left_out:
            _say(f"{writer.left_out:,} events found no room in it")
        return error


class Flight:
    """
    The last minutes in memory, written when something happens.

    That is: the VM dies, it stalls, SIGUSR1 comes, or the recording ends.
    """

    def __init__(self, target: Target, trace: Trace, arguments: argparse.Namespace) -> None:
        self._target = target
        self._trace = trace
        self._path: str = arguments.output
        self._force: bool = arguments.force
        try:
            with Document(self._path, force=self._force):
                pass  # what cannot be written is better known now than when the VM dies
        except OSError as error:
            raise output_error(error, self._path) from error
        self._stall = Stall(arguments.stall) if arguments.stall else None
        self._names = Names()
        self._store = RingStore(arguments.flight, self._lasting)
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
        """Why nothing was scheduled for too long though there was something to schedule."""
        waits = self._what_waits()
        if stall.lasts(now, self.recorder.scheduled_ns, waits=bool(waits)):
            # What was scheduled before the look may still lie in the ring.
            self._trace.catch_up(session, self.recorder)
        scheduled = self.recorder.scheduled_ns
        if not stall.lasts(now, scheduled, waits=bool(waits)):
            return None
        return f"nothing was scheduled for {(now - scheduled) / 1e9:.1f} s: {waits}"

    def _what_waits(self) -> str | None:
        """What would be scheduled if the VM were well; None if it has nothing to do."""
        if _is_stopped(self._target.pid):
            return "the VM is stopped"
        if any(self.recorder.running.values()):
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
        _say(f"wrote {path}, {size:,} bytes: {end.stopped_because}")

    def finish(self, summary: Summary, error: ScopeError | None) -> ScopeError | None:
        """Write what is kept, whatever ended the trace."""
        try:
            self.recorder.begin()
            self.recorder.flush()
            self.recorder.samples()
            self.recorder.writer.maps(*self._trace.maps())
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


def _say(text: str) -> None:
    say(f"scope-trace: {plain(text)}")


def _report(summary: Summary) -> None:
    from scope_ebpf.sinks.report import print_report  # noqa: PLC0415 - rich is slow to import

    print_report(summary, sys.stdout)
    sys.stdout.flush()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a recording."""
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--pid", type=int, required=True, help="the VM's process")
    parser.add_argument(
        "-o", "--output", default="run.scope", metavar="FILE", help="(default: %(default)s)"
    )
    add_duration(parser)
    add_force(parser)
    add_events(parser, RECORDED)
    parser.add_argument(
        "--max-size",
        type=size,
        metavar="SIZE",
        help="stop when the file has this size, such as 500MB (default: no bound)",
    )
    parser.add_argument(
        "--ring",
        dest="flight",
        type=size,
        metavar="SIZE",
        help="keep the last events in this much memory, compressed, and write them when the VM "
        "dies or stalls, on SIGUSR1, and at the end",
    )
    parser.add_argument(
        "--stall",
        type=positive,
        metavar="SECONDS",
        help="with --ring: write when nothing was scheduled for so long though something could be",
    )
    add_hooks(parser)
    add_max_cost(parser)
    parser.add_argument(
        "--buffer",
        dest="ring",
        type=ring_megabytes,
        default=32,
        metavar="MB",
        help="room for events on their way from the kernel, a power of two (default: %(default)s)",
    )


_EXAMPLES = """\
examples:
  sudo scope-trace record --pid 4711 --duration 5 -o run.scope
  scope-trace summary run.scope
  scope-trace export run.scope --to perfetto -o run.pftrace
  sudo scope-trace record --pid 4711 --duration 0 --ring 64MB --stall 5
                                     keep the last minutes until something goes wrong
"""


def size(text: str) -> int:
    """Bytes, from a number with K, M or G behind it."""
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or not int(match[1]):
        raise ValueError(text)
    return int(match[1]) * _SIZES[match[2].upper()]
