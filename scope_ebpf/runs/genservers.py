# SPDX-License-Identifier: Apache-2.0
"""One view of the servers of a VM: looks at random times, added up."""

from __future__ import annotations

import math
import random
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.beam.servers.survey import Survey
from scope_ebpf.errors import NoSuchProcessError, NothingToAttachError, ReadRefusedError
from scope_ebpf.results.genservers import Edge, GenServers, Module
from scope_ebpf.results.server_tags import tags_of
from scope_ebpf.runs.loop import Loop, Stop, require_target, target_ended
from scope_ebpf.runs.server_sums import MOST, Ledger, Lives, Seen, add, variances
from scope_ebpf.runs.server_tails import Tails
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.beam.servers.looks import Look, Server
    from scope_ebpf.beam.vm.identity import Identity
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.results.documents.vms import Target
    from scope_ebpf.runs.server_events import Counting
    from scope_ebpf.runs.server_sums import Sums

#: Seconds between two looks, on average, and the part of a core that looks may take.
_INTERVAL, _SHARE = 0.05, 0.1
#: Seconds between two turns, at most.
_LONGEST = 0.2
#: Looks between which a circle of callers must not have changed to be called a deadlock.
_STABLE = 3
#: An estimate whose standard error is a larger part of it is none.
_DOUBT = 0.25
#: Standard errors within which two figures agree.
_AGREES = 3.0
#: Failures, and seconds of CPU, after which a large table is read on no faster than others: a VM
#: can claim any number of processes.
_FAILURES, _MOST_CPU = 5, 30.0
#: The calls of a circle, each by the pid of its caller and its reference.
_Circle = tuple[tuple[int, tuple[int, int]], ...]
#: Functions that are shown of one module.
_FUNCTIONS = 3
#: Names by which the servers are put together.
GROUPS = ("module", "tag", "name", "process")


#: Those of which hooks count the messages.
BY_MODULE = ("module", "tag")


class Looking:
    """Adds looks up. *by* is one of GROUPS."""

    def __init__(self, viewer: Viewer, by: str = "module") -> None:
        self._survey = Survey(viewer)
        self._servers = self._survey.servers
        self._pids = viewer.pids
        self._by = by
        self._lives = Lives()
        self._now = Ledger()
        #: What looks saw before the last turn of :meth:`turn_over`.
        self._before: Ledger | None = None
        #: Whether some servers had no room.
        self._full = False
        self._circles: Counter[_Circle] = Counter()
        #: Callers and for whom they wait, in the look that goes on.
        self._waits: dict[int, tuple[int, tuple[int, int]]] = {}
        self.tails = Tails()
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
        began, first = cpu_seconds(), self._survey.begins
        try:
            seen = self._survey.step()
        except ReadRefusedError as error:
            self.failed[str(error)] += 1
        else:
            for one in seen:
                self._add(one)
            self._now.amount += 1 / self.parts if first else 1
            if not self._survey.begins:
                self._now.looks += 1
                self._find_circles(self._waits)
                if self.parts == 1:  # of a large table callers are seen later than they begin
                    self.tails.look(time.monotonic(), self._waits, self._name_of)
                self._waits = {}
        finally:
            self.cpu_seconds += cpu_seconds() - began

    def turn_over(self) -> None:
        """Forget what was seen before the last turn; what was seen since stays for one more."""
        before = self._now
        self._before, self._now = before, Ledger(before.before + before.looks)

    def _add(self, seen: Look) -> None:
        part = self._now.found if seen.searched else self._now.known
        part.torn += seen.torn * seen.weight
        self._add_servers(seen)
        called = self._add_callers(seen, part)
        if seen.searched:
            self._add_variances(seen, called)
        if self.parts > 1:
            self._add_lives(seen)

    def _add_servers(self, seen: Look) -> None:
        """Add servers; those that a search has found stand for others of their group."""
        found = seen.searched and self._by in BY_MODULE
        part, weight = (self._now.found if found else self._now.known), seen.weight
        if seen.searched and not found:
            weight = 1.0  # the group is this process alone
        self._full |= not part.add_servers(seen, self._servers.of, self._group, weight)

    def _add_variances(self, seen: Look, called: list[tuple[str | None, int]]) -> None:
        """Add those of what a search has found; *called* are groups and who waits for them."""
        part, survey = self._now.found, self._survey
        servers = [(self._servers.of(pid), pid) for pid in seen.servers.tolist()]
        groups = [(self._group(one), survey.line_of(pid)) for one, pid in servers if one]
        callers = [(group, survey.line_of(pid)) for group, pid in called]
        of = survey.drawn, survey.part
        if self._by in BY_MODULE and len(part.of_servers) < MOST:
            add(part.of_servers, variances(groups, *of, seen.weight))
        if len(part.of_callers) < MOST:
            add(part.of_callers, variances(callers, *of, seen.caller_weight))

    def _add_lives(self, seen: Look) -> None:
        look = self._now.before + self._now.looks + 1
        found = seen.searched and self._by in BY_MODULE
        self._lives.see(seen.servers.tolist(), look, look if found else look - 1)
        for pid in seen.gone:
            self._end(pid, self._lives.end(pid, look))
        for pid in seen.forgotten:
            self._end(pid, self._lives.forget(pid, look))

    def _end(self, pid: int, life: tuple[int, float] | None) -> None:
        """Add how long a server lived that no look will see again."""
        server = self._servers.of(pid)
        if life is None or server is None:
            return
        group, (since, until) = self._group(server), life
        self._now.end(group, since, until)
        if self._before:
            self._before.end(group, since, min(until, self._now.before))

    def _add_callers(self, seen: Look, part: Seen) -> list[tuple[str | None, int]]:
        """Add callers; the groups that they wait for, None where it is not known, and who waits."""
        weight = seen.caller_weight
        called: list[tuple[str | None, int]] = [(None, pid) for pid in seen.unresolved]
        part.unresolved += weight * len(called)
        for one in seen.waiting:
            server = self._servers.of(one.server or 0)
            caller = self._servers.of(one.caller)
            if server is None or one.server is None:
                part.unresolved += weight
                called.append((None, one.caller))
                continue
            callee = self._group(server)
            called.append((callee, one.caller))
            add(part.callers, {callee: weight})
            if self._by == "tag" and len(part.tags) < MOST:
                add(part.tags, {(callee, one.tag): weight})
            add(part.edges, {(self._group(caller) if caller else "(processes)", callee): weight})
            self._waits[one.caller] = one.server, one.reference
        return called

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

    def _name_of(self, pid: int) -> str:
        server = self._servers.of(pid)
        return self._group(server) if server else "?"

    def _group(self, server: Server) -> str:
        if self._by in BY_MODULE or server.behaviour is None:
            return server.module
        if self._by == "name" and server.name:
            return server.name
        return f"{self._pids.text(server.pid)} {server.name or server.module}"

    def _total(self) -> Ledger:
        """What is shown: all looks since the turn before the last one."""
        return self._before.plus(self._now) if self._before else self._now

    def result(self, target: Target, seconds: float) -> GenServers:
        """What all looks saw together, since the turn before the last one if there were any."""
        survey, total = self._survey, self._total()
        # A look that did not end saw a part of the table, which was drawn at random.
        looks = total.amount or 1.0
        waits = self._waiting(total)
        modules = self._modules(
            total, {name: count / looks for name, count in waits.callers.items()}
        )
        edges = [
            Edge(caller, callee, count / looks)
            for (caller, callee), count in sorted(
                waits.edges.items(), key=lambda edge: edge[1], reverse=True
            )
        ]
        found = GenServers(target, seconds, total.looks, modules, edges, self._deadlock())
        found.whole = not survey.begins
        found.unresolved, found.torn = waits.unresolved / looks, total.known.torn / looks
        found.cpu_seconds = self.cpu_seconds
        if self._by == "tag":
            found.tags = tags_of({key: count / looks for key, count in waits.tags.items()})
        found.notes += self._notes(modules)
        return found

    def _waiting(self, total: Ledger) -> Seen:
        """Callers that wait; of those that searches found as many as tell how many there are."""
        known, found = total.known, total.found
        sure = {
            name
            for name, count in found.callers.items()
            if self._is_sure(known.callers.get(name, 0.0), count, found.of_callers.get(name))
        }
        waits = Seen(callers={**known.callers}, edges={**known.edges}, tags={**known.tags})
        add(waits.callers, {name: n for name, n in found.callers.items() if name in sure})
        add(waits.edges, {names: n for names, n in found.edges.items() if names[1] in sure})
        add(waits.tags, {key: n for key, n in found.tags.items() if key[0] in sure})
        waits.unresolved = known.unresolved
        if self._is_sure(known.unresolved, found.unresolved, found.of_callers.get(None)):
            waits.unresolved += found.unresolved
        return waits

    def _is_sure(
        self, known: float, found: float, of_found: float | None, of_known: float = 0.0
    ) -> bool:
        """
        Whether what searches *found* says how many there are, together with *known* ones.

        Both have their variances; that of what was found is at least that of single processes,
        each of which stands for as many as there are such parts.
        """
        single = found / self._survey.part
        error = math.sqrt(of_known + max(single, of_found or 0.0))
        return error <= _DOUBT * (known + found)

    def busiest(self, name: str) -> int | None:
        """The server of a group that most waits for, or that is busiest; its pid term."""
        total = self._total()
        servers = {**total.found.servers, **total.known.servers}
        members = [one for one in servers.values() if self._group(one.server) == name]
        most = max(
            members, key=lambda one: (one.mailbox / one.looks, one.busy / one.looks), default=None
        )
        return most.server.pid if most else None

    def _notes(self, modules: list[Module]) -> list[str]:
        """What the figures do not show."""
        notes, survey = [], self._survey
        if self.failed:
            why, _ = self.failed.most_common(1)[0]
            notes.append(f"{sum(self.failed.values())} looks failed: {why}")
        if self._full:
            notes.append(f"more than {MOST:,} groups of servers were seen: some are left out")
        if unknown := sum(one.processes is None for one in modules):
            notes.append(
                f"how many servers there are is not known of {unknown} of {len(modules)} rows: the "
                "search found too few new ones to tell"
            )
        if survey.begins and survey.parts > 1:
            notes.append(
                f"{survey.read} of {survey.parts} parts of the process table were read, drawn at "
                "random: figures are estimates, and a deadlock is not seen"
            )
        elif survey.parts > 1:
            notes.append(
                "the whole process table was read once, then those that had anything to do, and "
                f"others that were drawn; each look searched {survey.part:.2g} of it for new ones: "
                "averages are estimates"
            )
        if survey.misses:
            notes.append("too many processes have something to do: later looks leave some out")
        return notes

    def _modules(self, total: Ledger, callers: dict[str, float]) -> list[Module]:
        """Rows, with how many *callers* wait for each."""
        known, found = (part.members(self._group) for part in (total.known, total.found))
        lived = self._lived(total, known)
        modules = []
        for name in {**known, **found}:
            weight = sum(one.weight for one in found.get(name, ()))
            there, variance = self._there(lived.get(name, 0.0), known.get(name, []))
            sure = self._is_sure(there, weight, total.found.of_servers.get(name), variance)
            members = known.get(name, [])
            if sure or not members:
                members = members + found.get(name, [])
            module = _module(name, members, callers.get(name, 0.0))
            looks = self._counted(total)
            processes = (there + weight) / looks if sure else None
            modules.append(replace(module, processes=processes, least=there / looks))
        return modules

    def _there(self, lived: float, members: list[Sums]) -> tuple[float, float]:
        """
        Looks that known servers of one group lived through, and the variance of that.

        Those that *lived* have no error by chance, but one that ended is missed only when it is
        drawn. So that counts as long as it agrees with what was drawn, each for as many as it
        stands for.
        """
        drawn = sum(one.weight for one in members)
        variance = sum(one.variance for one in members)
        alone = self._by not in BY_MODULE
        if alone or not variance or abs(drawn - lived) <= _AGREES * math.sqrt(variance):
            return lived, 0.0
        return drawn, variance

    def _counted(self, total: Ledger) -> float:
        """Looks, of which servers have lived through some; less than 1 within the first one."""
        if self._survey.parts == 1:
            return total.amount or 1.0
        return total.looks or max(1, self._survey.read) / self._survey.parts

    def _lived(self, total: Ledger, known: dict[str, list[Sums]]) -> dict[str, float]:
        """Looks that servers lived through, by group; of a small table those that saw them."""
        if self._survey.parts == 1:
            return {name: sum(one.weight for one in members) for name, members in known.items()}
        lived = dict(total.ended)
        last = total.before + total.looks
        of, group = self._servers.of, self._group
        for pid, since in self._lives:
            server = of(pid)
            looks = float(last - max(since, total.before)) if total.looks else 1.0
            if server is not None and looks:
                name = group(server)
                lived[name] = lived.get(name, 0.0) + looks
        return lived

    def _deadlock(self) -> tuple[str, ...]:
        stable = [circle for circle, looks in self._circles.items() if looks >= _STABLE]
        return tuple(self._servers.names_of([pid for pid, _ in stable[0]])) if stable else ()


def _module(name: str, members: list[Sums], callers: float) -> Module:
    """What looks saw of the servers of one group."""
    weight = sum(one.weight for one in members) or 1.0
    busy = sum(one.busy_weight for one in members)
    functions: dict[str, float] = {}
    for one in members:
        if one.functions:
            add(functions, one.functions)
    most = sorted(functions.items(), key=lambda item: item[1], reverse=True)
    return Module(
        name,
        members[0].server.behaviour or "",
        None,
        busy / weight,
        max((one.busiest for one in members if one.busiest is not None), default=busy / weight),
        sum(one.mailbox for one in members) / weight,
        max(one.longest for one in members),
        callers,
        tuple((text, seen / busy) for text, seen in most[:_FUNCTIONS] if busy),
    )


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
            seen = counted.result().renamed(looking.became())
            found.add_events(looking.tails.add_to(seen))
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
