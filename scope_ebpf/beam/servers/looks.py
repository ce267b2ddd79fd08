# SPDX-License-Identifier: Apache-2.0
"""
Looks at the servers of a VM, and at who waits for them.

A look reads the process table, or a part of it that is drawn at random where that is large. A
server idles while it waits in its behaviour's receive; else it is busy, also while it waits within
a callback for somebody.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.arrays import distinct, within
from scope_ebpf.beam.processes.names import LOOPS
from scope_ebpf.beam.processes.table import CHUNK
from scope_ebpf.beam.servers.became import BECOMING, became
from scope_ebpf.beam.servers.waiting import ON_SCHEDULER, Stacks, calls, stacks, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scope_ebpf.beam.code.tables import Mfa
    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.beam.servers.waiting import Waiting

#: Functions in which a server waits for its next message, by behaviour's module (OTP-24.3.4 to
#: 29.1.2 lib/stdlib/src; gen_server2 of RabbitMQ 3.10, p1_server of ejabberd 23.01).
IDLE = frozenset(
    {
        *(("gen_server", name) for name in ("loop", "loop_hibernate")),
        *(("gen_statem", name) for name in ("loop", "loop_receive", "loop_hibernate")),
        ("gen_event", "fetch_msg"),
        ("gen_fsm", "loop"),
        ("gen_server2", "process_next_msg"),
        ("p1_server", "collect_messages"),
        ("erlang", "hibernate"),
    }
)
_RUNNING = np.uint32(ON_SCHEDULER)
#: Processes that one look is meant to read, and that it names for the first time: where not all are
#: remembered, all that are read by a look at a VM that has twice as many processes by now.
MOST_READ, MOST_NAMED = 1 << 13, 1 << 14
#: Callers whose stacks are read at one look.
MOST_CALLERS = 1 << 10
#: Processes that are remembered, by default.
_REMEMBERED = 1 << 20
#: Addresses at which processes wait for a server: some dozens, but a VM can claim any.
_MOST_CALLING = 1 << 13
#: Modules that the servers of one module run: more are not distinguished.
_SEVERAL = 2


@dataclass(frozen=True, slots=True)
class Server:
    """What is known of one process: a server, or one that calls servers."""

    pid: int
    #: None for a process that is no server.
    behaviour: str | None
    #: The callback module of a server; the module of the first function of another process.
    module: str
    name: str | None


class Busy(NamedTuple):
    """One server that is busy, and the function in which it is."""

    pid: int
    function: str


@dataclass(slots=True)
class Look:
    """What one look saw."""

    #: Pid terms of the servers that were read, and how many messages wait for each.
    servers: NDArray[np.uint64]
    mailboxes: NDArray[np.int64]
    busy: list[Busy] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    #: Callers of which it was not found out for whom they wait.
    unresolved: int = 0
    #: A look at everything counts once; one at a part stands for so many parts.
    weight: float = 1.0
    #: The same for callers, of which a part is drawn where there are many.
    caller_weight: float = 1.0
    #: Processes that changed too fast to be read.
    torn: int = 0


class Servers:
    """
    Reads the servers of one VM again and again.

    Of all that it has seen it knows *remembered* processes and modules, those that were seen last.
    One look reads *most* processes at most; TooMuchError where there are more. It reads one of
    *parts* of the table, None for as many as a large table needs.
    """

    def __init__(
        self,
        viewer: Viewer,
        draw: random.Random | None = None,
        remembered: int = _REMEMBERED,
        most: int | None = None,
        parts: int | None = None,
    ) -> None:
        self._viewer = viewer
        self._random = draw or random.Random()  # noqa: S311 - which part is read is no secret
        self._remembered, self._most = remembered, most
        #: Those seen longest ago first.
        self.known: dict[int, Server] = {}
        self.registered: dict[str, int] = {}
        #: By the module with which servers began, those that they run: two of them if several.
        self.became: dict[str, set[str]] = {}
        #: Servers of which it is not known yet, and with what they began.
        self._undecided: dict[int, str] = {}
        #: Addresses of code at which processes wait for a server's reply.
        self._calling = np.empty(0, np.uint64)
        #: Processes that were seen to wait for a server: they are looked at again.
        self._callers = np.empty(0, np.uint64)
        self._generation = -1
        table = viewer.table
        blocks = -(-table.slots // CHUNK)
        self.parts = parts or max(1, min(blocks, -(-table.count() // MOST_READ)))

    def look(self) -> Look:
        """Read servers and callers, as they are now."""
        self._viewer.refresh()
        part = self._random.randrange(self.parts)
        snapshot = self._viewer.table.snapshot(part, self.parts, self._most)
        rows = snapshot.rows
        if self._generation != self._viewer.code.generation:
            self._learn_calling(rows, self._viewer.names.current_functions(rows))
        calling = within(rows["pc"], self._calling) | within(rows["id"], self._callers)
        candidates = rows[calling]
        drawn = self._random.sample(range(len(candidates)), min(len(candidates), MOST_CALLERS))
        seen = stacks(self._viewer, candidates[sorted(drawn)], self._calling)
        for pid in rows["id"].tolist():
            if pid in self.known:
                self.known[pid] = self.known.pop(pid)  # seen last
        self._decide(rows)
        self._learn(rows)
        is_server = np.array(
            [
                (one := self.known.get(pid)) is not None and one.behaviour is not None
                for pid in rows["id"].tolist()
            ],
            np.bool_,
        )
        servers = rows[is_server]
        look = Look(servers["id"].copy(), servers["mailbox"].copy(), weight=float(self.parts))
        look.torn = snapshot.torn + snapshot.unreadable
        functions = self._viewer.names.current_functions(rows)
        self._find_busy(look, rows, is_server, functions)
        self._find_callers(look, seen)
        look.caller_weight = look.weight * max(1.0, len(candidates) / MOST_CALLERS)
        self._learn_calling(rows, functions)
        return look

    def _find_busy(
        self,
        look: Look,
        rows: NDArray[np.void],
        is_server: NDArray[np.bool_],
        functions: list[Mfa | None],
    ) -> None:
        runs = (rows["state"] & _RUNNING) != 0
        for index in np.flatnonzero(is_server).tolist():
            function = functions[index]
            idles = function is not None and function[:2] in IDLE
            if runs[index] or not idles:
                # Of one that runs it is known where it began to, not where it is.
                known = function is not None and not (runs[index] and idles)
                where = str(function) if known else "(running)"
                look.busy.append(Busy(int(rows["id"][index]), where))

    def _find_callers(self, look: Look, seen: Stacks) -> None:
        self._callers = distinct(np.append(self._callers, np.array(seen.pids, np.uint64)))
        self._callers = self._callers[-MOST_CALLERS:]
        self._check_names()
        decoded = waiting(self._viewer, seen, self.registered)
        look.waiting = [one for one in decoded if one is not None and one.server is not None]
        look.unresolved = len(decoded) - len(look.waiting)
        self._learn_pids([one.server for one in look.waiting if one.server is not None])

    def _check_names(self) -> None:
        """Read again which processes have the registered names; forget those that have none."""
        table = self._viewer.table
        pids = np.array(list(self.registered.values()), np.uint64)
        rows = table.at(distinct(table.slots_of(pids).astype(np.uint64)).astype(np.int64)).rows
        names = self._viewer.names.registered(rows)
        found = zip(names, rows["id"].tolist(), strict=True)
        self.registered = {name: pid for name, pid in found if name}

    def _learn_calling(self, rows: NDArray[np.void], functions: list[Mfa | None]) -> None:
        """Note the addresses at which processes wait for a server: stacks are read by them."""
        found = {
            pc
            for pc, function in zip(rows["pc"].tolist(), functions, strict=True)
            if calls(function)
        }
        if self._generation != self._viewer.code.generation:
            self._generation, self._calling = self._viewer.code.generation, self._calling[:0]
        calling = sorted(found.union(self._calling.tolist()))
        self._calling = np.array(calling[:_MOST_CALLING], np.uint64)

    def _learn_pids(self, pids: list[int]) -> None:
        """Learn servers that were not in the part that was read."""
        missing = np.array(sorted({pid for pid in pids if pid not in self.known}), np.uint64)
        if len(missing):
            table = self._viewer.table
            rows = table.at(table.slots_of(missing)[:MOST_NAMED]).rows
            self._learn(rows[within(rows["id"], missing)])

    def _learn(self, rows: NDArray[np.void]) -> None:
        """Name the processes that are seen for the first time."""
        new = np.array([pid not in self.known for pid in rows["id"].tolist()], np.bool_)
        fresh = rows[new][:MOST_NAMED]
        if not len(fresh):
            return
        names = self._viewer.names
        identities = names.identities(fresh)
        parts = zip(
            fresh["id"].tolist(),
            names.registered(fresh),
            names.current_functions(fresh),
            identities,
            strict=True,
        )
        for pid, name, now, (call, behaviour, module) in parts:
            if name and len(self.registered) < MOST_NAMED:
                self.registered[name] = pid
            if _is_doubtful(behaviour, call, now):
                continue  # a later look may decide
            began = _called(module, call)
            self.known[pid] = Server(pid, behaviour, began, name)
            if behaviour in BECOMING and len(self._undecided) < MOST_NAMED:
                self._undecided[pid] = began
        self._forget()
        self._decide(fresh)

    def _forget(self) -> None:
        """Forget the processes that were seen longest ago, where they are too many."""
        for pid in list(islice(self.known, max(0, len(self.known) - self._remembered))):
            del self.known[pid]
            self._undecided.pop(pid, None)

    def _decide(self, rows: NDArray[np.void]) -> None:
        """Find out what servers run that may have become another module."""
        missing = np.array(sorted(self._undecided), np.uint64)
        rows = rows[within(rows["id"], missing)][:MOST_CALLERS] if len(missing) else rows[:0]
        behaviours = [self.known[pid].behaviour for pid in rows["id"].tolist()]
        for pid, module in became(self._viewer, rows, behaviours).items():
            began = self._undecided.pop(pid)
            runs = self.became[began] = self.became.pop(began, set())
            if len(runs) < _SEVERAL:
                runs.add(module)
            self.known[pid] = replace(self.known[pid], module=module)
        for began in list(islice(self.became, max(0, len(self.became) - self._remembered))):
            del self.became[began]

    def of(self, pid: int) -> Server | None:
        """What is known of a process."""
        return self.known.get(pid)

    def names_of(self, pids: list[int]) -> Iterator[str]:
        """Write each process as its registered name, or as its pid."""
        for pid in pids:
            one = self.known.get(pid)
            yield (one.name if one and one.name else self._viewer.pids.text(pid))


def _is_doubtful(behaviour: str | None, call: Mfa | None, now: Mfa | None) -> bool:
    """
    Whether it is not certain yet what a process is.

    One that has not run has no initial call of its own; one within a function of gen_server may be
    a server, or call several.
    """
    if call is None or call[:2] == ("proc_lib", "init_p"):
        return True
    if behaviour not in LOOPS.values() or call[1:3] == ("init", 1) or "fun-" in call.function:
        return False
    return now is None or now[:2] not in IDLE


def _called(module: str | None, call: Mfa | None) -> str:
    """The module that a process belongs to; an agent that of the function that made its state."""
    if call is not None and "fun-" in call.function and module is not None:
        return f"Agent ({module})"
    if module is not None:
        return module
    return call.module if call is not None and call.module != "erlang" else "(processes)"
