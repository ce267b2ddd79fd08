# SPDX-License-Identifier: Apache-2.0
"""What hooks have counted, compared with what the VM has counted meanwhile, for a judge."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf import events
from scope_ebpf.budget.judge import counted, fits, growth, spread, surplus
from scope_ebpf.budget.reference_counters import EXACT_COUNTERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.budget.judge import Judge
    from scope_ebpf.budget.reference_counters import ReferenceCounters
    from scope_ebpf.budget.windows import ClosedWindow, Window
    from scope_ebpf.kernel.observers.governed import GovernedSession


class _Looked(NamedTuple):
    """What was counted of an event at one moment, its surplus, and the VM's counters then."""

    seen: int
    more: int
    values: dict[str, int]


class Comparisons:
    """
    Counts of *session* beside those of *counters*, of the events that *judge* has not decided.

    Its methods raise ReadRefusedError where the VM's counters cannot be read.
    """

    def __init__(self, session: GovernedSession, counters: ReferenceCounters, judge: Judge) -> None:
        self._session, self._counters, self._judge = session, counters, judge
        #: By event that is counted permanently, the last look.
        self._looked: dict[str, _Looked] = {}
        #: Of the open window: the look before it, and the VM's counters after it was opened.
        self._opened: tuple[_Looked, dict[str, int]] | None = None
        self._named: set[str] = set()

    @property
    def running(self) -> bool:
        """Whether an event that is counted permanently is compared."""
        return bool(self._looked)

    @property
    def pending(self) -> bool:
        """Whether an event is not decided."""
        return bool(self._judge.pending)

    def begin(self, event: str) -> None:
        """From now on *event* is counted permanently."""
        if event in self._judge.pending:
            self._looked[event] = self._look(event)

    def forget(self, event: str) -> None:
        """*event* is no longer counted permanently."""
        self._looked.pop(event, None)

    def restart(self) -> None:
        """Nothing was counted before now, whatever the VM has counted."""
        values = self._counters.now()
        self._looked = {event: self._look(event, values) for event in self._looked}

    def _look(self, event: str, values: dict[str, int] | None = None) -> _Looked:
        values = self._counters.now() if values is None else values
        tallies = self._session.kind(event)[0]
        return _Looked(counted(event, tallies), surplus(event, tallies), values)

    def add(self, tallies: NDArray[np.void], values: dict[str, int]) -> None:
        """
        Compare what was counted permanently since the last look with what the VM has counted.

        *tallies* are the counters of all events now, shape ``(kinds, classes)``, *values* the VM's.
        """
        for event in self._looked.keys() & self._judge.pending & set(self._session.attached):
            if self._session.exhausted_at(event):
                continue
            before, kind = self._looked[event], tallies[events.KINDS[event].id]
            now = _Looked(counted(event, kind), surplus(event, kind), dict(values))
            grown = growth(event, before.values, values)
            self._judge.add(event, now.seen - before.seen, grown, grown, now.more - before.more)
            self._looked[event] = now

    @contextmanager
    def opening(self, event: str) -> Iterator[None]:
        """A window of *event* is opened within this context."""
        before = self._look(event) if event in self._judge.pending else None
        yield
        self._opened = (before, self._counters.now()) if before else None

    def close(self, window: Window) -> ClosedWindow:
        """Close *window*, and compare what it has counted."""
        opened, self._opened = self._opened, None
        if opened is None:
            return window.close()
        until = self._counters.now()
        exhausted = bool(self._session.exhausted_at(window.event))
        closed = window.close()
        self._add_window(window.event, opened, until, closed, exhausted=exhausted)
        return closed

    def _add_window(
        self,
        event: str,
        opened: tuple[_Looked, dict[str, int]],
        until: dict[str, int],
        closed: ClosedWindow,
        *,
        exhausted: bool,
    ) -> None:
        """Compare what a window has counted with what the VM has within and around it."""
        (count_before, more_before, outside), inside = opened
        after = self._counters.now()
        now = self._look(event, after)
        count, more = now.seen - count_before, now.more - more_before
        most = growth(event, outside, after)
        # How many were there meanwhile, where the counter is that of those that came.
        moved = 0 if event in EXACT_COUNTERS else spread(event, (outside, inside, until, after))
        if not exhausted:
            self._judge.add(event, count, growth(event, inside, until), most, more)
        elif closed.growth is not None and moved <= count / 4:
            # The programs read the counter at the first hit and at the last one.
            grown = int(closed.growth)
            self._judge.add(event, count, grown - moved, grown + moved + 1, more)
        elif not fits(count, 0, most):
            self._judge.add(event, count, 0, most, more)

    def newly_refused(self) -> list[tuple[str, str]]:
        """Events that were refused since the last call, with the reasons."""
        new = [event for event in self._judge.refused if event not in self._named]
        self._named.update(new)
        for event in new:
            self.forget(event)
        return [(event, self._judge.refused[event]) for event in new]
