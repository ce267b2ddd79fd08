# SPDX-License-Identifier: Apache-2.0
"""
Requests as trees of spans, made of the events at their starts and ends.

What contains what is known by the order of a process's events, not by times: between an event and
what its duration states, its thread may have lost the CPU. An outer span may end before an inner
one: Phoenix ends the endpoint when the answer is sent, before the router returns.

Pure. The JSON of :meth:`Requests.as_json` is a contract; fields are added, never renamed.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.results.documents.requests import (
        RequestDocument,
        RequestsDocument,
        RequestSpan,
    )
    from scope_ebpf.results.telemetry import Telemetry

#: Spans of one request; failed requests that are kept; processes with a request under way.
_MOST_SPANS, MOST_FAILED, _MOST_OPEN = 1000, 1000, 1 << 16
#: Spans of all requests that are under way; of the slowest, and of the failed ones, that are kept.
_MOST_IN_ALL, _MOST_KEPT = 1 << 18, 1 << 18
_NS = 1e9


@dataclass(frozen=True, slots=True)
class Span:
    """Something that a process did, from *start* to *end*, ns of the monotonic clock."""

    event: str
    labels: dict[str, str | None]
    start: int
    end: int
    #: Whether it is a request of its own if nothing contains it.
    root: bool

    @property
    def failed(self) -> bool:
        """Whether the event says that something failed."""
        status = self.labels.get("status") or ""
        return self.event.endswith(".exception") or status.startswith("5")


@dataclass(frozen=True, slots=True)
class Request:
    """A tree of spans of the process *pid*, a term, in order of their starts, the root first."""

    pid: int
    spans: tuple[Span, ...]
    #: Of each span the index of the one that contains it; -1 for the root.
    parents: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """From its start until the last of it ended."""
        return (max(span.end for span in self.spans) - self.spans[0].start) / _NS

    @property
    def failed(self) -> bool:
        """Whether a span of it failed."""
        return any(span.failed for span in self.spans)

    def label(self, name: str) -> str | None:
        """The label *name* of the outermost span that has it."""
        return next((span.labels[name] for span in self.spans if span.labels.get(name)), None)


@dataclass(slots=True)
class _Tree:
    """A request under way: its spans, None for those that have not ended, and their parents."""

    spans: list[Span | None] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def add(self, span: Span | None, parent: int) -> int:
        """Add a span; returns its number."""
        self.spans.append(span)
        self.parents.append(parent)
        return len(self.spans) - 1

    def ended(self) -> int:
        """The number of spans that have ended."""
        return sum(span is not None for span in self.spans)

    def request(self, pid: int) -> Request:
        """The request, of the spans that have ended; its root has."""
        spans = {n: span for n, span in enumerate(self.spans) if span is not None}
        order = sorted(spans, key=lambda n: (n != 0, spans[n].start, n))
        place = {n: index for index, n in enumerate(order)} | {-1: -1}
        parents = []
        for n in order:
            parent = self.parents[n]
            while parent not in place:  # it has not ended, so its own is taken
                parent = self.parents[parent]
            parents.append(place[parent])
        return Request(pid, tuple(spans[n] for n in order), tuple(parents))


@dataclass(frozen=True, slots=True)
class _Open:
    """A span of *tree* that has not ended: its name without the last atom, and its number."""

    stem: tuple[str, ...]
    level: int
    start: int
    tree: _Tree
    number: int


@dataclass(slots=True)
class Requests:
    """
    The slowest requests, *limit* of them, and all that failed, MOST_FAILED at most.

    Only those that took *slower* seconds or more, and whose route fits the pattern *route*.
    """

    limit: int
    slower: float = 0.0
    route: str | None = None
    #: Requests that were seen, and of these failed ones.
    seen: int = 0
    failures: int = 0
    #: Spans that were not put into a tree: of requests with too many, and of what is no request.
    left_out: int = 0
    #: Requests that were given up, because too many were under way or had too many spans together.
    dropped: int = 0
    #: Places among the slowest and the failed ones that were lost, because of too many spans.
    unkept: int = 0
    #: By process, the spans that have not ended, the outermost first; all of one tree.
    _open: dict[int, list[_Open]] = field(default_factory=dict)
    #: Spans of them, also those that have ended.
    _under_way: int = 0
    _slowest: list[tuple[float, int, Request]] = field(default_factory=list)
    _failed: list[Request] = field(default_factory=list)
    #: Spans of both.
    _in_slowest: int = 0
    _in_failed: int = 0

    def start(self, pid: int, stem: tuple[str, ...], level: int, time_ns: int) -> None:
        """The process *pid* began what events ``(*stem, "stop")`` end."""
        stack = self._open.get(pid, [])
        if stack and (level < stack[-1].level or any(one.stem == stem for one in stack)):
            self._give_up(pid)  # what was open has ended without an event
            stack = []
        if stack and len(stack[-1].tree.spans) >= _MOST_SPANS:
            self._give_up(pid)
            self.left_out += 1
            return
        tree = stack[-1].tree if stack else _Tree()
        number = tree.add(None, stack[-1].number if stack else -1)
        self._under_way += 1
        if pid not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._drop()
            self._open[pid] = stack
        stack.append(_Open(stem, level, time_ns, tree, number))
        self._make_room()

    def end(self, pid: int, span: Span, stem: tuple[str, ...] | None) -> None:
        """
        Add what the process *pid* has ended.

        *stem* is that of its start; None for an event whose start is not known.
        """
        stack = self._open.get(pid, [])
        if stem is None:
            self._add_leaf(pid, span, stack)
            return
        one = next((one for one in reversed(stack) if one.stem == stem), None)
        if one is None:
            self.left_out += 1  # it began before the run
            return
        one.tree.spans[one.number] = replace(span, start=one.start)
        stack.remove(one)
        if not stack:
            del self._open[pid]
            self._finish(pid, one.tree)

    def _make_room(self) -> None:
        """Drop requests while those under way have too many spans together."""
        while self._under_way > _MOST_IN_ALL:
            self._drop()

    def _drop(self) -> None:
        """Give up the request that began first: its process was killed, most likely."""
        self.dropped += 1
        self._give_up(next(iter(self._open)))

    def _add_leaf(self, pid: int, span: Span, stack: list[_Open]) -> None:
        if not stack and span.root:
            self._offer(Request(pid, (span,), (-1,)))
        elif stack and len(stack[-1].tree.spans) < _MOST_SPANS:
            stack[-1].tree.add(span, stack[-1].number)
            self._under_way += 1
            self._make_room()
        else:
            self.left_out += 1

    def _give_up(self, pid: int) -> None:
        """Nothing more comes of what *pid* has open."""
        stack = self._open.pop(pid)
        self._finish(pid, stack[0].tree)

    def _finish(self, pid: int, tree: _Tree) -> None:
        self._under_way -= len(tree.spans)
        root = tree.spans[0]
        if root is not None and root.root:
            self._offer(tree.request(pid))
        else:
            self.left_out += tree.ended()

    def finish(self) -> None:
        """No more events come."""
        for pid in list(self._open):
            self._give_up(pid)

    def _offer(self, request: Request) -> None:
        if self.route is not None and not fnmatchcase(request.label("route") or "", self.route):
            return
        if request.seconds < self.slower:
            return
        self.seen += 1
        if request.failed:
            self.failures += 1
            self._keep_failed(request)
        heapq.heappush(self._slowest, (request.seconds, -self.seen, request))
        self._in_slowest += len(request.spans)
        while len(self._slowest) > self.limit or self._in_slowest > _MOST_KEPT:
            self.unkept += len(self._slowest) <= self.limit
            self._in_slowest -= len(heapq.heappop(self._slowest)[2].spans)

    def _keep_failed(self, request: Request) -> None:
        if len(self._failed) >= MOST_FAILED:
            return
        if self._in_failed + len(request.spans) > _MOST_KEPT:
            self.unkept += 1
            return
        self._failed.append(request)
        self._in_failed += len(request.spans)

    def found(self) -> list[Request]:
        """The slowest first, then those that failed."""
        slowest = [request for _, _, request in sorted(self._slowest, reverse=True)]
        kept = set(map(id, slowest))
        return slowest + [request for request in self._failed if id(request) not in kept]

    def as_json(
        self, run: Telemetry, pid_text: Callable[[int], str], wall_offset_ns: int
    ) -> RequestsDocument:
        """The document of ``requests --format json``; *run* is how the events were counted."""
        counted = run.as_json()
        return {
            "schema": 1,
            "target": counted["target"],
            "duration_seconds": counted["duration_seconds"],
            "stopped_because": counted["stopped_because"],
            "via": counted["via"],
            "sampling_ratio": counted["sampling_ratio"],
            "seen": self.seen,
            "failed": self.failures,
            "requests": [_as_json(one, pid_text, wall_offset_ns) for one in self.found()],
            "lost": counted["lost"],
            "left_out": self.left_out,
            "dropped": self.dropped,
            "unkept": self.unkept,
            "refused": counted["refused"],
            "cost": counted["cost"],
            "notes": counted["notes"],
        }


def _as_json(
    request: Request, pid_text: Callable[[int], str], wall_offset_ns: int
) -> RequestDocument:
    start = request.spans[0].start
    spans: list[RequestSpan] = [
        {
            "event": span.event,
            "labels": span.labels,
            "parent": None if parent == -1 else parent,
            "start_seconds": (span.start - start) / _NS,
            "duration_seconds": (span.end - span.start) / _NS,
        }
        for span, parent in zip(request.spans, request.parents, strict=True)
    ]
    return {
        "time": (start + wall_offset_ns) / _NS,
        "process": pid_text(request.pid),
        "duration_seconds": request.seconds,
        "route": request.label("route"),
        "status": request.label("status"),
        "exception": request.label("exception"),
        "failed": request.failed,
        "spans": spans,
    }
