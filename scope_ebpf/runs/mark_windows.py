# SPDX-License-Identifier: Apache-2.0
"""
Calls of marked functions within a budget: hooks are attached for moments, the rest is estimated.

Calls that begin in a moment are followed to its end. What is still under way then was cut off at
its age: Kaplan and Meier's estimate gives durations from both, as far as moments reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.results.server_events import Times, bucket_of
from scope_ebpf.runs.mark_run import INTERVAL, MarkRun
from scope_ebpf.runs.moments import Moments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.results.marks import Kind, MarkedCalls, Marks
    from scope_ebpf.runs.moments import Scale

#: The part of a CPU from which on hooks change how fast a VM works, and how long a function takes.
_CHANGES = 0.05


class InMoments(MarkRun):
    """Counts calls in moments, so that hooks keep within the budget."""

    def _open(self) -> None:
        super()._open()
        plan = self._options.budget, self._options.duration
        self._moments = Moments(self._target, self._watch, plan, self._hits, self._window)
        #: Whether it was known of each window which calls were under way at its end.
        self._followed = True
        #: The error of all functions on average, where windows are few.
        self._average = 0.0
        #: What was cut off, by slot.
        self._cut = np.zeros((events.MARK_SLOTS, events.SERVER_BUCKETS), np.int64)

    def begin(self) -> None:
        """Begin; the first window comes later."""
        super().begin()
        self._moments.begin()

    def turn(self, now: float) -> None:
        """Follow new code; open a window, if one is due and can be afforded."""
        if now >= self._next_look:
            self._next_look = now + INTERVAL
            self._follow_code()
        if not self._moments.is_due(now):
            return
        self._cpu.update()
        hit = self._hit()
        self._moments.look(now, self._cpu.seconds, self._hits() * hit, hit)

    def _window(self, _opened: int, closed: int) -> NDArray[np.int64]:
        """Calls by slot in all windows until now; what is under way is cut off."""
        ended = self._ended_processes()
        self._followed &= ended is not None
        for call in self._watch.open_calls():
            if call.process in (ended or ()):
                continue  # it has failed
            age = max(0, closed - call.began_ns) / 1e9
            self._cut[call.slot, bucket_of(age)] += 1
        self._watch.forget_open()
        return self._watch.stats()["calls"].astype(np.int64)

    def end(self) -> None:
        """Take out what is still attached."""
        self._moments.end()
        self._cpu.update()
        self._watch.detach()
        self._scale = self._scaled() if self._moments.enough else None
        if self._scale:
            counts = np.sum([window.counts for window in self._moments.windows], axis=0)
            places = np.flatnonzero(counts).tolist()
            self._average = self._moments.average_error(self._scale, places)

    def _scaled(self) -> Scale:
        """How counts are scaled up: also hits of markers that are not counted slow the VM down."""
        hit = self._hit()
        changed = self._moments.rate * hit >= _CHANGES or self._moments.slows(
            self._cpu.seconds, hit
        )
        return self._moments.scale(changed=changed)

    def _rows(self) -> list[MarkedCalls]:
        return super()._rows() if self._scale else []

    def _others(self) -> int:
        factor = self._scale.factor if self._scale else 0.0
        return round(int(self._watch.stats()[0]["calls"]) * factor)

    def _seconds(self) -> float:
        return self._moments.seconds

    def _row(self, stats: Any, slot: int, kind: Kind) -> dict[str, Any]:
        if (scale := self._scale) is None:
            raise ValueError("too few windows: no figure")
        observed = self._moments.observed
        hits = int(stats["hits"]) + int(stats["timed"])
        times = Times(
            stats["durations"].astype(np.int64),
            int(stats["ns"]) / 1e9,
            self._cut[slot],
            self._moments.longest,
            0.0,
        )
        # Calls that found no room, or ended in a tail call, did not take longer than a window.
        unknown = kind != "callback" or stats["unfollowed"] or scale.by_work or not self._followed
        changed = hits / observed * self._hit() >= _CHANGES
        return {
            "calls": round(int(stats["calls"]) * scale.factor),
            "error": max(self._moments.error(scale, slot), self._average),
            "failures": None,
            "running": None,
            "timed": int(stats["timed"]),
            "times": times.unknown() if unknown or changed else times,
        }

    def result(self) -> Marks:
        """What was counted, scaled up to the whole run."""
        found = super().result()
        windows = self._moments.windows
        found.sampling_ratio = self._moments.observed / found.seconds
        if self._scale is None:
            found.notes.append(self._moments.why)
            return found
        for row in found.functions:
            for counts in (row.tags or {}, row.returned or {}, row.callers or {}):
                counts.update({k: round(n * self._scale.factor) for k, n in counts.items()})
        found.notes.append(
            f"calls were seen in {len(windows)} windows of {self._moments.observed:.3g} s "
            "together: rates are estimates, failures are not known"
        )
        return found
