# SPDX-License-Identifier: Apache-2.0
"""
Servers by module, who waits for whom, and what most waiting goes through.

Pure. The JSON of :meth:`GenServers.as_json` is a contract; fields are added, never renamed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from scope_ebpf.results.server_events import UNSEEN, Cost
from scope_ebpf.results.server_tags import tags_of

if TYPE_CHECKING:
    from scope_ebpf.results.documents.servers import (
        GenServersDocument,
        ServerEdge,
        ServerModule,
        ServerVerdict,
        Utilization,
    )
    from scope_ebpf.results.documents.vms import Target
    from scope_ebpf.results.server_events import Messages, ServerEvents
    from scope_ebpf.results.server_tags import Tag

#: A module of whose busy time more than this is waiting for another one waits for that one.
_MOSTLY = 0.5
#: Behaviours whose servers take all messages from the mailbox before they handle the first.
_MOVING = ("gen_server2", "p1_server")
#: Modules that are followed from one to the next.
_CHAIN = 32
#: Waiting callers and messages, on average, from which on a module is named as a bottleneck.
_WORTH_NAMING = 0.5


@dataclass(frozen=True, slots=True)
class Module:
    """
    The servers of one callback module. Means are over time, per look.

    A figure that cannot be known without hooks is None.
    """

    module: str
    behaviour: str
    #: Servers, on average; None where too few were found to tell.
    processes: float | None
    #: The part of the time in which its servers were busy: of all on average, and of the busiest.
    utilization: float
    busiest: float
    #: Messages that wait for one server: on average, and the most that was seen.
    mailbox: float
    longest: int
    #: Processes that wait for a reply, on average.
    waiting_callers: float
    #: Functions in which its servers are busy, with the part of the busy time.
    busy_in: tuple[tuple[str, float], ...] = ()
    #: What hooks saw of its messages; None without hooks.
    messages: Messages | None = None
    #: Servers that are known, on average: there are more where *processes* is None.
    least: float = 0.0

    @property
    def servers(self) -> float:
        """How many servers there are at least."""
        return self.least if self.processes is None else self.processes

    @property
    def mail(self) -> float:
        """Messages that wait for all of its servers, on average."""
        return self.mailbox * self.servers

    def as_json(self) -> ServerModule:
        """The fields of one module."""
        seen = self.messages.as_json() if self.messages else UNSEEN
        busy: Utilization = {"mean": round(self.utilization, 4), "max": round(self.busiest, 4)}
        return {
            "module": self.module,
            "behaviour": self.behaviour,
            "processes": None if self.processes is None else round(self.processes, 3),
            "calls": seen["calls"],
            "casts": seen["casts"],
            "infos": seen["infos"],
            "queue_seconds": seen["queue_seconds"],
            "service_seconds": seen["service_seconds"],
            "call_seconds": seen["call_seconds"],
            "utilization": busy if self.processes != 0 else None,
            "mailbox": {"mean": round(self.mailbox, 3), "max": self.longest},
            "waiting_callers": round(self.waiting_callers, 3),
            "failures": seen["failures"],
            "abandoned": seen["abandoned"],
            "busy_in": [
                {"function": name, "share": round(share, 4)} for name, share in self.busy_in
            ],
        }


@dataclass(frozen=True, slots=True)
class Edge:
    """Calls from one module to another."""

    caller: str
    callee: str
    #: Callers that wait at any time, which is seconds of waiting per second.
    blocked: float
    #: None without hooks.
    calls: int | None = None

    def as_json(self) -> ServerEdge:
        """The fields of one edge."""
        return {
            "caller": self.caller,
            "callee": self.callee,
            "calls": self.calls,
            "blocked_seconds_per_second": round(self.blocked, 4),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What most waiting goes through. *bottleneck* is None where hardly anybody waits."""

    bottleneck: str | None
    because: str
    #: What the bottleneck waits for itself, followed to the last.
    waits_for: str | None = None
    #: Names of processes that wait for each other in a circle.
    deadlock: tuple[str, ...] = ()

    def as_json(self) -> ServerVerdict:
        """The fields of the verdict."""
        return {
            "bottleneck": self.bottleneck,
            "because": self.because,
            "waits_for": self.waits_for,
            "deadlock": list(self.deadlock),
        }


@dataclass(slots=True)
class GenServers:
    """One view of all servers of a VM."""

    target: Target
    seconds: float
    looks: int
    modules: list[Module]
    edges: list[Edge]
    deadlock: tuple[str, ...] = ()
    #: Whether the whole process table was read, at least once.
    whole: bool = True
    #: Callers of which it was not found out for whom they wait, a look.
    unresolved: float = 0.0
    #: Processes that changed too fast to be read, a look.
    torn: float = 0.0
    #: CPU seconds of the looks.
    cpu_seconds: float = 0.0
    #: What the hooks cost; None without hooks.
    cost: Cost | None = None
    #: Messages and calls of which hooks lost something.
    lost: int = 0
    notes: list[str] = field(default_factory=list)
    #: Messages by tag, where rows are of tags.
    tags: list[Tag] = field(default_factory=list)

    def add_events(self, seen: ServerEvents, seconds: float | None = None) -> None:
        """
        Add what hooks saw to what looks saw; in *seconds*, where those are not the looks' own.

        Calls of edges are those of the looks' seconds, at the same rate. Of waiting the larger is
        taken: hooks do not see calls that began before them, and looks do not see for whom some
        callers wait.
        """
        watched = max(seconds or self.seconds, 1e-9)
        edges = {(one.caller, one.callee): one for one in self.edges}
        for names, count in seen.edges.items():
            before = edges.get(names)
            waits = (count.blocked or 0.0) / watched
            blocked = max(waits, before.blocked if before else 0.0)
            edges[names] = Edge(*names, blocked, round(count.calls * self.seconds / watched))
        self.edges = sorted(edges.values(), key=lambda edge: edge.blocked, reverse=True)
        waiting: dict[str, float] = {}
        for edge in self.edges:
            waiting[edge.callee] = waiting.get(edge.callee, 0.0) + edge.blocked
        modules = {one.module: one for one in self.modules}
        for name in seen.modules.keys() - modules.keys():
            modules[name] = Module(name, "", 0.0, 0.0, 0.0, 0.0, 0, 0.0)
        self.modules = [
            replace(
                one,
                messages=seen.modules.get(name, seen.others),
                waiting_callers=max(one.waiting_callers, waiting.get(name, 0.0)),
            )
            for name, one in modules.items()
        ]
        if self.tags or seen.tags:
            callers = {(one.module, one.tag): one.waiting_callers for one in self.tags}
            self.tags = tags_of(callers, seen.tags)
        self.cost, self.lost = seen.cost, seen.lost
        self.notes += seen.notes
        moving = {one.behaviour for one in self.modules if one.messages and one.messages.any}
        if moving := moving & set(_MOVING):
            self.notes.append(
                f"servers of {' and '.join(sorted(moving))} move all messages to a queue of their "
                "own: their queue times end there, and service without a reply is that of the move"
            )

    @property
    def verdict(self) -> Verdict:
        """What most waiting goes through, and why."""
        if self.deadlock:
            circle = " -> ".join((*self.deadlock, self.deadlock[0]))
            return Verdict(
                None, f"deadlock: each waits for the next: {circle}", deadlock=self.deadlock
            )
        worst = max(self.modules, key=_waiting, default=None)
        if worst is None or _waiting(worst) < _WORTH_NAMING:
            part = "" if self.whole else " in the part of the process table that was read"
            return Verdict(None, f"no server is waited for much{part}")
        root = self._root(worst.module)
        return Verdict(worst.module, self._because(worst, root), root)

    def _because(self, worst: Module, root: str | None) -> str:
        text = (
            f"{worst.waiting_callers:.1f} callers and {worst.mail:.1f} "
            f"messages wait for it at any time, busy {100 * worst.busiest:.0f} %"
        )
        mine = [edge for edge in self.edges if edge.callee == worst.module]
        total = sum(edge.blocked for edge in mine)
        if total:
            most = max(mine, key=lambda edge: edge.blocked)
            text += f"; callers: {most.caller} {100 * most.blocked / total:.0f} %"
        return text + (f"; it waits itself for {root}" if root else "")

    def _root(self, module: str) -> str | None:
        """Follow what a module mostly waits for, to the last."""
        busy = {one.module: one.utilization * one.servers for one in self.modules}
        seen, at = {module}, module
        for _ in range(_CHAIN):
            waits = [edge for edge in self.edges if edge.caller == at and edge.callee not in seen]
            most = max(waits, key=lambda edge: edge.blocked, default=None)
            if most is None or most.blocked < _MOSTLY * busy.get(at, 0.0):
                break
            at = most.callee
            seen.add(at)
        return at if at != module else None

    def as_json(self) -> GenServersDocument:
        """The document of ``genservers --format json``."""
        return {
            "schema": 1,
            "target": self.target,
            "duration_seconds": round(self.seconds, 3),
            "looks": self.looks,
            "modules": [one.as_json() for one in self.modules],
            "tags": [one.as_json() for one in self.tags],
            "edges": [one.as_json() for one in self.edges],
            "verdict": self.verdict.as_json(),
            "lost": self.lost,
            "unresolved": round(self.unresolved, 3),
            "torn": round(self.torn, 3),
            "cost": (self.cost or Cost()).as_json(self.cpu_seconds),
            "notes": self.notes,
        }


def _waiting(one: Module) -> float:
    return max(one.waiting_callers, one.mail)
