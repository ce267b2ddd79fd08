# SPDX-License-Identifier: Apache-2.0
"""
Servers of one VM by module, and who waits for whom, under a bounded number of names.

Pure: counts of looks go in, and each look stands for the time since the one before. A VM names its
modules itself, so names that become labels are bounded at any time and over time.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.metrics.page import label_value
from scope_ebpf.metrics.ranking import Ranking

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.metrics.page import Page

OTHER = "other"
#: Series of one module, and of one edge.
_PER_MODULE, _PER_EDGE = 6, 1
#: Seconds for which one look can stand.
_LONGEST = 900.0


class Edge(NamedTuple):
    """Callers of one module that wait for servers of another."""

    caller: str
    callee: str


@dataclass(slots=True)
class Counts:
    """What one look saw of one module; parts of a table stand for the whole."""

    processes: float = 0.0
    busy: float = 0.0
    #: Callers that wait for one of its servers.
    waiting: float = 0.0
    #: Messages in the longest mailbox.
    longest: int = 0
    #: Calls in mailboxes that were not seen before, and those whose callers have given up.
    requests: int = 0
    abandoned: int = 0

    def add(self, other: Counts) -> None:
        """Add another module's."""
        self.processes += other.processes
        self.busy += other.busy
        self.waiting += other.waiting
        self.longest = max(self.longest, other.longest)
        self.requests += other.requests
        self.abandoned += other.abandoned


class ServerModule(NamedTuple):
    """The servers of one module, or of all that have no name of their own."""

    #: A label value.
    module: str
    processes: float
    #: Seconds for which they were busy, all together, since it is a label.
    busy_seconds: float
    waiting: float
    longest: int
    #: Calls that were seen in its mailboxes since it is a label, and those of them whose callers
    #: had given up.
    requests: int
    abandoned: int


class Blocked(NamedTuple):
    """Seconds for which callers of an edge waited, since it is a label."""

    edge: Edge
    seconds: float


@dataclass(frozen=True, slots=True)
class ServersReading:
    """What the looks at the servers of one VM saw."""

    modules: tuple[ServerModule, ...] = ()
    edges: tuple[Blocked, ...] = ()
    #: Looks so far.
    looks: int = 0
    #: Why the servers cannot be read; "" if they can.
    refused: str = ""


class ServerSums:
    """Adds looks up, for at most *series* series."""

    def __init__(self, series: int) -> None:
        places = max(0, series // (_PER_MODULE + _PER_EDGE) - 1)
        self._modules: Ranking[str] = Ranking(places)
        self._edges: Ranking[Edge] = Ranking(places)
        self._busy: dict[str, float] = {OTHER: 0.0}
        self._requests: dict[str, tuple[int, int]] = {OTHER: (0, 0)}
        self._blocked: dict[Edge, float] = {Edge(OTHER, OTHER): 0.0}
        self._last: float | None = None
        self._looks = 0

    def add(
        self, modules: Mapping[str, Counts], edges: Mapping[Edge, float], now: float
    ) -> ServersReading:
        """Add a look at *now*, in monotonic seconds: *edges* are callers that wait."""
        passed = 0.0 if self._last is None else min(_LONGEST, max(0.0, now - self._last))
        self._last, self._looks = now, self._looks + 1
        labelled: dict[str, Counts] = defaultdict(Counts)
        for name, counts in modules.items():
            labelled[_label(name)].add(counts)
        named = self._modules.update({m: _worth(c) for m, c in labelled.items()}, now)
        grouped: dict[str, Counts] = {name: Counts() for name in (*sorted(named), OTHER)}
        for name, counts in labelled.items():
            grouped[name if name in named else OTHER].add(counts)
        self._busy = {
            name: self._busy.get(name, 0.0) + passed * counts.busy
            for name, counts in grouped.items()
        }
        nothing = 0, 0
        self._requests = {
            name: (
                self._requests.get(name, nothing)[0] + counts.requests,
                self._requests.get(name, nothing)[1] + counts.abandoned,
            )
            for name, counts in grouped.items()
        }
        self._add_edges(edges, passed, now)
        return ServersReading(
            tuple(
                ServerModule(
                    name,
                    c.processes,
                    self._busy[name],
                    c.waiting,
                    c.longest,
                    *self._requests[name],
                )
                for name, c in grouped.items()
            ),
            tuple(Blocked(edge, seconds) for edge, seconds in self._blocked.items()),
            self._looks,
        )

    def _add_edges(self, edges: Mapping[Edge, float], passed: float, now: float) -> None:
        labelled: dict[Edge, float] = defaultdict(float)
        for (caller, callee), waiting in edges.items():
            labelled[Edge(_label(caller), _label(callee))] += waiting
        named, rest = self._edges.update(labelled, now), Edge(OTHER, OTHER)
        grouped = {edge: labelled.get(edge, 0.0) for edge in sorted(named)}
        grouped.setdefault(rest, 0.0)
        grouped[rest] += sum(n for edge, n in labelled.items() if edge not in named)
        self._blocked = {
            edge: self._blocked.get(edge, 0.0) + passed * waiting
            for edge, waiting in grouped.items()
        }


def _label(name: str) -> str:
    """The name as a label; a module that is called as the rest is belongs to the rest."""
    return label_value(name)


def _worth(counts: Counts) -> float:
    """Who is waited for comes first, then who is busy, then who is there."""
    return 10 * counts.waiting + counts.busy + 1e-3 * min(counts.processes, 100.0)


def expose_servers(page: Page, node: str, found: ServersReading) -> None:
    """Add the modules and edges."""
    if not found.looks:
        return
    for one in found.modules:
        labels = {"node": node, "module": one.module}
        page.add("beam_server_processes", one.processes, **labels)
        page.add("beam_server_busy_seconds_total", one.busy_seconds, **labels)
        page.add("beam_server_waiting_callers", one.waiting, **labels)
        page.add("beam_server_mailbox_messages", one.longest, **labels)
        page.add("beam_server_seen_requests_total", one.requests, **labels)
        page.add("beam_server_abandoned_requests_total", one.abandoned, **labels)
    for edge, seconds in found.edges:
        labels = {"node": node, "caller": edge.caller, "callee": edge.callee}
        page.add("beam_server_blocked_seconds_total", seconds, **labels)
