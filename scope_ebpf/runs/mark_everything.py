# SPDX-License-Identifier: Apache-2.0
"""Every call of marked functions counted, and reported one by one if that is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.results.server_events import Times
from scope_ebpf.runs.mark_run import INTERVAL, MarkRun
from scope_ebpf.runs.target_cost import say_braked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.results.marks import End, Kind, Marks
    from scope_ebpf.runs.mark_stream import MarkStream

#: Seconds that a turn takes lines of a stream, so that no more than half a CPU goes to them and a
#: run that must end does; and seconds for lines that are left at the end, and for calls that are.
_SLICE, _LAST = 0.05, 0.5
#: The part of a function's calls that found no room, from which on the durations of the others are
#: not those of all.
_UNFOLLOWED = 0.01


class Everything(MarkRun):
    """Counts every call."""

    #: Lines of the ring that were dropped when the run ended, and calls that were not reported.
    _dropped = _untold = 0

    def begin(self) -> None:
        """Attach the hooks, then count."""
        self._watch.attach()
        super().begin()
        self._began = self._watch.open_window()

    def turn(self, now: float) -> None:
        """Follow new code, and end the run if it costs too much."""
        if now >= self._next_look:
            self._next_look = now + INTERVAL
            self._look(now)
        if self._stream is not None and not self._stop.reason:
            self._stream.take(self._watch.lines(), _SLICE)

    def _look(self, now: float) -> None:
        self._cpu.update()
        hits = self._hits()
        if self._brake.add(now, lambda: hits * self._hit(), self._cpu.seconds):
            say_braked(self._brake)
            self._stop.ask("cost")
        else:
            self._follow_code()

    def end(self) -> None:
        """Count no longer; what was open of processes that were gone by then has failed."""
        ended = self._ended_processes()
        self._ended = self._watch.close_window()
        self._cpu.update()
        self._watch.detach()
        if self._stream is not None:
            self._end_stream(self._stream, ended)
        self._open_at_end = None if ended is None else self._still_open(ended)

    def _end_stream(self, stream: MarkStream, ended: set[int] | None) -> None:
        """Tell what there is time for, and count the rest."""
        stream.take(self._watch.lines(), _LAST)
        self._dropped = self._watch.drop_lines()
        self._untold = stream.end(self._ends(ended), _LAST)

    def _note(self, found: Marks) -> None:
        super()._note(found)
        if self._dropped:
            found.notes.append(
                f"{self._dropped} begins or ends of calls were not read before the run ended"
            )
        if self._untold:
            found.notes.append(
                f"{self._untold} calls whose end was not read have no line: the run had ended"
            )

    def _ends(self, ended: set[int] | None) -> dict[tuple[int, int], End]:
        """What became of calls that are open, by process and when they began."""
        if ended is None:
            return {}
        return {
            (call.process, call.began_ns): "running"
            if call.process not in ended
            else "failed"
            if call.is_callback
            else "left"
            for call in self._watch.open_calls()
        }

    def _still_open(self, ended: set[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Open calls by slot: those that may be under way, and callbacks of *ended* processes."""
        running, failed = np.zeros((2, events.MARK_SLOTS), np.int64)
        for call in self._watch.open_calls():
            if call.process not in ended:
                running[call.slot] += 1
            elif call.is_callback:
                failed[call.slot] += 1
        return running, failed

    def _seconds(self) -> float:
        return (self._ended - self._began) / 1e9

    def _row(self, stats: Any, slot: int, kind: Kind) -> dict[str, Any]:
        times = Times(stats["durations"].astype(np.int64), int(stats["ns"]) / 1e9)
        if stats["unfollowed"] >= _UNFOLLOWED * stats["calls"] > 0:
            times = times.unknown()
        # A function that is no callback may end in a tail call, of which there is no marker.
        ends = None
        if kind == "callback" and not stats["unfollowed"]:
            ends = self._open_at_end
        return {
            "calls": int(stats["calls"]),
            "error": 0.0,
            "failures": int(stats["failures"]) + int(ends[1][slot]) if ends else None,
            "running": int(ends[0][slot]) if ends else None,
            "timed": int(stats["timed"]),
            "times": times,
        }

    def _others(self) -> int:
        return int(self._watch.stats()[0]["calls"])
