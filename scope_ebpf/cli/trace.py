# SPDX-License-Identifier: Apache-2.0
"""``scope-trace --pid PID``: what a VM does, for as long as a person watches."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from scope_ebpf import events
from scope_ebpf.beam.constants import kernel_constants, known, symbol_values
from scope_ebpf.beam.discover import inspect
from scope_ebpf.beam.term_text import TermText
from scope_ebpf.errors import (
    NothingToAttachError,
    OutputError,
    ScopeError,
    TargetEndedError,
    UsageError,
)
from scope_ebpf.kernel import host
from scope_ebpf.kernel.session import Session
from scope_ebpf.plan import DEFAULT_EVENTS, EVENTS, Plan, make_plan
from scope_ebpf.sinks.stream import Stream
from scope_ebpf.summary import Cost, Summary, fold

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from scope_ebpf.beam.discover import Target

#: How often the ring is looked at: 0.2 % of a core, and a hundredth of what the ring holds.
STREAM_INTERVAL = 0.01
#: Records that are turned into lines at once: 6 MB of text and its parts.
BATCH = 8192
#: How often anything else is looked at.
QUIET_INTERVAL = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    host.require()
    wanted = parse_events(arguments.events)
    target = inspect(arguments.pid)
    streams = arguments.format == "jsonl" or arguments.stream
    with _output(arguments.output) as output, _alone(target.pid) as notes:
        trace = Trace(target, wanted, arguments, streamed=streams)
        trace.notes += notes
        sink = Stream(output, TermText(target), arguments.format) if streams else None
        error = trace.run(sink)
        error = _finish(trace.summary(), output, arguments) or error
    if error:
        raise error
    return 0


def parse_events(text: str | None) -> tuple[str, ...]:
    """The events that a comma-separated list names; None means the default ones."""
    if text is None:
        return DEFAULT_EVENTS
    if text == "all":
        return EVENTS
    wanted = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in wanted if name not in EVENTS]
    if unknown or not wanted:
        raise UsageError(
            f"no such event: {', '.join(unknown) or '(none given)'}; "
            f"there are: all, {', '.join(EVENTS)}"
        )
    return wanted


class Trace:
    """One trace of one target, from attach to detach."""

    def __init__(
        self,
        target: Target,
        wanted: tuple[str, ...],
        arguments: argparse.Namespace,
        *,
        streamed: bool,
    ) -> None:
        self.notes: list[str] = []
        self._target = target
        self._duration: float | None = arguments.duration
        self._output_path: str | None = arguments.output
        self._settings, refused = kernel_constants(target)
        self.notes += refused
        self.plan = make_plan(
            target.binary, target.flavor, wanted, arguments.via, known(self._settings)
        )
        if not self.plan.attachments:
            reasons = "; ".join(f"{i.event}: {i.reason}" for i in self.plan.items)
            raise NothingToAttachError(
                f"process {target.pid} (OTP {target.otp_release}) has no hook for what was asked "
                f"for ({reasons}); `scope-trace doctor {target.pid}` lists every hook"
            )
        if streamed:
            self._settings["streamed"] = sum(1 << kind.id for kind in self.plan.kinds)
        if arguments.slow_call is not None:
            self._settings["slow_call_ns"] = int(arguments.slow_call * 1e6)
        self._session = self._make_session(self.plan, arguments.ring << 20)
        self._stop = ""
        self._seconds = 0.0
        self._cpu_seconds: float | None = None

    def _make_session(self, plan: Plan, ring_bytes: int) -> Session:
        names = {g.symbol for a in plan.attachments for g in a.arguments if g.symbol}
        target = self._target
        return Session(
            plan,
            target.pid,
            target.base,
            self._settings,
            addresses=symbol_values(target, names),
            ring_bytes=ring_bytes,
        )

    def run(self, sink: Stream | None) -> ScopeError | None:
        """
        Trace until something ends it.

        Returns the error that ended it early, if it was one: what was seen until
        then is still there to be summed up.
        """
        pidfd = _pidfd(self._target.pid)
        cpu_before = _cpu_seconds(self._target.pid)
        error: ScopeError | None = None
        try:
            with self._session as session, _stop_signals(self._ask_to_stop):
                _say_failures(session)
                session.count(on=True)
                started = time.monotonic()
                _say_started(self._target.pid, self._duration, quiet=sink is None)
                try:
                    error = self._watch(session, sink, pidfd, started, cpu_before)
                finally:
                    session.count(on=False)
                    self._seconds = time.monotonic() - started
                error = self._drain(session, sink, error)
                session.detach()
                self._tallies = session.tallies()
                self._durations = session.durations()
                self._hits = session.hits()
        finally:
            os.close(pidfd)
        return error

    def _ask_to_stop(self, reason: str) -> None:
        self._stop = self._stop or reason

    def _watch(
        self, session: Session, sink: Stream | None, pidfd: int, started: float, cpu: float | None
    ) -> ScopeError | None:
        interval = STREAM_INTERVAL if sink else QUIET_INTERVAL
        behind = False
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        with _progress(self._duration, visible=sink is None) as advance:
            while not self._stop:
                left = 0.0 if behind else interval
                if self._duration is not None:
                    left = min(left, started + self._duration - time.monotonic())
                    if left <= 0:
                        self._ask_to_stop("duration")
                        return None
                if ended.poll(left * 1000):
                    self._ask_to_stop("target ended")
                    pid = self._target.pid
                    return TargetEndedError(f"process {pid} ended while it was traced")
                now = _cpu_seconds(self._target.pid)
                if now is not None and cpu is not None:
                    self._cpu_seconds = now - cpu
                advance(time.monotonic() - started)
                if sink:
                    try:
                        behind = _write(session, sink)
                    except OSError as broken:
                        return self._output_broke(broken)
        return None

    def _drain(
        self, session: Session, sink: Stream | None, error: ScopeError | None
    ) -> ScopeError | None:
        """Write what is still in the ring, unless the output is what ended the trace."""
        if sink is None or self._stop.startswith("output"):
            return error
        try:
            while _write(session, sink):
                pass
        except OSError as broken:
            return self._output_broke(broken) or error
        return error

    def _output_broke(self, broken: OSError) -> ScopeError | None:
        if isinstance(broken, BrokenPipeError):
            self._ask_to_stop("output closed")
            return None
        self._ask_to_stop("output failed")
        return _output_error(broken, self._output_path)

    def summary(self) -> Summary:
        """What was seen; after :meth:`run`."""
        hits = sum(self._hits.values())
        cpu = _hit_seconds(self._hits)
        share = cpu / self._cpu_seconds if self._cpu_seconds else None
        return Summary(
            target=self._target.as_json(),
            duration_seconds=self._seconds,
            stopped_because=self._stop,
            events=fold(self.plan, self._tallies, self._durations),
            cost=Cost(hits, cpu, None if share is None else round(share, 6)),
            notes=tuple(self.notes),
        )


def _write(session: Session, sink: Stream) -> bool:
    """Write some of what is in the ring; whether more of it is waiting."""
    with session.ring.batch(BATCH) as records:
        sink.write(records)
        return len(records) == BATCH


def _hit_seconds(hits: dict[str, int]) -> float:
    from scope_ebpf.kernel.cost import measure  # noqa: PLC0415 - after the trace, not before it

    return measure().total(hits)


def _say_started(pid: int, duration: float | None, *, quiet: bool) -> None:
    """One line for whoever waits for the trace to count, unless a progress bar says it."""
    if quiet and sys.stderr.isatty():
        return
    length = "" if duration is None else f" for {duration:g} s"
    print(f"scope-trace: tracing process {pid}{length}; Ctrl-C ends it", file=sys.stderr)


def _say_failures(session: Session) -> None:
    for failure in session.failures:
        print(f"scope-trace: {failure.attachment.name}: {failure.reason}", file=sys.stderr)


def _finish(summary: Summary, output: TextIO, arguments: argparse.Namespace) -> ScopeError | None:
    """The last words: the document, or the report; a stream's report goes to stderr."""
    from scope_ebpf.sinks.report import print_report  # noqa: PLC0415 - rich is slow to import

    streams = arguments.format == "jsonl" or arguments.stream
    try:
        if arguments.format == "json":
            json.dump(summary.as_json(), output, indent=2)
            output.write("\n")
        else:
            print_report(summary, sys.stderr if streams else output)
        if not streams:
            output.flush()
    except BrokenPipeError:
        return None
    except OSError as broken:
        return _output_error(broken, arguments.output)
    return None


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    """Standard output, or the file at *path*."""
    if path is None or path == "-":
        yield sys.stdout
        return
    try:
        output = open(path, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - closed below
    except OSError as error:
        raise _output_error(error, path) from error
    try:
        yield output
    finally:
        # What could not be written was reported when writing failed.
        with contextlib.suppress(OSError):
            output.close()


def _output_error(error: OSError, path: str | None) -> OutputError:
    where = f" {path}" if path else ""
    return OutputError(
        f"cannot write the output{where}: {error.strerror}; "
        "what was written before is whole, free some space or choose another --output"
    )


@contextlib.contextmanager
def _alone(pid: int) -> Iterator[list[str]]:
    """
    Notes about other traces of the same target.

    A name in the abstract socket namespace is taken for as long as we live, and is
    nothing that can be left behind.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as name:
        try:
            name.bind(f"\0scope-ebpf/trace/{pid}")
        except OSError:
            yield [f"another scope-trace observes process {pid}: both count right, costs add up"]
            return
        yield []


@contextlib.contextmanager
def _stop_signals(stop: Any) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end the trace well while the block runs."""
    reasons = {
        signal.SIGINT: "interrupted",
        signal.SIGTERM: "terminated",
        signal.SIGHUP: "hung up",
    }
    before = {
        number: signal.signal(number, lambda n, _: stop(reasons[signal.Signals(n)]))
        for number in reasons
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress(duration: float | None, *, visible: bool) -> Iterator[Any]:
    """A progress bar on a terminal; elsewhere nothing. Yields what moves it, in seconds."""
    if not (visible and sys.stderr.isatty()):
        yield lambda _seconds: None
        return
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    with Progress(
        TextColumn("tracing"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("Ctrl-C ends it"),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("tracing", total=duration)
        yield lambda seconds: progress.update(task, completed=seconds)


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise TargetEndedError(f"process {pid} ended before it could be traced") from None


def _cpu_seconds(pid: int) -> float | None:
    """User and system seconds of a process, None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 - read a hundred times a second
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / _TICKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a trace."""
    parser.add_argument("--pid", type=int, required=True, help="the VM's process")
    parser.add_argument(
        "--duration",
        type=positive,
        default=10.0,
        metavar="SECONDS",
        help="how long (default: %(default)g); 0 for as long as Ctrl-C lets it",
    )
    parser.add_argument(
        "--events",
        metavar="LIST",
        help=f"comma-separated, of: all, {', '.join(events.KINDS)} "
        f"(default: all but {', '.join(e for e in EVENTS if e not in DEFAULT_EVENTS)})",
    )
    parser.add_argument(
        "--format",
        choices=["text", "json", "jsonl"],
        default="text",
        help="text: a summary; json: one document; jsonl: one event a line (default: %(default)s)",
    )
    parser.add_argument("--stream", action="store_true", help="with text: a line for each event")
    parser.add_argument("--output", metavar="FILE", help="write there instead of standard output")
    parser.add_argument(
        "--via",
        choices=["auto", "symbol", "usdt"],
        default="auto",
        help="take this kind of hook only (default: the cheaper one of what is there)",
    )
    parser.add_argument(
        "--slow-call",
        type=positive,
        metavar="MS",
        help="long_call counts NIFs and BIFs of this many milliseconds or more (default: 1)",
    )
    parser.add_argument(
        "--ring",
        type=ring_megabytes,
        default=16,
        metavar="MB",
        help="ring buffer for streamed events, a power of two (default: %(default)s)",
    )


def positive(text: str) -> float | None:
    """A number of 0 or more; 0 means without end."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value or None


def ring_megabytes(text: str) -> int:
    """A power of two from 1 to 1024."""
    value = int(text)
    if value not in [1 << n for n in range(11)]:
        raise ValueError(text)
    return value
