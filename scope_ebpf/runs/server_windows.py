# SPDX-License-Identifier: Apache-2.0
"""
Messages of servers within a budget: hooks are attached for moments, the rest is estimated.

What begins within a window is followed to the window's end. What is still under way then was cut
off at its age: from both, Kaplan and Meier's estimate tells how durations are distributed, as far
as windows reach.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.budget.reference_counters import ReferenceCounters
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.kernel.cost import GUESS
from scope_ebpf.results.server_events import Messages, ServerEvents, Times, buckets_of
from scope_ebpf.runs.server_events import PROGRAM, Counting
from scope_ebpf.runs.target_cost import cpu_seconds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.runs.loop import Stop

#: Seconds of a window: of the first, which finds out how many hits there are; of the others.
_FIRST, _SHORTEST, _LONGEST = 0.005, 0.05, 0.5
#: Windows that a run should have, in so many seconds where it has no end: the fewer, the longer.
_WINDOWS, _SPAN = 6, 10.0
#: Seconds between two looks at whether a window has used up its hits.
_STEP = 0.01
#: A window is opened when there is so much more of the budget than it should take.
_SPARE = 1.3
#: Seconds before the first window, in which the VM's use of CPU becomes known.
_WARM_UP = 1.0
#: Hits for a message, and the part of a server's time from which on they change what it does: its
#: callers wait longer and call less often. The same part of the CPU that the VM uses, where all its
#: servers together have much to do.
_HITS, _CHANGES, _SLOWS = 3, 0.05, 0.03
#: Windows without which nothing is told, nor with less than _SHORTEST of them together: a burst may
#: have used up their hits.
_FEWEST = 3
#: By how much a standard error from so many windows, from three on, is too small: Student's t,
#: 95 %, as a part of that of many. Two may agree by chance.
_FEW = (2.20, 1.62, 1.42, 1.31, 1.25, 1.21, 1.18, 1.15)
#: The part of the budget that is planned with.
_PLANNED = 0.75
_KINDS = ("calls", "casts", "infos")
_DURATIONS = ("queue", "service", "call")


class _Window(NamedTuple):
    """
    One window: its seconds, and messages by slot and kind, shape ``(slots, 3)``.

    ``reductions`` are those of the VM in it, None where they could not be read.
    """

    seconds: float
    reductions: float | None
    counts: NDArray[np.int64]


class _Scale(NamedTuple):
    """
    What counts of windows are multiplied by, and the error of that, as a part of it.

    ``changed`` is whether hooks change what the servers do: then not time, but the VM's reductions
    tell which part of its work was in windows, and durations in windows are not those outside.
    """

    factor: float
    doubt: float
    changed: bool


class Windows(Counting):
    """
    Counts the messages of servers in windows, so that hooks take *budget* of the VM's CPU at most.

    As :class:`Counting`; *duration* is that of the run, seconds, None for no end.
    """

    _whole = False
    #: What is taken between the end of a window and the reading of mailboxes counts as moved.
    _moved = 0.05

    def __init__(
        self,
        viewer: Viewer,
        stop: Stop,
        budget: float,
        duration: float | None,
        *,
        by_tag: bool = False,
    ) -> None:
        super().__init__(viewer, None, stop, by_tag=by_tag)
        self._budget, self._span = budget, duration or _SPAN
        self._windows: list[_Window] = []
        #: What was cut off, by kind of duration and slot.
        self._cut = np.zeros(
            (len(_DURATIONS), events.SERVER_SLOTS, events.SERVER_BUCKETS), np.int64
        )
        #: Hits a second while hooks were attached, and their seconds before and after a window.
        self._rate = self._around = 0.0
        #: The most hits a second of all windows.
        self._busiest = 0.0
        self._counters = ReferenceCounters(viewer.target)
        self._reductions_before: int | None = None
        self._reductions: int | None = None
        self._random = random.Random()  # noqa: S311 - when to look is no secret

    def begin(self) -> None:
        """Begin; the first window comes later."""
        self._cpu_before = cpu_seconds(self._viewer.target.pid) or 0.0
        self._began = time.monotonic_ns()
        self._reductions_before = self._read_reductions()
        self._next_look = time.monotonic() + _WARM_UP

    def _read_reductions(self) -> int | None:
        with suppress(ReadRefusedError, OSError):
            return self._counters.now().get("reductions")
        return None

    def look(self, now: float) -> None:
        """Open a window, if one is due and can be afforded; returns when it is over."""
        if now < self._next_look:
            return
        self._account()
        hit = (1 + PROGRAM) * (self._measurement.cost() or GUESS).entry
        left = _PLANNED * self._budget * self._used - self._seconds()
        seconds = self._length(hit)
        if left > self._rate * hit * (seconds + self._around) * _SPARE and left > 0:
            # Those before and after the window are not limited.
            self._observe(seconds, max(1, int(left / hit - self._rate * self._around)))
            self._learn_names()
            pause = self._span / (2 * _WINDOWS)
            self._next_look = time.monotonic() + self._random.uniform(0.0, pause)
        else:
            self._next_look = now + self._random.uniform(0.0, 2 * _STEP)

    def _length(self, hit: float) -> float:
        """Seconds of the next window, if a hit costs *hit* seconds."""
        if not self._windows:
            return _FIRST
        elapsed = max((time.monotonic_ns() - self._began) / 1e9, 1e-3)
        affordable = _PLANNED * self._budget * self._used / elapsed * self._span
        whole = affordable / max(self._rate * hit, 1e-9)
        return min(max(whole / _WINDOWS, _SHORTEST), _LONGEST)

    def _observe(self, seconds: float, hits: int) -> None:
        """Attach the hooks, count for *seconds* or *hits*, and take the hooks out."""
        before, first = self._hits(), time.monotonic()
        self._watch.attach()
        reductions, at = self._read_reductions(), time.monotonic()
        opened = self._watch.open_window(seconds, hits)
        end = opened + int(seconds * 1e9)
        while (left := end - time.monotonic_ns()) > 0 and not self._watch.is_over():
            time.sleep(min(left / 1e9, _STEP))
        closed = self._watch.close_window()
        now, elapsed = self._read_reductions(), time.monotonic() - at
        self._watch.release()
        # Hits before and after count as well: they cost the VM as much.
        lasted = max(time.monotonic() - first, 1e-3)
        waiting = self._leftovers.waiting()
        if reductions is not None and now is not None:
            self._reductions = now
            inside = (now - reductions) * (closed - opened) / 1e9 / max(elapsed, 1e-6)
        else:
            inside = None
        self._rate = (self._hits() - before) / lasted
        self._busiest = max(self._busiest, self._rate)
        self._around = max(0.0, lasted - (closed - opened) / 1e9)
        self._add_window(opened, closed, inside, waiting)

    def _add_window(
        self, opened: int, closed: int, reductions: float | None, waiting: NDArray[np.void]
    ) -> None:
        stats = self._watch.stats()
        counts = np.stack([stats[name].astype(np.int64) for name in _KINDS], axis=1)
        counts -= sum(window.counts for window in self._windows)
        self._windows.append(_Window(max(1, closed - opened) / 1e9, reductions, counts))
        calls = self._watch.open_calls()
        self._cut_off("call", calls["slot"], calls["sent_ns"], closed)
        # The server has work with a call also when its caller has given up.
        calls = np.concatenate([calls, self._watch.given_up_calls()])
        waits, works = calls["taken_ns"] == 0, calls["replied_ns"] == 0
        for kind, began, these in (
            ("queue", "queued_ns", calls[waits]),
            ("service", "taken_ns", calls[~waits & works]),
        ):
            self._cut_off(kind, these["server_slot"], these[began], closed)
        self._cut_off("queue", waiting["slot"], waiting["sent_ns"], closed)
        self._watch.forget_open()

    def _cut_in_queue(self, slot: int) -> int:
        return int(self._cut[_DURATIONS.index("queue"), slot].sum())

    def _cut_off(
        self, kind: str, slots: NDArray[np.void], began: NDArray[np.void], closed: int
    ) -> None:
        """Add what has lasted since *began*, ns, and was cut off when the window was *closed*."""
        lasted = np.maximum(closed - began.astype(np.int64), 0) / 1e9
        number = _DURATIONS.index(kind)
        np.add.at(self._cut[number], (slots.astype(np.int64), buckets_of(lasted)), 1)

    def end(self) -> None:
        """Take out what is still attached."""
        self._ended = time.monotonic_ns()
        now = self._read_reductions()
        self._reductions = self._reductions if now is None else now
        self._account()
        self._watch.detach()

    def result(self) -> ServerEvents:
        """What was seen, scaled up to the whole run; after :meth:`end`."""
        found = ServerEvents()
        self._finish(found)
        if len(self._windows) < _FEWEST or self._observed() < _SHORTEST:
            found.notes.append(
                "no rate can be told: the VM used so little CPU, or has so many messages, that the "
                f"budget paid for less than {_FEWEST} windows of {_SHORTEST * 1e3:g} ms together; "
                "--budget none counts everything"
            )
            return found
        found.notes.append(
            f"messages were seen in {len(self._windows)} windows of {self._observed():.3g} s "
            "together: rates are estimates"
        )
        stats = self._watch.stats()
        scales = self._scales(stats)
        for slot, scale in enumerate(scales):
            if slot not in self._callers:
                self._add(found, slot, self._estimate(stats[slot], slot, scale))
        for edge in self._watch.edges():
            total = self._edge(found, edge.caller, edge.callee)
            total.calls += edge.calls * scales[edge.callee].factor
        return found

    def _observed(self) -> float:
        return sum(window.seconds for window in self._windows)

    def _scales(self, stats: NDArray[np.void]) -> list[_Scale]:
        """How the messages of each slot are scaled up: as all of its module."""
        messages: dict[str, int] = {}
        for slot, one in enumerate(stats):
            name = self.name_of(slot)
            messages[name] = messages.get(name, 0) + sum(int(one[kind]) for kind in _KINDS)
        return [self._scale(messages[self.name_of(slot)]) for slot in range(len(stats))]

    def _slows(self, hit: float) -> bool:
        """Whether hooks, of *hit* seconds, slow all servers down: each waits for the others."""
        cores = self._used * 1e9 / max(1, self._ended - self._began)
        return self._busiest * hit >= _SLOWS * max(1.0, cores)

    def _scale(self, messages: int) -> _Scale:
        """How the *messages* of one module in windows are scaled up."""
        observed = self._observed()
        by_time = (self._ended - self._began) / 1e9 / observed
        hit = (1 + PROGRAM) * (self._measurement.cost() or GUESS).entry
        if messages / observed * _HITS * hit < _CHANGES and not self._slows(hit):
            return _Scale(by_time, 0.0, changed=False)
        inside = [window.reductions for window in self._windows if window.reductions]
        if len(inside) < len(self._windows) or None in (self._reductions, self._reductions_before):
            return _Scale(by_time, 1.0, changed=True)
        whole = (self._reductions or 0) - (self._reductions_before or 0)
        by_work = whole / sum(inside)
        doubt = abs(by_work - by_time) / (2 * max(by_work, by_time))
        return _Scale(by_work, doubt, changed=True)

    def _estimate(self, stats: np.void, slot: int, scale: _Scale) -> Messages:
        """What was counted in all windows of one module, scaled up."""
        reach = max(window.seconds for window in self._windows)
        times = [
            Times(
                stats[name].astype(np.int64),
                int(stats[f"{name}_ns"]) / 1e9,
                self._cut[number, slot],
                reach,
            )
            for number, name in enumerate(_DURATIONS)
        ]
        queue, service, call = [one.unknown() for one in times] if scale.changed else times
        if self._are_moved(slot, stats):
            queue = queue.unknown()
        calls, casts, infos = (round(int(stats[name]) * scale.factor) for name in _KINDS)
        errors = [self._error(slot, number, scale) for number in range(len(_KINDS))]
        return Messages(
            (self._ended - self._began) / 1e9,
            calls,
            casts,
            infos,
            queue,
            service,
            call,
            None,
            None,
            None,
            (errors[0], errors[1], errors[2]),
        )

    def _error(self, slot: int, kind: int, scale: _Scale) -> float:
        sizes = [
            (window.reductions if scale.changed else None) or window.seconds
            for window in self._windows
        ]
        found = error_of(sizes, [int(window.counts[slot, kind]) for window in self._windows])
        return max(found, scale.doubt) if found else 0.0


def error_of(sizes: list[float], counts: list[int]) -> float:
    """
    The standard error of a rate, as a part of it, from the *counts* in windows of *sizes*.

    It is that of the ratio of their sums, larger where windows are few, and at least that of a
    count of what is independent; 1 at most, also of less than three windows and where one alone has
    seen anything; 0 where nothing was seen.
    """
    total = sum(counts)
    if not total:
        return 0.0
    if len(counts) < 3 or sum(count > 0 for count in counts) < 2:
        return 1.0
    rate, windows = total / sum(sizes), len(counts)
    squares = sum((n - rate * s) ** 2 for n, s in zip(counts, sizes, strict=True))
    between = (squares * windows / (windows - 1)) ** 0.5 / total
    few = _FEW[windows - 3] if windows - 3 < len(_FEW) else 1.0
    return float(min(1.0, max(few * between, total**-0.5)))
