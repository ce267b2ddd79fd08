# SPDX-License-Identifier: Apache-2.0
"""One view of the servers of a VM: looks at random times, added up."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.beam.servers.survey import Survey
from scope_ebpf.errors import NoSuchProcessError, NothingToAttachError, ReadRefusedError
from scope_ebpf.results.genservers import Edge, GenServers, Module
from scope_ebpf.results.server_tags import tags_of
from scope_ebpf.runs.loop import Loop, Stop, require_target, target_ended
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.beam.servers.looks import Look, Server
    from scope_ebpf.beam.vm.identity import Identity
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
#: Failures, and seconds of CPU, after which a large table is read on no faster than others: a VM
#: can claim any number of processes.
_FAILURES, _MOST_CPU = 5, 30.0
_Key = TypeVar("_Key")
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
    """What the looks saw of one process; it may have stood for others, which is its weight."""

    server: Server
    looks: int = 0
    busy: int = 0
    longest: int = 0
    #: All weights, those while it was busy, and messages that waited, by weight.
    weight: float = 0.0
    busy_weight: float = 0.0
    mailbox: float = 0.0
    functions: dict[str, float] = field(default_factory=dict)

    def add(self, other: _Sums) -> None:
        """Add what other looks saw of the same process."""
        self.looks += other.looks
        self.busy += other.busy
        self.longest = max(self.longest, other.longest)
        self.weight += other.weight
        self.busy_weight += other.busy_weight
        self.mailbox += other.mailbox
        _add(self.functions, other.functions)


@dataclass(slots=True)
class _Ledger:
    """What several looks saw together."""

    looks: int = 0
    #: By the pid terms of servers.
    servers: dict[int, _Sums] = field(default_factory=dict)
    #: Callers that wait: by caller and called one; by the latter; by it and the request's tag.
    edges: dict[tuple[str, str], float] = field(default_factory=dict)
    callers: dict[str, float] = field(default_factory=dict)
    tags: dict[tuple[str, str | None], float] = field(default_factory=dict)
    unresolved: float = 0.0
    torn: float = 0.0

    def plus(self, other: _Ledger) -> _Ledger:
        """What both saw together; a new one."""
        total = _Ledger(self.looks + other.looks)
        for one in (self, other):
            for pid, sums in one.servers.items():
                total.servers.setdefault(pid, _Sums(sums.server)).add(sums)
            _add(total.edges, one.edges)
            _add(total.callers, one.callers)
            _add(total.tags, one.tags)
            total.unresolved += one.unresolved
            total.torn += one.torn
        return total


def _add(totals: dict[_Key, float], more: dict[_Key, float]) -> None:
    for key, count in more.items():
        totals[key] = totals.get(key, 0.0) + count


class Looking:
    """Adds looks up. *by* is one of GROUPS."""

    def __init__(self, viewer: Viewer, by: str = "module") -> None:
        self._survey = Survey(viewer)
        self._servers = self._survey.servers
        self._pids = viewer.pids
        self._by = by
        self._now = _Ledger()
        #: What looks saw before the last turn of :meth:`turn_over`.
        self._before: _Ledger | None = None
        self._circles: Counter[_Circle] = Counter()
        #: Callers and for whom they wait, in the look that goes on.
        self._waits: dict[int, tuple[int, tuple[int, int]]] = {}
        #: Looks that failed, by why: code may be loaded meanwhile.
        self.failed: Counter[str] = Counter()
        self.cpu_seconds = 0.0

    def became(self) -> dict[str, str]:
        """What servers run that began with another module, where all of them run the same one."""
        seen = self._servers.became
        return {began: str(*runs) for began, runs in seen.items() if len(runs) == 1}

    @property
    def parts(self) -> int:
        """In how many parts the process table is read."""
        return self._survey.parts

    @property
    def read(self) -> int:
        """How many of them have been read."""
        return self._survey.read

    @property
    def reads_first(self) -> bool:
        """Whether a large table is still read for the first time, as fast as possible."""
        spent = sum(self.failed.values()) >= _FAILURES or self.cpu_seconds >= _MOST_CPU
        return self.parts > 1 and self._survey.begins and not spent

    def look(self) -> None:
        """Look once more, or go on with the first look."""
        began = cpu_seconds()
        try:
            seen = self._survey.step()
        except ReadRefusedError as error:
            self.failed[str(error)] += 1
        else:
            for one in seen:
                self._add(one)
            if not self._survey.begins:
                self._now.looks += 1
                self._find_circles(self._waits)
                self._waits = {}
        finally:
            self.cpu_seconds += cpu_seconds() - began

    def turn_over(self) -> None:
        """Forget what was seen before the last turn; what was seen since stays for one more."""
        self._before, self._now = self._now, _Ledger()

    def _add(self, seen: Look) -> None:
        self._now.unresolved += seen.unresolved * seen.caller_weight
        self._now.torn += seen.torn * seen.weight
        self._add_servers(seen)
        self._add_callers(seen)

    def _add_servers(self, seen: Look) -> None:
        servers = self._now.servers
        for pid, mailbox in zip(seen.servers.tolist(), seen.mailboxes.tolist(), strict=True):
            sums = servers.get(pid)
            server = self._servers.of(pid)
            if sums is None:
                if server is None or len(servers) >= _MOST:
                    continue
                sums = servers[pid] = _Sums(server)
            sums.server = server or sums.server  # by now it may be known what it runs
            sums.looks += 1
            sums.weight += seen.weight
            sums.mailbox += seen.weight * mailbox
            sums.longest = max(sums.longest, mailbox)
        for pid, function in seen.busy:
            if (sums := servers.get(pid)) is not None:
                sums.busy += 1
                sums.busy_weight += seen.weight
                _add(sums.functions, {function: seen.weight})

    def _add_callers(self, seen: Look) -> None:
        now, weight = self._now, seen.caller_weight
        for one in seen.waiting:
            server = self._servers.of(one.server or 0)
            caller = self._servers.of(one.caller)
            if server is None or one.server is None:
                now.unresolved += weight
                continue
            callee = self._group(server)
            _add(now.callers, {callee: weight})
            if self._by == "tag" and len(now.tags) < _MOST:
                _add(now.tags, {(callee, one.tag): weight})
            _add(now.edges, {(self._group(caller) if caller else "(processes)", callee): weight})
            self._waits[one.caller] = one.server, one.reference

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

    def _total(self) -> _Ledger:
        """What is shown: all looks since the turn before the last one."""
        return self._before.plus(self._now) if self._before else self._now

    def result(self, target: Target, seconds: float) -> GenServers:
        """What all looks saw together, since the turn before the last one if there were any."""
        survey, total = self._survey, self._total()
        # A look that did not end saw a part of the table, which was drawn at random.
        looks = total.looks or max(1, survey.read) / survey.parts
        groups: dict[str, list[_Sums]] = {}
        for sums in total.servers.values():
            groups.setdefault(self._group(sums.server), []).append(sums)
        processes = self._processes(groups, looks)
        modules = [
            self._module(name, members, processes[name], total.callers.get(name, 0.0) / looks)
            for name, members in groups.items()
        ]
        edges = [
            Edge(caller, callee, count / looks)
            for (caller, callee), count in sorted(
                total.edges.items(), key=lambda edge: edge[1], reverse=True
            )
        ]
        found = GenServers(target, seconds, total.looks, modules, edges, self._deadlock())
        found.whole = not survey.begins
        found.unresolved, found.torn = total.unresolved / looks, total.torn / looks
        found.cpu_seconds = self.cpu_seconds
        if self._by == "tag":
            found.tags = tags_of({key: count / looks for key, count in total.tags.items()})
        found.notes += self._notes()
        return found

    def busiest(self, name: str) -> int | None:
        """The server of a group that most waits for, or that is busiest; its pid term."""
        members = [one for one in self._total().servers.values() if self._group(one.server) == name]
        most = max(
            members, key=lambda one: (one.mailbox / one.looks, one.busy / one.looks), default=None
        )
        return most.server.pid if most else None

    def _notes(self) -> list[str]:
        """What the figures do not show."""
        notes, survey = [], self._survey
        if self.failed:
            why, _ = self.failed.most_common(1)[0]
            notes.append(f"{sum(self.failed.values())} looks failed: {why}")
        if len(self._now.servers) >= _MOST:
            notes.append(f"more than {_MOST:,} servers were seen: later ones are left out")
        if survey.begins and survey.parts > 1:
            notes.append(
                f"{survey.read} of {survey.parts} parts of the process table were read, drawn at "
                "random: figures are estimates, and a deadlock is not seen"
            )
        elif survey.parts > 1:
            notes.append(
                "the whole process table was read once, then those that had anything to do, and "
                "others that were drawn: averages are estimates, and new callers are found late"
            )
        if survey.misses:
            notes.append("too many processes have something to do: later looks leave some out")
        return notes

    def _module(self, name: str, members: list[_Sums], processes: float, callers: float) -> Module:
        weight = sum(one.weight for one in members) or 1.0
        busy = sum(one.busy_weight for one in members)
        functions: dict[str, float] = {}
        for one in members:
            _add(functions, one.functions)
        most = sorted(functions.items(), key=lambda item: item[1], reverse=True)
        return Module(
            name,
            members[0].server.behaviour or "",
            processes,
            busy / weight,
            max(
                (one.busy / one.looks for one in members if one.looks >= _ENOUGH),
                default=busy / weight,
            ),
            sum(one.mailbox for one in members) / weight,
            max(one.longest for one in members),
            callers,
            tuple((text, seen / busy) for text, seen in most[:_FUNCTIONS] if busy),
        )

    def _processes(self, groups: dict[str, list[_Sums]], looks: float) -> dict[str, float]:
        """How many servers there are, on average; of a large table those that have not ended."""
        survey = self._survey
        if survey.parts == 1:
            return {
                name: sum(one.weight for one in members) / looks for name, members in groups.items()
            }
        alive = Counter(
            self._group(one)
            for one in self._servers.known.values()
            if one.behaviour is not None and one.pid not in survey.ended
        )
        part = survey.read / survey.parts
        return {name: alive[name] / part for name in groups}

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


class Pace:
    """When to look: at random times, as often as a share of a core allows."""

    def __init__(self) -> None:
        self._draw = random.Random()  # noqa: S311 - when to look is no secret
        #: When the next look is due, in monotonic seconds.
        self.due = 0.0

    def look(self, looking: Looking) -> None:
        """Look once, and plan the next look."""
        before = looking.cpu_seconds
        looking.look()
        cost = looking.cpu_seconds - before
        # At random: work with the period of the looks would be seen at the same point.
        self.due = time.monotonic() + self._draw.uniform(0.5, 1.5) * max(_INTERVAL, cost / _SHARE)


def watch(viewer: Viewer, options: ServerOptions) -> tuple[GenServers, ScopeError | None]:
    """
    Watch the servers of a VM until something ends it.

    Returns what was seen, and the error that ended it early.
    """
    target, looking, stop = viewer.target, Looking(viewer, options.by), Stop()
    require_target(target.identity, "watched")
    counted, why = counting(viewer, options, stop)
    pace = Pace()

    def turn(now: float) -> None:
        if now >= pace.due:
            pace.look(looking)
        if counted:
            counted.look(now)

    def pause() -> float:
        # Not longer, however long a look took: a signal is noticed between two turns.
        return min(_LONGEST, pace.due - time.monotonic())

    with stop.on_signals(), counted or nullcontext():
        ended = _read_first(looking, target.identity, stop)
        if counted:
            counted.begin()
        _say_started(target.pid, options.duration)
        loop = Loop(target.identity, "watched", options.duration, stop)
        error = ended or loop.run(turn, pause)
        seconds = time.monotonic() - loop.started
        if counted:
            counted.end()
        found = looking.result(target.as_json(), seconds)
        if counted:
            found.add_events(counted.result().renamed(looking.became()))
    found.notes += [f"no hooks: {why}"] if why else []
    return found, error


def _read_first(looking: Looking, identity: Identity, stop: Stop) -> ScopeError | None:
    """Read a large process table once, before the time of the run begins; why that has ended."""
    if looking.reads_first and not sys.stderr.isatty():
        say("scope-trace: the whole process table is read first")
    try:
        while looking.reads_first and not stop.reason:
            identity.wait(0)
            looking.look()
    except NoSuchProcessError as gone:
        stop.ask("target ended")
        return target_ended(identity.pid, gone, "watched")
    return None


def counting(viewer: Viewer, options: ServerOptions, stop: Stop) -> tuple[Counting | None, str]:
    """Return what counts messages; or None and the reason, "" where it is not wanted."""
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
