# SPDX-License-Identifier: Apache-2.0
"""
Judges hooks of functions that were found without a symbol, by what the VM itself counts.

A function that was found by its likeness, or by a debug file, may be another one. Then it is
called more or less often than the VM counts the event. Until an event has agreed with the VM's
counter over :data:`_EVIDENCE` events it is not shown; once it disagrees, it is taken out. Events
that the VM does not count are left to ``beam.hidden.resolve``, which wants more of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf import events
from scope_ebpf.beam.hidden.resolve import JUDGED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Plan

#: Counts that must agree; what may be under way meanwhile; and the share that may differ.
_EVIDENCE, _SLACK, _SHARE = 20, 4, 0.05
#: What the VM has counted is known to such a part of it, or it shows nothing.
_PRECISION = 5
#: Looks in a row that must disagree: a count and the VM's counter are of two moments.
_LOOKS = 2
#: Classes of an event that the VM's counter counts; of others all.
_CLASSES = {"gc": ("minor", "major"), "schedule": ("in",)}
#: Classes of an event that begin and end the same thing; the VM counts only the first.
_PAIRS = {"schedule": ("in", "out")}
#: The counters that an event needs, of ``reference_counters.ReferenceCounters.now``.
_NEEDS = {
    "spawn": ("spawned",),
    "exit": ("spawned", "processes"),
    "gc": ("collections",),
    "schedule": ("context_switches",),
    "port_open": ("opened",),
    "port_close": ("opened", "ports"),
}
_INT = 1 << 32


def growth(event: str, since: Mapping[str, int], until: Mapping[str, int]) -> int:
    """How often *event* happened between two readings of the VM's counters."""

    def more(name: str) -> int:
        return until[name] - since[name]

    if event == "gc":
        return more("collections") + (more("dirty") if "dirty" in since else 0)
    if event == "schedule":
        return more("context_switches")
    made, there = _NEEDS[event][0], _NEEDS[event][1:]
    left = sum((more(name) + _INT // 2) % _INT - _INT // 2 for name in there)
    return more(made) % _INT - left


def spread(event: str, readings: Iterable[Mapping[str, int]]) -> int:
    """The difference between the most and the least of what was there, of the kind of *event*."""
    there = [reading[name] % _INT for reading in readings for name in _NEEDS[event][1:]]
    return max(there, default=0) - min(there, default=0)


def counted(event: str, tallies: NDArray[np.void]) -> int:
    """The events among *tallies* of one kind, shape ``(classes,)``, that the VM counts as well."""
    classes = events.KINDS[event].classes
    wanted = [classes.index(name) for name in _CLASSES.get(event, classes)]
    return int(tallies["count"][wanted].sum())


def surplus(event: str, tallies: NDArray[np.void]) -> int:
    """How many more of *event* began than ended, by *tallies* as of :func:`counted`."""
    if event not in _PAIRS:
        return 0
    classes = events.KINDS[event].classes
    first, second = (int(tallies["count"][classes.index(name)].sum()) for name in _PAIRS[event])
    return first - second


class _Sums(NamedTuple):
    """
    What was compared so far.

    *low* and *high* are the least and the most that the VM has counted. *lone* are begins without
    an end, or the reverse, of which *under_way* may have been on the VM's schedulers.
    """

    seen: int = 0
    low: int = 0
    high: int = 0
    lone: int = 0
    under_way: int = 0

    def counts_fit(self) -> bool:
        """Whether the count is the VM's."""
        return fits(self.seen, self.low, self.high)

    def pairs_fit(self) -> bool:
        """Whether begins and ends are as many."""
        return self.lone <= _SLACK + self.under_way + self.seen * _SHARE

    def are_evidence(self) -> bool:
        """Whether a function that does something else could not have fitted."""
        enough = min(self.seen - self.lone, self.high) >= _EVIDENCE
        return enough and self.high - self.low <= max(2 * _SLACK, self.high // _PRECISION)


class Judge:
    """
    Judges the events of *plan* whose functions were found.

    Those that are *proven*, by whatever VM of the same program, are shown meanwhile. *known* are
    the names of the VM's counters that can be read; *schedulers* is how many processes run at once.

    Attributes:
        pending: events that have neither agreed nor disagreed.
        agreed: events that have agreed.
        refused: events that are taken out, with the reason.
    """

    def __init__(
        self, plan: Plan, proven: Collection[str], known: Collection[str], schedulers: int = 0
    ) -> None:
        self._schedulers = schedulers
        self._names = {
            item.event: " + ".join(dict.fromkeys(a.name for a in item.attachments))
            for item in plan.items
            if any(a.source for a in item.attachments) and item.event in JUDGED
        }
        self.agreed: set[str] = set()
        self.refused: dict[str, str] = {}
        self._proven = set(proven) & self._names.keys()
        self.pending = set(self._names)
        self._sums: dict[str, _Sums] = {}
        #: Looks in a row that disagreed.
        self._bad: dict[str, int] = {}
        for event in sorted(self.pending):
            missing = [name for name in _NEEDS[event] if name not in known]
            if missing and event in self._proven:
                self.pending.discard(event)
            elif missing:
                self._refuse(event, f"{missing[0]} of the VM cannot be read to compare it with")

    def withheld(self) -> set[str]:
        """The events that are pending, and not shown yet."""
        return self.pending - self._proven

    def add(self, event: str, count: int, low: int, high: int, more: int = 0) -> None:
        """
        A window counted *count* of a pending event, the VM at least *low* and at most *high*.

        *more* is the :func:`surplus`.
        """
        before = self._sums.get(event, _Sums())
        window = (count, low, high, abs(more), self._schedulers)
        self._look(event, _Sums(*map(sum, zip(before, window, strict=True))))

    def replace(self, event: str, count: int, low: int, high: int, more: int = 0) -> None:
        """All that was counted since the beginning; as :meth:`add`."""
        self._look(event, _Sums(count, low, high, abs(more), self._schedulers))

    def _look(self, event: str, sums: _Sums) -> None:
        if event not in self.pending:
            return
        self._sums[event] = sums
        if not (sums.counts_fit() and sums.pairs_fit()):
            self._bad[event] = self._bad.get(event, 0) + 1
            if self._bad[event] >= _LOOKS:
                self._disagree(event)
            return
        self._bad.pop(event, None)
        if sums.are_evidence():
            self.pending.discard(event)
            self.agreed.add(event)

    def finish(self) -> None:
        """
        Decide what is pending: nothing more will be counted.

        A few counts agree if they are exactly as many as the VM's. What is proven stays unless it
        disagrees.
        """
        for event in sorted(self.pending):
            proven = event in self._proven
            if event not in self._sums and not proven:
                self._refuse(event, f"hook.{event}: it was not compared with the VM's counter")
                continue
            sums = self._sums.get(event, _Sums())
            fit = sums.low <= sums.seen <= sums.high or (proven and sums.counts_fit())
            if fit and sums.pairs_fit():
                self.pending.discard(event)
            else:
                self._disagree(event)

    def why_pending(self, event: str) -> str:
        """Why an event is not shown yet."""
        return (
            f"{self._names[event]} was found without a symbol, and the VM has not counted "
            f"{_EVIDENCE} yet to compare it with"
        )

    def _disagree(self, event: str) -> None:
        sums = self._sums[event]
        count, low, high = sums[:3]
        if sums.counts_fit() and not sums.pairs_fit():
            first, second = _PAIRS[event]
            why = f"hook.{event}: of {count:,} {first}, {sums.lone:,} are without {second}, or more"
            self._refuse(event, why)
            return
        range_text = f"{low:,}" if low == high else f"{max(0, low):,} to {high:,}"
        self._refuse(event, f"hook.{event}: counted {count:,}, the VM counted {range_text}")

    def _refuse(self, event: str, why: str) -> None:
        self.pending.discard(event)
        self.refused[event] = why


def fits(count: int, low: int, high: int) -> bool:
    """Whether *count* is within the VM's *low* and *high*, but for what was under way."""
    return low * (1 - _SHARE) - _SLACK <= count <= high * (1 + _SHARE) + _SLACK
