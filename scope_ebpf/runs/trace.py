# SPDX-License-Identifier: Apache-2.0
"""One trace of one target, from attach to detach."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from scope_ebpf import events
from scope_ebpf.beam.vm.constants import kernel_constants, known, symbol_values
from scope_ebpf.budget.brake import Brake, share_of
from scope_ebpf.budget.forecast import Forecaster
from scope_ebpf.budget.reference_counters import cpu_clock
from scope_ebpf.errors import (
    NoSuchProcessError,
    NothingToAttachError,
    ReadRefusedError,
    ScopeError,
)
from scope_ebpf.kernel.attach.leftovers import heal
from scope_ebpf.kernel.cost import GUESS, notes_of
from scope_ebpf.kernel.observers.session import Session
from scope_ebpf.planning.planner import make_plan, semaphores
from scope_ebpf.relations import told_apart
from scope_ebpf.runs.terminal import (
    output_error,
    progress_bar,
    require_target,
    stop_signals,
    target_ended,
)
from scope_ebpf.sinks.plain import plain, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Plan
    from scope_ebpf.beam.vm.state import StateReader, VmState
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.cost import Aside, HitCost
    from scope_ebpf.results.summary import EventSummary, Summary

#: How often the ring is looked at: 0.2 % of a core, and a hundredth of what the ring holds.
STREAM_INTERVAL = 0.01
#: Records that are turned into lines at once: 6 MB of text and its parts.
BATCH = 8192
#: How often anything else is looked at.
QUIET_INTERVAL = 0.1
#: Seconds for which the price of a hit is waited for at the end, and at the beginning: it is
#: measured while programs are loaded.
_PATIENCE, _SOON = 1.0, 0.2


class Sink(Protocol):
    """Where the records of a trace go."""

    def write(self, records: NDArray[np.void]) -> None:
        """Take a batch, which is the ring's own memory; raises OSError where it cannot."""


#: Events whose durations carry the way out of one trap and into another, in seconds how short one
#: may be before these are looked at, and the part of a mean that is worth telling.
_TIMED_BY_HOOKS = ("schedule", "gc", "long_call")
_SHORT, _MUCH = 1e-4, 0.1


class Trace:
    """One trace of one target, from attach to detach."""

    def __init__(
        self,
        target: Target,
        wanted: tuple[str, ...],
        arguments: argparse.Namespace,
        *,
        streamed: bool,
        aside: Aside,
        state: StateReader | None = None,
    ) -> None:
        self.notes: list[str] = []
        self._target = target
        self._duration: float | None = arguments.duration
        self._output_path: str | None = arguments.output
        self.plan, self._settings, refused = planned(target, wanted, arguments)
        self.notes += refused
        if streamed:
            self._settings["streamed"] = sum(1 << kind.id for kind in self.plan.kinds)
        ring_bytes = arguments.ring << 20
        self._forecaster = Forecaster(target)
        self._session = self._make_session(self.plan, ring_bytes)
        self._batches = ring_bytes // (BATCH * events.RECORD.itemsize)
        self._stop = ""
        self._seconds = 0.0
        self._bar = False
        self._beat: Callable[[Session], str | None] | None = None
        self._aside, self._state = aside, state
        self._price: HitCost | None = None
        #: Hits and CPU of the target while events counted.
        self._ran: dict[str, int] = {}
        self._used = 0.0
        self._brake = Brake(arguments.max_cost)
        self._vm_state: VmState | None = None

    def _make_session(self, plan: Plan, ring_bytes: int) -> Session:
        names = {g.symbol for a in plan.attachments for g in a.arguments if g.symbol}
        target = self._target
        return Session(
            plan,
            target.identity,
            target.base,
            self._settings,
            addresses=symbol_values(target, names),
            ring_bytes=ring_bytes,
            attaching=self._forecaster.attaching,
        )

    def run(
        self,
        sink: Sink | None,
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
        anything counts: what is slow there keeps nothing up, since that is waited for anyway.
        Returns the error that ended it early, if it was one: what was seen until
        then is still there to be summed up.
        """
        self._beat = beat
        require_target(self._target.identity, "traced")
        self.notes += healed(self._target)
        error: ScopeError | None = None
        with self._session as session, stop_signals(self._ask_to_stop):
            self.plan = self.plan.without({f.attachment: f.reason for f in session.failures})
            _say_failures(session)
            self._forecast(session, ready)
            self._hits_before = session.hits()
            self._cpu_before = cpu_seconds(self._target.pid)
            session.count(on=True)
            if self._state:
                self._state.begin()
            started = time.monotonic()
            self._bar = progress or sink is None
            say_started(self._target.pid, self._duration, quiet=self._bar)
            try:
                error = self._watch(session, sink, started)
            finally:
                session.count(on=False)
                self._seconds = time.monotonic() - started
                self._stocktaking(session)
                if self._state:
                    self._state.counted()
            # A program that passed the gate before it closed has ended once all are out.
            session.detach()
            error = self._drain(session, sink, error)
            self._tallies = session.tallies()
            self._durations = session.durations()
            self._hits = session.hits()
            self._ended_ns = time.monotonic_ns()
            self._vm_state = self._state.state() if self._state else None
        return error

    def _ask_to_stop(self, reason: str) -> None:
        self._stop = self._stop or reason

    def _forecast(self, session: Session, ready: Callable[[], None]) -> None:
        """Say what it will cost, before anything counts."""

        def price() -> HitCost:
            self._price = self._aside.cost(_SOON)
            return self._price or GUESS

        with suppress(ReadRefusedError, OSError):  # the target has ended, as will be seen
            found = self._forecaster.forecast(session, self.plan, price, ready)
            most = self._brake.most
            ends = self._brake.exceeds(found.share * found.cpus, found.cpus, 1.0)
            end = f"; it ends by itself above {most:.0%} (--max-cost)" if ends else ""
            say(f"scope-trace: this takes {found}{end}")

    def _stocktaking(self, session: Session) -> None:
        """What ran until now, and the CPU that the target has used meanwhile; of one moment."""
        used = cpu_seconds(self._target.pid)
        if used is not None and self._cpu_before is not None:
            now = session.hits()
            self._ran = {name: hits - self._hits_before[name] for name, hits in now.items()}
            self._used = used - self._cpu_before

    def _brake_if_needed(self, session: Session, now: float) -> None:
        """Stop where it took more than it may for a second."""
        self._stocktaking(session)
        if self._price is None and (price := self._aside.cost()):
            # What was taken at a guess is no part of what is taken at this price.
            self._price, self._brake = price, Brake(self._brake.most)
        cost = (self._price or GUESS).total(self._ran)
        if self._brake.add(now, cost, self._used):
            say_braked(self._brake)
            self._ask_to_stop("cost")

    def _watch(self, session: Session, sink: Sink | None, started: float) -> ScopeError | None:
        interval = STREAM_INTERVAL if sink else QUIET_INTERVAL
        behind = False
        self._next_brake = started
        with progress_bar(self._duration, visible=self._bar) as advance:
            while not self._stop:
                try:
                    self._target.identity.wait(self._pause(0.0 if behind else interval, started))
                except NoSuchProcessError as gone:
                    self._ask_to_stop("target ended")
                    return target_ended(self._target.pid, gone, "traced")
                self._look(session, started)
                advance(time.monotonic() - started)
                if sink and not self._stop:
                    try:
                        behind = _write(session, sink)
                        reason = self._beat(session) if self._beat else None
                    except OSError as broken:
                        return self._output_broke(broken)
                    if reason:
                        self._ask_to_stop(reason)
        return None

    def _pause(self, most: float, started: float) -> float:
        """Seconds to wait for what comes next, *most* at most."""
        now = time.monotonic()
        if self._state:
            most = min(most, self._state.due - now)
        if self._duration is not None:
            most = min(most, started + self._duration - now)
        return max(0.0, most)

    def _look(self, session: Session, started: float) -> None:
        """Look at the time, at the VM's schedulers, and at what it costs."""
        now = time.monotonic()
        if self._state and now >= self._state.due:
            self._state.look()
        if now >= self._next_brake:
            self._next_brake = now + QUIET_INTERVAL
            self._brake_if_needed(session, now)
        if self._duration is not None and now >= started + self._duration:
            self._ask_to_stop("duration")

    def catch_up(self, session: Session, sink: Sink) -> None:
        """Write all that is in the ring at this moment; OSError where the sink raises it."""
        # No more than it has room for: a VM that is faster than we are would not let this end.
        for _ in range(self._batches):
            if not _write(session, sink):
                return

    def _drain(
        self, session: Session, sink: Sink | None, error: ScopeError | None
    ) -> ScopeError | None:
        """Write what is still in the ring, unless the output is what ended the trace."""
        if sink is None or self._stop.startswith("output"):
            return error
        try:
            while _write(session, sink):
                pass
            if self._beat:
                self._beat(session)
        except OSError as broken:
            return self._output_broke(broken) or error
        return error

    def _output_broke(self, broken: OSError) -> ScopeError | None:
        if isinstance(broken, BrokenPipeError):
            self._ask_to_stop("output closed")
            return None
        self._ask_to_stop("output failed")
        return output_error(broken, self._output_path)

    def maps(self) -> tuple[int, int, NDArray[np.void], NDArray[np.void]]:
        """When the trace ended, ns; all hits; the counts and durations; after :meth:`run`."""
        return self._ended_ns, sum(self._hits.values()), self._tallies, self._durations

    def summary(self) -> Summary:
        """What was seen; after :meth:`run`."""
        from scope_ebpf.results.summary import Cost, Summary, fold  # noqa: PLC0415 - when it has ended

        hits = sum(self._hits.values())
        price = self._price or self._aside.cost(_PATIENCE)
        cpu = price.total(self._hits) if price else None
        share = None
        if price and self._used:
            share = share_of(price.total(self._ran), self._used)
        found = fold(self.plan, self._tallies, self._durations)
        summary = Summary(
            target=self._target.as_json(),
            duration_seconds=self._seconds,
            stopped_because=self._stop,
            events=found,
            cost=Cost(hits, cpu, None if share is None else round(share, 6)),
            notes=(*self.notes, *notes_of(price), *carried_notes(found)),
            state=self._vm_state,
        )
        return told_apart(summary)


def _write(session: Session, sink: Sink) -> bool:
    """Write some of what is in the ring; whether more of it is waiting."""
    with session.ring.batch(BATCH) as records:
        sink.write(records)
        return len(records) == BATCH


def healed(target: Target) -> list[str]:
    """Take out what a killed tool has left in *target*; the note that tells of it, if there was."""
    found = heal(target.identity, semaphores(target.binary))
    return [f"{found} breakpoints that a killed tool had left were taken out"] if found else []


def carried_notes(found: dict[str, EventSummary]) -> list[str]:
    """Say which durations are so short that their hooks are much of them."""
    means = {
        f"{name} {of}": histogram.total_seconds / histogram.count
        for name, event in found.items()
        for of, histogram in event.histograms.items()
        if name in _TIMED_BY_HOOKS and histogram.count
    }
    if not means or min(means.values()) > _SHORT:
        return []
    from scope_ebpf.kernel.cost import carried  # noqa: PLC0415 - after the trace, not before it

    share = carried()
    return [
        f"durations of {name} are {mean * 1e6:.1f} us on average, about {share * 1e6:.1f} us of "
        "which is the time of the hooks themselves"
        for name, mean in means.items()
        if share > _MUCH * mean
    ]


def say_started(
    pid: int, duration: float | None, *, quiet: bool, budget: float | None = None
) -> None:
    """One line for whoever waits for the trace to count, unless a progress bar says it."""
    if quiet and sys.stderr.isatty():
        return
    length = "" if duration is None else f" for {duration:g} s"
    within = "" if budget is None else f" within {budget * 100:g}% of its CPU"
    say(f"scope-trace: tracing process {pid}{length}{within}; Ctrl-C ends it")


def say_braked(brake: Brake) -> None:
    """Why it ended by itself."""
    say(
        f"scope-trace: it took {brake.share:.0%} of the target's CPU for a second, and --max-cost "
        f"allows {brake.most:.0%}: stopped; what was seen until now is kept"
    )


def planned(
    target: Target,
    wanted: tuple[str, ...],
    arguments: argparse.Namespace,
    *,
    governed: bool = False,
) -> tuple[Plan, NDArray[np.void], list[str]]:
    """
    What is attached for the events *wanted*, with which settings, and what is not known.

    Only what keeps a budget if it is *governed*. NothingToAttachError where no event can be seen.
    """
    settings, refused = kernel_constants(target)
    plan = make_plan(target.binary, target.flavor, wanted, arguments.via, known(settings))
    plan = plan.governable() if governed else plan
    if not plan.attachments:
        reasons = "; ".join(f"{i.event}: {i.reason}" for i in plan.items)
        raise NothingToAttachError(
            f"process {target.pid} (OTP {target.otp_release}) has no hook for what was asked "
            f"for ({reasons}); `scope-trace doctor {target.pid}` lists every hook"
        )
    if arguments.slow_call is not None:
        settings["slow_call_ns"] = int(arguments.slow_call * 1e6)
    return plan, settings, refused


def _say_failures(session: Session) -> None:
    for failure in session.failures:
        say(f"scope-trace: {failure.attachment.name}: {plain(str(failure.reason))}")


def cpu_seconds(pid: int) -> float | None:
    """User and system seconds of a process, None if it has ended."""
    try:
        return cpu_clock(pid)
    except OSError:
        return None
