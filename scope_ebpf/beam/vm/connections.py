# SPDX-License-Identifier: Apache-2.0
"""
The connections to other nodes: how many, what waits to be sent, which are busy.

A node that is being connected suspends the processes that send to it, as a full connection does, so
it counts for both. Since OTP 25.3 the bytes that processes with ``async_dist`` have queued are in
a word of their own.

Sources: OTP-25.2.3 erts/emulator/beam/erl_node_tables.h (struct dist_entry_) and .c (the
lists of connected nodes). The lists change while they are read: an entry that is
not connected any more, or does not read as one, is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.beam.layouts.checks import check_entry
from scope_ebpf.beam.memory.terms import ATOM_MASK, ATOM_TAG
from scope_ebpf.beam.memory.walk import chain
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from scope_ebpf.beam.memory.process_memory import Memory
    from scope_ebpf.beam.vm.target import Target

#: The lists of connected nodes, by what the VM calls them.
_LISTS = {"visible": "erts_visible_dist_entries", "hidden": "erts_hidden_dist_entries"}
_PENDING_LIST = "erts_pending_dist_entries"
TYPES = tuple(_LISTS)
#: Entries of a list that are followed, and waiting processes that are read.
MOST = 4096
#: enum dist_entry_state, and a bit of qflgs.
PENDING, CONNECTED, CLOSING, BUSY = 1, 2, 3, 1 << 0
#: Fields of every entry, and bytes of those that are no words.
_ALWAYS = ("next", "sysname", "state", "qflgs", "suspended")
_WIDTHS = {"state": 4, "qflgs": 4, "creation": 4, "connection_id": 4}
#: Offset of the next process that waits for a connection (ErtsProcList: a pid, and the two pointers
#: of its ring, OTP-25.2.3 erl_process.h).
_ONWARD = 16


class Connections(NamedTuple):
    """Connections to other nodes, those that are being made included."""

    #: Connected nodes, by :data:`TYPES`.
    nodes: tuple[int, ...]
    #: Bytes that wait to be sent.
    queued: int
    #: Connections whose buffer is full.
    busy: int
    #: Nodes that are being connected.
    pending: int = 0


class EntryLists:
    """
    Follows the lists of a VM's connections. ReadRefusedError where they are hidden.

    *fields* are those of a DistEntry that are read besides :data:`_ALWAYS`.
    """

    def __init__(self, target: Target, fields: Collection[str] = ()) -> None:
        self._memory, layout = target.memory, target.layout
        self.heads = [target.address(name) for name in (*_LISTS.values(), _PENDING_LIST)]
        self._size = layout.size("DistEntry")
        self._at = {name: layout.offset("DistEntry", name) for name in (*_ALWAYS, *fields)}
        total = layout.has("DistEntry", "total_qsize")
        self._at["queued"] = layout.offset("DistEntry", "total_qsize" if total else "qsize")
        check_entry(target)

    def follow(self, head: int) -> Iterator[tuple[int, dict[str, int]]]:
        """Yield the entries of the list with this *head*: address, and fields by their names."""
        entry = self._memory.u64(head)
        for _ in range(MOST):
            if not entry:
                return
            raw = self._memory.read(entry, self._size)
            value = {
                name: int.from_bytes(raw[at : at + _WIDTHS.get(name, 8)], "little")
                for name, at in self._at.items()
            }
            if value["sysname"] & ATOM_MASK != ATOM_TAG:
                return  # it is being freed
            yield entry, value
            entry = value["next"]
        raise ReadRefusedError(f"a list of nodes has more than {MOST} entries")


class ConnectionReader:
    """Reads the connections of one VM. ReadRefusedError where the lists are hidden."""

    def __init__(self, target: Target) -> None:
        self._memory = target.memory
        self._lists = EntryLists(target)

    def read(self) -> Connections:
        """Follow the lists. Raises ReadRefusedError."""
        *connected, pending = (
            self._entries(head, state)
            for head, state in zip(
                self._lists.heads, (*[CONNECTED] * len(_LISTS), PENDING), strict=True
            )
        )
        every = [entry for entries in (*connected, pending) for entry in entries]
        return Connections(
            tuple(len(entries) for entries in connected),
            sum(size for size, _ in every),
            sum(is_busy for _, is_busy in every),
            len(pending),
        )

    def waited_for(self, pid: int) -> tuple[int, int] | None:
        """
        Find the node whose connection the process *pid* waits for: its atom, bytes queued.

        Raises ReadRefusedError where more processes wait than are read.
        """
        left = MOST
        for head in self._lists.heads:
            for _, value in self._lists.follow(head):
                found = waiters(self._memory, value["suspended"], left)
                if pid in found:
                    return value["sysname"], value["queued"]
                left -= len(found)
        return None

    def full(self) -> list[tuple[int, int, list[int]]]:
        """
        Read the connections that processes wait for: atom of the node, bytes queued, pids of those.

        Raises ReadRefusedError where more processes wait than are read.
        """
        found, left = [], MOST
        for head in self._lists.heads:
            for _, value in self._lists.follow(head):
                pids = waiters(self._memory, value["suspended"], left)
                left -= len(pids)
                if pids:
                    found.append((value["sysname"], value["queued"], pids))
        return found

    def _entries(self, head: int, state: int) -> list[tuple[int, bool]]:
        """Bytes queued for each node of a list that is in this *state*, and whether it is busy."""
        return [
            (value["queued"], bool(value["qflgs"] & BUSY))
            for _, value in self._lists.follow(head)
            if value["state"] == state
        ]


def waiters(memory: Memory, first: int, most: int) -> list[int]:
    """
    Read the pids of a ring of processes (ErtsProcList) that begins at *first*.

    Raises ReadRefusedError where there are more than *most*.
    """
    addresses = chain(memory, first, _ONWARD, most, closed=True).tolist()
    if len(addresses) > most:
        raise ReadRefusedError(f"more than {MOST} processes wait")
    return [memory.u64(at) for at in addresses]
