# SPDX-License-Identifier: Apache-2.0
"""
Moments in which hooks of one target count, so that they keep within a budget.

Hooks are attached for a window, and taken out. Until the next one the share of the budget adds up
that it will take. What is counted in windows is scaled up by time, or by the VM's reductions where
hooks take so much that they change how fast it works.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scope_ebpf.budget.reference_counters import ReferenceCounters
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError
from scope_ebpf.kernel.urgency import Urgency

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

#: Seconds of a window: of the first, which finds out how many hits there are; of the others.
_FIRST, _SHORTEST, _LONGEST = 0.005, 0.05, 0.5
#: Hits of a window that are plenty: where it has more, it may be shorter than _SHORTEST.
_PLENTY = 1000
#: Windows that a run should have, in so many seconds where it has no end: the fewer, the longer.
#: Of light windows twice as many, since they follow nothing to its end.
_WINDOWS, _SPAN = 6, 10.0
#: Seconds between two looks at whether a window has used up its hits.
_STEP = 0.01
#: A window is opened when there is so much more of the budget than it should take.
_SPARE = 1.3
#: Seconds before the first window, in which the VM's use of CPU becomes known.
_WARM_UP = 1.0
#: The part of a CPU, or of more if the VM uses more, from which on hooks slow all of it down: what
#: one process does has to wait for others.
_SLOWS = 0.03
#: Windows without which no figure is given, nor with less than _SHORTEST of them together, or half
#: of what was planned where they may be shorter: a burst may have used up their hits.
_FEWEST = 3
#: By how much a standard error from so many windows, from three on, is too small: Student's t,
#: 95 %, as a part of that of many. Two may agree by chance.
_FEW = (2.20, 1.62, 1.42, 1.31, 1.25, 1.21, 1.18, 1.15)
#: The part of the budget that is planned with, and that which bursts within windows may take.
_PLANNED, _BURSTS = 0.75, 0.9
#: The part that light windows take where others are worth their cost; by what the hits of the
#: others are multiplied at most, of which none was yet.
_LIGHT, _HEAVIER = 0.4, 4.0


#: Where something is counted.
Place = int | tuple[int | slice, ...]


class Watch(Protocol):
    """What is attached for a window."""

    def hurry(self) -> None:
        """Let what attaches hooks run before the target."""

    def attach(self, *, light: bool = False) -> None:
        """Attach every hook, or those of a light window."""

    def release(self) -> None:
        """Take them out, without waiting."""

    def open_window(self, seconds: float, hits: int) -> int:
        """Count for so long, and for so many hits at most; returns the time, ns."""

    def is_over(self) -> bool:
        """Whether the window is over."""

    def close_window(self) -> int:
        """Count no longer; returns when counting ended, ns."""


class Window(NamedTuple):
    """
    One window: its seconds, and what was counted in it, of any shape.

    ``reductions`` are those of the VM in it, None where they could not be read; ``light`` is
    whether some of the hooks were attached alone, ``planned`` the seconds that it was to take.
    """

    seconds: float
    reductions: float | None
    counts: NDArray[np.int64]
    light: bool = False
    planned: float = 0.0


class Scale(NamedTuple):
    """
    What counts of windows are multiplied by, and the error of that, as a part of it.

    With ``by_work`` it is not time, but the VM's reductions that say which part of its work was in
    windows.
    """

    factor: float
    doubt: float
    by_work: bool


class _Hits:
    """
    Hits of the hooks, also before and after windows: counting begins after attaching.

    Attributes:
        rate: hits a second in the last window.
        busiest: the most of that.
        all: how many there were.
    """

    def __init__(self) -> None:
        self.rate = self.busiest = 0.0
        self.all = self._inside = self._windows = 0
        self._seconds = 0.0

    def add(self, hits: int, seconds: float) -> None:
        """Note the *hits* of one window, which took so many *seconds*."""
        seconds = max(seconds, 1e-3)
        self.rate = hits / seconds
        self.busiest = max(self.busiest, self.rate)
        self._inside += hits
        self._seconds += seconds
        self._windows += 1
        self.all += hits

    def add_around(self, hits: int) -> None:
        """Note *hits* before or after a window."""
        self.all += hits

    @property
    def around(self) -> float:
        """Hits before and after a window, on average."""
        return (self.all - self._inside) / max(self._windows, 1)

    @property
    def mean(self) -> float:
        """Hits a second of all windows."""
        return self._inside / max(self._seconds, 1e-9)


class Moments:
    """
    The windows of one run.

    *budget* is a part of the CPU of *target*, *duration* seconds, None for no end. *hits* returns
    the hits of all hooks until now, *counts* what was counted in all windows until now; it is
    called after each with its bounds, ns. With *light* there are light windows too.
    """

    def __init__(
        self,
        target: Target,
        watch: Watch,
        plan: tuple[float, float | None],
        hits: Callable[[], int],
        counts: Callable[[int, int], NDArray[np.int64]],
        *,
        light: bool = False,
    ) -> None:
        budget, duration = plan
        self._budget, self._span = _PLANNED * budget, duration or _SPAN
        self._watch, self._hits, self._counts = watch, hits, counts
        self._counters = ReferenceCounters(target)
        self._random = random.Random()  # noqa: S311 - when to look is no secret
        #: Hits of windows, by whether they are light: those that there may be.
        self._passed = {kind: _Hits() for kind in (False, True)[: 1 + light]}
        #: Whether the last window was light.
        self.light = False
        #: Reductions and times, ns, of the beginning and the end.
        self._before: int | None = None
        self._after: int | None = None
        self._began = self._ended = 0
        self._total: NDArray[np.int64] | int = 0
        self.windows: list[Window] = []

    def begin(self) -> None:
        """The run begins; the first window comes later."""
        self._watch.hurry()
        self._began = time.monotonic_ns()
        self._before = self._reductions()
        self._next = time.monotonic() + _WARM_UP

    def end(self) -> None:
        """The run ends."""
        self._ended = time.monotonic_ns()
        now = self._reductions()
        self._after = self._after if now is None else now

    def _reductions(self) -> int | None:
        with suppress(ReadRefusedError, NoSuchProcessError, OSError):
            return self._counters.now().get("reductions")
        return None

    def is_due(self, now: float) -> bool:
        """Whether it is time to ask whether a window can be afforded."""
        return now >= self._next

    def look(self, now: float, used: float, spent: float, hit: float) -> bool:
        """
        Observe a window, if one is due and can be afforded; returns when it is over whether it was.

        The target has *used* so many seconds of CPU in the run, hooks have *spent* some of them,
        and a *hit* takes so many.
        """
        if not self.is_due(now):
            return False
        left = self._budget * used - spent
        light = self._is_light(used, hit)
        rate, around = self._expected(light=light)
        seconds = self._length(used, hit, light=light)
        if left <= 0 or left <= (rate * seconds + around) * hit * _SPARE:
            self._next = now + self._random.uniform(0.0, 2 * _STEP)
            return False
        # What is not planned with is for bursts: a window that they cut short shows too many. Those
        # before and after it are not limited.
        left += (_BURSTS / _PLANNED - 1) * self._budget * used
        self._observe(seconds, max(1, int(left / hit - around)), light=light)
        pause = self._span / (2 * _WINDOWS)
        self._next = time.monotonic() + self._random.uniform(0.0, pause)
        return True

    def _is_light(self, used: float, hit: float) -> bool:
        """
        Whether the next window is light.

        The first one is. All are where the hooks of others slow the VM down: times that it would
        not have without them are nobody's.
        """
        if True not in self._passed:
            return False
        if not self.windows or self._slows(used, (time.monotonic_ns() - self._began) / 1e9, hit):
            return True
        light, whole = self._passed[True].all, self._passed[False].all
        return light * (1 - _LIGHT) < whole * _LIGHT

    def _expected(self, *, light: bool) -> tuple[float, float]:
        """Hits a second in the next window, and those around it."""
        passed = self._passed[light]
        brief = self._passed.get(True)
        if light or passed.all or brief is None:
            return passed.rate, passed.around
        return _HEAVIER * brief.rate, _HEAVIER * brief.around

    def _length(self, used: float, hit: float, *, light: bool) -> float:
        """Seconds of the next window."""
        if all(window.light != light for window in self.windows):
            return _FIRST
        elapsed = max((time.monotonic_ns() - self._began) / 1e9, 1e-3)
        affordable = self._budget * used / elapsed * self._span
        rate, around = self._expected(light=light)
        windows = _WINDOWS * (2 if light else 1)
        seconds = (affordable / hit / windows - around) / max(rate, 1e-9)
        return min(max(seconds, self._shortest(rate, light=light)), _LONGEST)

    def _shortest(self, rate: float, *, light: bool) -> float:
        """Seconds of the next window at least, at *rate* hits a second."""
        if light:
            return _SHORTEST / _FEWEST
        if True in self._passed:  # times come from these, rates from light windows
            return _SHORTEST
        return max(_FIRST, min(_SHORTEST, _PLENTY / max(rate, 1.0)))

    def _observe(self, seconds: float, hits: int, *, light: bool) -> None:
        """Attach the hooks, count for *seconds* or *hits*, and take the hooks out."""
        before, passed = self._hits(), self._passed[light]
        # There were more until the hooks of the last window were out.
        known = sum(kind.all for kind in self._passed.values())
        self._passed[self.light].add_around(before - known)
        # Until the hooks are out each moment in which this waits for a CPU costs the target.
        urgency = Urgency()
        urgency.set(urgent=True)
        try:
            self._watch.attach(light=light)
            # To attach takes long, and the VM works meanwhile.
            reductions, at = self._reductions(), time.monotonic()
            first = self._hits()
            passed.add_around(first - before)
            opened = self._watch.open_window(seconds, hits)
            end = opened + int(seconds * 1e9)
            while (left := end - time.monotonic_ns()) > 0 and not self._watch.is_over():
                time.sleep(min(left / 1e9, _STEP))
            closed = self._watch.close_window()
            self._watch.release()
        finally:
            urgency.set(urgent=False)
        now, elapsed = self._reductions(), time.monotonic() - at
        self.light = light
        passed.add(self._hits() - first, elapsed)
        inside = None
        if reductions is not None and now is not None:
            self._after = now
            inside = (now - reductions) * (closed - opened) / 1e9 / max(elapsed, 1e-6)
        seen = max(1, closed - opened) / 1e9
        total = self._counts(opened, closed)
        self.windows.append(Window(seen, inside, total - self._total, light, seconds))
        self._total = total

    @property
    def seconds(self) -> float:
        """Seconds of the run."""
        return max(1, self._ended - self._began) / 1e9

    @property
    def observed(self) -> float:
        """Seconds of all windows."""
        return sum(window.seconds for window in self.windows)

    @property
    def whole(self) -> list[Window]:
        """The windows that are not light."""
        return [window for window in self.windows if not window.light]

    @property
    def longest(self) -> float:
        """Seconds of the longest window that is not light; 0 if there was none."""
        return max((window.seconds for window in self.whole), default=0.0)

    @property
    def enough(self) -> bool:
        """Whether there was enough of windows for any figure; else :attr:`why` says why not."""
        if True in self._passed:
            return are_enough(self.windows)
        planned = sum(window.planned for window in self.windows)
        return are_enough(self.windows, min(_SHORTEST, planned / 2))

    @property
    def why(self) -> str:
        """Why there is no figure."""
        return (
            "no rate is known: the VM used so little CPU, or passed so many hooks, that the "
            f"budget paid for less than {_FEWEST} windows, or for moments of them; "
            "--budget none counts everything"
        )

    @property
    def rate(self) -> float:
        """Hits a second while hooks were attached, of all that they see."""
        return self._passed[False].mean

    def slows(self, used: float, hit: float) -> bool:
        """Whether hits of *hit* seconds slow the whole VM down, which *used* so many seconds."""
        return self._slows(used, self.seconds, hit)

    def _slows(self, used: float, seconds: float, hit: float) -> bool:
        """
        The same, in so many *seconds*; what light windows passed says it of others.

        Those are short, so not the busiest of them: one burst would make all others light.
        """
        brief = self._passed.get(True)
        busiest = max(self._passed[False].busiest, _HEAVIER * brief.mean if brief else 0.0)
        return busiest * hit >= _SLOWS * max(1.0, used / seconds)

    def scale(self, *, changed: bool, windows: list[Window] | None = None) -> Scale:
        """
        How counts are scaled up, if hooks have *changed* how fast the VM works or not.

        Those of all windows, or of some *windows*, of which there is one at least.
        """
        windows = self.windows if windows is None else windows
        by_time = self.seconds / sum(window.seconds for window in windows)
        if not changed:
            return Scale(by_time, 0.0, by_work=False)
        inside = [window.reductions for window in windows if window.reductions]
        if len(inside) < len(windows) or self._before is None or self._after is None:
            return Scale(by_time, 1.0, by_work=True)
        by_work = (self._after - self._before) / sum(inside)
        doubt = abs(by_work - by_time) / (2 * max(by_work, by_time))
        return Scale(by_work, doubt, by_work=True)

    def error(self, scale: Scale, place: Place, windows: list[Window] | None = None) -> float:
        """
        The standard error of what was counted at *place* of the counts, as a part of it.

        That of all windows, or of some *windows*. At several places it is that of all together.
        """
        windows = self.windows if windows is None else windows
        sizes = [
            (window.reductions if scale.by_work else None) or window.seconds for window in windows
        ]
        found = error_of(sizes, [int(window.counts[place].sum()) for window in windows])
        return max(found, scale.doubt)

    def average_error(
        self, scale: Scale, places: Sequence[Place], windows: list[Window] | None = None
    ) -> float:
        """
        The error of what was counted at each of *places*, on average over all that was.

        Of few windows no error is less than that: what one place has counted may agree by chance.
        """
        windows = self.windows if windows is None else windows
        if not are_few(windows):
            return 0.0
        counts = [sum(int(window.counts[place].sum()) for window in windows) for place in places]
        errors = [self.error(scale, place, windows) for place in places]
        total = sum(n * error for n, error in zip(counts, errors, strict=True))
        return total / max(1, sum(counts))


def are_few(windows: list[Window]) -> bool:
    """Whether windows are so few that those of one count may agree by chance."""
    return len(windows) < _FEWEST + len(_FEW)


def are_enough(windows: list[Window], seconds: float = _SHORTEST) -> bool:
    """Whether *windows* are enough for any figure: together they should have so many *seconds*."""
    return len(windows) >= _FEWEST and sum(one.seconds for one in windows) >= seconds


def error_of(sizes: list[float], counts: list[int]) -> float:
    """
    The standard error of a rate, as a part of it, from the *counts* in windows of *sizes*.

    It is that of the ratio of their sums, larger where windows are few, and at least that of a
    count of what is independent; 1 at most, also of less than three windows, and where one window
    alone, or none, has seen anything: what was in no window may have happened between them.
    """
    total = sum(counts)
    if len(counts) < 3 or sum(count > 0 for count in counts) < 2:
        return 1.0
    rate, windows = total / sum(sizes), len(counts)
    squares = sum((n - rate * s) ** 2 for n, s in zip(counts, sizes, strict=True))
    between = (squares * windows / (windows - 1)) ** 0.5 / total
    few = _FEW[windows - 3] if windows - 3 < len(_FEW) else 1.0
    return float(min(1.0, max(few * between, total**-0.5)))
