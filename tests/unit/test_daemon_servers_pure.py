# SPDX-License-Identifier: Apache-2.0
"""
When the daemon looks at whose servers, and what it makes of a look.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from scope_ebpf.beam.servers.looks import Busy, Look, Server
from scope_ebpf.daemon.looks.owners import ROOT, Owner
from scope_ebpf.daemon.readings import servers
from scope_ebpf.daemon.readings.servers import ServerLooks, Sight
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError, ReadRefusedError
from scope_ebpf.metrics.servers import Counts, Edge, ServersReading, ServerSums

REFUSED = ReadRefusedError("code is being loaded")


@dataclass(eq=False)
class Watched:
    """
    A watch whose looks have planned failures.
    """

    pid: int = 7
    planned: list = field(default_factory=list)
    income: float = 0.02
    processes: int = 50
    found: ServersReading = field(default_factory=ServersReading)
    error: Exception | None = None
    owner: Owner = ROOT
    #: Processes that its table has room for; whether it counts others each time it is read.
    slots: int = 1 << 20
    made: int = 0
    looks: int = 0

    def __post_init__(self) -> None:
        identity = SimpleNamespace(check=lambda: None)
        self.target = SimpleNamespace(pid=self.pid, identity=identity, watch=self)
        self.counters = SimpleNamespace(processes=self.processes)
        self.reading = SimpleNamespace(counters=self.counters)

    def publish_servers(self, found: ServersReading) -> None:
        self.found = found

    def fail(self, error: Exception) -> None:
        self.error = error


class ASight:
    """
    Stands for a Sight: a look takes 0.03 s of CPU, and sees a module that it never saw before.
    """

    def __init__(self, state: SimpleNamespace, target: SimpleNamespace, sums: ServerSums) -> None:
        self.state, self.watch, self.sums = state, target.watch, sums
        self.slots = self.watch.slots
        self.watch.made += 1

    def look(self, now: float) -> ServersReading:
        self.watch.looks += 1
        self.state.spent += self.state.cpu
        self.state.order.append(self.watch.pid)
        if self.watch.planned and (error := self.watch.planned.pop(0)):
            raise error
        return self.sums.add({f"m{self.watch.looks}": Counts(1.0, 1.0)}, {}, now)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """
    Looks at *watches*, as the config's *series* says.
    """
    state = SimpleNamespace(watches=[], now=0.0, spent=0.0, cpu=0.03, order=[], errors=Counter())
    state.config = SimpleNamespace(genservers=60)
    monkeypatch.setattr(servers, "cpu_seconds", lambda: state.spent)
    looks = ServerLooks(
        lambda: state.watches,
        lambda: state.config,
        state.errors,
        lambda: state.now,
        lambda target, sums: ASight(state, target, sums),
    )

    def go(seconds: int) -> None:
        for _ in range(seconds):
            state.now += 1
            looks.look()

    state.go, state.once = go, looks.look
    return state


def test_looks_stay_within_the_budget(run: SimpleNamespace):
    """
    0.03 s each are one in 10 s of a budget of 0.02 of a core, and one in 100 s of a tenth of it.
    """
    run.watches = [rich, poor] = [Watched(1), Watched(2, income=0.002)]
    run.go(2000)
    assert 150 < rich.looks < 260
    assert 13 < poor.looks < 30


def test_without_series_nobody_looks_and_nothing_is_shown(run: SimpleNamespace):
    """
    Off by default; where it is switched off, no old figure stays.
    """
    run.watches = [watch := Watched()]
    run.config.genservers = 0
    run.go(100)
    assert (0, ServersReading()) == (watch.made, watch.found)
    run.config.genservers = 60
    run.go(10)
    assert watch.found.looks
    run.config.genservers = 0
    run.go(1)
    assert ServersReading() == watch.found


def test_a_failure_now_and_then_changes_nothing(run: SimpleNamespace):
    """
    Four in a row are not reported; five are, until a look is good again.
    """
    run.watches = [watch := Watched(planned=[None, *[REFUSED] * 4, None, *[REFUSED] * 5])]
    run.cpu = 0.003
    while watch.looks < 6 and run.now < 1000:
        run.go(1)
    assert (6, 1, "") == (watch.looks, watch.made, watch.found.refused)
    while not watch.found.refused and run.now < 1000:
        run.go(1)
    assert ServersReading(refused="code is being loaded") == watch.found
    run.go(95)
    assert ("", 2) == (watch.found.refused, watch.made)
    assert run.errors == {}


def test_failures_are_paid_for_as_looks_are(run: SimpleNamespace):
    """
    Looks that fail after 2 s each are one in 667 s of a budget of 0.02 of a core.
    """
    run.watches = [watch := Watched(planned=[REFUSED] * 999)]
    run.cpu = 2.0
    run.go(6670)
    assert 6 <= watch.looks <= 21


def test_five_failures_are_no_way_to_new_names(run: SimpleNamespace):
    """
    What was added up outlasts what looks; other series begin anew.
    """
    run.watches = [watch := Watched(planned=([None] * 9 + [REFUSED] * 5) * 9)]
    run.cpu, names = 0.003, set()
    for _ in range(3500):
        run.go(1)
        names |= {one.module for one in watch.found.modules}
    assert watch.made > 5
    assert 5 < len(names) <= 21
    run.config.genservers = 30
    run.go(200)
    assert watch.found.looks < 200


def test_more_processes_than_a_table_has_slots_are_refused(run: SimpleNamespace):
    """
    Such a table is forged: it is not read even once.
    """
    run.watches = [watch := Watched(processes=4097, slots=4096)]
    run.go(100)
    assert (0, "4,097 processes cannot be in a table of 4,096 slots") == (
        watch.looks,
        watch.found.refused,
    )


def test_owners_take_turns_in_a_pass(run: SimpleNamespace):
    """
    The VM of another user comes second; after 1 s of CPU the others of the first one wait.
    """
    evil = [Watched(pid, owner=Owner(666, "")) for pid in range(10, 20)]
    run.watches, run.cpu = [*evil, Watched(1, owner=Owner(1000, ""))], 0.6
    run.once()
    assert [10, 1, 11] == run.order


def test_other_targets_go_on_beside_one_that_fails(run: SimpleNamespace):
    """
    An unexpected error is counted; memory that hangs is for the loop, and so is an end.
    """
    odd, hangs = Watched(1, planned=[ValueError("odd")] * 9), Watched(2, planned=[NoAnswerError()])
    gone, good = Watched(3, planned=[NoSuchProcessError("ended")]), Watched(4)
    run.watches, run.cpu = [odd, hangs, gone, good], 0.003
    run.go(30)
    assert 5 == run.errors["snapshot"]
    assert "ValueError('odd')" == odd.found.refused
    assert isinstance(hangs.error, NoAnswerError)
    assert gone.error is None
    assert good.looks > 1


def test_a_vm_that_grows_is_not_looked_at_any_more(run: SimpleNamespace):
    """
    Above 65,536 processes nothing is read, and the reason is given.
    """
    run.watches = [watch := Watched(slots=1 << 18)]
    watch.counters.processes = 1 << 16
    run.go(40)
    assert watch.looks
    watch.counters.processes += 1
    run.go(200)
    looks = watch.looks
    run.go(100)
    assert looks == watch.looks
    assert "65,536" in watch.found.refused


def test_a_look_is_counted_by_module():
    """
    Busy servers, mailboxes and callers belong to their modules; parts stand for the whole.
    """
    sight = object.__new__(Sight)
    known = {
        1: Server(1, "gen_server", "cart", None),
        2: Server(2, "gen_server", "cart", "cart_2"),
        3: Server(3, None, "web", None),
    }
    sight._servers = SimpleNamespace(known=known)
    look = Look(np.array([1, 2, 9], np.uint64), np.array([4, 7, 99]), weight=3.0)
    look.busy = [Busy(2, "timer:sleep/1")]
    calls = [(3, 1), (2, 1), (8, 2), (3, 77)]
    look.waiting = [SimpleNamespace(caller=caller, server=server) for caller, server in calls]
    look.caller_weight = 6.0
    modules, edges = sight._counted(look)
    (cart,) = modules.values()
    assert (6, 3, 18, 7) == (cart.processes, cart.busy, cart.waiting, cart.longest)
    assert {("web", "cart"): 6, ("cart", "cart"): 6, ("(processes)", "cart"): 6} == edges
    assert {Edge} == {type(edge) for edge in edges}
