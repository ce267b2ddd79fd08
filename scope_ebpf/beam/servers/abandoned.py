# SPDX-License-Identifier: Apache-2.0
"""
Calls that wait in mailboxes of servers, and whose callers wait no longer.

A caller monitors its server as long as it waits, and takes the monitor back when its time is over
(OTP-25.2.3, 27.3.4 and 29.1.2 lib/stdlib/src/gen.erl, do_call). So a request that waits is work
for nobody if its caller has ended, or has no monitor with the reference of the call. Requests of
``send_request`` keep theirs until they are given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.arrays import within
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import BOXED, LIST, POINTER_MASK, PRIMARY_MASK
from scope_ebpf.beam.memory.walk import pointers, walk
from scope_ebpf.beam.processes.sizes import tree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.view import Viewer

#: Servers whose mailboxes one look reads, messages of each of its queues, monitors of a caller.
MOST_SERVERS = 4
_MOST_MESSAGES, _MOST_MONITORS = 16, 1024
_QUEUES = ("sig_qs.first", "sig_qs.cont", "sig_inq.first")
_WORD = 8
#: Headers of tuples, and the subtag of a reference of this node's.
_PAIR, _TRIPLE, _REFERENCE, _SUBTAG = 2 << 6, 3 << 6, 0x10, 0x3F
#: The tag of a pid of this node's, in the low four bits.
_PID, _PID_MASK = 0x3, 0xF


class Request(NamedTuple):
    """A call that waits in a mailbox: pid terms, and the numbers of its reference."""

    server: int
    caller: int
    reference: tuple[int, int]


class Requests(NamedTuple):
    """Calls that wait, and for each whether its caller has given up."""

    waiting: list[Request]
    abandoned: list[bool]


class Mailboxes:
    """Reads the mailboxes of servers of one VM."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer, self._memory = viewer, viewer.target.memory
        self._atoms: tuple[int, int] | None = None

    def requests(self, servers: NDArray[np.uint64]) -> Requests:
        """
        Read the calls that wait for some of *servers*, pid terms, and who has given up.

        Those of which that is not known, or that were taken meanwhile, are left out.
        Raises ReadRefusedError.
        """
        if self._atoms is None:
            call, alias = (self._viewer.atoms.term(name) for name in ("$gen_call", "alias"))
            if call is None or alias is None:
                return Requests([], [])
            self._atoms = call, alias
        rows = self._rows(servers[:MOST_SERVERS])
        before = self._waiting(rows)
        # Twice: a caller that goes on changes its monitors while they are read.
        gives_up = self._given_up(before)
        again = self._given_up({node: before[node] for node, gone in gives_up.items() if gone})
        # One that still waits was not answered: its caller had given up then.
        after = self._waiting(rows)
        found = Requests([], [])
        for node, gone in gives_up.items():
            if after.get(node) == before[node] and again.get(node, gone) == gone:
                found.waiting.append(before[node])
                found.abandoned.append(gone)
        return found

    def _rows(self, pids: NDArray[np.uint64]) -> NDArray[np.void]:
        table = self._viewer.table
        rows = table.at(table.slots_of(pids)).rows
        return rows[within(rows["id"], pids)]

    def _waiting(self, rows: NDArray[np.void]) -> dict[int, Request]:
        """The calls in the mailboxes of *rows*, by the addresses of their messages."""
        layout = self._viewer.target.layout
        heads = [
            self._words(rows["pointer"] + np.uint64(layout.offset("Process", queue)), 1)[0]
            for queue in _QUEUES
        ]
        body = layout.offset("ErtsMessage", "m")
        follow = pointers(layout.offset("ErtsMessage", "next"))
        nodes = walk(self._memory, np.concatenate(heads), body + _WORD, follow, _MOST_MESSAGES)
        terms = column(nodes.nodes, body, np.uint64)
        servers = np.tile(rows["id"], len(_QUEUES))[nodes.owners]
        good, (label, origin, _) = self._tuple(terms, 3)
        good &= label == np.uint64(self._atoms[0] if self._atoms else 0)
        good, (caller, tag) = self._tuple(np.where(good, origin, np.uint64(0)), 2)
        good &= caller & np.uint64(_PID_MASK) == _PID
        numbers, known = self._references(self._untagged(tag, good))
        found = np.flatnonzero(good & known)
        columns = (nodes.addresses, servers, caller, *numbers)
        each = zip(*(one[found].tolist() for one in columns), strict=True)
        return {node: Request(to, by, (one, two)) for node, to, by, one, two in each}

    def _untagged(self, tags: NDArray[np.uint64], good: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """The references of tags, which are Ref or [alias|Ref]; 0 where there is none."""
        listed = good & (tags & np.uint64(PRIMARY_MASK) == LIST)
        head, rest = self._words(np.where(listed, tags & np.uint64(POINTER_MASK), 0), 2)
        alias = np.uint64(self._atoms[1] if self._atoms else 0)
        boxed = good & (tags & np.uint64(PRIMARY_MASK) == BOXED)
        found = np.where(listed & (head == alias), rest, np.where(boxed, tags, 0))
        return found.astype(np.uint64)

    def _given_up(self, requests: dict[int, Request]) -> dict[int, bool]:
        """Whether the callers of *requests* have given up, by message, where that is known."""
        table, target = self._viewer.table, self._viewer.target
        callers = np.array(sorted({one.caller for one in requests.values()}), np.uint64)
        snapshot = table.at(table.slots_of(callers))
        rows = snapshot.rows[within(snapshot.rows["id"], callers)]
        at = np.uint64(target.layout.offset("Process", "common.u.alive.monitors"))
        nodes = tree(target, self._words(rows["pointer"] + at, 1)[0], _MOST_MONITORS)
        behind = column(nodes.nodes, target.layout.offset("ErtsMonLnkNode", "offset"), np.uint16)
        data = nodes.addresses - behind.astype(np.uint64)
        at = np.uint64(target.layout.offset("ErtsMonitorData", "ref"))
        (one, two), known = self._references(self._words(data + at, 1)[0])
        whole = nodes.whole.copy()
        whole[nodes.owners[~known]] = False
        pids = rows["id"].tolist()
        held = set(zip(rows["id"][nodes.owners].tolist(), one.tolist(), two.tolist(), strict=True))
        known_of = dict(zip(pids, whole.tolist(), strict=True))
        missed = set(snapshot.missed.tolist())
        slots = dict(zip(callers.tolist(), table.slots_of(callers).tolist(), strict=False))
        return {
            node: (one.caller, *one.reference) not in held
            for node, one in requests.items()
            if known_of.get(one.caller, slots.get(one.caller) not in missed)
        }

    def _tuple(
        self, terms: NDArray[np.uint64], arity: int
    ) -> tuple[NDArray[np.bool_], list[NDArray[np.uint64]]]:
        """Which of *terms* are tuples of so many elements, and the elements, zeros for others."""
        boxed = terms & np.uint64(PRIMARY_MASK) == BOXED
        words = self._words(np.where(boxed, terms & np.uint64(POINTER_MASK), 0), 1 + arity)
        good = boxed & (words[0] == np.uint64(arity << 6))
        return good, [np.where(good, word, np.uint64(0)) for word in words[1:]]

    def _references(
        self, terms: NDArray[np.uint64]
    ) -> tuple[list[NDArray[np.uint64]], NDArray[np.bool_]]:
        """The two numbers of each reference, and which of *terms* are references."""
        boxed = terms & np.uint64(PRIMARY_MASK) == BOXED
        header, *numbers = self._words(np.where(boxed, terms & np.uint64(POINTER_MASK), 0), 3)
        return numbers, boxed & (header & np.uint64(_SUBTAG) == _REFERENCE)

    def _words(self, addresses: NDArray[np.uint64], count: int) -> list[NDArray[np.uint64]]:
        """The *count* words at each of *addresses*, a column each; zeros where it is 0 or bad."""
        there = np.flatnonzero(addresses)
        raw, _ = self._memory.gather(addresses[there].astype(np.uint64), count * _WORD)
        words = np.zeros((len(addresses), count), np.uint64)
        words[there] = raw.view(np.uint64)
        return [words[:, number] for number in range(count)]
