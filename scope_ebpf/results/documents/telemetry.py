# SPDX-License-Identifier: Apache-2.0
"""The document of ``telemetry``."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from scope_ebpf.results.documents.vms import Target


class EventDuration(TypedDict):
    """The durations of some events, in seconds; percentiles are within 12 %, estimates apart."""

    count: int
    sum: float
    mean: float
    p50: float
    p99: float


class EventMeasurement(TypedDict):
    """Another measurement of some events; that of a time is in seconds."""

    count: int
    sum: float
    mean: float


class TelemetryEvent(TypedDict):
    """Events with the same name and the same labels."""

    #: Its atoms; *.query is each whose last atom is query.
    event: str
    #: By name; null where the event has no such label, or one that could not be read.
    labels: dict[str, str | None]
    #: Whether these are events with other labels than those that are shown, taken together.
    other: bool
    #: Of the whole run: an estimate where events were counted in a part of the time.
    count: int
    #: Those that were counted.
    seen: int
    #: The standard error of count and rate, as a part of them; 0 where everything was counted.
    count_error: float
    rate: float
    #: The part that failed; null where the events do not say.
    error_ratio: float | None
    #: Null where no event had it.
    duration_seconds: EventDuration | None
    #: Further measurements by name, times with _seconds behind it.
    measurements: dict[str, EventMeasurement]


class TelemetryRefused(TypedDict):
    """Events that were not decoded, or not in full."""

    #: Of which a label or a measurement is in a map of more than 32 keys.
    large_map: int
    #: That had no row of their own; they are in a row with other = true.
    overflow: int
    #: Whose name is no list of at most eight atoms; they are in no row.
    name: int
    #: Whose arguments were not found on the stack; they are in no row.
    no_frame: int
    #: With a measurement that is no small integer.
    measure: int
    #: With a label that is neither atom, integer nor binary of whole bytes.
    label: int
    #: Of which memory could not be read.
    unreadable: int


class TelemetryCost(TypedDict):
    """What the hook took from the VM."""

    hits: int
    #: Of these, other lookups of the VM.
    foreign: int
    #: Null where the kernel does not say.
    cpu_seconds: float | None
    #: Of the VM's CPU time; null where it is not known.
    cpu_share: float | None


class TelemetryDocument(TypedDict):
    """Events of a VM's telemetry library, counted."""

    schema: Literal[1]
    target: Target
    duration_seconds: float
    #: Why it ended.
    stopped_because: str
    #: The function at which events were seen.
    via: str
    #: The part of the time in which events were counted.
    sampling_ratio: float
    events: list[TelemetryEvent]
    lost: int
    refused: TelemetryRefused
    cost: TelemetryCost
    #: What a reader of the figures should know.
    notes: list[str]


class TelemetryLine(TypedDict):
    """One event, a line of ``telemetry --stream``."""

    #: Seconds since 1970.
    time: float
    #: The Erlang process.
    process: str
    event: str
    labels: dict[str, str | None]
    #: Null where the event has none.
    duration_seconds: float | None
