# SPDX-License-Identifier: Apache-2.0
"""
What looks at servers remember of a VM that makes processes and modules without end.
"""

from __future__ import annotations

import numpy as np
import pytest
from beam_image import make, pid
from test_beam_memory_image import view

from scope_ebpf.beam.code.tables import Mfa
from scope_ebpf.beam.processes.names import Identity
from scope_ebpf.beam.servers import looks
from scope_ebpf.beam.servers.looks import Server, Servers
from scope_ebpf.beam.servers.waiting import Stacks, Waiting
from scope_ebpf.errors import TooMuchError

#: A process that is no server, and one that is.
SHOPS = (None, "gen_server")
NONE = np.empty(0, np.uint64)


def test_the_processes_that_were_seen_longest_ago_are_forgotten():
    """
    Of those of earlier looks as many stay as there is room for; those of this one stay.
    """
    servers = Servers(view(make(8)), remembered=10)
    seen = [pid(3), pid(4)]
    old = {number: Server(number, None, "gone", None) for number in range(16, 1600, 16)}
    servers.known = {**dict.fromkeys(seen, Server(seen[0], "gen_server", "shop", None)), **old}
    servers._undecided = dict.fromkeys(old, "gone")
    servers.look()
    assert 10 == len(servers.known)
    assert set(seen) <= servers.known.keys()
    assert servers._undecided.keys() <= servers.known.keys()


def test_servers_that_ended_undecided_make_room_for_new_ones(monkeypatch: pytest.MonkeyPatch):
    """
    Of those whose module is not decided the last ones are remembered.
    """
    monkeypatch.setattr(looks, "MOST_NAMED", 3)
    servers = Servers(view(make(1)))
    for number in range(16, 160, 16):
        servers.known[number] = Server(number, "gen_server2", "began", None)
        servers._undecided[number] = "began"
    servers._forget()
    assert [112, 128, 144] == list(servers._undecided)
    assert 9 == len(servers.known)


def test_modules_that_servers_became_are_forgotten_likewise(monkeypatch: pytest.MonkeyPatch):
    """
    Three of nine are remembered, and of each that it is not one module that its servers run.
    """
    servers = Servers(view(make(1)), remembered=3)
    for began in range(9):
        for runs in range(5):
            number = 16 * (5 * began + runs + 1)
            servers.known[number] = Server(number, "gen_server2", f"began{began}", None)
            servers._undecided[number] = f"began{began}"
            rows = np.array([(number,)], [("id", np.uint64)])
            found = {number: f"runs{runs}"}
            monkeypatch.setattr(looks, "became", lambda *_, found=found: found)
            servers._decide(rows)
    assert ["began6", "began7", "began8"] == list(servers.became)
    assert [2, 2, 2] == [len(runs) for runs in servers.became.values()]
    assert {} == servers._undecided


def test_addresses_at_which_processes_wait_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """
    A VM can claim that it waits at another one each time; the same ones are noted once.
    """
    servers = Servers(view(make(1)))
    monkeypatch.setattr(looks, "calls", lambda _: True)
    most = looks._MOST_CALLING
    where = np.zeros(most, np.int64)
    monkeypatch.setattr(servers._viewer.names, "functions", lambda _: ([None], where))
    for first in (0, 0, most, 2 * most):
        rows = np.zeros(most, [("pc", np.uint64)])
        rows["pc"] = np.arange(first, first + most)
        servers._learn_calling(rows)
        assert most == len(servers._calling)


def test_a_look_at_more_processes_than_it_is_meant_for_is_refused():
    """
    Whatever the number is that the table counts.
    """
    viewer = view(make(9))
    assert 0 == Servers(viewer, most=9).look().torn
    with pytest.raises(TooMuchError, match="more than 8 processes"):
        Servers(viewer, most=8).look()


def test_all_servers_that_a_look_read_are_named(monkeypatch: pytest.MonkeyPatch):
    """
    Else servers would be missing for good where processes are forgotten between two looks.
    """
    servers = Servers(view(make(1)), remembered=1 << 16)
    rows = np.zeros(looks.MOST_NAMED, servers._viewer.table._dtype)
    rows["id"] = 16 * np.arange(1, len(rows) + 1)
    names = servers._viewer.names
    kinds = [(Identity(Mfa("shop", "init", 1), behaviour, "shop"), None) for behaviour in SHOPS]
    of = np.arange(len(rows)) % len(SHOPS)
    monkeypatch.setattr(names, "kinds", lambda some: (kinds, of))
    plain = servers._learn(rows)
    assert rows["id"][of == 1].tolist() == list(servers.known)
    assert (plain == (of == 0)).all()


def test_a_call_is_read_again_only_after_its_caller_has_run(monkeypatch: pytest.MonkeyPatch):
    """
    One that is where it was, with the same reductions, waits for the same reply.
    """
    servers, read = Servers(view(make(1))), []

    def decode(_viewer: object, seen: Stacks, _registered: object) -> list[Waiting]:
        read.extend(seen.pids)
        return [Waiting(one, 7, None, (1, 2), None, "?", None) for one in seen.pids]

    monkeypatch.setattr(looks, "waiting", decode)
    for reductions in (5, 5, 6):
        at = [(8, 9, 3, reductions), (8, 9, 3, 5)]
        found = servers._decoded(Stacks([16, 32], [NONE, NONE], [True, True], at))
        assert [16, 32] == [one.caller for one in found if one]
    assert [16, 32, 16] == read
