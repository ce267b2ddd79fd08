# SPDX-License-Identifier: Apache-2.0
"""Messages: an instant where each is sent and where it is received, and the arrow between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.capture.flows import Flows

if TYPE_CHECKING:
    from collections.abc import Collection

    from scope_ebpf.sinks.perfetto.processes import Processes
    from scope_ebpf.sinks.perfetto.rows import Row
    from scope_ebpf.sinks.perfetto.tracks import Tracks


class Messages:
    """Draws messages on *tracks*; calls *processes* for each receiver that a message wakes."""

    def __init__(self, tracks: Tracks, processes: Processes, nodes: Collection[int]) -> None:
        self._tracks = tracks
        self._file = tracks.file
        self._processes = processes
        self.flows = Flows(nodes)

    def send(self, row: Row) -> None:
        """A message was sent."""
        receiver, message = row.words[0], row.words[2]
        number = self.flows.send(row.process, receiver, message)
        facts = {"to": self._tracks.name(receiver)[1]} if receiver else None
        self._file.instant(self._tracks.track_of(row), row.time, "send", facts=facts, begins=number)
        self._processes.woken(receiver, row.time)

    def receive(self, row: Row) -> None:
        """A message was received."""
        message, _, sender = row.words[:3]
        number = self.flows.receive(row.process, message, sender)
        facts = {"from": self._tracks.name(sender)[1]} if sender else None
        self._file.instant(
            self._tracks.track_of(row), row.time, "receive", facts=facts, ends=number
        )
