# SPDX-License-Identifier: Apache-2.0
"""
The fields of Perfetto's traces that are written, by the names and numbers of its published files.

Those are ``protos/perfetto/trace``: ``trace_packet.proto``, ``clock_snapshot.proto``,
``interned_data/interned_data.proto``, ``track_event/*.proto``, ``ftrace/*.proto``. They are proto2:
a field that is set to 0 is written. Enumerations are written as their numbers.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from scope_ebpf.sinks.protobuf import messages

#: TrackEvent.Type, CounterDescriptor.Unit, TrackDescriptor.ChildTracksOrdering.
SLICE_BEGIN, SLICE_END, INSTANT, COUNTER = 1, 2, 3, 4
UNIT_COUNT = 2
EXPLICIT = 3

_SCHEMA = {
    "TracePacket": (
        ("ftrace_events", 1, "FtraceEventBundle"),
        ("clock_snapshot", 6, "ClockSnapshot"),
        ("timestamp", 8, "uint64"),
        ("trusted_packet_sequence_id", 10, "uint32"),
        ("track_event", 11, "TrackEvent"),
        ("interned_data", 12, "InternedData"),
        ("sequence_flags", 13, "uint32"),
        ("track_descriptor", 60, "TrackDescriptor"),
    ),
    "ClockSnapshot": (("clocks", 1, "*Clock"), ("primary_trace_clock", 2, "int32")),
    "Clock": (("clock_id", 1, "uint32"), ("timestamp", 2, "uint64")),
    "InternedData": (
        ("event_names", 2, "*EventName"),
        ("debug_annotation_names", 3, "*DebugAnnotationName"),
        ("debug_annotation_string_values", 29, "*InternedString"),
    ),
    "EventName": (("iid", 1, "uint64"), ("name", 2, "string")),
    "DebugAnnotationName": (("iid", 1, "uint64"), ("name", 2, "string")),
    "InternedString": (("iid", 1, "uint64"), ("str", 2, "bytes")),
    "TrackEvent": (
        ("debug_annotations", 4, "*DebugAnnotation"),
        ("type", 9, "int32"),
        ("name_iid", 10, "uint64"),
        ("track_uuid", 11, "uint64"),
        ("counter_value", 30, "int64"),
        ("flow_ids", 47, "*fixed64"),
        ("terminating_flow_ids", 48, "*fixed64"),
    ),
    "DebugAnnotation": (
        ("name_iid", 1, "uint64"),
        ("uint_value", 3, "uint64"),
        ("string_value_iid", 17, "uint64"),
    ),
    "TrackDescriptor": (
        ("uuid", 1, "uint64"),
        ("name", 2, "string"),
        ("process", 3, "ProcessDescriptor"),
        ("thread", 4, "ThreadDescriptor"),
        ("parent_uuid", 5, "uint64"),
        ("counter", 8, "CounterDescriptor"),
        ("child_ordering", 11, "int32"),
        ("sibling_order_rank", 12, "int32"),
    ),
    "ProcessDescriptor": (("pid", 1, "int32"), ("process_name", 6, "string")),
    "ThreadDescriptor": (("pid", 1, "int32"), ("tid", 2, "int64"), ("thread_name", 5, "string")),
    "CounterDescriptor": (("unit", 3, "int32"),),
    "FtraceEventBundle": (("cpu", 1, "uint32"), ("event", 2, "*FtraceEvent")),
    "FtraceEvent": (
        ("timestamp", 1, "uint64"),
        ("pid", 2, "uint32"),
        ("sched_switch", 4, "SchedSwitchFtraceEvent"),
        ("sched_wakeup", 17, "SchedWakeupFtraceEvent"),
    ),
    "SchedSwitchFtraceEvent": (
        ("prev_comm", 1, "string"),
        ("prev_pid", 2, "int32"),
        ("prev_prio", 3, "int32"),
        ("prev_state", 4, "int64"),
        ("next_comm", 5, "string"),
        ("next_pid", 6, "int32"),
        ("next_prio", 7, "int32"),
    ),
    "SchedWakeupFtraceEvent": (
        ("comm", 1, "string"),
        ("pid", 2, "int32"),
        ("prio", 3, "int32"),
        ("success", 4, "int32"),
    ),
}


@cache
def classes() -> SimpleNamespace:
    """The class of each message, by its name."""
    return SimpleNamespace(**messages("scope_ebpf.perfetto", _SCHEMA, "proto2"))
