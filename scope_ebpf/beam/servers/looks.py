# SPDX-License-Identifier: Apache-2.0
"""
Looks at the servers of a VM, and at who waits for them.

A look reads the process table, a part of it, or some processes. A server idles while it waits in
its behaviour's receive; else it is busy, also while it waits within a callback for another process.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.arrays import distinct, picked, sorted_within, taken, within
from scope_ebpf.beam.processes.names import LOOPS
from scope_ebpf.beam.processes.table import IDENTITY
from scope_ebpf.beam.servers.became import BECOMING, became
from scope_ebpf.beam.servers.waiting import ON_SCHEDULER, Stacks, calls, stacks, waiting

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.beam.code.tables import Mfa
    from scope_ebpf.beam.processes.names import Identity
    from scope_ebpf.beam.processes.table import Snapshot
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
#: Processes that one look names for the first time.
MOST_NAMED = 1 << 14
#: Callers whose stacks are read at one look.
MOST_CALLERS = 1 << 10
#: Calls under way that are remembered.
_MOST_WAITING = 1 << 14
#: Columns of the process table that looks need.
FIELDS = IDENTITY
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
    #: Pid terms of callers of which it was not found out for whom they wait.
    unresolved: list[int] = field(default_factory=list)
    #: A look at everything counts once; one at some that were drawn stands for so many.
    weight: float = 1.0
    #: The same for callers, of which a part is drawn where there are many.
    caller_weight: float = 1.0
    #: Processes that changed too fast to be read, and their slots of the table.
    torn: int = 0
    missed: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    #: Pid terms of all processes that were read.
    read: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    #: Whether it searched for processes that no look before has seen.
    searched: bool = False
    #: Pid terms of processes that have ended, and of others that no look will read again.
    gone: list[int] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)


class Servers:
    """
    Reads the servers of one VM again and again.

    Of all that it has seen it knows *remembered* processes and modules, those that were seen last.
    One look reads *most* processes at most; TooMuchError where there are more.
    """

    def __init__(
        self,
        viewer: Viewer,
        draw: random.Random | None = None,
        remembered: int = _REMEMBERED,
        most: int | None = None,
    ) -> None:
        self._viewer = viewer
        self._random = draw or random.Random()  # noqa: S311 - what is read is no secret
        self._remembered, self._most = remembered, most
        #: Servers and their callers, those seen longest ago first.
        self.known: dict[int, Server] = {}
        #: Other processes that the last look has read, by their pid terms in order.
        self._plain = np.empty(0, np.uint64)
        self.registered: dict[str, int] = {}
        #: By the module with which servers began, those that they run: two of them if several.
        self.became: dict[str, set[str]] = {}
        #: Servers of which it is not known yet, and with what they began.
        self._undecided: dict[int, str] = {}
        #: Addresses of code at which processes wait for a server's reply.
        self._calling = np.empty(0, np.uint64)
        #: Processes that were seen to wait for a server: they are looked at again.
        self._callers = np.empty(0, np.uint64)
        #: For whom processes waited, by their pid terms and where they were.
        self._waiting: dict[tuple[int, tuple[int, ...]], Waiting] = {}
        self._generation = -1

    def look(self, part: int = 0, parts: int = 1) -> Look:
        """Read servers and callers, as they are now, in one of *parts* of the process table."""
        self._viewer.refresh()
        if parts > 1:
            self._plain = self._plain[:0]  # they are in another part
        snapshot = self._viewer.table.snapshot(part, parts, self._most)
        return self._look(snapshot, snapshot.rows)

    def look_at(
        self,
        slots: NDArray[np.int64],
        pids: NDArray[np.uint64] | None = None,
        but: Sequence[Container[int]] = (),
    ) -> Look:
        """
        Read the processes in some *slots*, of them only those with *pids* if these are given.

        Those with a pid in one of *but* are left out.
        """
        self._viewer.refresh()
        snapshot = self._viewer.table.at(slots)
        rows = (
            snapshot.rows
            if pids is None
            else picked(snapshot.rows, within(snapshot.rows["id"], pids))
        )
        if but:
            wanted = [not any(pid in some for some in but) for pid in rows["id"].tolist()]
            rows = picked(rows, np.array(wanted, np.bool_))
        return self._look(snapshot, rows)

    def _look(self, snapshot: Snapshot, rows: NDArray[np.void]) -> Look:
        self._learn_calling(rows)
        calling = within(rows["pc"], self._calling) | within(rows["id"], self._callers)
        candidates = rows[calling]
        drawn = self._random.sample(range(len(candidates)), min(len(candidates), MOST_CALLERS))
        seen = stacks(self._viewer, candidates[sorted(drawn)], self._calling)
        known_plain = sorted_within(rows["id"], self._plain)
        others = picked(rows, ~known_plain)
        self._note_seen(others["id"])
        self._decide(others)
        plain = self._learn(others)
        self._plain = np.sort(np.append(rows["id"][known_plain], others["id"][plain]))
        servers = self._servers_of(picked(others, ~plain))
        look = Look(servers["id"].copy(), servers["mailbox"].copy())
        look.torn, look.missed = snapshot.torn + snapshot.unreadable, snapshot.missed
        look.read = rows["id"].copy()
        self._find_busy(look, servers)
        self._find_callers(look, seen)
        look.caller_weight = max(1.0, len(candidates) / MOST_CALLERS)
        return look

    def _note_seen(self, pids: NDArray[np.uint64]) -> None:
        if len(self.known) + len(pids) < self._remembered:
            return  # nothing will be forgotten
        for pid in pids.tolist():
            if pid in self.known:
                self.known[pid] = self.known.pop(pid)  # seen last

    def _servers_of(self, rows: NDArray[np.void]) -> NDArray[np.void]:
        """Those of *rows* that are servers."""
        known = [self.known.get(pid) for pid in rows["id"].tolist()]
        mask = [one is not None and one.behaviour is not None for one in known]
        return picked(rows, np.array(mask, np.bool_))

    def _find_busy(self, look: Look, servers: NDArray[np.void]) -> None:
        functions = self._viewer.names.current_functions(servers)
        runs = ((servers["state"] & _RUNNING) != 0).tolist()
        for pid, function, on in zip(servers["id"].tolist(), functions, runs, strict=True):
            idles = function is not None and function[:2] in IDLE
            if on or not idles:
                # Of one that runs it is known where it began to, not where it is.
                known = function is not None and not (on and idles)
                look.busy.append(Busy(pid, str(function) if known else "(running)"))

    def _find_callers(self, look: Look, seen: Stacks) -> None:
        self._callers = distinct(np.append(self._callers, np.array(seen.pids, np.uint64)))
        self._callers = self._callers[-MOST_CALLERS:]
        if seen.pids:
            self._check_names()
        decoded = self._decoded(seen)
        look.waiting = [one for one in decoded if one is not None and one.server is not None]
        look.unresolved = [
            pid
            for pid, one in zip(seen.pids, decoded, strict=True)
            if one is None or one.server is None
        ]
        pids = {pid for one in look.waiting for pid in (one.server, one.caller)}
        self._learn_pids([pid for pid in pids if pid is not None])

    def _decoded(self, seen: Stacks) -> list[Waiting | None]:
        """For whom processes wait; of those that have not run since the last look, as then."""
        marks = list(zip(seen.pids, seen.at, strict=True))
        new = [number for number, mark in enumerate(marks) if mark not in self._waiting]
        found = waiting(self._viewer, seen.some(new), self.registered)
        if len(self._waiting) > _MOST_WAITING:
            self._waiting.clear()
        before = [self._waiting.get(mark) for mark in marks]
        for number, one in zip(new, found, strict=True):
            before[number] = one
            if one is not None and one.server is not None:
                self._waiting[marks[number]] = one
        return before

    def _check_names(self) -> None:
        """Read again which processes have the registered names; forget those that have none."""
        table = self._viewer.table
        pids = np.array(list(self.registered.values()), np.uint64)
        rows = table.at(distinct(table.slots_of(pids).astype(np.uint64)).astype(np.int64)).rows
        names = self._viewer.names.registered(rows)
        found = zip(names, rows["id"].tolist(), strict=True)
        self.registered = {name: pid for name, pid in found if name}

    def _learn_calling(self, rows: NDArray[np.void]) -> None:
        """Note the addresses at which processes wait for a server: stacks are read by them."""
        functions, where = self._viewer.names.functions(rows)
        call = np.array([calls(function) for function in functions], np.bool_)
        found = distinct(rows["pc"][call[where]]) if call.any() else self._calling[:0]
        if self._generation != self._viewer.code.generation:
            self._generation, self._calling = self._viewer.code.generation, self._calling[:0]
        self._calling = distinct(np.append(found, self._calling))[:_MOST_CALLING]

    def _learn_pids(self, pids: list[int]) -> None:
        """Learn servers that were not in what was read, and callers, which need not be servers."""
        missing = np.array(sorted({pid for pid in pids if pid not in self.known}), np.uint64)
        if len(missing):
            table = self._viewer.table
            rows = table.at(table.slots_of(missing)[:MOST_NAMED]).rows
            self._learn(rows[within(rows["id"], missing)], callers=True)

    def _learn(self, rows: NDArray[np.void], *, callers: bool = False) -> NDArray[np.bool_]:
        """
        Name the servers that are seen for the first time, with *callers* other processes as well.

        Returns which of *rows*, shape ``(n,)``, are certainly no servers.
        """
        plain = np.zeros(len(rows), np.bool_)
        pids = rows["id"].tolist()
        known = self.known.keys() & pids
        new = np.flatnonzero([pid not in known for pid in pids] if known else rows["id"])
        new = new[:MOST_NAMED]
        fresh = taken(rows, new)
        if not len(fresh):
            return plain
        names = self._viewer.names
        kinds, kind = names.kinds(fresh)
        sure = np.array([not _is_doubtful(identity, now) for identity, now in kinds], np.bool_)
        serves = np.array([one.behaviour is not None for one, _ in kinds], np.bool_)
        plain[new] = (sure & ~serves)[kind]
        named = self._learn_registered(fresh)
        for index in np.flatnonzero((sure & (serves | callers))[kind]).tolist():
            identity = kinds[kind[index]][0]
            pid = int(fresh["id"][index])
            self._know(pid, identity, named.get(pid))
        self._forget()
        self._decide(fresh)
        return plain

    def _learn_registered(self, rows: NDArray[np.void]) -> dict[int, str]:
        """Read the registered names of processes, by their pid terms."""
        rows = picked(rows, rows["registered"] != 0)
        names = self._viewer.names.registered(rows)
        found = {pid: name for pid, name in zip(rows["id"].tolist(), names, strict=True) if name}
        for pid, name in found.items():
            if len(self.registered) < MOST_NAMED:
                self.registered[name] = pid
        return found

    def _know(self, pid: int, identity: Identity, name: str | None) -> None:
        call, behaviour, module = identity
        began = _called(module, call)
        self.known[pid] = Server(pid, behaviour, began, name)
        if behaviour in BECOMING:
            self._undecided[pid] = began

    def _forget(self) -> None:
        """Forget the processes that were seen longest ago, where they are too many."""
        for pid in list(islice(self.known, max(0, len(self.known) - self._remembered))):
            del self.known[pid]
            self._undecided.pop(pid, None)
        # They may have ended: those that came last are the likeliest to be there.
        for pid in list(islice(self._undecided, max(0, len(self._undecided) - MOST_NAMED))):
            del self._undecided[pid]

    def _decide(self, rows: NDArray[np.void]) -> None:
        """Find out what servers run that may have become another module."""
        missing = np.array(sorted(self._undecided), np.uint64)
        rows = rows[within(rows["id"], missing)][:MOST_CALLERS] if len(missing) else rows[:0]
        if not len(rows):
            return
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


def _is_doubtful(identity: Identity, now: Mfa | None) -> bool:
    """
    Whether it is not certain yet what a process is.

    One that has not run has no initial call of its own; one within a function of gen_server may be
    a server, or call several.
    """
    call, behaviour, _ = identity
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
