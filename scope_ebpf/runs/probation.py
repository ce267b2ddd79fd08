# SPDX-License-Identifier: Apache-2.0
"""
Compares hooks of functions that were found without a symbol with the VM's counters, in runs that
count everything.

A trace that sums up compares while it counts, and shows at its end what has agreed. What writes
each event as it comes may write none that is wrong: :func:`proven` compares before it begins. What
another VM of the program has proven is shown at once, and compared all the same.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from scope_ebpf import events
from scope_ebpf.attach.plan import Plan
from scope_ebpf.beam.hidden.resolve import hidden_of, prove
from scope_ebpf.budget.judge import Judge, counted, growth, surplus
from scope_ebpf.budget.reference_counters import ReferenceCounters
from scope_ebpf.errors import (
    NoSuchProcessError,
    NothingToAttachError,
    NotPermittedError,
    ReadRefusedError,
    TooMuchError,
)
from scope_ebpf.sessions import open_session

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.observers.session import Session
    from scope_ebpf.sessions import Planned

#: Seconds between two comparisons, and those of the window before a stream.
_BETWEEN, _WINDOW = 0.1, 1.0


class Probation:
    """Compares the events of *plan* that need it, from :meth:`begin` to :meth:`finish`."""

    def __init__(self, target: Target, plan: Plan) -> None:
        self._hidden = hidden_of(target.binary)
        self.judge = Judge(plan, (), ())
        self._counters: ReferenceCounters | None = None
        if self.judge.pending or self.judge.refused:  # most plans have no such event
            self._counters = ReferenceCounters(target)
            names, schedulers = self._counters.names(), self._counters.schedulers()
            self.judge = Judge(plan, self._hidden.proven, names, schedulers)
        self._began: tuple[dict[str, int], dict[str, int]] | None = None
        self._due = 0.0
        self._taken_out: set[str] = set()

    def begin(self, session: Session) -> None:
        """Let *session* count. Raises ReadRefusedError."""
        if self._counters is None or not self.judge.pending:
            session.count(on=True)
            return
        before = self._counters.now()
        session.count(on=True)
        self._began = before, self._counters.now()

    def look(self, session: Session, now: float) -> None:
        """Compare, if it is due, and take out what disagrees."""
        if self._began and self.judge.pending and now >= self._due:
            self._due = now + _BETWEEN
            with suppress(ReadRefusedError):
                self._compare(session)
        self._take_out(session)

    def finish(self, session: Session) -> None:
        """Decide; while *session* still counts. A VM that has ended is judged by the last look."""
        if self._began and self.judge.pending:
            with suppress(ReadRefusedError, NoSuchProcessError, NotPermittedError, TooMuchError):
                self._compare(session)
            self.judge.finish()
        self._take_out(session)
        prove(self._hidden, self.judge.agreed)

    def _compare(self, session: Session) -> None:
        assert self._counters  # noqa: S101 - the callers look
        assert self._began  # noqa: S101
        before, begun = self._began
        until = self._counters.now()
        tallies = session.tallies()
        after = self._counters.now()
        for event in sorted(self.judge.pending):
            kind = tallies[events.KINDS[event].id]
            count = sum(counted(event, kind[:, cpu]) for cpu in range(kind.shape[1]))
            low, high = growth(event, begun, until), growth(event, before, after)
            more = surplus(event, kind)
            self.judge.replace(event, count, min(low, high), max(low, high), more)

    def _take_out(self, session: Session) -> None:
        """Remove the hooks of what was refused since the last call."""
        fresh = self.judge.refused.keys() - self._taken_out
        self._taken_out |= fresh
        if fresh:
            session.release(fresh)


def proven(target: Target, planned: Planned) -> Planned:
    """
    The same without events that must be compared with the VM's counters and have not agreed.

    Takes a second at most, and no time where nothing is to be compared. NothingToAttachError if no
    event is left.
    """
    probation = Probation(target, planned.plan)
    judge = probation.judge
    judge.pending = judge.withheld()
    if not judge.pending and not judge.refused:
        return planned
    wanted = tuple(item for item in planned.plan.items if item.event in judge.pending)
    if wanted:
        with open_session(target, planned._replace(plan=Plan(wanted))) as session:
            probation.begin(session)
            end = time.monotonic() + _WINDOW
            while judge.pending and (now := time.monotonic()) < end:
                time.sleep(_BETWEEN / 2)
                probation.look(session, now)
            session.count(on=False)
        prove(hidden_of(target.binary), judge.agreed)
    reasons = judge.refused | {event: judge.why_pending(event) for event in judge.pending}
    plan = planned.plan.refuse(reasons)
    if not plan.attachments:
        why = "; ".join(f"{item.event}: {item.reason}" for item in plan.items)
        raise NothingToAttachError(f"process {target.pid} has no hook that may be used ({why})")
    return planned._replace(plan=plan)
