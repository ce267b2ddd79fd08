# SPDX-License-Identifier: Apache-2.0
"""
A Perfetto trace as a stream of packets, by Perfetto's published protobuf.

Times are given in ns since boot, which is Perfetto's own clock.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from scope_ebpf.capture.values import SIGNED, within
from scope_ebpf.sinks.perfetto import schema

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.capture.facts import Clocks

#: Bytes that are collected before they are written.
_BUFFER = 1 << 20
#: Texts that are interned; all later ones share one name.
_MOST_TEXTS = 200_000
_TOO_MANY = "other"
#: The one sequence of packets, and what its packets say of their state.
_SEQUENCE = 1
_CLEARED, _NEEDED = 1, 2
#: BuiltinClock of common/builtin_clock.proto.
_REALTIME, _MONOTONIC, _BOOTTIME = 1, 3, 6
_PACKET = b"\x0a"  # Trace.packet, field 1 of length-delimited form


class PerfettoFile:
    """Writes packets to *output*. Raises OSError where it does."""

    def __init__(self, output: IO[bytes], clocks: Clocks) -> None:
        self.pb = schema.classes()
        self._output = output
        self._parts: list[bytes] = []
        self._size = 0
        self._names: dict[str, int] = {}
        self._values: dict[str, int] = {}
        self._keys: dict[str, int] = {}
        self.packets = 0
        first = self._packet()
        first.sequence_flags = _CLEARED
        for clock, time in (
            (_BOOTTIME, clocks.boottime),
            (_MONOTONIC, clocks.monotonic),
            (_REALTIME, clocks.realtime),
        ):
            first.clock_snapshot.clocks.add(clock_id=clock, timestamp=time)
        first.clock_snapshot.primary_trace_clock = _BOOTTIME
        first.timestamp = clocks.boottime
        self._write(first)
        # Packets of the most frequent form are one object, filled again and again.
        self._bare = self._packet()
        self._bare.sequence_flags = _NEEDED

    def track(self, uuid: int, parent: int = 0, name: str = "", rank: int = 0) -> Any:
        """A new track's descriptor, to be filled further and given to :meth:`describe`."""
        track = self.pb.TrackDescriptor(uuid=uuid)
        if parent:
            track.parent_uuid = parent
        if name:
            track.name = name
        if rank:
            track.sibling_order_rank = rank
        return track

    def describe(self, track: Any) -> None:
        """Write a track's descriptor, once."""
        packet = self._packet()
        packet.track_descriptor.CopyFrom(track)
        self._write(packet)

    def slice(
        self,
        track: int,
        begin: int,
        end: int | None,
        name: str,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """A slice; without *end* it had not ended."""
        self._event(track, begin, schema.SLICE_BEGIN, name, facts=facts)
        if end is not None:
            self._end(track, end)

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
        """An instant; *begins* and *ends* are numbers of flows, 0 for none."""
        kind = schema.INSTANT
        self._event(track, time, kind, name, facts=facts, begins=begins, ends=ends)

    def counter(self, track: int, time: int, value: int) -> None:
        """A value of a counter."""
        packet = self._packet()
        packet.timestamp = within(time)
        packet.track_event.type = schema.COUNTER
        packet.track_event.track_uuid = track
        packet.track_event.counter_value = within(value, SIGNED)
        self._write(packet)

    def scheduling(self, cpu: int, events: Iterable[tuple[int, int, str, Any]]) -> None:
        """Events of the kernel's scheduler on one CPU: time, thread, a field and its message."""
        packet = self._packet()
        bundle = packet.ftrace_events
        bundle.cpu = cpu
        for time, thread, field, message in events:
            event = bundle.event.add(timestamp=within(time), pid=thread)
            getattr(event, field).CopyFrom(message)
        self._write(packet)

    def close(self) -> None:
        """Write what is left; the output stays open."""
        self._flush()

    def _end(self, track: int, time: int) -> None:
        packet = self._bare
        packet.timestamp = within(time)
        packet.track_event.type = schema.SLICE_END
        packet.track_event.track_uuid = track
        self._write(packet)

    def _event(
        self,
        track: int,
        time: int,
        kind: int,
        name: str,
        *,
        facts: dict[str, Any] | None = None,
        begins: int = 0,
        ends: int = 0,
    ) -> None:
        number = self._names.get(name) or self._intern(self._names, name, "event_names")
        packet = self._packet()
        packet.timestamp = within(time)
        packet.sequence_flags = _NEEDED
        event = packet.track_event
        event.type = kind
        event.track_uuid = track
        event.name_iid = number
        if begins:
            event.flow_ids.append(begins)
        if ends:
            event.terminating_flow_ids.append(ends)
        for key, value in facts.items() if facts else ():
            note = event.debug_annotations.add()
            note.name_iid = self._keys.get(key) or self._intern(
                self._keys, key, "debug_annotation_names"
            )
            if isinstance(value, int):
                note.uint_value = within(value)
            else:
                note.string_value_iid = self._values.get(value) or self._intern(
                    self._values, value, "debug_annotation_string_values"
                )
        self._write(packet)

    def _intern(self, known: dict[str, int], text: str, field: str) -> int:
        if len(known) >= _MOST_TEXTS:
            text = _TOO_MANY
        number = known.get(text)
        if number is None:
            number = known[text] = len(known) + 1
            packet = self._packet()
            packet.sequence_flags = _NEEDED
            entry = getattr(packet.interned_data, field).add(iid=number)
            if field == "debug_annotation_string_values":
                entry.str = text.encode()
            else:
                entry.name = text
            self._write(packet)
        return number

    def _packet(self) -> Any:
        return self.pb.TracePacket(trusted_packet_sequence_id=_SEQUENCE)

    def _write(self, packet: Any) -> None:
        data = packet.SerializeToString()
        size = len(data)
        head = bytearray(_PACKET)
        while size > 0x7F:
            head.append(size & 0x7F | 0x80)
            size >>= 7
        head.append(size)
        self._parts += (bytes(head), data)
        self._size += len(data)
        self.packets += 1
        if self._size > _BUFFER:
            self._flush()

    def _flush(self) -> None:
        self._output.write(b"".join(self._parts))
        self._parts, self._size = [], 0
