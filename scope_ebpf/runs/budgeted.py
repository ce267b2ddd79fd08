# SPDX-License-Identifier: Apache-2.0
"""One summary of one target within a budget, from the first look to the last."""

from __future__ import annotations

import math
import os
import selectors
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from scope_ebpf.beam.vm.state import StateReader
from scope_ebpf.budget.brake import share_of
from scope_ebpf.budget.reference_counters import cpu_clock
from scope_ebpf.budget.run import BudgetedRun
from scope_ebpf.errors import HostError, NoSuchProcessError, ReadRefusedError
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.kernel.cost import notes_of
from scope_ebpf.relations import told_apart
from scope_ebpf.results.summary import Cost, Summary
from scope_ebpf.runs.terminal import progress_bar, require_target, stop_signals, target_ended
from scope_ebpf.runs.trace import carried_notes, healed, planned, say_started

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.kernel.cost import Aside, HitCost
    from scope_ebpf.results.summary import EventSummary

#: Waits that must end in time, seconds.
_SHORT = 0.02
#: The bar moves so often, and the target is looked at, seconds.
_INTERVAL = 0.1
#: Who closes windows runs before what it observes: hooks that are in for longer cost more.
_PRIORITY = -10
#: Seconds that the price of a hit may take once all is over.
_PATIENCE = 2.0


class BudgetedTrace:
    """One summary of *wanted* on *target*, at most ``arguments.budget`` of its CPU."""

    def __init__(
        self, target: Target, wanted: tuple[str, ...], arguments: argparse.Namespace, aside: Aside
    ) -> None:
        from scope_ebpf.kernel.cost import GUESS  # noqa: PLC0415 - a bench has it before

        self.notes: list[str] = []
        self._target, self._aside = target, aside
        self._duration: float | None = arguments.duration
        self._budget: float = arguments.budget
        plan, settings, refused = planned(target, wanted, arguments, governed=True)
        self.notes += refused
        self._attacher = Attacher()
        self._price: HitCost | None = aside.cost()
        try:
            self._run = BudgetedRun(
                target, plan, settings, self._attacher, self._price or GUESS, budget=self._budget
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
        self._stop = ""
        self._seconds = 0.0
        self._cpu: float | None = None
        self._summary: Summary | None = None

    def run(self) -> ScopeError | None:
        """Count until something ends it; the error, if it was one. What was seen is kept."""
        require_target(self._target.identity, "traced")
        self.notes += healed(self._target)
        hurried = _hurry(self._attacher)
        with self._attacher, stop_signals(self._ask_to_stop), hurried, self._run as session:
            error = self._count()
            self.notes += [f"{f.attachment.name}: {f.reason}" for f in session.failures]
        return error

    def _count(self) -> ScopeError | None:
        self._run.begin()
        cpu = cpu_clock(self._target.pid)
        started = time.monotonic()
        self.state.begin()
        say_started(self._target.pid, self._duration, quiet=True, budget=self._budget)
        error: ScopeError | None = None
        try:
            error = self._watch(started, cpu)
        finally:
            counted = self.state.counted()
            self._seconds = time.monotonic() - started
            self._run.finish()
        self._summary = self._sum_up(self._run.events(counted or {}))
        return error

    def _ask_to_stop(self, reason: str) -> None:
        self._stop = self._stop or reason

    def _watch(self, started: float, cpu: float) -> ScopeError | None:
        identity = self._target.identity
        try:
            try:
                self._turns(started, cpu)
            except (ReadRefusedError, OSError):
                identity.check()  # what cannot be read has mostly ended
                raise
        except NoSuchProcessError as gone:
            self._ask_to_stop("target ended")
            return target_ended(identity.pid, gone, "traced")
        return None

    def _turns(self, started: float, cpu: float) -> None:
        ends = None if self._duration is None else started + self._duration
        identity, moved = self._target.identity, started
        with selectors.EpollSelector() as files, progress_bar(self._duration, visible=True) as bar:
            files.register(self._run.fileno(), selectors.EVENT_READ, self._run.on_exhausted)
            files.register(self._attacher.fileno(), selectors.EVENT_READ, self._alone)
            for fd in (identity.pidfd, identity.execs):
                if fd is not None:
                    files.register(fd, selectors.EVENT_READ, identity.check)
            while not self._stop:
                now = time.monotonic()
                if ends is not None and now >= ends:
                    self._ask_to_stop("duration")
                    return
                self._turn(now, cpu)
                if now - moved >= _INTERVAL:
                    moved = now
                    bar(now - started)
                    identity.check()
                due = min(self._run.next_due(), self.state.due, ends or now + _INTERVAL)
                _wait(files, due - time.monotonic())

    def _turn(self, now: float, cpu: float) -> None:
        if self._price is None and (price := self._aside.cost()):
            self._price = price
            self._run.set_hit_cost(price)
        if now >= self._run.next_due():
            self._run.run_once()
        if now >= self.state.due:
            self.state.look()
            self._cpu = cpu_clock(self._target.pid) - cpu

    def _alone(self) -> None:
        raise HostError("the process that holds the breakpoints has ended, and they with it")

    def _sum_up(self, events: dict[str, EventSummary]) -> Summary:
        price = self._price or self._aside.cost(_PATIENCE)
        hits = self._run.hits()
        cpu = price.total(hits) if price else None
        share = share_of(cpu, self._cpu) if cpu is not None and self._cpu else None
        summary = Summary(
            target=self._target.as_json(),
            duration_seconds=self._seconds,
            stopped_because=self._stop,
            events=events,
            cost=Cost(sum(hits.values()), cpu, None if share is None else round(share, 6)),
            notes=(*self.notes, *notes_of(price), *carried_notes(events)),
            state=self.state.state(),
        )
        return told_apart(summary)

    def summary(self) -> Summary:
        """What was seen; after :meth:`run`."""
        assert self._summary is not None  # noqa: S101 - as it says
        return self._summary


def _wait(files: selectors.BaseSelector, seconds: float) -> None:
    """
    Do what *files* ask for, for so many seconds at most.

    They are waited for by whole milliseconds; hooks of a window that is over should be in for no
    longer than they must.
    """
    whole = math.floor(max(0.0, seconds) * 1000) / 1000
    for key, _ in files.select(whole):
        key.data()
        return
    time.sleep(max(0.0, seconds - whole) if whole < seconds < _SHORT else 0.0)


@contextmanager
def _hurry(attacher: Attacher) -> Iterator[None]:
    """Let us go first, and who takes hooks out."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
        attacher.hurry(_PRIORITY)
    try:
        yield
    finally:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, before)
