# SPDX-License-Identifier: Apache-2.0
"""One trace of one target, from attach to detach."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scope_ebpf import events
from scope_ebpf.attach.plan import Plan
from scope_ebpf.budget.forecast import Forecaster
from scope_ebpf.errors import HostError, NothingToAttachError, ReadRefusedError
from scope_ebpf.kernel.attach.leftovers import heal
from scope_ebpf.kernel.cost import GUESS, notes_of
from scope_ebpf.pipes import UnreadPipeError
from scope_ebpf.planning.planner import semaphores
from scope_ebpf.relations import checked_summary
from scope_ebpf.runs.crashes import named
from scope_ebpf.runs.filters import Filter, Wanted
from scope_ebpf.runs.loop import Loop, Stop, require_target
from scope_ebpf.runs.probation import Probation, proven
from scope_ebpf.runs.target_cost import HitMeter
from scope_ebpf.runs.terminal import output_error, progress_bar
from scope_ebpf.sessions import open_session, plan_target
from scope_ebpf.sinks.plain import plain, say

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Via
    from scope_ebpf.beam.vm.state import StateReader, VmState
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.kernel.cost import CostMeasurement, HitCost
    from scope_ebpf.kernel.observers.session import Session
    from scope_ebpf.results.documents.traces import CrashGroup
    from scope_ebpf.results.summary import EventSummary, Summary
    from scope_ebpf.sessions import Planned

#: Seconds between two reads of the ring: 0.2 % of a core, and a hundredth of what the ring holds.
STREAM_INTERVAL = 0.01
#: Records that are turned into lines at once: 6 MB of text and its parts.
BATCH = 8192
#: Seconds between two looks at anything else.
QUIET_INTERVAL = 0.1
#: Seconds to wait for the cost of a hit, which is measured while programs are loaded: before the
#: trace, for its forecast, and after it.
_COST_SECONDS_BEFORE, _COST_SECONDS_AFTER = 0.2, 1.0


class Sink(Protocol):
    """Where the records of a trace go."""

    def write(self, records: NDArray[np.void]) -> None:
        """Take a batch, which is the ring's own memory; raises OSError where it cannot."""


#: Events whose durations contain the end of one trap and the beginning of another.
_TIMED_BY_HOOKS = ("schedule", "gc", "long_call")
#: Below this mean, seconds, the time of the traps is measured; from this part of the mean on it is
#: noted.
_SHORT_MEAN, _NOTED_PART = 1e-4, 0.1


class TraceOptions(NamedTuple):
    """How long a trace takes, and how its events are seen."""

    #: Seconds; None for no end.
    duration: float | None
    #: The attach method.
    via: Via = "auto"
    #: The shortest native call that is counted, milliseconds; None for the default.
    slow_call_ms: float | None = None
    #: The share of the target's CPU above which the trace ends itself; None for no bound.
    max_cost: float | None = None
    #: Room for records on their way from the kernel, bytes; a power of two.
    ring_bytes: int = 16 << 20
    #: Path of the output, for error messages; None for standard output.
    output: str | None = None
    #: What alone is counted.
    only: Filter = Filter()


class Counted(NamedTuple):
    """What a session has counted when all its hooks were out."""

    #: CLOCK_MONOTONIC, ns.
    ended_ns: int
    #: Hits by program.
    hits: dict[str, int]
    #: Maps of the session, shape ``(kinds, classes, cpus)``.
    tallies: NDArray[np.void]
    durations: NDArray[np.void]
    #: The state of the VM meanwhile; None if it was not looked at.
    state: VmState | None

    def maps(self) -> tuple[int, int, NDArray[np.void], NDArray[np.void]]:
        """The end, ns; all hits; tallies and durations: what a capture has of it."""
        return self.ended_ns, sum(self.hits.values()), self.tallies, self.durations


class Trace:
    """
    One trace of one target, from attach to detach.

    With *streamed* every event is a record in the ring. *measurement* measures the cost of a hit,
    *state* looks at the VM meanwhile. Events of *optional* that the target does not have are left
    out of the plan.
    """

    def __init__(
        self,
        target: Target,
        wanted: tuple[str, ...],
        options: TraceOptions,
        *,
        streamed: bool,
        measurement: CostMeasurement,
        state: StateReader | None = None,
        optional: Collection[str] = (),
    ) -> None:
        self._target = target
        self._options = options
        planned = plan_events(target, wanted, options.via, options.slow_call_ms)
        plan = options.only.plan(planned.plan.leave_out(optional))
        planned = planned._replace(plan=plan)
        if streamed or options.only:
            planned = proven(target, planned)
        self._probation = Probation(target, Plan(()) if options.only else planned.plan)
        options.only.set(planned.settings)
        self._wanted = Wanted(target, options.only.process)
        #: What is attached, and what is not, with the reason of each.
        self.plan = planned.plan
        #: What a reader of the figures should know.
        self.notes = [*planned.notes, *options.only.notes(planned.plan, planned.settings)]
        if streamed:
            planned.settings["streamed"] = sum(1 << kind.id for kind in self.plan.kinds)
        self._forecaster = Forecaster(target)
        self._session = open_session(
            target,
            planned,
            ring_bytes=options.ring_bytes,
            attaching=self._forecaster.attaching,
        )
        self._stop = Stop()
        self._meter = HitMeter(target.pid, measurement, options.max_cost, self._stop)
        self._state = state
        self._beat: Callable[[Session], str | None] | None = None
        #: Whether more is in the ring than was written in the last turn.
        self._behind = False
        self._seconds = 0.0
        self._counted: Counted | None = None
        self._crashes: list[CrashGroup] | None = None

    def run(
        self,
        sink: Sink | None = None,
        beat: Callable[[Session], str | None] | None = None,
        *,
        progress: bool = False,
        ready: Callable[[], None] = lambda: None,
    ) -> ScopeError | None:
        """
        Trace until something ends it.

        *beat* is called again and again, some 100 times a second for a sink, and
        may give a reason to stop; the last time when all hooks are out. Without a
        sink, or with *progress*, a terminal shows a bar. *ready* is called once, before
        anything counts: what is slow there delays nothing, since the forecast takes time anyway.
        Returns the error that ended it early, if it was one: what was seen until
        then is still there to be summed up.
        """
        self._beat = beat
        require_target(self._target.identity, "traced")
        self.notes += healed(self._target)
        with self._session as session, self._stop.on_signals():
            self.plan = self.plan.without({f.attachment: f.reason for f in session.failures})
            _say_failures(session)
            self._forecast(session, ready)
            error = self._count(session, sink, bar=progress or sink is None)
            # A program that passed the gate before it closed has ended once all are out.
            session.detach()
            self.plan = self.plan.refuse(self._probation.judge.refused)
            error = self._drain(session, sink, error)
            self._counted = Counted(
                tallies=session.tallies(),
                durations=session.durations(),
                hits=session.hits(),
                ended_ns=time.monotonic_ns(),
                state=self._state.state() if self._state else None,
            )
            self._crashes = self._named(session)
        return error

    def _named(self, session: Session) -> list[CrashGroup] | None:
        """Crashes by groups; None where exits were not counted, or have no names any more."""
        if not any(item.event == "exit" and item.attachments for item in self.plan.items):
            return None
        return named(self._target, session.crashes())

    def _count(self, session: Session, sink: Sink | None, *, bar: bool) -> ScopeError | None:
        """Let events count until there is a reason to stop."""
        self._wanted.begin(session)
        self._meter.begin(session)
        self._probation.begin(session)
        if self._state:
            self._state.begin()
        loop = Loop(self._target.identity, "traced", self._options.duration, self._stop)
        try:
            return self._watch(session, sink, loop, bar=bar)
        finally:
            self._probation.finish(session)
            session.count(on=False)
            self._seconds = time.monotonic() - loop.started
            self._meter.account(session)
            if self._state:
                self._state.counted()

    def _forecast(self, session: Session, ready: Callable[[], None]) -> None:
        """Say what it will cost, before anything counts."""

        def cost() -> HitCost:
            return self._meter.cost(_COST_SECONDS_BEFORE) or GUESS

        with suppress(ReadRefusedError, OSError):  # the target has ended: the loop reports it
            found = self._forecaster.forecast(session, self.plan, cost, ready)
            limit = self._meter.limit_of(found.share, found.cpus)
            end = "" if limit is None else f"; it ends by itself above {limit:.0%} (--max-cost)"
            say(f"scope-trace: this takes {found}{end}")

    def _watch(
        self, session: Session, sink: Sink | None, loop: Loop, *, bar: bool
    ) -> ScopeError | None:
        interval = STREAM_INTERVAL if sink else QUIET_INTERVAL
        say_started(self._target.pid, self._options.duration, quiet=bar)

        def pause() -> float:
            due = self._state.due - time.monotonic() if self._state else interval
            return 0.0 if self._behind else min(interval, due)

        with progress_bar(self._options.duration, visible=bar) as advance:

            def turn(now: float) -> ScopeError | None:
                if self._state and now >= self._state.due:
                    self._state.look()
                self._meter.look(session, now)
                self._probation.look(session, now)
                self._wanted.look(session, now)
                advance(now - loop.started)
                return self._write(session, sink) if sink and not self._stop.reason else None

            return loop.run(turn, pause)

    def _write(self, session: Session, sink: Sink) -> ScopeError | None:
        """Write a batch; the error if the output failed."""
        try:
            self._behind = _write_batch(session, sink)
            reason = self._beat(session) if self._beat else None
        except OSError as broken:
            return self._output_broke(broken)
        if reason:
            self._stop.ask(reason)
        return None

    def catch_up(self, session: Session, sink: Sink) -> None:
        """Write all that is in the ring at this moment; OSError where the sink raises it."""
        # At most as much as the ring holds: a VM that fills it faster would not let this end.
        for _ in range(self._options.ring_bytes // (BATCH * events.RECORD.itemsize)):
            if not _write_batch(session, sink):
                return

    def _drain(
        self, session: Session, sink: Sink | None, error: ScopeError | None
    ) -> ScopeError | None:
        """Write what is still in the ring, unless the output is what ended the trace."""
        if sink is None or self._stop.reason.startswith("output"):
            return error
        try:
            while _write_batch(session, sink):
                pass
            if self._beat:
                self._beat(session)
        except OSError as broken:
            return self._output_broke(broken) or error
        return error

    def _output_broke(self, broken: OSError) -> ScopeError | None:
        if isinstance(broken, UnreadPipeError):
            say("scope-trace: nobody reads the output: what was left of it is dropped")
        if isinstance(broken, BrokenPipeError):
            self._stop.ask("output closed")
            return None
        self._stop.ask("output failed")
        return output_error(broken, self._options.output)

    def counted(self) -> Counted:
        """What was counted; after :meth:`run`."""
        assert self._counted is not None  # noqa: S101 - as it says
        return self._counted

    def summary(self) -> Summary:
        """What was seen; after :meth:`run`."""
        from scope_ebpf.results.summary import Cost, Summary, fold

        counted = self.counted()
        cost = self._meter.cost(_COST_SECONDS_AFTER)
        cpu = cost.total(counted.hits) if cost else None
        found = fold(self.plan, counted.tallies, counted.durations)
        summary = Summary(
            target=self._target.as_json(),
            duration_seconds=self._seconds,
            stopped_because=self._stop.reason,
            events=found,
            cost=Cost(sum(counted.hits.values()), cpu, self._meter.share()),
            notes=(*self.notes, *self._wanted.notes(), *notes_of(cost), *carried_notes(found)),
            state=counted.state,
            crashes=self._crashes,
        )
        return checked_summary(summary)


def _write_batch(session: Session, sink: Sink) -> bool:
    """Write some of what is in the ring; whether more of it is waiting."""
    with session.ring.batch(BATCH) as records:
        sink.write(records)
        return len(records) == BATCH


def healed(target: Target) -> list[str]:
    """Take out breakpoints that a killed tool has left in *target*; a note if there were any."""
    found = heal(target.identity, semaphores(target.binary))
    return [f"{found} breakpoints that a killed tool had left were taken out"] if found else []


def carried_notes(found: dict[str, EventSummary]) -> list[str]:
    """Notes on durations so short that the time of the hooks is a large part of them."""
    means = {
        f"{name} {of}": histogram.total_seconds / histogram.count
        for name, event in found.items()
        for of, histogram in event.histograms.items()
        if name in _TIMED_BY_HOOKS and histogram.count
    }
    if not means or min(means.values()) > _SHORT_MEAN:
        return []
    from scope_ebpf.kernel.cost import carried

    try:
        share = carried()
    except HostError:
        return ["the time of the hooks, which durations contain, could not be measured"]
    return [
        f"durations of {name} are {mean * 1e6:.1f} us on average, about {share * 1e6:.1f} us of "
        "which is the time of the hooks themselves"
        for name, mean in means.items()
        if share > _NOTED_PART * mean
    ]


def say_started(
    pid: int, duration: float | None, *, quiet: bool, budget: float | None = None
) -> None:
    """Print that the trace counts now, unless it is *quiet* because a bar shows it."""
    if quiet and sys.stderr.isatty():
        return
    length = "" if duration is None else f" for {duration:g} s"
    within = "" if budget is None else f" within {budget * 100:g}% of its CPU"
    say(f"scope-trace: tracing process {pid}{length}{within}; Ctrl-C ends it")


def plan_events(
    target: Target,
    wanted: tuple[str, ...],
    via: Via,
    slow_call_ms: float | None,
    *,
    governed: bool = False,
) -> Planned:
    """
    Plan what is attached for the events *wanted*, see :func:`sessions.plan_target`.

    Only events that can keep a budget if it is *governed*. Raises NothingToAttachError if no event
    can be seen.
    """
    planned = plan_target(target, wanted, via)
    if governed:
        planned = planned._replace(plan=planned.plan.governable())
    if not planned.plan.attachments:
        items = planned.plan.items
        reasons = "; ".join(f"{item.event}: {item.reason}" for item in items)
        if len(items) > 1 and len({item.reason for item in items}) == 1:
            reasons = items[0].reason
        raise NothingToAttachError(
            f"process {target.pid} (OTP {target.otp_release}) has no hook for what was asked "
            f"for ({reasons}); `scope-trace doctor {target.pid}` lists every hook"
        )
    if slow_call_ms is not None:
        planned.settings["slow_call_ns"] = int(slow_call_ms * 1e6)
    return planned


def _say_failures(session: Session) -> None:
    for failure in session.failures:
        say(f"scope-trace: {failure.attachment.name}: {plain(str(failure.reason))}")
