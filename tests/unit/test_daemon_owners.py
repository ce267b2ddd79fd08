# SPDX-License-Identifier: Apache-2.0
"""
Whose a process is, and what no owner can take from another: CPU, turns, slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scope_ebpf.daemon.looks.owners import (
    ROOT,
    LookQueue,
    Owner,
    OwnerSlots,
    Shares,
    in_turns,
    owner_of,
    tenant_of,
)
from scope_ebpf.errors import NoSuchProcessError

if TYPE_CHECKING:
    from pathlib import Path

EVIL, GOOD = Owner(666, ""), Owner(1000, "")
CONTAINER = "/docker/" + "a" * 64


class Clock:
    """
    A clock that stands still.
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("cgroup", "tenant"),
    [
        ("/", ""),
        ("", ""),
        (
            "/system.slice/rabbitmq-server.service/made/below",
            "/system.slice/rabbitmq-server.service",
        ),
        ("/user.slice/user-7.slice/user@7.service/a.slice/b", "/user.slice/user-7.slice"),
        (f"{CONTAINER}/own", CONTAINER),
        (
            "/kubepods.slice/kubepods-pod0a1b2c3d_0000_1111_2222_333344445555.slice/cri-x.scope",
            "/kubepods.slice/kubepods-pod0a1b2c3d_0000_1111_2222_333344445555.slice",
        ),
        ("/by/hand", "/by/hand"),
    ],
)
def test_cgroups_that_a_tenant_makes_are_the_tenants(cgroup: str, tenant: str):
    """
    Cgroups below a service, a session, a pod or a container belong to it.
    """
    assert tenant == tenant_of(cgroup)


def test_the_owner_is_who_started_it(tmp_path: Path):
    """
    The real user of a setuid program counts; the cgroup of the daemon itself does not.
    """
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "status").write_text("Name:\tUid:\t0\nUid:\t666\t0\t0\t0\n")
    (folder / "cgroup").write_text(f"0::{CONTAINER}/own\n")
    assert Owner(666, CONTAINER) == owner_of(7, tmp_path)
    assert Owner(666, "") == owner_of(7, tmp_path, ours=CONTAINER)
    with pytest.raises(NoSuchProcessError):
        owner_of(8, tmp_path)


def test_only_root_outside_of_containers_has_no_limits():
    """
    Root in a container is its tenant.
    """
    assert () == ROOT.keys
    assert (f"cgroup {CONTAINER}",) == Owner(0, CONTAINER).keys


def test_an_owner_above_its_burst_waits_until_the_excess_has_drained():
    """
    Two seconds at once, and two percent of a core in the long run; other owners are not affected.
    """
    clock = Clock()
    shares = Shares(0.02, 2.0, clock)
    shares.charge(EVIL, 2.0)
    assert 0.0 == shares.wait(EVIL)
    shares.charge(EVIL, 0.5)
    assert pytest.approx(25.0) == shares.wait(EVIL)
    assert 0.0 == shares.wait(GOOD) == shares.wait(ROOT)
    clock.now += 25.0
    assert pytest.approx(0.0, abs=1e-9) == shares.wait(EVIL)


def test_for_an_hour_an_owner_gets_its_share_and_no_more():
    """
    Continuous requests of 50 ms each get the burst and two percent of an hour.
    """
    clock = Clock()
    shares, taken = Shares(0.02, 2.0, clock), 0.0
    end = clock.now + 3600
    while clock.now < end:
        wait = shares.wait(EVIL)
        if wait:
            clock.now += wait
            continue
        shares.charge(EVIL, 0.05)
        taken += 0.05
    assert pytest.approx(2.0 + 72.0, abs=0.1) == taken


def test_the_users_of_a_container_share_its_limit():
    """
    A container has 65,536 users of its own, and one share.
    """
    shares = Shares(0.02, 2.0, Clock())
    for uid in range(100_000, 100_004):
        shares.charge(Owner(uid, CONTAINER), 1.0)
    assert pytest.approx(100.0) == shares.wait(Owner(100_099, CONTAINER))


def test_owners_take_turns_and_root_is_first():
    """
    One process of a user waits for one of each other, not for five hundred.
    """
    queue = LookQueue()
    for pid in range(500):
        queue.add(pid, EVIL)
    queue.add(1000, GOOD)
    queue.add(1001, ROOT)
    order = [queue.next(lambda _: 0.0)[0] for _ in range(4)]
    assert [1001, 0, 1000, 1] == order
    assert 498 == len(queue)


def test_an_owner_that_has_to_wait_does_not_delay_others():
    """
    An owner above its share is skipped; if all are, the minimum wait is returned.
    """
    queue = LookQueue()
    queue.add(1, EVIL)
    queue.add(2, GOOD)
    waits = {EVIL: 30.0, GOOD: 0.0}
    assert (2, GOOD) == queue.next(waits.get)
    queue.add(3, GOOD)
    waits[GOOD] = 7.0
    assert 7.0 == queue.next(waits.get)
    waits[EVIL] = 0.0
    assert (1, EVIL) == queue.next(waits.get)


def test_no_owner_has_more_than_half_of_the_slots():
    """
    One half is full while others still get slots; each that ends frees one.
    """
    slots = OwnerSlots()
    for pid in range(5):
        assert "" == slots.refusal(EVIL, 10)
        slots.enter(pid, EVIL)
    assert "5 VMs of uid 666 are observed, which is half" in slots.refusal(EVIL, 10)
    assert "" == slots.refusal(GOOD, 10)
    assert "" == slots.refusal(ROOT, 10)
    slots.leave(0)
    assert "" == slots.refusal(EVIL, 10)


def test_the_first_of_each_comes_before_the_second_of_any():
    """
    Where such a list is cut off, the owners that have the most lose first.
    """
    things = [("a", EVIL), ("b", EVIL), ("c", EVIL), ("d", GOOD), ("e", ROOT), ("f", ROOT)]
    assert "adefbc" == "".join(name for name, _ in in_turns(things, lambda thing: thing[1]))
