# SPDX-License-Identifier: Apache-2.0
"""``scope-trace run``: a probe that a user wrote, compiled on the spot."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.term_text import TermText
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.budget.brake import SPAN, Brake, share_of
from scope_ebpf.cli.options import add_duration, add_force, add_max_cost, ring_megabytes
from scope_ebpf.cli.trace import names_of
from scope_ebpf.errors import (
    NoSuchProcessError,
    NothingToAttachError,
    ProbeError,
    ScopeError,
    UsageError,
)
from scope_ebpf.kernel import host
from scope_ebpf.runs.terminal import (
    alone,
    open_output,
    output_error,
    require_target,
    stop_signals,
    target_ended,
)
from scope_ebpf.runs.trace import (
    BATCH,
    STREAM_INTERVAL,
    cpu_seconds,
    say_braked,
    say_started,
)
from scope_ebpf.sinks.plain import plain, say
from scope_ebpf.sinks.stream import Stream
from scope_ebpf.user_probes import hooks, source
from scope_ebpf.user_probes.outcome import Outcome

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.bpf.compiler import Compiled
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.kernel.observers.user_probes import UserProbeSession

#: What a probe should not take of the CPU that the VM uses; above it there is a warning.
BUDGET = 0.01
#: Seconds between two looks at the cost.
_LOOK = 0.1
#: Functions of one probe: each is a program, a breakpoint or more, and a wait when it ends.
_MOST_FUNCTIONS = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run."""
    parser.add_argument("probe", nargs="?", metavar="PROBE.c", help="the probe's C source")
    parser.add_argument("--pid", type=int, help="the VM's process")
    add_duration(parser)
    add_max_cost(parser)
    parser.add_argument(
        "--max-events", type=int, metavar="N", help="end after this many events (default: no limit)"
    )
    parser.add_argument(
        "-D", dest="defines", action="append", default=[], metavar="NAME[=VALUE]",
        help="define a macro for the probe; may be given several times",
    )  # fmt: skip
    parser.add_argument("--format", choices=["text", "jsonl"], default="text")
    parser.add_argument("--output", metavar="FILE", help="write there instead of standard output")
    add_force(parser)
    parser.add_argument(
        "--ring",
        type=ring_megabytes,
        default=4,
        metavar="MB",
        help="ring buffer for events, a power of two (default: %(default)s)",
    )
    parser.add_argument(
        "--hooks", action="store_true", help="list the names of hooks, and where they go; no probe"
    )
    parser.epilog = (
        "The probe's functions are attached by their names: on_gc_entry, uprobe__FUNCTION, "
        "uretprobe__FUNCTION. docs/run.md explains it, with three examples; what beam.h offers "
        f"stands in {resources.files('scope_ebpf.user_probes').joinpath('beam.h')}"
    )


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    if arguments.hooks:
        return _list_hooks(arguments.pid)
    if arguments.probe is None or arguments.pid is None:
        raise UsageError("wanted are a probe and a VM: scope-trace run PROBE.c --pid PID")
    host.require()
    target = inspect(arguments.pid)
    written = _prepare(arguments, target)
    compiled = _compile(arguments, written)
    probe = Probe(written, compiled, _places(compiled, target))
    with (
        open_output(arguments.output, force=arguments.force) as output,
        alone(target.pid) as notes,
    ):
        for note in (*written.notes, *notes, *compiled.notes.splitlines()):
            _say(note)
        vocabulary = source.vocabulary(
            [(name, compiled.struct(f"beam_event_{name}")) for name in written.events]
        )
        terms = TermText(target)
        who = names_of(target)
        sink = Stream(output, terms, arguments.format, who, vocabulary)
        ended = Run(target, probe, arguments, sink).run()
        from scope_ebpf.sinks.tables import write_report  # noqa: PLC0415 - rich is slow to import

        try:
            last = write_report(ended.report, output, terms, who, arguments.format)
            say(last)
        except BrokenPipeError:
            return 0
        except OSError as broken:
            raise output_error(broken, arguments.output) from broken
    if ended.error:
        raise ended.error
    return 0


def _list_hooks(pid: int | None) -> int:
    target = inspect(pid) if pid is not None else None
    for name, ways in hooks.named().items():
        program = name.removeprefix("on_")
        functions = [h.name for way in ways for h in way.hooks if h.program == program]
        where = ", ".join(dict.fromkeys(functions))
        if target is not None:
            try:
                hooks.places(target.binary, target.flavor, name)
            except NothingToAttachError as error:
                where = plain(str(error).partition(": ")[2])
        say(f"{name:<24} {where}", sys.stdout)
    say("uprobe__FUNCTION         the entry of any function of the VM that has a name", sys.stdout)
    say("uretprobe__FUNCTION      its return", sys.stdout)
    return 0


def _prepare(arguments: argparse.Namespace, target: Target) -> source.Source:
    path = Path(arguments.probe)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"cannot read the probe {path}: {reason}") from None
    pages = (arguments.ring << 20) // os.sysconf("SC_PAGESIZE")
    return source.prepare(path.name, text, target, pages, arguments.defines)


def _compile(arguments: argparse.Namespace, written: source.Source) -> Compiled:
    from scope_ebpf.kernel.bpf.compiler import Compiled  # noqa: PLC0415 - bcc is slow to import

    include = str(resources.files("scope_ebpf.user_probes"))
    return Compiled(Path(arguments.probe).name, written.text, [f"-I{include}"])


def _places(compiled: Compiled, target: Target) -> dict[str, tuple[Attachment, ...]]:
    if not compiled.functions:
        raise ProbeError(
            "the probe has no function to attach; one is `int on_gc_entry(struct pt_regs *ctx)`"
        )
    if len(compiled.functions) > _MOST_FUNCTIONS:
        raise ProbeError(
            f"the probe has {len(compiled.functions)} functions, {_MOST_FUNCTIONS} are allowed; "
            "those that are no hooks are `static inline`"
        )
    return {
        function: hooks.places(target.binary, target.flavor, function)
        for function in compiled.functions
    }


def _say(text: str) -> None:
    say(f"scope-trace: {plain(text)}")


@dataclass(frozen=True)
class Probe:
    """A probe as it was written, as it was compiled, and where its functions go."""

    written: source.Source
    compiled: Compiled
    places: dict[str, tuple[Attachment, ...]]


@dataclass(frozen=True)
class Ended:
    """The report of a run, and the error that ended it early, if one did."""

    report: Outcome
    error: ScopeError | None


class Run:
    """One run of a probe on one target."""

    def __init__(
        self, target: Target, probe: Probe, arguments: argparse.Namespace, sink: Stream
    ) -> None:
        self._target = target
        self._written = probe.written
        self._compiled = probe.compiled
        self._places = probe.places
        self._arguments = arguments
        self._sink = sink
        self._report = Outcome()
        self._error: ScopeError | None = None
        self._warned = False
        self._brake = Brake(arguments.max_cost)

    def run(self) -> Ended:
        """Run until something ends it; whatever that is, all hooks are out and the ring is read."""
        from scope_ebpf.kernel import cost  # noqa: PLC0415 - after the compiler's complaints
        from scope_ebpf.kernel.bpf import stats  # noqa: PLC0415 - after the compiler's complaints
        from scope_ebpf.kernel.observers.user_probes import UserProbeSession  # noqa: PLC0415

        require_target(self._target.identity, "traced")
        price = cost.measure()
        report = self._report
        session = UserProbeSession(
            self._compiled,
            self._places,
            self._target.identity,
            source.RECORD,
            self._arguments.ring << 20,
            counted=self._written.counted,
        )
        with stats.measuring() as report.measured, session, stop_signals(self._stop):
            say_started(self._target.pid, self._arguments.duration, quiet=False)
            started = time.monotonic()
            self._watch(session, price, started)
            report.seconds = time.monotonic() - started
            self._account(session, price)
            session.detach()
            if not report.stopped.startswith("output"):
                while self._write(session):
                    pass
            self._collect(session)
        return Ended(report, self._error)

    def _stop(self, reason: str) -> None:
        self._report.stopped = self._report.stopped or reason

    def _watch(self, session: UserProbeSession, price: HitCost, started: float) -> None:
        self._cpu_before = cpu_seconds(self._target.pid)
        behind, look = False, started
        while not self._report.stopped:
            now = time.monotonic()
            if self._arguments.duration is not None and now >= started + self._arguments.duration:
                self._stop("duration")
                return
            try:
                self._target.identity.wait(0 if behind else STREAM_INTERVAL)
            except NoSuchProcessError as gone:
                self._stop("target ended")
                self._error = target_ended(self._target.pid, gone, "traced")
                return
            behind = self._write(session)
            if now >= look:
                look = now + _LOOK
                self._account(session, price)
                if now - started >= SPAN:
                    self._warn()

    def _write(self, session: UserProbeSession) -> bool:
        """Write some of what is in the ring; whether more of it waits."""
        most = self._arguments.max_events
        left = BATCH if most is None else min(BATCH, most - self._report.events)
        if left <= 0:
            self._stop(f"{most} events")
            return False
        try:
            with session.ring.batch(left) as records:
                self._sink.write(records)
                self._report.events += len(records)
                return len(records) == BATCH
        except BrokenPipeError:
            self._stop("output closed")
        except OSError as broken:
            self._stop("output failed")
            self._error = output_error(broken, self._arguments.output)
        return False

    def _account(self, session: UserProbeSession, price: HitCost) -> None:
        """What the probe has cost until now; the share stays as it was where the target is gone."""
        report = self._report
        hits = session.hits(measured=report.measured)
        report.hits = None if hits is None else sum(hits.values())
        report.cost_seconds = session.cost(price, measured=report.measured)
        now = cpu_seconds(self._target.pid)
        if report.cost_seconds is None or now is None or self._cpu_before is None:
            return
        used = now - self._cpu_before
        if used > 0:
            report.cost_share = share_of(report.cost_seconds, used)
        if self._brake.add(time.monotonic(), report.cost_seconds, used):
            say_braked(self._brake)
            self._stop("cost")

    def _warn(self) -> None:
        share = self._report.cost_share
        if share is None or share <= BUDGET or self._warned:
            return
        self._warned = True
        busiest = f"{self._report.hits:,} hits"
        _say(
            f"this probe costs the VM {share:.1%} of the CPU that it uses ({busiest}), more than "
            f"{BUDGET:.0%}; a hook that is hit less, or a shorter --duration, costs less"
        )

    def _collect(self, session: UserProbeSession) -> None:
        report = self._report
        report.lost, report.unread, report.full = session.troubles()
        for name in self._written.counts:
            items = self._compiled.items(f"beam_count_{name}")
            report.counts[name] = [(key, int(value.value)) for key, value in items]
        for name in self._written.histograms:
            slots = tuple(
                int(value.value) for _, value in self._compiled.items(f"beam_histogram_{name}")
            )
            ((_, total),) = self._compiled.items(f"beam_total_{name}")
            report.histograms[name] = (total.value / 1e9, slots)
