# SPDX-License-Identifier: Apache-2.0
"""
Who is dropped and who comes next when too many come.
"""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from scope_ebpf.daemon.web.fairness import FullError, SlotQueue, TaskLimit, group_of

MINE, OTHERS = "192.0.2.1", "192.0.2.2"


def dropped(most: int, members: list[tuple[str, int]]) -> list[int]:
    """
    The numbers of those *members* that are dropped; each joins in turn with its weight.
    """

    async def stay(limit: TaskLimit, group: str, weight: int) -> None:
        task = asyncio.current_task()
        with limit.join(task, group, weight):
            await asyncio.Event().wait()

    async def come() -> list[int]:
        limit = TaskLimit(most)
        tasks = []
        for group, weight in members:
            tasks.append(asyncio.create_task(stay(limit, group, weight)))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        gone = [number for number, task in enumerate(tasks) if task.cancelled()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not limit.drop_oldest()
        return gone

    return asyncio.run(come())


@pytest.mark.parametrize(
    ("members", "gone"),
    [
        ([(MINE, 1)] * 4, []),
        ([(MINE, 1)] * 6, [0, 1]),
        ([(MINE, 1), *[(OTHERS, 1)] * 6], [1, 2, 3]),
        ([*[(OTHERS, 1)] * 4, (MINE, 1), (MINE, 1)], [0, 1]),
        ([(MINE, 1), (OTHERS, 3), (MINE, 1)], [1]),
        ([(MINE, 9)], []),
        ([(OTHERS, 9), (MINE, 1)], [0]),
    ],
)
def test_the_oldest_of_the_largest_group_is_dropped(members: list[tuple[str, int]], gone: list):
    """
    There is room for a weight of four; the newest member stays, whatever its weight.
    """
    assert gone == dropped(4, members)


def test_no_group_takes_every_slot():
    """
    Of two slots that become free together, one goes to the group that has none.
    """

    async def come() -> list[str]:
        slots, inside = SlotQueue(2, 9), []
        leave = [asyncio.Event() for _ in range(6)]

        async def stay(number: int, group: str) -> None:
            async with slots.slot(group):
                inside.append(group)
                await leave[number].wait()

        groups = [MINE, MINE, MINE, MINE, OTHERS]
        tasks = []
        for number, group in enumerate(groups):
            tasks.append(asyncio.create_task(stay(number, group)))
            await asyncio.sleep(0)
        leave[0].set()
        await tasks[0]
        await asyncio.sleep(0)
        for event in leave:
            event.set()
        await asyncio.gather(*tasks)
        return inside

    assert [MINE, MINE, OTHERS, MINE, MINE] == asyncio.run(come())


def test_one_too_many_is_turned_away_from_the_largest_group():
    """
    It is the last client of the group with the most waiting ones, though another came after it.
    """

    async def come() -> list[object]:
        slots, go_on = SlotQueue(1, 3), asyncio.Event()

        async def stay(group: str) -> str:
            async with slots.slot(group):
                await go_on.wait()
                return "served"

        tasks = []
        for group in (OTHERS, OTHERS, OTHERS, OTHERS, MINE):
            tasks.append(asyncio.create_task(stay(group)))
            await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(come())
    assert isinstance(results.pop(3), FullError)
    assert ["served"] * 4 == results


@pytest.mark.parametrize("turn_has_come", [False, True])
def test_a_client_that_gave_up_takes_no_slot(turn_has_come: bool):
    """
    A wait that is given up, even in the moment when it ends, leaves the slot to the next client.
    """

    async def come() -> None:
        slots = SlotQueue(1, 9)
        inside, leave = asyncio.Event(), asyncio.Event()

        async def stay() -> None:
            async with slots.slot(MINE):
                inside.set()
                await leave.wait()
            if turn_has_come:
                second.cancel()

        async def wait() -> None:
            async with slots.slot(MINE):
                pass

        first = asyncio.create_task(stay())
        await inside.wait()
        second = asyncio.create_task(wait())
        await asyncio.sleep(0)
        if not turn_has_come:
            second.cancel()
        leave.set()
        await asyncio.gather(first, second, return_exceptions=True)
        assert second.cancelled()
        async with asyncio.timeout(10):
            await wait()

    asyncio.run(come())


@pytest.mark.parametrize("address", ["127.0.0.1", "127.7.7.7", "::1"])
def test_the_host_itself_is_one_group(address: str):
    """
    Any user of this host can use any loopback address.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), family=family) as server,
        socket.create_connection(server.getsockname()[:2], source_address=(address, 0)),
        server.accept()[0] as client,
    ):
        assert "loopback" == group_of(client)


def test_users_of_a_unix_socket_are_a_group_each():
    """
    The kernel reports the user of the client.
    """
    one, other = socket.socketpair()
    with one, other:
        assert f"uid {os.geteuid()}" == group_of(one)


class Peer:
    """
    A client with another address.
    """

    family = socket.AF_INET6

    def __init__(self, address: str) -> None:
        self._address = address

    def getpeername(self) -> tuple[str, int]:
        return self._address, 1


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:127.0.0.1", "loopback"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_host_is_one_group(address: str, group: str):
    """
    By its address, or by its network of 64 bits where it can choose the rest.
    """
    assert group == group_of(Peer(address))
