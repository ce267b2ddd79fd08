# SPDX-License-Identifier: Apache-2.0
"""
Telemetry within a budget: everything is counted while that is affordable, else windows are.

A hit at a lookup is cheap, but there may be many that are no events; a breakpoint costs much, and
only events hit it. So the cheaper of both is taken, by the rates that were seen.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scope_ebpf.budget.brake import MIN_CPUS
from scope_ebpf.budget.strata import Strata, Whole
from scope_ebpf.errors import HostError, NothingToAttachError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from scope_ebpf.budget.strata import Estimate
    from scope_ebpf.runs.telemetry_hooks import Place

#: Seconds of a window; windows that a run should have, in so many seconds where it has no end.
_SHORTEST, _LONGEST = 0.02, 0.5
_WINDOWS, _SPAN = 6, 10.0
#: Seconds for whose budget hooks may be in debt.
_CREDIT = 1.0
#: Parts of the budget: that is planned with, and up to which everything is counted again.
_PLANNED, _EASY = 0.9, 0.7
#: A window is opened when there is so much more of the budget than it should take, and closed
#: early when it has taken so much more than it should.
_SPARE, _TOO_MUCH = 1.3, 3.0
#: The part of a core from which on hooks change what the VM does in a window.
_CHANGES = 0.05
#: Seconds between two looks while no hook is attached.
_PAUSE = 0.02


class Watch(Protocol):
    """What counts events while hooks are attached."""

    def start(self) -> None:
        """Count from now on."""

    def release(self) -> None:
        """Count no longer, and remove the hooks."""

    def counts(self) -> dict[str, int]:
        """Hits, by the names of ``events.TELEMETRY_COUNTS``."""

    def by_row(self) -> dict[bytes, int]:
        """Events by row."""


class Harvest(NamedTuple):
    """Events of a part of a run by row, its seconds, and the part in which they were counted."""

    estimates: Mapping[bytes, Estimate]
    seconds: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Vm:
    """What is known of a VM at any time; each may be None when it is not known."""

    #: Seconds of CPU that it has used, and its reductions.
    cpu: Callable[[], float | None]
    work: Callable[[], int | None]


@dataclass(slots=True)
class _Window:
    """
    What is counted now: since when, the VM's work by then, and until when.

    ``opened`` is None while nothing is counted; ``until`` is infinite while everything is.
    """

    opened: float | None = None
    work: int | None = None
    until: float = math.inf


@dataclass(slots=True)
class _Bill:
    """
    Seconds of CPU that hits took, how many they were, and what the VM has used.

    Hits at an event are ``own``; rates are hits a second while hooks were attached. ``paid`` are
    the seconds before the last harvest.
    """

    spent: float = 0.0
    paid: float = 0.0
    hits: int = 0
    own: int = 0
    own_rate: float = 0.0
    other_rate: float = 0.0
    cpu_before: float = 0.0
    used: float = 0.0
    #: Whether hooks have changed what the VM does in a window.
    changed: bool = False
    #: spent, hits, own and the time, before hooks were attached the last time.
    at_opening: tuple[float, int, int, float] = (0.0, 0, 0, 0.0)


@dataclass(slots=True)
class _Bounds:
    """The beginning and the end of a run, seconds, with the VM's work."""

    began: float = 0.0
    ended: float = 0.0
    work_before: int | None = None
    work_after: int | None = None


class Observation:
    """
    Hooks at one of *places*, so that they take *budget* of the VM's CPU at most.

    A hit takes *entry* seconds. *budget* is more than 1 for no limit; *span* is the length of the
    run, seconds, None for no end. *closed* is called when what is under way will not be seen to its
    end. *clock* is in seconds.
    """

    def __init__(
        self,
        watch: Watch,
        places: Sequence[Place],
        vm: Vm,
        entry: float,
        budget: float,
        *,
        span: float | None = None,
        closed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch, self._places, self._vm, self._entry = watch, places, vm, entry
        self._budget, self._span, self._closed, self._clock = budget, span or _SPAN, closed, clock
        self._strata = Strata()
        self._place = places[0]
        self.vias = [self._place.via]
        self._random = random.Random()  # noqa: S311 - when to look is no secret
        self._window, self._bill, self._bounds = _Window(), _Bill(), _Bounds()
        self._due = 0.0

    @property
    def spent(self) -> float:
        """Seconds of CPU that hits took since :meth:`begin` or the last harvest."""
        return self._bill.spent

    def begin(self) -> None:
        """Attach the hooks, and count; raises as ``Place.attach``."""
        self._bill.cpu_before = self._vm.cpu() or 0.0
        self._bounds.work_before = self._vm.work()
        self._bounds.began = self._open(math.inf)

    @property
    def pause(self) -> float:
        """Seconds until the next look, at most."""
        if self._window.opened is None:
            return _PAUSE
        if self._budget > 1:
            return self._place.turn if self._place.turn < _PAUSE / 2 else _LONGEST / 2
        return max(0.0, min(self._place.turn, self._window.until - self._clock()))

    def look(self) -> None:
        """Do what is due; raises as ``Place.attach``."""
        if self._window.opened is not None:
            self._place.follow()
        self._account()
        now = self._clock()
        if self._budget > 1 or now < self._due:
            return
        if self._window.opened is None:
            self._perhaps_open(now)
        elif math.isinf(self._window.until):
            if self._is_census_too_much(now, self._window.opened):
                self._leave_census(self._window.opened)
        elif now >= self._window.until or self._is_too_much(now):
            self._end_window(self._window.opened, now)

    def _account(self) -> None:
        """Add up what hits took until now."""
        counts = self._watch.counts()
        own, other = counts["own"], counts["hits"] - counts["own"]
        news = other - (self._bill.hits - self._bill.own), own - self._bill.own
        self._bill.spent += self._place.cost(*news, self._entry)
        self._bill.hits, self._bill.own = counts["hits"], own
        used = self._vm.cpu()
        if used is not None:
            self._bill.used = max(0.0, used - self._bill.cpu_before)

    def _cpus(self, now: float) -> float:
        """CPUs that the VM uses on average, and at least a part of one."""
        return max(self._bill.used / max(now - self._bounds.began, 1e-3), MIN_CPUS)

    def _allowed(self, now: float) -> float:
        return self._budget * self._cpus(now) * (now - self._bounds.began)

    def _open(self, seconds: float) -> float:
        """Attach, and count for *seconds*; returns when that began."""
        self._account()
        self._bill.at_opening = (self._bill.spent, self._bill.hits, self._bill.own, self._clock())
        self._place.attach()
        self._window.work = self._vm.work()
        self._watch.start()
        self._window.opened = self._clock()
        self._window.until = self._window.opened + seconds
        return self._window.opened

    def _close(self, opened: float) -> None:
        """Count no longer what was counted since *opened*, by row."""
        now, work = self._clock(), self._vm.work()
        self._watch.release()
        self._closed()
        self._account()
        self._learn_rates()
        self._note(opened, now, work)
        self._window.opened, self._bounds.ended = None, now

    def _note(self, opened: float, now: float, work: int | None) -> None:
        """Note what was counted since *opened*; the VM has done so much *work* by now."""
        inside = None
        if work is not None and self._window.work is not None:
            inside = float(work - self._window.work)
        add = self._strata.census if math.isinf(self._window.until) else self._strata.window
        add(self._watch.by_row(), max(now - opened, 1e-6), inside)

    def _learn_rates(self) -> None:
        spent, hits, own, attached = self._bill.at_opening
        seconds = max(self._clock() - attached, 1e-3)
        self._bill.own_rate = (self._bill.own - own) / seconds
        if self._place is self._places[0]:
            self._bill.other_rate = (self._bill.hits - hits) / seconds - self._bill.own_rate
        if not math.isinf(self._window.until):
            self._bill.changed |= (self._bill.spent - spent) / seconds > _CHANGES

    def _rate(self, place: Place) -> float:
        """Seconds of the VM's CPU that hooks at *place* take in a second."""
        return place.cost(self._bill.other_rate, self._bill.own_rate, self._entry)

    def _is_census_too_much(self, now: float, opened: float) -> bool:
        """Whether hooks are in debt, and what is counted now does not pay it back."""
        credit = self._budget * MIN_CPUS * _CREDIT
        pays = _EASY * self._budget * self._cpus(now) * (now - opened)
        since = self._bill.spent - self._bill.at_opening[0]
        return self._bill.spent > self._allowed(now) + credit and since > pays + credit

    def _leave_census(self, opened: float) -> None:
        """Everything is too much: at another place it may be affordable, else in windows."""
        self._close(opened)
        best = min(self._places, key=self._rate)
        if best.via in self.vias:
            self._place = best
            self._wait(self._clock())
        elif not self._is_tried(best):
            self._wait(self._clock())

    def _is_tried(self, place: Place) -> bool:
        """Count everything at *place*, whose rate is not known well; False if it cannot be had."""
        before, self._place = self._place, place
        try:
            self._open(math.inf)
        except (NothingToAttachError, HostError):  # such as debug registers that others hold
            self._watch.release()
            self._place = before
            self._places = [one for one in self._places if one is not place]
            return False
        self.vias.append(place.via)
        return True

    def _is_affordable(self, now: float) -> bool:
        return self._rate(self._place) <= _EASY * self._budget * self._cpus(now)

    def _wait(self, now: float) -> None:
        self._due = now + self._random.uniform(0.0, self._span / (2 * _WINDOWS))

    def _perhaps_open(self, now: float) -> None:
        """Open a window, if the budget has enough for one."""
        rate = self._rate(self._place)
        whole = _PLANNED * self._budget * self._cpus(now) * self._span / max(rate, 1e-9)
        seconds = min(max(whole / _WINDOWS, _SHORTEST), _LONGEST)
        left = _PLANNED * self._allowed(now) - self._bill.spent
        if left > rate * seconds * _SPARE and left > 0:
            self._open(seconds)
        else:
            self._due = now + self._random.uniform(0.0, 2 * _PAUSE)

    def _is_too_much(self, now: float) -> bool:
        spent, _, _, attached = self._bill.at_opening
        planned = self._rate(self._place) * max(now - attached, _SHORTEST)
        return (
            self._bill.spent > self._allowed(now) and self._bill.spent - spent > _TOO_MUCH * planned
        )

    def _end_window(self, opened: float, now: float) -> None:
        self._close(opened)
        if self._bill.spent <= _PLANNED * self._allowed(now) and self._is_affordable(now):
            self._open(math.inf)
        else:
            self._wait(now)

    @property
    def paid(self) -> float:
        """Seconds of CPU that hits took since :meth:`begin`, whatever was harvested."""
        return self._bill.paid + self._bill.spent

    @property
    def is_ripe(self) -> bool:
        """Whether a harvest says anything: everything was counted, or enough windows were."""
        if self._window.opened is not None and math.isinf(self._window.until):
            return True
        return self._window.opened is None and self._strata.windows >= _WINDOWS

    def harvest(self, gone: Callable[[], Collection[bytes]] = tuple) -> Harvest:
        """
        What has been since :meth:`begin` or the last harvest; hooks go on as they are.

        Only while it :attr:`is_ripe`. What hooks have taken too much they owe from now on, and what
        they have left is forfeited. *gone* is called when counts were read; rows that it returns
        begin anew.
        """
        self._account()
        now, work = self._clock(), self._vm.work()
        if self._window.opened is not None:
            self._note(self._window.opened, now, work)
            self._window.opened, self._window.work = now, work
        whole = Whole(max(now - self._bounds.began, 1e-6), self._work_since(work))
        found = Harvest(
            self._strata.estimates(whole, by_work=self._bill.changed),
            whole.seconds,
            min(1.0, self._strata.seconds / whole.seconds),
        )
        owed = max(0.0, self._bill.spent - self._allowed(now))
        self._bill.paid += self._bill.spent - owed
        self._bill.spent, self._bounds.began, self._bounds.work_before = owed, now, work
        self._bill.cpu_before, self._bill.used = self._bill.cpu_before + self._bill.used, 0.0
        self._bill.at_opening = (owed, self._bill.hits, self._bill.own, now)
        self._strata, self._bill.changed = self._strata.following(gone()), False
        return found

    def _work_since(self, work: int | None) -> float | None:
        if work is None or self._bounds.work_before is None:
            return None
        return float(work - self._bounds.work_before)

    def end(self) -> None:
        """Count no longer."""
        if self._window.opened is not None:
            self._close(self._window.opened)
        else:
            self._account()
            self._bounds.ended = self._clock()
        self._bounds.work_after = self._vm.work()

    @property
    def windows(self) -> int:
        """Windows that were observed, beside what was observed in full."""
        return self._strata.windows

    @property
    def seconds(self) -> float:
        """The length of the run; after :meth:`end`."""
        return max(self._bounds.ended - self._bounds.began, 1e-6)

    @property
    def used(self) -> float:
        """Seconds of CPU that the VM has used."""
        return self._bill.used

    @property
    def ratio(self) -> float:
        """The part of the time in which events were counted; after :meth:`end`."""
        return min(1.0, self._strata.seconds / self.seconds)

    def missed(self) -> float:
        """Seconds in which events were not counted, because code was loaded anew."""
        return sum(place.missed() for place in self._places)

    def estimates(self) -> Mapping[bytes, Estimate]:
        """Events of the whole run by row; after :meth:`end`."""
        whole = Whole(self.seconds, self._work_since(self._bounds.work_after))
        return self._strata.estimates(whole, by_work=self._bill.changed)
