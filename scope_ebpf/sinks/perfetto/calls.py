# SPDX-License-Identifier: Apache-2.0
"""Calls of servers: a slice from request to answer, in it its time in queue and server."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from scope_ebpf.capture.calls import Calls
from scope_ebpf.capture.legs import LEGS
from scope_ebpf.sinks.perfetto.tracks import CALL, CALLS, VM
from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.capture.calls import Call
    from scope_ebpf.capture.legs import RemoteCall
    from scope_ebpf.sinks.perfetto.tracks import Tracks

#: Tracks for calls, so many can be under way at a time; others are counted and not drawn.
_MOST = 512


class DrawnCalls:
    """Draws the calls of a capture on tracks of their own, none of which has two at a time."""

    def __init__(self, tracks: Tracks, remote: Mapping[int, RemoteCall]) -> None:
        self._tracks, self._remote = tracks, remote
        self._file = tracks.file
        self._calls = Calls()
        #: Tracks by the end of their last call.
        self._free: list[tuple[int, int]] = []
        self._made = 0
        self.drawn = self.left_out = 0

    def write(self, batch: NDArray[np.void]) -> None:
        """Draw the calls that end in a batch, in the order in which they began."""
        for call in sorted(self._calls.records(batch), key=lambda call: call.sent_ns):
            self._draw(call)

    def _draw(self, call: Call) -> None:
        track = self._track(call)
        if track is None:
            self.left_out += 1
            return
        heapq.heappush(self._free, (call.ended_ns, track))
        self.drawn += 1
        shift = self._tracks.to_boot
        who, server = self._tracks.name(call.server) if call.server else ("on another node", "-")
        facts = {"from": self._tracks.name(call.caller)[1], "to": server}
        if call.down:
            facts["ended"] = "down"
        begin, end = call.sent_ns + shift, call.ended_ns + shift
        self._file.slice(track, begin, end, f"call {who}", facts=facts)
        if call.remote and (found := self._remote.get(call.reference)):
            self._draw_legs(track, found)
        if call.taken_ns:
            self._file.slice(track, begin, call.taken_ns + shift, "queue")
        if call.taken_ns and call.replied_ns:
            self._file.slice(track, call.taken_ns + shift, call.replied_ns + shift, "service")

    def _draw_legs(self, track: int, call: RemoteCall) -> None:
        times = [time + self._tracks.to_boot if time else 0 for time in call.moments()]
        node = {"node": plain(call.target.name)} if call.target else None
        for leg, begin, end in zip(LEGS, times, times[1:], strict=False):
            if begin and end:
                self._file.slice(track, begin, end, leg.replace("_", " "), facts=node)

    def _track(self, call: Call) -> int | None:
        """A track whose last call ended before this one began."""
        free = [item for item in self._free if item[0] <= call.sent_ns]
        if free:
            best = max(free)
            self._free.remove(best)
            return best[1]
        if self._made >= _MOST:
            return None
        if not self._made:
            self._file.describe(self._file.track(CALLS, VM, "calls"))
        self._made += 1
        self._file.describe(self._file.track(CALL + self._made, CALLS, "calls", self._made))
        return CALL + self._made
