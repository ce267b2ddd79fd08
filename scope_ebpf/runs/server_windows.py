# SPDX-License-Identifier: Apache-2.0
"""
Messages of servers within a budget: hooks are attached for moments, the rest is estimated.

What begins within a window is followed to the window's end. What is still under way then was cut
off at its age: from both, Kaplan and Meier's estimate says how durations are distributed, as far
as windows reach. Light windows see sends alone, a hit of a call instead of four: they count calls
and casts of this node, and who calls whom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.kernel.cost import GUESS
from scope_ebpf.results.server_events import (
    Messages,
    ServerEvents,
    Times,
    buckets_of,
    error_of_both,
)
from scope_ebpf.runs.moments import Moments, are_enough
from scope_ebpf.runs.server_events import PROGRAM, Counting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.runs.loop import Stop
    from scope_ebpf.runs.moments import Scale, Window

#: Hits for a message, and the part of a server's time from which on they change what it does: its
#: callers wait longer and call less often.
_HITS, _CHANGES = 3, 0.05
#: What is counted in windows of a slot: in all of them, and in those alone that are not light.
_COUNTS = ("calls", "sent_casts", "remote_calls", "remote_casts", "infos")
_DURATIONS = ("queue", "service", "call")


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
        plan = budget, duration
        self._moments = Moments(
            viewer.target, self._watch, plan, self._hits, self._counts, light=True
        )
        #: Errors of counts, on average over modules, by how they are scaled up.
        self._average: dict[tuple[Scale, int, int], float] = {}
        #: What was cut off, by kind of duration and slot.
        self._cut = np.zeros(
            (len(_DURATIONS), events.SERVER_SLOTS, events.SERVER_BUCKETS), np.int64
        )

    def begin(self) -> None:
        """Begin; the first window comes later."""
        self._cpu.begin()
        self._moments.begin()

    def look(self, now: float) -> None:
        """Open a window, if one is due and can be afforded; returns when it is over."""
        if not self._moments.is_due(now):
            return
        self._cpu.update()
        if self._moments.look(now, self._cpu.seconds, self._seconds(), self._hit()):
            self._learn_names()

    def _hit(self) -> float:
        """Seconds that a hit takes of the VM's CPU."""
        return (1 + PROGRAM) * (self._measurement.cost() or GUESS).entry

    def _counts(self, _opened: int, closed: int) -> NDArray[np.int64]:
        """Messages by slot and kind in all windows, ``(slots, 5)``; what is open is cut off."""
        if not self._moments.light:
            self._follow(closed)
        return _counted(self._watch.stats())

    def _follow(self, closed: int) -> None:
        """Cut off what was open when a window was *closed*."""
        waiting = self._leftovers.waiting()
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
        self._moments.end()
        self._cpu.update()
        self._watch.detach()

    def result(self) -> ServerEvents:
        """What was seen, scaled up to the whole run; after :meth:`end`."""
        found = ServerEvents()
        self._finish(found)
        if not self._moments.enough:
            found.notes.append(self._moments.why)
            return found
        found.notes += self._notes()
        stats = self._watch.stats()
        counts = _counted(stats)
        changed = self._changed(counts)
        for slot, one in enumerate(stats):
            if slot not in self._callers and counts[slot].any():
                self._add(found, slot, self._estimate(one, slot, counts[slot], changed[slot]))
        for edge in self._watch.edges():
            total = self._edge(found, edge.caller, edge.callee)
            scale = self._moments.scale(changed=changed[edge.callee])
            total.calls += edge.calls * scale.factor
        return found

    def _notes(self) -> list[str]:
        """What was seen how long."""
        windows, whole = self._moments.windows, self._moments.whole
        seen = (
            f"messages were seen in {len(windows)} windows of {self._moments.observed:.3g} s "
            "together: rates are estimates"
        )
        if are_enough(whole):
            return [seen]
        alone = (
            "the budget paid for calls and casts of this node alone: other messages and times are "
            "not known"
        )
        return [seen, alone]

    def _changed(self, counts: NDArray[np.int64]) -> list[bool]:
        """By slot, whether hooks change what its module does."""
        messages: dict[str, int] = {}
        for slot, one in enumerate(counts):
            name = self.name_of(slot)
            messages[name] = messages.get(name, 0) + int(one.sum())
        hit = self._hit()
        slows = self._moments.slows(self._cpu.seconds, hit)
        most = _CHANGES * self._moments.observed / (_HITS * hit)
        return [slows or messages[self.name_of(slot)] >= most for slot in range(len(counts))]

    def _estimate(
        self, stats: np.void, slot: int, counts: NDArray[np.int64], changed: bool
    ) -> Messages:
        """What was counted in all windows of one module, scaled up."""
        reach, whole = self._moments.longest, self._moments.whole
        # Of all kinds: each of them has some of the durations.
        scale = self._moments.scale(changed=False)
        bursts = self._moments.error(scale, (slot, slice(None)), whole)
        times = [
            Times(
                stats[name].astype(np.int64),
                int(stats[f"{name}_ns"]) / 1e9,
                self._cut[number, slot],
                reach,
                bursts=bursts,
            )
            for number, name in enumerate(_DURATIONS)
        ]
        queue, service, call = [one.unknown() for one in times] if changed else times
        if self._are_moved(slot, stats):
            queue = queue.unknown()
        scale = self._moments.scale(changed=changed)
        numbers = [round(int(count) * scale.factor) for count in counts]
        errors = [self._error(scale, slot, number) for number in range(len(_COUNTS))]
        known = are_enough(whole)
        of = self._moments.scale(changed=changed, windows=whole) if known else None
        for number in range(_COUNTS.index("remote_calls"), len(_COUNTS)):
            numbers[number] = round(int(counts[number]) * of.factor) if of else 0
            errors[number] = self._error(of, slot, number, whole) if of else 0.0
        calls, casts, remote_calls, remote_casts, infos = numbers
        return Messages(
            self._moments.seconds,
            calls + remote_calls,
            casts + remote_casts,
            infos if known else None,
            queue,
            service,
            call,
            None,
            None,
            None,
            (
                error_of_both(calls, remote_calls, errors[0], errors[2]),
                error_of_both(casts, remote_casts, errors[1], errors[3]),
                errors[4],
            ),
            calls,
        )

    def _error(
        self, scale: Scale, slot: int, number: int, windows: list[Window] | None = None
    ) -> float:
        """The error of one count of _COUNTS of a module, of few windows that of all at least."""
        windows = self._moments.windows if windows is None else windows
        key = scale, number, len(windows)
        if key not in self._average:
            counts = np.sum([window.counts[:, number] for window in windows], axis=0)
            places = [(int(slot), number) for slot in np.flatnonzero(counts)]
            self._average[key] = self._moments.average_error(scale, places, windows)
        return max(self._moments.error(scale, (slot, number), windows), self._average[key])


def _counted(stats: NDArray[np.void]) -> NDArray[np.int64]:
    """The counts of _COUNTS by slot, of which the first two are those of this node."""
    found = np.stack([stats[name].astype(np.int64) for name in _COUNTS], axis=1)
    found[:, 0] -= found[:, 2]
    return found
