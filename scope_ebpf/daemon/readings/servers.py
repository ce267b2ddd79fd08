# SPDX-License-Identifier: Apache-2.0
"""
Looks at the servers of each target at random times, in a thread of their own.

A look is the one of ``scope-trace genservers --no-hooks``. The CPU of looks is a small share of the
target's budget, so a VM with much to read is looked at rarely, and its figures are coarse.
"""

from __future__ import annotations

import logging
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np

from scope_ebpf.beam.memory.look_limits import LookLimits, limited
from scope_ebpf.beam.memory.process_memory import Memory, cpu_seconds
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.servers.abandoned import MOST_SERVERS, Mailboxes, Request
from scope_ebpf.beam.servers.looks import Servers
from scope_ebpf.daemon.looks.owners import in_turns, queue_of
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.thread import Observed, ReadingThread, reason
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError, TooMuchError
from scope_ebpf.metrics.servers import Counts, Edge, ServersReading, ServerSums

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from scope_ebpf.beam.servers.looks import Look
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.config import Config
    from scope_ebpf.metrics.reading import Reading

#: The part of a target's budget that looks may take of the daemon's CPU.
SHARE = 0.15
#: Mean seconds between two looks, at least.
INTERVAL = 1.0
#: Processes of a VM above which its servers are not looked at. Each look reads all of them: in a
#: part of the table a server that exists may be missing. So many are remembered, 20 MB.
MOST_PROCESSES = 1 << 16
#: Calls in mailboxes that are remembered, 2 MB.
_MOST_REQUESTS = 1 << 13
#: Limits of one look: bytes of memory, system calls, seconds of CPU, seconds of time.
_DATA, _CALLS, _CPU, _WALL = 256 << 20, 200_000, 2.0, 30.0
#: Failures one after the other from which on servers are refused; seconds until the next try.
_FAILURES, _RETRY = 5, 60.0
#: Seconds of CPU after which the other targets of an owner wait for the next pass.
_OWNER_CPU = 1.0
#: Seconds between two looks for a target that is due, and while servers are not looked at.
_PASS, _OFF = 0.25, 2.0


class Subject(Observed, Protocol):
    """A target whose servers are looked at: a ``watch.Watch``."""

    @property
    def reading(self) -> Reading:
        """Its last figures."""

    def publish_servers(self, found: ServersReading) -> None:
        """Take what the looks saw."""


class Sight:
    """What is seen of the servers of *target*, look after look, added to *sums*."""

    def __init__(self, target: Target, sums: ServerSums) -> None:
        # A separate Memory: searching for tables tries addresses, which are not failed reads.
        target = replace(target, memory=Memory(target.pid, target.identity.process))
        viewer = Viewer(target)
        self._servers = Servers(viewer, remembered=MOST_PROCESSES, most=MOST_PROCESSES)
        self._mailboxes = Mailboxes(viewer)
        #: Calls that were seen to wait, and whether their callers had given up, the newest last.
        self._requests: dict[Request, bool] = {}
        self._sums = sums
        #: Processes that its table has room for.
        self.slots = viewer.table.slots

    def look(self, now: float) -> ServersReading:
        """Look at *now*, in monotonic seconds. Raises ReadRefusedError."""
        seen = self._servers.look()
        modules, edges = self._counted(seen)
        self._add_requests(seen, modules)
        return self._sums.add(modules, edges, now)

    def _counted(self, seen: Look) -> tuple[defaultdict[str, Counts], dict[Edge, float]]:
        modules: defaultdict[str, Counts] = defaultdict(Counts)
        edges: defaultdict[Edge, float] = defaultdict(float)
        known = self._servers.known
        for pid, mailbox in zip(seen.servers.tolist(), seen.mailboxes.tolist(), strict=True):
            if server := known.get(pid):
                modules[server.module].add(Counts(seen.weight, longest=mailbox))
        for pid, _ in seen.busy:
            if server := known.get(pid):
                modules[server.module].busy += seen.weight
        for one in seen.waiting:
            server, caller = known.get(one.server or 0), known.get(one.caller)
            if server is not None:
                modules[server.module].waiting += seen.caller_weight
                edges[Edge(caller.module if caller else "(processes)", server.module)] += (
                    seen.caller_weight
                )
        return modules, edges

    def _add_requests(self, seen: Look, modules: defaultdict[str, Counts]) -> None:
        """Add calls in the longest mailboxes, each once; again when its caller has given up."""
        longest = np.argsort(seen.mailboxes)[: -MOST_SERVERS - 1 : -1]
        longest = longest[seen.mailboxes[longest] > 0]
        if not len(longest):
            return
        found = self._mailboxes.requests(seen.servers[longest])
        for request, abandoned in zip(found.waiting, found.abandoned, strict=True):
            before = self._requests.pop(request, None)
            self._requests[request] = abandoned or bool(before)
            if server := self._servers.known.get(request.server):
                modules[server.module].requests += before is None
                modules[server.module].abandoned += abandoned and not before
        for request in list(islice(self._requests, max(0, len(self._requests) - _MOST_REQUESTS))):
            del self._requests[request]


@dataclass(slots=True)
class _State:
    """The looks at one target, as *series* series at most."""

    sight: Sight | None = None
    series: int = 0
    #: They outlast what looks: a VM could have it made anew, and so any number of new series.
    sums: ServerSums = field(default_factory=lambda: ServerSums(0))
    #: When the next one is due, in seconds of the clock.
    due: float = 0.0
    failures: int = 0
    refused: str = ""


@dataclass(slots=True)
class ServerLooks(ReadingThread):
    """
    Looks at the servers of *subjects*, which returns the targets of this moment, until closed.

    Unexpected errors are counted in *errors* under ``snapshot``.
    """

    NAME = "servers"
    subjects: Callable[[], Sequence[Subject]]
    config: Callable[[], Config]
    errors: Counter[str]
    clock: Callable[[], float] = time.monotonic
    make: Callable[[Target, ServerSums], Sight] = Sight
    _states: dict[Subject, _State] = field(default_factory=dict)
    # At random: work with the period of the looks would be seen at the same point.
    _draw: random.Random = field(default_factory=random.Random)

    def look(self) -> None:
        """Look at the targets that are due; without series at none."""
        series = self.config().genservers
        if not series:
            for subject in self._states:
                subject.publish_servers(ServersReading())
            self._states = {}
            return
        self._states = {s: self._states.get(s) or _State() for s in self.subjects()}
        taken: defaultdict[str, float] = defaultdict(float)
        for subject in in_turns(self._states, lambda subject: subject.owner):
            state, owner = self._states[subject], queue_of(subject.owner)
            due = self.clock() >= state.due and taken[owner] < _OWNER_CPU
            if due and not self._ended.is_set():
                taken[owner] += self._look_at(subject, state, series)

    def _run(self) -> None:
        while not self._ended.wait(_PASS if self.config().genservers else _OFF):
            self.look()

    def _look_at(self, subject: Subject, state: _State, series: int) -> float:
        """Look at one target; the seconds of CPU that it took."""
        what, began = f"looking at servers of process {subject.target.pid}", cpu_seconds()
        limits = LookLimits(what, data=_DATA, calls=_CALLS, cpu=_CPU, wall=_WALL)
        pause, free = _RETRY, False
        try:
            with limited(limits):
                first = self._prepare(subject, state, series)
                found = state.sight.look(self.clock()) if state.sight else ServersReading()
            subject.target.identity.check()
        except NoSuchProcessError:
            pass  # the loop drops it
        except NoAnswerError as error:
            subject.fail(error)
        except Exception as error:  # noqa: BLE001 - one target must not take the others along
            if not self._ended.is_set():
                pause = self._failed(subject, state, error)
        else:
            state.failures, state.refused, pause = 0, "", INTERVAL
            subject.publish_servers(found)
            free = first  # finding tables, once
        spent = cpu_seconds() - began
        if not free:
            pause = max(pause, spent / (SHARE * subject.income))
        state.due = self.clock() + pause * self._draw.uniform(0.5, 1.5)
        return spent

    def _prepare(self, subject: Subject, state: _State, series: int) -> bool:
        """Make what looks, where there is none that fits; whether it is the first one."""
        counters = subject.reading.counters
        if counters is None:
            raise TooMuchError("it is not known how many processes there are")
        if counters.processes > MOST_PROCESSES:
            raise TooMuchError(
                f"servers of more than {MOST_PROCESSES:,} processes are not looked at"
            )
        first = state.series != series
        if first:
            state.sight, state.sums, state.series = None, ServerSums(series), series
        sight = state.sight = state.sight or self.make(subject.target, state.sums)
        if counters.processes > sight.slots:
            raise TooMuchError(
                f"{counters.processes:,} processes cannot be in a table of {sight.slots:,} slots"
            )
        return first

    def _failed(self, subject: Subject, state: _State, error: Exception) -> float:
        """
        Note a failure, and show no servers after several; seconds until the next try.

        Code that is loaded meanwhile makes a look fail now and then.
        """
        why = reason(error, self.errors)
        state.failures += 1
        if state.sight and state.failures < _FAILURES:
            return INTERVAL
        if not state.refused:
            say(logging.WARNING, "servers not read", pid=subject.target.pid, why=why)
        state.refused, state.sight = why, None
        subject.publish_servers(ServersReading(refused=why))
        return _RETRY
