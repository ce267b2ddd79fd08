# SPDX-License-Identifier: Apache-2.0
"""One view of the servers of a VM: looks at random times, added up."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.beam.servers.looks import Servers
from scope_ebpf.errors import NothingToAttachError, ReadRefusedError
from scope_ebpf.results.genservers import Edge, GenServers, Module
from scope_ebpf.results.server_tags import tags_of
from scope_ebpf.runs.loop import Loop, Stop, require_target
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.beam.servers.looks import Look, Server
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.results.documents.vms import Target
    from scope_ebpf.runs.server_events import Counting

#: Seconds between two looks, on average, and the part of a core that looks may take.
_INTERVAL, _SHARE = 0.05, 0.1
#: Seconds between two turns, at most.
_LONGEST = 0.2
#: Looks between which a circle of callers must not have changed to be called a deadlock.
_STABLE = 3
#: Looks at one server from which on its own utilization is shown; servers that are remembered.
_ENOUGH, _MOST = 10, 1 << 17
#: The calls of a circle, each by the pid of its caller and its reference.
_Circle = tuple[tuple[int, tuple[int, int]], ...]
#: Functions that are shown of one module.
_FUNCTIONS = 3
#: Names by which the servers are put together.
GROUPS = ("module", "tag", "name", "process")


#: Those of which hooks count the messages.
BY_MODULE = ("module", "tag")


@dataclass(slots=True)
class _Sums:
    """What the looks saw of one process."""

    server: Server
    looks: int = 0
    busy: int = 0
    mailbox: int = 0
    longest: int = 0
    functions: Counter[str] = field(default_factory=Counter)


class Looking:
    """Adds looks up. *by* is one of GROUPS."""

    def __init__(self, viewer: Viewer, by: str = "module") -> None:
        self._servers = Servers(viewer)
        self._pids = viewer.pids
        self._by = by
        self._sums: dict[int, _Sums] = {}
        self._edges: dict[tuple[str, str], float] = defaultdict(float)
        self._callers: dict[str, float] = defaultdict(float)
        #: The same, by module and tag of the request.
        self._tags: dict[tuple[str, str | None], float] = defaultdict(float)
        self._unresolved = self._torn = 0.0
        self._circles: Counter[_Circle] = Counter()
        self.looks = 0
        #: Looks that failed, by why: code may be loaded meanwhile.
        self.failed: Counter[str] = Counter()
        self.cpu_seconds = 0.0

    def became(self) -> dict[str, str]:
        """What servers run that began with another module, where all of them run the same one."""
        seen = self._servers.became
        return {began: str(*runs) for began, runs in seen.items() if len(runs) == 1}

    def look(self) -> None:
        """Look once more."""
        began = cpu_seconds()
        try:
            seen = self._servers.look()
        except ReadRefusedError as error:
            self.failed[str(error)] += 1
        else:
            self.looks += 1
            self._unresolved += seen.unresolved * seen.caller_weight
            self._torn += seen.torn * seen.weight
            self._add_servers(seen)
            self._add_callers(seen)
        finally:
            self.cpu_seconds += cpu_seconds() - began

    def _add_servers(self, seen: Look) -> None:
        for pid, mailbox in zip(seen.servers.tolist(), seen.mailboxes.tolist(), strict=True):
            sums = self._sums.get(pid)
            server = self._servers.of(pid)
            if sums is None:
                if server is None or len(self._sums) >= _MOST:
                    continue
                sums = self._sums[pid] = _Sums(server)
            sums.server = server or sums.server  # by now it may be known what it runs
            sums.looks += 1
            sums.mailbox += mailbox
            sums.longest = max(sums.longest, mailbox)
        for pid, function in seen.busy:
            if (sums := self._sums.get(pid)) is not None:
                sums.busy += 1
                sums.functions[function] += 1

    def _add_callers(self, seen: Look) -> None:
        waits: dict[int, tuple[int, tuple[int, int]]] = {}
        for one in seen.waiting:
            server = self._servers.of(one.server or 0)
            caller = self._servers.of(one.caller)
            if server is None or one.server is None:
                self._unresolved += seen.caller_weight
                continue
            callee = self._group(server)
            self._callers[callee] += seen.caller_weight
            if self._by == "tag" and len(self._tags) < _MOST:
                self._tags[callee, one.tag] += seen.caller_weight
            edge = self._group(caller) if caller else "(processes)", callee
            self._edges[edge] += seen.caller_weight
            waits[one.caller] = one.server, one.reference
        self._find_circles(waits)

    def _find_circles(self, waits: dict[int, tuple[int, tuple[int, int]]]) -> None:
        """Count in how many looks, one after the other, the same calls form a circle."""
        found: set[_Circle] = set()
        done: set[int] = set()
        for start in waits:
            path: dict[int, None] = {}
            at = start
            while at in waits and at not in path and at not in done:
                path[at] = None
                at = waits[at][0]
            if at in path:
                order = [*path]
                circle = order[order.index(at) :]
                first = circle.index(min(circle))
                pids = (*circle[first:], *circle[:first])
                found.add(tuple((pid, waits[pid][1]) for pid in pids))
            done.update(path)
        self._circles = Counter({circle: self._circles[circle] + 1 for circle in found})

    def _group(self, server: Server) -> str:
        if self._by in BY_MODULE or server.behaviour is None:
            return server.module
        if self._by == "name" and server.name:
            return server.name
        return f"{self._pids.text(server.pid)} {server.name or server.module}"

    def result(self, target: Target, seconds: float) -> GenServers:
        """What all looks saw together."""
        looks = max(1, self.looks)
        groups: dict[str, list[_Sums]] = {}
        for sums in self._sums.values():
            groups.setdefault(self._group(sums.server), []).append(sums)
        modules = [self._module(name, members, looks) for name, members in groups.items()]
        edges = [
            Edge(caller, callee, count / looks)
            for (caller, callee), count in sorted(
                self._edges.items(), key=lambda edge: edge[1], reverse=True
            )
        ]
        found = GenServers(target, seconds, self.looks, modules, edges, self._deadlock())
        found.unresolved, found.torn = self._unresolved / looks, self._torn / looks
        found.cpu_seconds = self.cpu_seconds
        if self._by == "tag":
            found.tags = tags_of({key: count / looks for key, count in self._tags.items()})
        if self.failed:
            why, _ = self.failed.most_common(1)[0]
            found.notes.append(f"{sum(self.failed.values())} looks failed: {why}")
        if len(self._sums) >= _MOST:
            found.notes.append(f"more than {_MOST:,} servers were seen: later ones are left out")
        if self._servers.parts > 1:
            found.notes.append(
                f"each look read one of {self._servers.parts} parts of the process table, drawn at "
                "random: averages are estimates, and a deadlock may not be seen"
            )
        return found

    def _module(self, name: str, members: list[_Sums], looks: int) -> Module:
        seen = sum(one.looks for one in members)
        busy = sum(one.busy for one in members)
        functions: Counter[str] = Counter()
        for one in members:
            functions.update(one.functions)
        return Module(
            name,
            members[0].server.behaviour or "",
            seen * self._servers.parts / looks,
            busy / seen,
            max(
                (one.busy / one.looks for one in members if one.looks >= _ENOUGH),
                default=busy / seen,
            ),
            sum(one.mailbox for one in members) / seen,
            max(one.longest for one in members),
            self._callers.get(name, 0.0) / looks,
            tuple((text, count / busy) for text, count in functions.most_common(_FUNCTIONS)),
        )

    def _deadlock(self) -> tuple[str, ...]:
        stable = [circle for circle, looks in self._circles.items() if looks >= _STABLE]
        return tuple(self._servers.names_of([pid for pid, _ in stable[0]])) if stable else ()


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How servers are watched."""

    #: Seconds; None for no end.
    duration: float | None
    #: One of GROUPS.
    by: str = "module"
    #: The part of the VM's CPU that hooks may take, more than 1 for no bound; None for no hooks.
    budget: float | None = None
    #: The part above which a run that counts everything ends itself; None for no bound.
    max_cost: float | None = None


def watch(viewer: Viewer, options: ServerOptions) -> tuple[GenServers, ScopeError | None]:
    """
    Watch the servers of a VM until something ends it.

    Returns what was seen, and the error that ended it early.
    """
    target, looking, stop = viewer.target, Looking(viewer, options.by), Stop()
    require_target(target.identity, "watched")
    counting, why = _counting(viewer, options, stop)
    draw = random.Random()  # noqa: S311 - when to look is no secret
    due = 0.0

    def turn(now: float) -> None:
        nonlocal due
        if now >= due:
            before = looking.cpu_seconds
            looking.look()
            cost = looking.cpu_seconds - before
            # At random: work with the period of the looks would be seen at the same point.
            due = time.monotonic() + draw.uniform(0.5, 1.5) * max(_INTERVAL, cost / _SHARE)
        if counting:
            counting.look(now)

    def pause() -> float:
        # Not longer, however long a look took: a signal is noticed between two turns.
        return min(_LONGEST, due - time.monotonic())

    with stop.on_signals(), counting or nullcontext():
        if counting:
            counting.begin()
        _say_started(target.pid, options.duration)
        loop = Loop(target.identity, "watched", options.duration, stop)
        error = loop.run(turn, pause)
        seconds = time.monotonic() - loop.started
        if counting:
            counting.end()
        found = looking.result(target.as_json(), seconds)
        if counting:
            found.add_events(counting.result().renamed(looking.became()))
    found.notes += [f"no hooks: {why}"] if why else []
    return found, error


def _counting(viewer: Viewer, options: ServerOptions, stop: Stop) -> tuple[Counting | None, str]:
    """What counts messages; or None and the reason, "" where it is not wanted."""
    if options.budget is None:
        return None, ""
    if options.by not in BY_MODULE:
        return None, "messages are counted by module and tag"
    by_tag = options.by == "tag"
    from scope_ebpf.runs.server_events import Counting
    from scope_ebpf.runs.server_windows import Windows

    try:
        if options.budget > 1:
            return Counting(viewer, options.max_cost, stop, by_tag=by_tag), ""
        return Windows(viewer, stop, options.budget, options.duration, by_tag=by_tag), ""
    except (NothingToAttachError, ReadRefusedError) as error:
        return None, str(error)


def _say_started(pid: int, duration: float | None) -> None:
    if not sys.stderr.isatty():
        length = "" if duration is None else f" for {duration:g} s"
        say(f"scope-trace: watching process {pid}{length}; Ctrl-C ends it")
