# SPDX-License-Identifier: Apache-2.0
"""
Messages of servers within a budget: hooks are attached for moments, the rest is estimated.

What begins within a window is followed to the window's end. What is still under way then was cut
off at its age: from both, Kaplan and Meier's estimate says how durations are distributed, as far
as windows reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.kernel.cost import GUESS
from scope_ebpf.results.server_events import Messages, ServerEvents, Times, buckets_of
from scope_ebpf.runs.moments import Moments
from scope_ebpf.runs.server_events import PROGRAM, Counting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.runs.loop import Stop
    from scope_ebpf.runs.moments import Scale

#: Hits for a message, and the part of a server's time from which on they change what it does: its
#: callers wait longer and call less often.
_HITS, _CHANGES = 3, 0.05
_KINDS = ("calls", "casts", "infos")
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
        self._moments = Moments(viewer.target, self._watch, plan, self._hits, self._counts)
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
        """Messages by slot and kind in all windows, ``(slots, 3)``; what is open is cut off."""
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
        stats = self._watch.stats()
        return np.stack([stats[name].astype(np.int64) for name in _KINDS], axis=1)

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
        found.notes.append(
            f"messages were seen in {len(self._moments.windows)} windows of "
            f"{self._moments.observed:.3g} s together: rates are estimates"
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

    def _scales(self, stats: NDArray[np.void]) -> list[Scale]:
        """How the messages of each slot are scaled up: as all of its module."""
        messages: dict[str, int] = {}
        for slot, one in enumerate(stats):
            name = self.name_of(slot)
            messages[name] = messages.get(name, 0) + sum(int(one[kind]) for kind in _KINDS)
        return [self._scale(messages[self.name_of(slot)]) for slot in range(len(stats))]

    def _scale(self, messages: int) -> Scale:
        """How the *messages* of one module in windows are scaled up."""
        hit = self._hit()
        changed = messages / self._moments.observed * _HITS * hit >= _CHANGES
        return self._moments.scale(changed=changed or self._moments.slows(self._cpu.seconds, hit))

    def _estimate(self, stats: np.void, slot: int, scale: Scale) -> Messages:
        """What was counted in all windows of one module, scaled up."""
        reach = self._moments.longest
        times = [
            Times(
                stats[name].astype(np.int64),
                int(stats[f"{name}_ns"]) / 1e9,
                self._cut[number, slot],
                reach,
            )
            for number, name in enumerate(_DURATIONS)
        ]
        queue, service, call = [one.unknown() for one in times] if scale.by_work else times
        if self._are_moved(slot, stats):
            queue = queue.unknown()
        calls, casts, infos = (round(int(stats[name]) * scale.factor) for name in _KINDS)
        followed = int(times[2].ended.sum() + self._cut[2, slot].sum())
        errors = [self._moments.error(scale, (slot, number)) for number in range(len(_KINDS))]
        return Messages(
            self._moments.seconds,
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
            min(calls, round(followed * scale.factor)),
        )
