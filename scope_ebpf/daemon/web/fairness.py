# SPDX-License-Identifier: Apache-2.0
"""
Who is served and who is dropped when too many come, by groups: nobody takes another's part.

Clients of one address, or of one user on a Unix socket, are a group. All of it runs in
one event loop.
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
    Whose *client* is: a user's, an address's, or the host's own.

    Any user of the host may have any loopback address, so those are one group; a host has a
    /64 of IPv6. OSError where it has gone.
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


class Crowd:
    """
    Tasks that together weigh no more than *most*: one too many ends the oldest.

    That is the oldest of the group that weighs most; it is cancelled.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        #: Tasks and their weights by group, the oldest first, and what they weigh together.
        self._groups: dict[str, dict[asyncio.Task[None], int]] = {}
        self._weights: Counter[str] = Counter()

    @contextmanager
    def join(self, task: asyncio.Task[None], group: str, weight: int = 1) -> Iterator[None]:
        """Let *task* be one of them while the block runs."""
        self._groups.setdefault(group, {})[task] = weight
        self._weights[group] += weight
        try:
            while self._weights.total() > self._most and self._drop(task):
                pass
            yield
        finally:
            self._remove(task, group)

    def drop_oldest(self) -> bool:
        """Cancel the oldest of the group that weighs most; False where there is nobody."""
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
    """Too many wait for a place."""


class Room:
    """
    So many *places*; of those who wait, whose group has fewest of them comes next.

    No more than *most* wait: one too many is turned away, the last of the group of which most wait.
    """

    def __init__(self, places: int, most: int) -> None:
        self._free, self._most = places, most
        self._taken: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def place(self, group: str) -> AsyncIterator[None]:
        """A place while the block runs; FullError if there is none to wait for."""
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
                self._leave(group)  # its turn had come
            raise

    def _leave(self, group: str) -> None:
        self._free += 1
        self._taken[group] -= 1
        if not self._taken[group]:
            del self._taken[group]
        self._admit()

    def _admit(self) -> None:
        # Who was cancelled waits no longer.
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
