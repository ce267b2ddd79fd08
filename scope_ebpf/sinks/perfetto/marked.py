# SPDX-License-Identifier: Apache-2.0
"""Calls of marked functions: nested slices on a track below that of their process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scope_ebpf.capture.marked import MarkedCalls
from scope_ebpf.sinks.perfetto.tracks import MARKED, PROCESS
from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.capture.marked import MarkedCall
    from scope_ebpf.sinks.perfetto.tracks import Tracks


class DrawnMarks:
    """Draws the marked calls of the processes that have tracks of their own."""

    def __init__(self, tracks: Tracks) -> None:
        self._tracks, self._file, self._terms = tracks, tracks.file, tracks.terms
        self._calls = MarkedCalls()
        self._described: set[int] = set()
        #: Calls of processes without a track.
        self.left_out = 0

    def write(self, batch: NDArray[np.void]) -> None:
        """Draw the calls that end in a batch."""
        for call in self._calls.records(batch):
            self._draw(call)

    def finish(self) -> None:
        """Draw the calls that had not ended when the capture did."""
        for call in self._calls.running():
            self._draw(call)

    def _draw(self, call: MarkedCall) -> None:
        process = self._tracks.process(call.process)
        if process is None:
            self.left_out += 1
            return
        track = process - PROCESS + MARKED
        if track not in self._described:
            self._described.add(track)
            self._file.describe(self._file.track(track, process, "marked calls"))
        name = self._terms.marked(call.function) or f"function {call.function:#x}"
        facts: dict[str, Any] = {"end": call.end}
        if not name.endswith("/0"):  # else anything is in the register of the first argument
            facts |= self._atom("tag", call.tag)
        facts |= self._atom("returned", call.returned)
        if caller := self._terms.function(call.caller):
            facts["caller"] = plain(caller)
        shift = self._tracks.to_boot
        end = call.ended_ns + shift if call.ended_ns else None
        self._file.slice(track, call.began_ns + shift, end, plain(name), facts=facts)

    def _atom(self, label: str, term: int) -> dict[str, str]:
        (text,) = self._terms.texts([term], text_pids=False) if term else [None]
        return {label: plain(text)} if text is not None else {}
