# SPDX-License-Identifier: Apache-2.0
"""
Which clients are served and which are dropped under load, by groups of clients.

Clients of one address, or of one user on a Unix socket, are a group; no group can take the share of
another. Everything runs in one event loop.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

#: ``struct ucred`` of SO_PEERCRED (unix(7)): pid, uid, gid.
_UCRED = struct.Struct("3i")


def group_of(client: socket.socket) -> str:
    """
    The group of *client*: a user, an address, or loopback.

    Any user of the host can use any loopback address, so these are one group; so is a /64 of IPv6,
    which belongs to one host. Raises OSError if the client has closed the connection.
    """
    if client.family == socket.AF_UNIX:
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return f"uid {_UCRED.unpack(peer)[1]}"
    return _group_at(client.getpeername()[0])


@lru_cache(1024)
def _group_at(text: str) -> str:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if address.is_loopback:
        return "loopback"
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


class TaskLimit:
    """
    Tasks with a total weight of at most *most*.

    Above it, the oldest task of the heaviest group is cancelled.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        #: Tasks and their weights by group, the oldest first; and the total weight of each group.
        self._groups: dict[str, dict[asyncio.Task[None], int]] = {}
        self._weights: Counter[str] = Counter()

    @contextmanager
    def join(self, task: asyncio.Task[None], group: str, weight: int = 1) -> Iterator[None]:
        """Add *task* while the block runs."""
        self._groups.setdefault(group, {})[task] = weight
        self._weights[group] += weight
        try:
            while self._weights.total() > self._most and self._drop(task):
                pass
            yield
        finally:
            self._remove(task, group)

    def drop_oldest(self) -> bool:
        """Cancel the oldest task of the heaviest group; False if there is none."""
        return self._drop(None)

    def _drop(self, newest: asyncio.Task[None] | None) -> bool:
        for group, _ in self._weights.most_common():
            oldest = next((task for task in self._groups[group] if task is not newest), None)
            if oldest:
                self._remove(oldest, group)
                oldest.cancel()
                return True
        return False

    def _remove(self, task: asyncio.Task[None], group: str) -> None:
        members = self._groups.get(group, {})
        self._weights[group] -= members.pop(task, 0)
        if not members:
            self._groups.pop(group, None)
            del self._weights[group]


class FullError(Exception):
    """Too many clients wait for a slot."""


class SlotQueue:
    """
    A limited number of *slots*; the next waiting client is of the group that has the fewest.

    At most *most* clients wait. Above that, the last client of the group with the most waiting ones
    is turned away.
    """

    def __init__(self, slots: int, most: int) -> None:
        self._free, self._most = slots, most
        self._taken: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def slot(self, group: str) -> AsyncIterator[None]:
        """Hold a slot while the block runs. Raises FullError if the client is turned away."""
        await self._enter(group)
        try:
            yield
        finally:
            self._leave(group)

    async def _enter(self, group: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((group, turn))
        self._admit()
        if len(self._waiting) > self._most:
            self._turn_away()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave(group)  # it had got a slot already
            raise

    def _leave(self, group: str) -> None:
        self._free += 1
        self._taken[group] -= 1
        if not self._taken[group]:
            del self._taken[group]
        self._admit()

    def _admit(self) -> None:
        # Drop those that were cancelled.
        self._waiting = [one for one in self._waiting if not one[1].done()]
        while self._free and self._waiting:
            first = min(self._waiting, key=lambda one: self._taken[one[0]])
            self._waiting.remove(first)
            group, turn = first
            self._free -= 1
            self._taken[group] += 1
            turn.set_result(None)

    def _turn_away(self) -> None:
        waiting = Counter(group for group, _ in self._waiting)
        last = max(reversed(self._waiting), key=lambda one: waiting[one[0]])
        self._waiting.remove(last)
        last[1].set_exception(FullError())
