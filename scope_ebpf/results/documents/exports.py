# SPDX-License-Identifier: Apache-2.0
"""
Files in the formats of other tools, as far as they are written here.

Speedscope's own format is its ``file-format-schema.json``; that of spans is OTLP/JSON.
"""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class SpeedscopeFrame(TypedDict):
    """One frame, shared by all stacks."""

    name: str
    file: NotRequired[str]
    line: NotRequired[int]


class SpeedscopeProfile(TypedDict):
    """The samples of the VM, or of one thread."""

    type: Literal["sampled"]
    name: str
    unit: Literal["nanoseconds"]
    startValue: Literal[0]
    #: The sum of all weights.
    endValue: int
    #: Each stack as indexes of the shared frames, from the outermost.
    samples: list[list[int]]
    weights: list[int]


class SpeedscopeShared(TypedDict):
    """What all profiles of a file share."""

    frames: list[SpeedscopeFrame]


# A key that is no name needs the functional form.
_Head = TypedDict("_Head", {"$schema": str})


class SpeedscopeDocument(_Head):
    """The file of scope-trace profile -o NAME.speedscope.json."""

    exporter: Literal["scope-trace"]
    name: str
    activeProfileIndex: Literal[0]
    profiles: list[SpeedscopeProfile]
    shared: SpeedscopeShared


class IntValue(TypedDict):
    """A whole number, as text."""

    intValue: str


class DoubleValue(TypedDict):
    """A number."""

    doubleValue: float


class StringValue(TypedDict):
    """A text."""

    stringValue: str


class Attribute(TypedDict):
    """One attribute of a span or a resource."""

    key: str
    value: IntValue | DoubleValue | StringValue


class Span(TypedDict):
    """A schedule, a collection, a long call, a call of a server, or the whole trace."""

    traceId: str
    spanId: str
    name: str
    #: 3 for a call of a server.
    kind: Literal[1, 2, 3]
    startTimeUnixNano: str
    endTimeUnixNano: str
    attributes: list[Attribute]
    parentSpanId: NotRequired[str]


class Scope(TypedDict):
    """What made the spans."""

    name: Literal["scope-ebpf"]
    version: str


class ScopeSpans(TypedDict):
    """Spans of one scope."""

    scope: Scope
    spans: list[Span]


class Resource(TypedDict):
    """The VM."""

    attributes: list[Attribute]


class ResourceSpans(TypedDict):
    """Spans of one resource."""

    resource: Resource
    scopeSpans: list[ScopeSpans]


class SpansRequest(TypedDict):
    """A line of scope-trace export --to otlp: one export request."""

    resourceSpans: list[ResourceSpans]
