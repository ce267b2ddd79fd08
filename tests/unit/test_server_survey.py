# SPDX-License-Identifier: Apache-2.0
"""
What is read of large process tables, and for how many others each process that is read stands.
"""

from __future__ import annotations

import random
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from beam_image import make
from profile_fixtures import TARGET
from test_beam_memory_image import view

from scope_ebpf.beam.servers import survey as surveys
from scope_ebpf.beam.servers.looks import Busy, Look, Server
from scope_ebpf.beam.servers.survey import Survey
from scope_ebpf.beam.servers.waiting import Waiting
from scope_ebpf.runs import genservers as runs
from scope_ebpf.runs import server_sums
from scope_ebpf.runs.genservers import Looking
from scope_ebpf.sinks.servers import lines

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from scope_ebpf.results.genservers import GenServers

PARTS, SLOTS = 4, 1 << 14
#: Pid terms of servers that are busy or have messages, and of all servers.
BUSY, FULL = [16, 32], [48]
ALL = [16 * n for n in range(1, 6401)]
#: The server for which those that begin later wait while they work.
CALLED = 64


class Servers:
    """
    Servers of a VM that does not exist; *gone* have ended, *torn* change too fast.
    """

    def __init__(self) -> None:
        self.parts: list[int] = []
        self.gone: set[int] = set()
        self.torn: set[int] = set()
        self.late: set[int] = set()
        self.works: set[int] = set()
        self.known: dict[int, Server] = {}

    def of(self, pid: int) -> Server | None:
        return self.known.get(pid)

    def look(self, part: int = 0, parts: int = 1) -> Look:
        self.parts.append(part)
        return self._look([pid for pid in [*ALL, *self.late] if pid // 16 % parts == part])

    def look_at(
        self, slots: np.ndarray, pids: np.ndarray | None = None, but: Sequence[Container[int]] = ()
    ) -> Look:
        chosen = slots * 16 if pids is None else pids
        found = [p for p in chosen.tolist() if 0 < p <= ALL[-1] or p in self.late]
        return self._look([pid for pid in found if not any(pid in some for some in but)])

    def _look(self, pids: list[int]) -> Look:
        absent = self.gone | self.torn
        found = np.array([pid for pid in pids if pid not in absent], np.uint64)
        for pid in found.tolist():
            module = "shop" if pid <= ALL[-1] else "brief"
            self.known[pid] = Server(pid, "gen_server", module, None)
        look = Look(found, np.isin(found, FULL).astype(np.int64), read=found)
        look.busy = [Busy(pid, "shop:work/0") for pid in found.tolist() if pid in BUSY]
        look.busy += [Busy(pid, "brief:work/0") for pid in found.tolist() if pid in self.works]
        look.waiting = [
            Waiting(pid, CALLED, None, (0, pid), None, "", None)
            for pid in found.tolist()
            if pid in self.works
        ]
        look.missed = np.array([pid >> 4 for pid in self.torn], np.int64)
        return look


def surveyed() -> tuple[Survey, Servers]:
    """
    A survey of a table in four parts.
    """
    pids = SimpleNamespace(slot=lambda terms: terms >> np.uint64(4))
    table = SimpleNamespace(slots=SLOTS, count=lambda: SLOTS, slots_of=pids.slot)
    draw = random.Random(23)
    survey = Survey(SimpleNamespace(pids=pids, table=table), draw, parts=PARTS)
    survey.servers = Servers()
    return survey, survey.servers


def read_once(survey: Survey) -> None:
    """
    Take the steps of the first look.
    """
    while survey.begins:
        survey.step()


def test_the_first_look_reads_each_part_once_and_later_ones_what_matters():
    """
    All that had anything to do; one of 32 of the others, which stand for all of them.
    """
    survey, servers = surveyed()
    read_once(survey)
    assert [0, 1, 2, 3] == sorted(servers.parts)
    active, idle, searched = survey.step()
    assert {*BUSY, *FULL} == set(active.servers.tolist())
    assert 1.0 == active.weight
    assert surveys._FEWEST_DRAWN == len(idle.servers)
    assert len(ALL) - 3 == pytest.approx(idle.weight * len(idle.servers))
    assert 8 == 1 / survey.part == searched.weight == searched.caller_weight
    assert [] == searched.servers.tolist()


def test_a_server_that_begins_to_work_is_read_by_each_look_from_then_on():
    """
    Also one that only the search has met.
    """
    survey, servers = surveyed()
    read_once(survey)
    late = next(iter(survey._idle))
    FULL.append(late)
    try:
        survey._sort(servers.look_at(np.array([late >> 4]), np.array([late], np.uint64)))
        assert late in survey.step()[0].servers.tolist()
    finally:
        FULL.remove(late)


def test_what_has_ended_is_forgotten_and_what_changes_too_fast_is_not():
    """
    Of both nothing was read.
    """
    survey, servers = surveyed()
    read_once(survey)
    servers.gone, servers.torn = {BUSY[0]}, {BUSY[1]}
    gone = [pid for look in survey.step() for pid in look.gone]
    assert [BUSY[0]] == gone
    assert BUSY[0] not in survey._active
    assert BUSY[1] in survey._active


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch):
    """
    That some are left out is said.
    """
    monkeypatch.setattr(surveys, "_MOST_IDLE", 100)
    survey, _ = surveyed()
    read_once(survey)
    assert 100 == len(survey._idle)
    assert survey.misses


def lookers(by: str = "module") -> Looking:
    """
    What adds looks up of a table in four parts.
    """
    found = Looking(view(make(1)), by)
    found._survey, found._servers = surveyed()
    return found


def looking(steps: int) -> GenServers:
    """
    What so many steps have seen together.
    """
    found = lookers()
    for _ in range(steps):
        found.look()
    return found.result(TARGET, 1.0)


def test_figures_of_a_large_table_are_those_of_all_servers():
    """
    How many there are is exact, and three that had to do are none of those that are drawn.
    """
    found = looking(PARTS + 20)
    (shop,) = found.modules
    assert (21, len(ALL)) == (found.looks, shop.processes)
    assert 2 / len(ALL) == pytest.approx(shop.utilization)
    assert 1 / len(ALL) == pytest.approx(shop.mailbox)
    assert 1.0 == shop.busiest
    assert any("was read once" in note for note in found.notes)


def churned(looks: int, brief: int, lives: int, by: str = "module") -> GenServers:
    """
    What *looks* have seen of a VM with always *brief* servers that live for so many looks.

    Every other one of them works, and waits for the same server.
    """
    found = lookers(by)
    servers: Servers = found._servers
    pids = iter(range(ALL[-1] + 16, SLOTS * 16, 16))
    alive = deque(next(pids) for _ in range(brief))
    servers.late.update(alive)
    while found._survey.begins:
        found.look()
    for _ in range(looks):
        for _ in range(brief // lives):
            servers.late.remove(alive.popleft())
            alive.append(next(pids))
            servers.late.add(alive[-1])
        servers.works = {pid for pid in servers.late if pid % 32}
        found.look()
    return found.result(TARGET, 1.0)


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch):
    """
    Looks that draw few servers, which saves time.
    """
    monkeypatch.setattr(surveys, "_FEWEST_DRAWN", 1 << 8)


@pytest.mark.usefixtures("_few")
def test_servers_that_live_for_moments_are_counted_as_long_as_looks_go_on():
    """
    Always 450, all of which have ended after 15 looks; and half of them work and wait.
    """
    modules = {one.module: one for one in churned(looks=60, brief=450, lives=15).modules}
    brief, shop = modules["brief"], modules["shop"]
    assert 450 == pytest.approx(brief.processes, rel=0.1)
    assert 0.5 == pytest.approx(brief.utilization, rel=0.1)
    assert 225 == pytest.approx(shop.waiting_callers, rel=0.1)
    assert len(ALL) == shop.processes


@pytest.mark.usefixtures("_few")
def test_too_few_new_servers_tell_nothing_of_how_many_there_are():
    """
    One was found by a search of an eighth of the table: there may be none besides it, or many.
    """
    found = lookers()
    while found._survey.begins:
        found.look()
    found._servers.late.add(ALL[-1] + 16)
    while ALL[-1] + 16 not in found._survey._idle:
        found.look()
    result = found.result(TARGET, 1.0)
    (brief,) = (one for one in result.modules if "brief" == one.module)
    assert brief.processes is brief.as_json()["processes"] is None
    assert any("not known of 1 of 2 rows" in note for note in result.notes)
    assert any("brief    " in line and " - " in line for line in lines(result, "busy", 5))
    for _ in range(50):
        found.look()
    (brief,) = (one for one in found.result(TARGET, 1.0).modules if "brief" == one.module)
    assert 1 == pytest.approx(brief.processes, rel=0.25)


@pytest.mark.usefixtures("_few")
def test_a_row_of_one_process_stands_for_no_other():
    """
    Also one that was drawn at random.
    """
    rows = churned(looks=15, brief=50, lives=5, by="process").modules
    assert {1.0} == {one.processes for one in rows if one.module.endswith(" shop")}
    assert 1 >= max(one.processes for one in rows if one.module.endswith(" brief"))


def test_servers_that_have_ended_take_no_room(monkeypatch: pytest.MonkeyPatch):
    """
    They are added up by module, and none of their figures is lost.
    """
    monkeypatch.setattr(server_sums, "MOST", 7000)
    found = lookers()
    servers: Servers = found._servers
    while found._survey.begins:
        found.look()
    for first in range(ALL[-1] + 16, 16 * (SLOTS - 500), 16 * 400):
        servers.late = set(range(first, first + 16 * 400, 16))
        found.look()
    assert len(found._lives._lives) <= len(found._survey._idle) + len(found._survey._active)
    assert len(found._now.known.servers) <= 7000
    shop = next(one for one in found.result(TARGET, 1.0).modules if "shop" == one.module)
    assert 2 / len(ALL) == pytest.approx(shop.utilization, rel=0.01)


def test_a_table_that_was_read_in_part_tells_no_more():
    """
    Its figures are scaled up, and that nobody waits is said of that part alone.
    """
    found = looking(2)
    (shop,) = found.modules
    assert (0, len(ALL)) == (found.looks, shop.processes)
    assert "2 of 4 parts" in found.notes[0]
    found.modules.clear()
    assert found.verdict.because.endswith("in the part of the process table that was read")


def test_a_table_without_end_is_read_at_once_for_so_much_cpu_only():
    """
    Also one that cannot be read: from then on looks are as rare as their cost demands.
    """
    found = lookers()
    assert found.reads_first
    found.cpu_seconds = runs._MOST_CPU
    assert not found.reads_first
    found.cpu_seconds = 0.0
    found.failed["torn"] = runs._FAILURES
    assert not found.reads_first


def test_a_table_that_moves_shows_what_was_seen_since_the_turn_before_the_last():
    """
    Looks, and the server that most waits for.
    """
    found = lookers()
    for _ in range(PARTS + 1):
        found.look()
    found.turn_over()
    found.look()
    assert 3 == found.result(TARGET, 1.0).looks
    assert FULL[0] == found.busiest("shop")
    found.turn_over()
    assert 1 == found.result(TARGET, 1.0).looks
    found.turn_over()
    assert [] == found.result(TARGET, 1.0).modules


def searched_many(run: int, draw: random.Random) -> tuple[float, float]:
    """
    What a search of an eighth of a table says of 640 servers that lie there in runs.

    How many it says there are, and the standard error of that.
    """
    found = lookers()
    lines = SLOTS // surveys._LINE
    found._survey.part, found._survey.drawn = 1 / 8, lines // 8
    starts = draw.sample(range(SLOTS // run), 640 // run)
    slots = {start * run + n for start in starts for n in range(run)}
    drawn = {*draw.sample(range(lines), lines // 8)}
    pids = [16 * (slot + SLOTS) for slot in slots if slot // surveys._LINE in drawn]
    found._servers.late.update(pids)
    look = found._servers._look(pids)
    look.searched, look.weight, look.caller_weight = True, 8.0, 8.0
    found._add(look)
    seen = found._now.found
    weight = sum(one.weight for one in seen.servers.values())
    return weight, seen.of_servers.get("brief", 0.0) ** 0.5


@pytest.mark.parametrize("run", [1, 64])
def test_the_error_of_a_search_knows_that_neighbours_are_found_together(run: int):
    """
    What 200 surveys say is off by their errors, of single servers and of 64 side by side.
    """
    draw = random.Random(run)
    surveyed = np.array([searched_many(run, draw) for _ in range(200)])
    errors = surveyed[:, 0] - 640
    expected = float((surveyed[:, 1] ** 2).mean()) ** 0.5
    assert expected == pytest.approx(errors.std(), rel=0.2)
