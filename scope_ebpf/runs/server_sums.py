# SPDX-License-Identifier: Apache-2.0
"""What looks at servers saw, added up, and how many looks each server has lived through."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from scope_ebpf.beam.servers.looks import Look, Server

_Key = TypeVar("_Key")
#: Looks at one server from which on its own utilization is shown.
_ENOUGH = 10
#: Servers, groups of them and tags that are distinguished.
MOST = 1 << 17


def add(totals: dict[_Key, float], more: dict[_Key, float]) -> None:
    """Add the counts of *more* to *totals*."""
    for key, count in more.items():
        totals[key] = totals.get(key, 0.0) + count


def variances(
    found: Iterable[tuple[_Key, int]], drawn: int, part: float, weight: float
) -> dict[_Key, float]:
    """
    The variance of how many there are of each kind, of which a search has *found* some.

    Each of *found* is its kind and the line of slots in which it was, and stands for *weight*; so
    many lines were *drawn*, a *part* of all. Processes that begin together are neighbours in the
    table: lines were drawn, not processes.
    """
    squares: dict[_Key, float] = {}
    sums: dict[_Key, float] = {}
    for (kind, _), count in Counter(found).items():
        add(squares, {kind: count**2})
        add(sums, {kind: count})
    scale = weight**2 * (1 - part) * drawn / max(1, drawn - 1)
    return {kind: scale * (squares[kind] - sums[kind] ** 2 / drawn) for kind in sums}


@dataclass(slots=True)
class Sums:
    """What the looks saw of one process; it may have stood for others, which is its weight."""

    server: Server
    looks: int = 0
    busy: int = 0
    longest: int = 0
    #: All weights, those while it was busy, and messages that waited, by weight.
    weight: float = 0.0
    #: The variance of all weights as an estimate: each process was drawn by itself.
    variance: float = 0.0
    busy_weight: float = 0.0
    mailbox: float = 0.0
    functions: dict[str, float] = field(default_factory=dict)
    #: The utilization of the busiest one of several servers; None where none is known.
    of_joined: float | None = None

    def add(self, other: Sums) -> None:
        """Add what other looks saw of the same process."""
        self.looks += other.looks
        self.busy += other.busy
        self._absorb(other)

    def join(self, other: Sums) -> None:
        """Add what looks saw of another process."""
        self._note(other.busiest)
        self._absorb(other)

    def _absorb(self, other: Sums) -> None:
        self.longest = max(self.longest, other.longest)
        self.weight += other.weight
        self.variance += other.variance
        self.busy_weight += other.busy_weight
        self.mailbox += other.mailbox
        self._note(other.of_joined)
        add(self.functions, other.functions)

    def _note(self, busiest: float | None) -> None:
        if busiest is not None:
            self.of_joined = max(busiest, self.of_joined or 0.0)

    @property
    def busiest(self) -> float | None:
        """The part of its looks at which it was busy; None where they were too few."""
        return self.busy / self.looks if self.looks >= _ENOUGH else self.of_joined


@dataclass(slots=True)
class Seen:
    """What some looks saw, by weight."""

    #: By the pid terms of servers; those that are counted by group only, their groups.
    servers: dict[int, Sums] = field(default_factory=dict)
    joined: dict[str, Sums] = field(default_factory=dict)
    #: Callers that wait: by caller and called one; by the latter; by it and the request's tag.
    edges: dict[tuple[str, str], float] = field(default_factory=dict)
    callers: dict[str, float] = field(default_factory=dict)
    tags: dict[tuple[str, str | None], float] = field(default_factory=dict)
    unresolved: float = 0.0
    torn: float = 0.0
    #: Variances of what searches found: of servers by group, of callers by the group that they
    #: wait for, None where it is not known.
    of_servers: dict[str, float] = field(default_factory=dict)
    of_callers: dict[str | None, float] = field(default_factory=dict)

    def plus(self, other: Seen) -> Seen:
        """What both saw together; a new one."""
        total = Seen()
        for one in (self, other):
            for pid, sums in one.servers.items():
                total.servers.setdefault(pid, Sums(sums.server)).add(sums)
            for name, sums in one.joined.items():
                total.joined.setdefault(name, Sums(sums.server)).join(sums)
            add(total.edges, one.edges)
            add(total.callers, one.callers)
            add(total.tags, one.tags)
            add(total.of_servers, one.of_servers)
            add(total.of_callers, one.of_callers)
            total.unresolved += one.unresolved
            total.torn += one.torn
        return total

    def add_servers(
        self,
        look: Look,
        of: Callable[[int], Server | None],
        group: Callable[[Server], str],
        weight: float,
    ) -> bool:
        """Add the servers of *look*, of which *of* says what is known; whether there was room."""
        for pid, mailbox in zip(look.servers.tolist(), look.mailboxes.tolist(), strict=True):
            sums, server = self.servers.get(pid), of(pid)
            if sums is None:
                if server is None:
                    continue
                sums = self.servers[pid] = Sums(server)
            sums.server = server or sums.server  # by now it may be known what it runs
            sums.looks += 1
            sums.weight += weight
            sums.variance += weight * (weight - 1)
            sums.mailbox += weight * mailbox
            sums.longest = max(sums.longest, mailbox)
        for pid, function in look.busy:
            if (sums := self.servers.get(pid)) is not None:
                sums.busy += 1
                sums.busy_weight += weight
                add(sums.functions, {function: weight})
        return self._join(group)

    def _join(self, group: Callable[[Server], str]) -> bool:
        """Put the servers that were met first together by their groups, where they are many."""
        room = True
        while len(self.servers) > MOST:
            sums = self.servers.pop(next(iter(self.servers)))
            name = group(sums.server)
            if name in self.joined or len(self.joined) < MOST:
                self.joined.setdefault(name, Sums(sums.server)).join(sums)
            else:
                room = False
        return room

    def members(self, group: Callable[[Server], str]) -> dict[str, list[Sums]]:
        """The servers by their groups."""
        found: dict[str, list[Sums]] = {name: [sums] for name, sums in self.joined.items()}
        for sums in self.servers.values():
            found.setdefault(group(sums.server), []).append(sums)
        return found


@dataclass(slots=True)
class Ledger:
    """What several looks saw together."""

    #: Looks before the first one, and looks; a part of the first one counts as such in *amount*.
    before: int = 0
    looks: int = 0
    amount: float = 0.0
    #: What was seen of processes that were read because they were known, and what searches found.
    known: Seen = field(default_factory=Seen)
    found: Seen = field(default_factory=Seen)
    #: Looks that servers lived through that have ended, by group.
    ended: dict[str, float] = field(default_factory=dict)

    def plus(self, other: Ledger) -> Ledger:
        """What both saw together; a new one, which begins with this one."""
        total = Ledger(self.before, self.looks + other.looks, self.amount + other.amount)
        total.known, total.found = self.known.plus(other.known), self.found.plus(other.found)
        for one in (self, other):
            add(total.ended, one.ended)
        return total

    def end(self, group: str, since: int, until: float) -> None:
        """Note that a server of *group* was there in the looks behind *since* up to *until*."""
        lived = until - max(since, self.before)
        if lived > 0 and (group in self.ended or len(self.ended) < MOST):
            add(self.ended, {group: lived})


class Lives:
    """
    Since when servers are known, in looks, which are counted from 1.

    Those of which it was not seen yet that they have ended.
    """

    def __init__(self) -> None:
        #: By pid term: the look before the first one, and the last one that saw it.
        self._lives: dict[int, tuple[int, int]] = {}

    def see(self, pids: list[int], look: int, since: int) -> None:
        """Note that servers were seen by *look*, for the first time behind *since*."""
        lives = self._lives
        for pid in pids:
            known = lives.get(pid)
            lives[pid] = (known[0] if known else since, look)

    def end(self, pid: int, look: int) -> tuple[int, float] | None:
        """
        Forget a server of which *look* saw that it has ended: the looks between which it was there.

        It ended at any time since it was last seen, in the middle on average.
        """
        life = self._lives.pop(pid, None)
        return life and (life[0], life[1] + (look - life[1] - 1) / 2)

    def forget(self, pid: int, look: int) -> tuple[int, float] | None:
        """Forget a server that no look will see again: the looks between which it was there."""
        life = self._lives.pop(pid, None)
        return life and (life[0], float(look))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pid terms, and the look before the first one."""
        return ((pid, since) for pid, (since, _) in self._lives.items())
