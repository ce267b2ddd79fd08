# SPDX-License-Identifier: Apache-2.0
"""Several nodes in one timeline: each with numbers of its own, and arrows between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scope_ebpf import events
from scope_ebpf.sinks.perfetto.rows import TEXT_PID
from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scope_ebpf.capture.merging import Link, Node
    from scope_ebpf.capture.survey import Key
    from scope_ebpf.sinks.perfetto.file import PerfettoFile
    from scope_ebpf.sinks.perfetto.rows import Row
    from scope_ebpf.sinks.perfetto.tracks import Tracks

#: Bits of the numbers of one node's tracks and flows, and of its pids (Linux's PID_MAX_LIMIT).
_NUMBERS, _PIDS = 48, 22
#: Numbers of arrows between nodes: this, the number of the link, that of the packet.
BETWEEN, _LINK = 1 << 62, 40
_OUT, _IN = (events.KINDS[name].id for name in ("dist_out", "dist_in"))
_CLASSES = events.KINDS["dist_out"].classes
_HALF, _CONNECTION = (1 << 32) - 1, (1 << 16) - 1


class NodeFile:
    """
    A timeline's *file* for the node at *place*, from 1: what it writes collides with no other one.

    The kernel's scheduling is left out: CPUs of several hosts would be one.
    """

    def __init__(self, file: PerfettoFile, place: int) -> None:
        self._file, self._base = file, place << _NUMBERS
        self._pids = place << _PIDS
        self.pb = file.pb

    @property
    def packets(self) -> int:
        """How many packets the file has."""
        return self._file.packets

    def track(self, uuid: int, parent: int = 0, name: str = "", rank: int = 0) -> Any:
        """As that of the file."""
        return self._file.track(self._base + uuid, self._base + parent if parent else 0, name, rank)

    def describe(self, track: Any) -> None:
        """Write a track's descriptor, with a pid that only this node has."""
        for field in ("process", "thread"):
            if track.HasField(field):
                part = getattr(track, field)
                part.pid = self._own(part.pid)
                if field == "thread":
                    part.tid = self._own(part.tid)
        self._file.describe(track)

    def _own(self, pid: int) -> int:
        return self._pids | pid & ((1 << _PIDS) - 1)

    def slice(
        self,
        track: int,
        begin: int,
        end: int | None,
        name: str,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """As that of the file."""
        self._file.slice(self._base + track, begin, end, name, facts=facts)

    def instant(
        self,
        track: int,
        time: int,
        name: str,
        *,
        facts: dict[str, Any] | None = None,
        begins: int = 0,
        ends: int = 0,
    ) -> None:
        """As that of the file; flows between nodes keep their numbers."""
        begins, ends = (
            flow if not flow or flow >= BETWEEN else self._base + flow for flow in (begins, ends)
        )
        self._file.instant(self._base + track, time, name, facts=facts, begins=begins, ends=ends)

    def counter(self, track: int, time: int, value: int) -> None:
        """As that of the file."""
        self._file.counter(self._base + track, time, value)

    def scheduling(self, cpu: int, events: Iterable[tuple[int, int, str, Any]]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


class Packets:
    """Draws the packets of one node, with an arrow from where each was sent to where it came in."""

    def __init__(
        self,
        tracks: Tracks,
        node: Node | None = None,
        links: Sequence[Link] = (),
        otherwise: Callable[[Row], None] = lambda _row: None,
    ) -> None:
        self._tracks, self._otherwise = tracks, otherwise
        self._links: dict[Key, tuple[int, Link]] = {}
        for number, link in enumerate(links):
            if link.received is None or link.refused:
                continue
            if link.source is node:
                self._links[link.sent] = number, link
            if link.target is node:
                self._links[link.received] = number, link
        # Packets name their senders as texts do.
        self._shown = {tracks.name(pid)[1]: pid for pid in tracks.shown} if self._links else {}

    def packet(self, row: Row) -> None:
        """A packet was sent or has come in."""
        out = row.kind == _OUT
        at = 2 if out else 1
        key = (
            "dist_out" if out else "dist_in",
            row.words[0],
            row.words[at + 1] >> 32 & _CONNECTION,
        )
        number, link = self._links.get(key, (0, None))  # type: ignore[call-overload]
        if link is None:
            self._otherwise(row)
            return
        packet = (row.words[at] & _HALF) + (link.shift if out else 0)
        flow = BETWEEN | number << _LINK | packet & _HALF
        if not link.range[0] <= packet <= link.range[1]:
            flow = 0
        peer = link.target if out else link.source
        facts: dict[str, Any] = {
            "to" if out else "from": plain(peer.name),
            "bytes": row.words[at] >> 32,
        }
        name = f"packet out: {_CLASSES[row.cls % len(_CLASSES)]}" if out else "packet in"
        self._tracks.file.instant(
            self._track(row),
            row.time,
            name,
            facts=facts,
            begins=flow if out else 0,
            ends=0 if out else flow,
        )

    def _track(self, row: Row) -> int:
        """The track of the sender, if it has one of its own, or of the thread."""
        if row.process > TEXT_PID:
            pid = self._shown.get(self._tracks.name(row.process)[1])
            if pid is not None and (track := self._tracks.process(pid)) is not None:
                return track
        return self._tracks.thread(row.tid)
