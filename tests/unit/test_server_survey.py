# SPDX-License-Identifier: Apache-2.0
"""
What is read of large process tables, and for how many others each process that is read stands.
"""

from __future__ import annotations

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
from scope_ebpf.runs import genservers as runs
from scope_ebpf.runs.genservers import Looking

if TYPE_CHECKING:
    from scope_ebpf.results.genservers import GenServers

PARTS, SLOTS = 4, 1 << 14
#: Pid terms of servers that are busy or have messages, and of all servers.
BUSY, FULL = [16, 32], [48]
ALL = [16 * n for n in range(1, 6401)]


class Servers:
    """
    Servers of a VM that does not exist; *gone* have ended, *torn* change too fast.
    """

    def __init__(self) -> None:
        self.parts: list[int] = []
        self.gone: set[int] = set()
        self.torn: set[int] = set()
        self.known: dict[int, Server] = {}

    def of(self, pid: int) -> Server | None:
        return self.known.get(pid)

    def look(self, part: int = 0, parts: int = 1) -> Look:
        self.parts.append(part)
        return self._look([pid for pid in ALL if pid // 16 % parts == part])

    def look_at(self, slots: np.ndarray, pids: np.ndarray | None = None) -> Look:
        chosen = slots * 16 if pids is None else pids
        return self._look([pid for pid in chosen.tolist() if 0 < pid <= ALL[-1]])

    def _look(self, pids: list[int]) -> Look:
        found = np.array([p for p in pids if p not in self.gone | self.torn], np.uint64)
        for pid in found.tolist():
            self.known[pid] = Server(pid, "gen_server", "shop", None)
        look = Look(found, np.isin(found, FULL).astype(np.int64), read=found)
        look.busy = [Busy(pid, "shop:work/0") for pid in found.tolist() if pid in BUSY]
        look.missed = np.array([pid >> 4 for pid in self.torn], np.int64)
        return look


def surveyed() -> tuple[Survey, Servers]:
    """
    A survey of a table in four parts.
    """
    pids = SimpleNamespace(slot=lambda terms: terms >> np.uint64(4))
    table = SimpleNamespace(slots=SLOTS, count=lambda: SLOTS, slots_of=pids.slot)
    survey = Survey(SimpleNamespace(pids=pids, table=table), parts=PARTS)
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
    assert 0.0 == searched.weight == searched.caller_weight


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
    survey.step()
    assert {BUSY[0]} == survey.ended
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


def lookers() -> Looking:
    """
    What adds looks up of a table in four parts.
    """
    found = Looking(view(make(1)))
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
