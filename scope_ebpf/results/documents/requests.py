# SPDX-License-Identifier: Apache-2.0
"""The document of ``requests``."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from scope_ebpf.results.documents.telemetry import TelemetryCost, TelemetryRefused
from scope_ebpf.results.documents.vms import Target


class RequestSpan(TypedDict):
    """Something that was done within a request."""

    #: The telemetry event at its end.
    event: str
    labels: dict[str, str | None]
    #: Index of the span that contains it; null for the first.
    parent: int | None
    #: Since the start of the request.
    start_seconds: float
    duration_seconds: float


class RequestDocument(TypedDict):
    """A request, a callback of a LiveView, or a job."""

    #: Its start, seconds since 1970.
    time: float
    #: The Erlang process.
    process: str
    duration_seconds: float
    #: Of the outermost span that has one; null where none has.
    route: str | None
    status: str | None
    exception: str | None
    #: Whether a span ended in an exception, or with a status of 500 or more.
    failed: bool
    #: In the order of their starts; the first contains the others.
    spans: list[RequestSpan]


class RequestsDocument(TypedDict):
    """The slowest requests of a VM, then all others that failed."""

    schema: Literal[1]
    target: Target
    duration_seconds: float
    #: Why it ended.
    stopped_because: str
    #: The function at which events were seen.
    via: str
    #: Requests that fit the options, and how many of them failed; a thousand of those are kept.
    seen: int
    failed: int
    requests: list[RequestDocument]
    #: Events that found no room on their way: their requests lack a span.
    lost: int
    #: Events that are part of no request, or of one that had not ended.
    left_out: int
    #: Requests that were given up: 65,536 may be under way, with 262,144 spans together.
    dropped: int
    #: Places among the slowest and the failed ones that were lost: 262,144 spans of each are kept.
    unkept: int
    refused: TelemetryRefused
    cost: TelemetryCost
    #: What a reader of the figures should know.
    notes: list[str]
