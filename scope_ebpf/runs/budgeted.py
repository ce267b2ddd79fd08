# SPDX-License-Identifier: Apache-2.0
"""One summary of one target within a budget, from the first look to the last."""

from __future__ import annotations

import math
import os
import selectors
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.beam.vm.state import StateReader
from scope_ebpf.budget.brake import share_of
from scope_ebpf.budget.reference_counters import cpu_clock
from scope_ebpf.budget.run import RUN_POLICY, BudgetedRun
from scope_ebpf.errors import HostError, ReadRefusedError
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.kernel.cost import GUESS, notes_of
from scope_ebpf.kernel.urgency import Urgency, hurry
from scope_ebpf.relations import checked_summary
from scope_ebpf.results.summary import Cost, Summary
from scope_ebpf.runs.crashes import named
from scope_ebpf.runs.loop import Loop, Stop, require_target
from scope_ebpf.runs.terminal import progress_bar
from scope_ebpf.runs.trace import carried_notes, healed, plan_events, say_started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scope_ebpf.attach.plan import Via
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.kernel.cost import CostMeasurement, HitCost
    from scope_ebpf.kernel.observers.program_pool import ProgramPool
    from scope_ebpf.results.summary import EventSummary

#: Waits shorter than this, seconds, end in time to the microsecond.
_SHORT_WAIT = 0.02
#: Seconds between two moves of the progress bar, with a look at the target each.
_INTERVAL = 0.1
#: Nice value of this process and of the attacher: hooks of a window that is over cost until they
#: are out.
_PRIORITY = -10
#: Seconds at the end of a window in which nothing but its end is waited for.
_QUIET = 0.01
#: Seconds to wait for the cost of a hit when the run is over.
_COST_SECONDS = 2.0


class BudgetOptions(NamedTuple):
    """How long a summary takes, what it may cost, and how its events are seen."""

    #: Seconds; None for no end.
    duration: float | None
    #: The share of the target's CPU that hooks may take.
    budget: float
    #: The attach method.
    via: Via = "auto"
    #: The shortest native call that is counted, milliseconds; None for the default.
    slow_call_ms: float | None = None
    #: Print that it begins, and how far it is.
    announced: bool = True


class BudgetedTrace:
    """
    One summary of *wanted* on *target*, at most ``options.budget`` of its CPU.

    Programs come from *pool*, and go back to it for the next summary, if there is one.
    """

    def __init__(
        self,
        target: Target,
        wanted: tuple[str, ...],
        options: BudgetOptions,
        measurement: CostMeasurement,
        pool: ProgramPool | None = None,
    ) -> None:
        self._target, self._measurement, self._options = target, measurement, options
        planned = plan_events(target, wanted, options.via, options.slow_call_ms, governed=True)
        #: What a reader of the figures should know.
        self.notes = list(planned.notes)
        self._attacher = Attacher()
        self._cost: HitCost | None = measurement.cost()
        try:
            self._run = BudgetedRun(
                target,
                planned,
                self._attacher,
                self._cost or GUESS,
                budget=options.budget,
                pool=pool,
            )
        except BaseException:
            self._attacher.close()
            raise
        if self._run.counters.refused:
            self.notes.append(
                f"{self._run.counters.refused}: frequent events are estimated by the time alone"
            )
        #: What looks at the VM meanwhile.
        self.state = StateReader(target)
        self._stop, self._urgency = Stop(), Urgency()
        self._seconds = 0.0
        #: CPU seconds of the target when the run began, and those that it has used since.
        self._cpu_before = 0.0
        self._used: float | None = None
        self._summary: Summary | None = None

    def run(self) -> ScopeError | None:
        """Count until something ends it; the error, if it was one. What was seen is kept."""
        require_target(self._target.identity, "traced")
        self.notes += healed(self._target)
        first = _prioritized(self._attacher, self._urgency)
        with self._attacher, self._stop.on_signals(), first, self._run as session:
            error = self._count()
            self.notes += [f"{f.attachment.name}: {f.reason}" for f in session.failures]
        return error

    def _count(self) -> ScopeError | None:
        self._urgency.set(urgent=True)
        self._run.begin()
        self._urgency.set(urgent=False)
        self._cpu_before = cpu_clock(self._target.pid)
        loop = Loop(self._target.identity, "traced", self._options.duration, self._stop)
        self.state.begin()
        duration, budget = self._options.duration, self._options.budget
        if self._options.announced:
            say_started(self._target.pid, duration, quiet=True, budget=budget)
        error: ScopeError | None = None
        try:
            error = self._watch(loop)
        finally:
            counted = self.state.counted()
            self._seconds = time.monotonic() - loop.started
            self._run.finish()
            self._urgency.set(urgent=False)
        self._summary = self._sum_up(self._run.events(counted or {}))
        return error

    def _watch(self, loop: Loop) -> ScopeError | None:
        with (
            selectors.EpollSelector() as files,
            progress_bar(self._options.duration, visible=self._options.announced) as advance,
        ):
            self._register(files)
            moved = loop.started

            def pause() -> float:
                now = time.monotonic()
                due = min(self._run.next_due(), now + _INTERVAL)
                looked = self._can_look(max(now, self.state.due))
                return (min(due, self.state.due) if looked else due) - now

            def turn(now: float) -> None:
                nonlocal moved
                self._turn(now)
                if now - moved >= _INTERVAL:
                    moved = now
                    advance(now - loop.started)
                    self._target.identity.check()

            return loop.run(self._checked(turn), pause, self._checked(lambda s: _wait(files, s)))

    def _register(self, files: selectors.BaseSelector) -> None:
        """Watch for exhausted quotas, for the end of the attacher, and of the target."""
        identity = self._target.identity
        files.register(self._run.fileno(), selectors.EVENT_READ, self._run.on_exhausted)
        files.register(self._attacher.fileno(), selectors.EVENT_READ, _attacher_ended)
        for fd in (identity.pidfd, identity.execs):
            if fd is not None:
                files.register(fd, selectors.EVENT_READ, identity.check)

    def _checked(self, step: Callable[[float], None]) -> Callable[[float], None]:
        """*step*, whose errors of reading are those of a target that has ended, if it has."""

        def run(seconds: float) -> None:
            try:
                step(seconds)
            except (ReadRefusedError, OSError):
                self._target.identity.check()
                raise

        return run

    def _turn(self, now: float) -> None:
        if self._cost is None and (cost := self._measurement.cost()):
            self._cost = cost
            self._run.set_hit_cost(cost)
        if now >= self._run.next_due():
            self._run.run_once()
        # A window is over sooner where its quota was exhausted while this waited.
        self._urgency.set(urgent=self._run.in_window)
        if now >= self.state.due and self._can_look(now):
            self.state.look()
            self._used = cpu_clock(self._target.pid) - self._cpu_before

    def _can_look(self, at: float) -> bool:
        """Whether the VM can be looked at then: it would delay the end of a window."""
        return not self._run.in_window or self._run.next_due() - at > _QUIET

    def _sum_up(self, events: dict[str, EventSummary]) -> Summary:
        cost = self._cost or self._measurement.cost(_COST_SECONDS)
        hits = self._run.hits()
        cpu = cost.total(hits) if cost else None
        share = share_of(cpu, self._used) if cpu is not None and self._used else None
        crashes = self._run.crashes()
        summary = Summary(
            target=self._target.as_json(),
            duration_seconds=self._seconds,
            stopped_because=self._stop.reason,
            events=events,
            cost=Cost(sum(hits.values()), cpu, None if share is None else round(share, 6)),
            notes=(*self.notes, *self._idle(share), *notes_of(cost), *carried_notes(events)),
            state=self.state.state(),
            crashes=None if crashes is None else named(self._target, crashes),
        )
        return checked_summary(summary)

    def _idle(self, share: float | None) -> list[str]:
        """A note on a *share* of an idle VM's CPU that is more than the budget."""
        least = RUN_POLICY.min_cpus
        if share is None or share <= self._options.budget or self._used is None:
            return []
        if self._used >= least * self._seconds:
            return []
        part = f"{self._options.budget * 100:g}% of {least:g} cores"
        return [f"the VM is nearly idle: hooks may take {part}"]

    def summary(self) -> Summary:
        """What was seen; after :meth:`run`."""
        assert self._summary is not None  # noqa: S101 - as it says
        return self._summary


def _attacher_ended() -> None:
    raise HostError("the process that holds the breakpoints has ended, and they with it")


def _wait(files: selectors.BaseSelector, seconds: float) -> None:
    """
    Wait until one of *files* is readable and call its function, for *seconds* at most.

    ``select`` waits whole milliseconds; hooks of a window that is over must go out in time.
    """
    whole = math.floor(max(0.0, seconds) * 1000) / 1000
    for key, _ in files.select(whole):
        key.data()
        return
    time.sleep(max(0.0, seconds - whole) if whole < seconds < _SHORT_WAIT else 0.0)


@contextmanager
def _prioritized(attacher: Attacher, urgency: Urgency) -> Iterator[None]:
    """While the block runs, this process and *attacher* are scheduled before others."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
        attacher.set_priority(_PRIORITY)
    hurry(attacher.pid)
    try:
        yield
    finally:
        urgency.set(urgent=False)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, before)
