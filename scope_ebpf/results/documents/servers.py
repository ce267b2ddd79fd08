# SPDX-License-Identifier: Apache-2.0
"""The document of ``genservers``."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from scope_ebpf.results.documents.vms import Target


class Utilization(TypedDict):
    """The part of the time in which servers were busy."""

    #: Of all servers of the module.
    mean: float
    #: Of the busiest of them.
    max: float


class Mailbox(TypedDict):
    """Messages that wait for a server."""

    mean: float
    max: int


class BusyFunction(TypedDict):
    """A function in which servers were seen busy."""

    function: str
    #: The part of their busy time.
    share: float


class MessageRate(TypedDict):
    """Messages of one kind."""

    count: int
    #: A second.
    rate: float
    #: The standard error of both, as a part of them; 0 where everything was counted.
    error_ratio: float


class ServerTimes(TypedDict):
    """Durations in seconds; null where they are longer than what could be seen."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    #: The longest duration that hooks could measure; null where there is no such bound. What is
    #: beyond it of calls is from looks.
    reach: float | None


class ServerFailures(TypedDict):
    """Calls without a reply."""

    #: The caller gave up.
    timeout: int
    #: The caller was informed that the server had ended.
    down: int


class ServerModule(TypedDict):
    """The servers of one callback module; what could not be seen is null."""

    #: The module, the name or the process, as --by says.
    module: str
    behaviour: str
    #: On average; null where too few of them were found to tell.
    processes: float | None
    calls: MessageRate | None
    casts: MessageRate | None
    infos: MessageRate | None
    #: From the send of a message until the server takes it.
    queue_seconds: ServerTimes | None
    #: From there to the reply, or to the end of the work on a message without one.
    service_seconds: ServerTimes | None
    #: From the send of a request until the caller takes the reply.
    call_seconds: ServerTimes | None
    #: Null where no look saw a server of it.
    utilization: Utilization | None
    mailbox: Mailbox
    #: Callers that wait for a reply, on average.
    waiting_callers: float
    failures: ServerFailures | None
    #: Calls that a server took when the caller had given up.
    abandoned: int | None
    busy_in: list[BusyFunction]


class ServerTag(TypedDict):
    """Messages of one tag to the servers of a module; what could not be seen is null."""

    module: str
    #: The atom that a request is, or that its tuple begins with; null for all others.
    tag: str | None
    calls: MessageRate | None
    casts: MessageRate | None
    infos: MessageRate | None
    queue_seconds: ServerTimes | None
    service_seconds: ServerTimes | None
    call_seconds: ServerTimes | None
    failures: ServerFailures | None
    abandoned: int | None
    #: Callers that wait for a reply to such a request, on average.
    waiting_callers: float
    #: The part of the module's seconds of service.
    service_share: float | None


class ServerEdge(TypedDict):
    """Calls from one module to another."""

    caller: str
    callee: str
    calls: int | None
    #: Callers that wait at any time.
    blocked_seconds_per_second: float


class ServerVerdict(TypedDict):
    """What most waiting goes through."""

    #: Null where hardly anybody waits, and for a deadlock.
    bottleneck: str | None
    because: str
    #: What the bottleneck waits for itself, followed to the last.
    waits_for: str | None
    #: Processes that wait for each other in a circle.
    deadlock: list[str]


class LookCost(TypedDict):
    """What looking cost."""

    own_cpu_seconds: float
    #: Hooks that were attached.
    hooks: int


class ServerCost(LookCost):
    """What looks and hooks cost."""

    #: How often hooks were hit.
    hits: int
    #: CPU of the VM that hits took; null where the cost of a hit is not known.
    target_cpu_seconds: float | None
    #: That as a part of the CPU that the VM used.
    share: float | None


class GenServersDocument(TypedDict):
    """Servers of one VM by module, who waits for whom, and a verdict."""

    schema: Literal[1]
    target: Target
    duration_seconds: float
    #: Readings of the process table.
    looks: int
    modules: list[ServerModule]
    #: Empty without --by tag.
    tags: list[ServerTag]
    edges: list[ServerEdge]
    verdict: ServerVerdict
    #: Messages and calls that found no room in the hooks' maps, or could not be read.
    lost: int
    #: Callers of which it is not known for whom they wait, on average.
    unresolved: float
    #: Processes that changed too fast to be read, a look.
    torn: float
    cost: ServerCost
    #: What a reader of the figures should know.
    notes: list[str]
