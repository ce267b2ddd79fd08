# SPDX-License-Identifier: Apache-2.0
"""
A Perfetto trace, read back without Perfetto's own engine.
"""

from __future__ import annotations

import collections

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb


class Read:
    """
    A timeline, parsed back by Perfetto's published schema; times count from *begin_ns*.

    An event is its time, track, name, packet and notes.
    """

    def __init__(self, data: bytes, begin_ns: int = 0) -> None:
        self._begin_ns = begin_ns
        trace = pb.Trace()
        trace.ParseFromString(data)
        self.packets = trace.packet
        self.tracks = {
            p.track_descriptor.uuid: p.track_descriptor
            for p in self.packets
            if p.HasField("track_descriptor")
        }
        self._texts: dict[str, dict[int, str]] = collections.defaultdict(dict)
        self.events: list[tuple] = []
        for packet in self.packets:
            self._intern(packet.interned_data)
            if packet.HasField("track_event"):
                self.events.append(self._event(packet))

    def _intern(self, data: pb.InternedData) -> None:
        for field in ("event_names", "debug_annotation_names"):
            self._texts[field] |= {e.iid: e.name for e in getattr(data, field)}
        strings = data.debug_annotation_string_values
        self._texts["strings"] |= {e.iid: e.str.decode() for e in strings}

    def _event(self, packet: pb.TracePacket) -> tuple:
        event = packet.track_event
        name = self._texts["event_names"].get(event.name_iid, "")
        notes = {
            self._texts["debug_annotation_names"][note.name_iid]: (
                self._texts["strings"][note.string_value_iid]
                if note.string_value_iid
                else note.uint_value
            )
            for note in event.debug_annotations
        }
        return packet.timestamp - self._begin_ns, self.name(event.track_uuid), name, event, notes

    def name(self, uuid: int) -> str:
        track = self.tracks[uuid]
        return track.name or track.thread.thread_name or track.process.process_name

    def slices(self, track: str) -> list[tuple]:
        """
        Begin, end and name of each slice of a track; without an end the end is None.
        """
        found, begun = [], []
        own = [e for e in self.events if e[1] == track]
        for time, _, name, event, notes in sorted(own, key=lambda e: e[0]):
            if event.type == pb.TrackEvent.TYPE_SLICE_BEGIN:
                begun.append([time, None, name, notes])
                found.append(begun[-1])
            elif event.type == pb.TrackEvent.TYPE_SLICE_END:
                begun.pop()[1] = time
        return [tuple(each) for each in found]
