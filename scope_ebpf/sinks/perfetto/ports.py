# SPDX-License-Identifier: Apache-2.0
"""Ports that were busy, each on a track of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf import events
from scope_ebpf.sinks.perfetto.tracks import BUSY, PORT, VM
from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    from scope_ebpf.sinks.perfetto.rows import Row
    from scope_ebpf.sinks.perfetto.tracks import Tracks

#: Ports that have a track of their own.
_PORTS = 64
_BUSY = events.KINDS["port_busy"].classes.index("busy")


class Ports:
    """Draws the first ports that were busy on tracks of their own."""

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = tracks
        self._file = tracks.file
        self._ports: dict[int, int] = {}

    def busy(self, row: Row) -> None:
        """A port became busy, or was no longer."""
        port = row.words[0]
        if port not in self._ports:
            if len(self._ports) >= _PORTS or row.cls != _BUSY:
                return
            if not self._ports:
                self._file.describe(self._file.track(BUSY, VM, "busy ports"))
            name = plain(str(self._tracks.terms.texts([port], text_pids=False)[0]))
            track = self._file.track(PORT + len(self._ports), BUSY, name)
            self._file.describe(track)
            self._ports[port] = 0
        begin, track_of = self._ports[port], PORT + list(self._ports).index(port)
        if row.cls == _BUSY:
            self._ports[port] = begin or row.time
        elif begin:
            owner = {"owner": self._tracks.name(row.process)[1]}
            self._file.slice(track_of, begin, row.time, "busy", facts=owner)
            self._ports[port] = 0

    def finish(self) -> None:
        """Draw what had not ended when the capture did."""
        for number, (port, begin) in enumerate(self._ports.items()):
            if begin:
                self._file.slice(PORT + number, begin, None, "busy")
                self._ports[port] = 0
