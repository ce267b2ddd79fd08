# SPDX-License-Identifier: Apache-2.0
"""
Messages of servers within a budget: hooks are attached for moments, the rest is estimated.

What begins within a window is followed to the window's end. What is still under way then was cut
off at its age: from both, Kaplan and Meier's estimate tells how durations are distributed, as far
as windows reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.kernel.cost import GUESS
from scope_ebpf.results.server_events import Messages, ServerEvents, Times, bucket_of
from scope_ebpf.runs.moments import Moments
from scope_ebpf.runs.server_events import PROGRAM, Counting
from scope_ebpf.runs.target_cost import cpu_seconds

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

    def __init__(self, viewer: Viewer, stop: Stop, budget: float, duration: float | None) -> None:
        super().__init__(viewer, None, stop)
        plan = budget, duration
        self._moments = Moments(viewer.target, self._watch, plan, self._hits, self._window)
        #: What was cut off, by kind of duration and slot.
        self._cut = np.zeros(
            (len(_DURATIONS), events.SERVER_SLOTS, events.SERVER_BUCKETS), np.int64
        )

    def begin(self) -> None:
        """Begin; the first window comes later."""
        self._cpu_before = cpu_seconds(self._viewer.target.pid) or 0.0
        self._moments.begin()

    def look(self, now: float) -> None:
        """Open a window, if one is due and can be afforded; returns when it is over."""
        if not self._moments.is_due(now):
            return
        self._account()
        if self._moments.look(now, self._used, self._seconds(), self._hit()):
            self._learn_names()

    def _hit(self) -> float:
        """Seconds that a hit takes of the VM's CPU."""
        return (1 + PROGRAM) * (self._measurement.cost() or GUESS).entry

    def _window(self, _opened: int, closed: int) -> NDArray[np.int64]:
        """Messages by slot and kind in all windows until now; what is open is cut off."""
        for call in self._watch.open_calls():
            slot, sent, taken = (int(call[name]) for name in ("slot", "sent_ns", "taken_ns"))
            self._cut_off("call", slot, closed - sent)
            if not taken:
                self._cut_off("queue", slot, closed - sent)
            elif not call["replied_ns"]:
                self._cut_off("service", slot, closed - taken)
        for message in self._watch.waiting_messages():
            self._cut_off("queue", int(message["slot"]), closed - int(message["sent_ns"]))
        self._watch.forget_open()
        stats = self._watch.stats()
        return np.stack([stats[name].astype(np.int64) for name in _KINDS], axis=1)

    def _cut_off(self, kind: str, slot: int, ns: int) -> None:
        if slot < events.SERVER_SLOTS:
            self._cut[_DURATIONS.index(kind), slot, bucket_of(max(0, ns) / 1e9)] += 1

    def end(self) -> None:
        """Take out what is still attached."""
        self._moments.end()
        self._account()
        self._watch.detach()

    def result(self) -> ServerEvents:
        """What was seen, scaled up to the whole run; after :meth:`end`."""
        found = ServerEvents()
        self._finish(found)
        if not self._moments.windows:
            found.notes.append(
                "no message was counted: the VM used so little CPU that the budget paid for no "
                "window; --budget none counts everything"
            )
            return found
        found.notes.append(
            f"messages were seen in {len(self._moments.windows)} windows of "
            f"{self._moments.observed:.3g} s together: rates are estimates"
        )
        stats = self._watch.stats()
        scales = {}
        for slot in range(len(stats)):
            if slot not in self._callers:
                scales[slot] = self._scale(stats[slot])
                self._add(found, slot, self._estimate(stats[slot], slot, scales[slot]))
        for edge in self._watch.edges():
            total = self._edge(found, edge.caller, edge.callee)
            total.calls += edge.calls * scales[edge.callee].factor
        return found

    def _scale(self, stats: np.void) -> Scale:
        """How the messages of one module in windows are scaled up."""
        messages = sum(int(stats[name]) for name in _KINDS)
        changed = messages / self._moments.observed * _HITS * self._hit() >= _CHANGES
        return self._moments.scale(changed=changed)

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
        calls, casts, infos = (round(int(stats[name]) * scale.factor) for name in _KINDS)
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
        )
