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


class ServerModule(TypedDict):
    """The servers of one callback module; what cannot be known without hooks is null."""

    #: The module, the name or the process, as --by says.
    module: str
    behaviour: str
    #: On average.
    processes: float
    calls: None
    casts: None
    infos: None
    queue_seconds: None
    service_seconds: None
    call_seconds: None
    utilization: Utilization
    mailbox: Mailbox
    #: Callers that wait for a reply, on average.
    waiting_callers: float
    failures: None
    abandoned: None
    busy_in: list[BusyFunction]


class ServerEdge(TypedDict):
    """Calls from one module to another."""

    caller: str
    callee: str
    calls: None
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


class GenServersDocument(TypedDict):
    """Servers of one VM by module, who waits for whom, and a verdict."""

    schema: Literal[1]
    target: Target
    duration_seconds: float
    #: Readings of the process table.
    looks: int
    modules: list[ServerModule]
    edges: list[ServerEdge]
    verdict: ServerVerdict
    #: Records of hooks that found no room; there are none without hooks.
    lost: int
    #: Callers of which it is not known for whom they wait, on average.
    unresolved: float
    #: Processes that changed too fast to be read, a look.
    torn: float
    cost: LookCost
    #: What a reader of the figures should know.
    notes: list[str]
