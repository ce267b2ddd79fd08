# SPDX-License-Identifier: Apache-2.0
"""
Looks into processes: one for each program that was refused, and none that is waited for.
"""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from scope_ebpf.beam.hidden.resolve import SoughtError
from scope_ebpf.beam.memory import process_memory
from scope_ebpf.beam.vm.discover import Refusal
from scope_ebpf.daemon.config import Config
from scope_ebpf.daemon.looks import inspector
from scope_ebpf.daemon.looks.hangs import Hangs
from scope_ebpf.daemon.looks.inspector import LOST, MOST_LOST, Inspector, Look, Looker
from scope_ebpf.daemon.looks.owners import BURST, ROOT, SHARE, Owner, Shares
from scope_ebpf.daemon.looks.prepare import UnprovenError
from scope_ebpf.daemon.looks.programs import FIRST, MOST, Program, Refused
from scope_ebpf.errors import NotABeamError, NotPermittedError, ReadRefusedError

if TYPE_CHECKING:
    from pathlib import Path

EVIL = Owner(666, "")
QUICK = Config(min_age=0.0)
PATIENCE = 30.0


class Clock:
    """
    A clock that stands still.
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def processes(proc: Path, *pids: int) -> None:
    """
    Processes of one program.
    """
    (proc / "program").touch()
    for pid in pids:
        (proc / str(pid)).mkdir()
        (proc / str(pid) / "exe").symlink_to(proc / "program")


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """
    The pids that were looked into, and the *error* that each look raises.
    """
    state = SimpleNamespace(pids=[], error=ReadRefusedError("no"))

    def inspect(pid, proc, opened):
        state.pids.append(pid)
        raise state.error

    monkeypatch.setattr(inspector, "inspect", inspect)
    return state


def test_five_hundred_processes_of_a_bad_program_cost_one_look(tmp_path: Path, looked):
    """
    The other processes are refused without a look; those of another user are not.
    """
    processes(tmp_path, *range(1, 501))
    looker = Looker(Shares(), tmp_path)
    found = [looker.look(pid, EVIL, QUICK).found for pid in range(1, 501)]
    assert [1] == looked.pids
    assert {"no"} == {str(refusal.reason) for refusal in found}
    assert {"refused": 1, "spared": 499} == looker.results
    looker.look(1, Owner(1000, ""), QUICK)
    assert [1, 1] == looked.pids


def test_what_parses_the_files_of_an_owner_is_charged_to_it(
    tmp_path: Path, looked, monkeypatch: pytest.MonkeyPatch
):
    """
    After a look with five seconds of parsing, its owner waits until the excess has drained.
    """
    processes(tmp_path, 1)
    shares = Shares(clock=Clock())
    monkeypatch.setattr(process_memory.client, "cpu_seconds", lambda: 5.0 * len(looked.pids))
    Looker(shares, tmp_path).look(1, EVIL, QUICK)
    assert shares.wait(EVIL) >= (5.0 - BURST) / SHARE


def test_a_program_whose_functions_are_sought_is_looked_at_again_within_a_minute(
    tmp_path: Path, looked
):
    """
    However often others had their turn, the pause does not grow beyond a minute.
    """
    clock = Clock()
    processes(tmp_path, 1)
    looker = Looker(Shares(), tmp_path)
    looker.refused = Refused(clock)
    looked.error = SoughtError("they are sought")
    for _ in range(8):
        again = looker.look(1, EVIL, QUICK).again
        assert again <= clock.now + 60
        clock.now = again
    assert 8 == len(looked.pids)


def test_a_process_that_ends_during_a_look_does_not_affect_its_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """
    Figures read from it are ignored, and the next process of the program is looked into.
    """
    processes(tmp_path, 1, 2)
    seen: list[int] = []

    def ends(pid: int, *_: object) -> None:
        seen.append(pid)
        (tmp_path / str(pid) / "exe").unlink()
        raise ReadRefusedError("its memory is not that of a VM")

    monkeypatch.setattr(inspector, "inspect", ends)
    looker = Looker(Shares(), tmp_path)
    for pid in (1, 2):
        assert Look(pid) == looker.look(pid, EVIL, QUICK)
    assert [1, 2] == seen
    assert looker.results["ended"] == 2


def test_a_process_with_other_privileges_is_refused_alone(tmp_path: Path, looked):
    """
    Privileges are not a property of the program: its next process is looked into.
    """
    processes(tmp_path, 1, 2)
    looked.error = NotPermittedError("more than one user")
    looker = Looker(Shares(), tmp_path)
    assert all(isinstance(looker.look(pid, EVIL, QUICK).found, Refusal) for pid in (1, 2))
    assert [1, 2] == looked.pids


def test_a_program_that_is_not_a_vm_is_not_a_refusal(tmp_path: Path, looked):
    """
    It is ignored without a line in the log, and not tried again.
    """
    processes(tmp_path, 1, 2)
    looked.error = NotABeamError("a shell")
    looker = Looker(Shares(), tmp_path)
    assert [Look(1), Look(2)] == [looker.look(pid, EVIL, QUICK) for pid in (1, 2)]
    assert [1] == looked.pids


def test_a_vm_that_may_still_be_starting_is_tried_again_soon(tmp_path: Path, looked, monkeypatch):
    """
    While it is young, missing parts are not reported.
    """
    processes(tmp_path, 1)
    looked.error = UnprovenError("no atoms")
    monkeypatch.setattr(Looker, "_is_young", lambda *_: True)
    clock = Clock()
    monkeypatch.setattr(inspector.time, "monotonic", clock)
    looker = Looker(Shares(), tmp_path)
    looker.refused = Refused(clock)
    seen = []
    for _ in range(8):
        look = looker.look(1, EVIL, QUICK)
        seen.append((look.again - clock.now, isinstance(look.found, Refusal)))
        clock.now = look.again
    assert [(float(2**n), False) for n in range(6)] + [(64.0, True), (128.0, True)] == seen


def test_the_pause_after_a_refusal_doubles():
    """
    The first pause is a minute, the longest an hour; a success resets it.
    """
    clock = Clock()
    refused, program = Refused(clock), Program(1, 2, ROOT)
    pauses = []
    for _ in range(8):
        assert refused.find(program) is None
        bad = refused.add(program, ReadRefusedError("no"))
        pauses.append(bad.pause)
        assert bad == refused.find(program)
        clock.now = bad.until
    assert [60, 120, 240, 480, 960, 1920, 3600, 3600] == pauses
    assert (FIRST, MOST) == (60, 3600)
    refused.clear(program)
    assert FIRST == refused.add(program, ReadRefusedError("no")).pause


class Slow:
    """
    Looks that return only when they are released.
    """

    def __init__(self) -> None:
        self.refused, self.hangs = Refused(), Hangs()
        self.began, self.let = threading.Semaphore(0), threading.Event()

    def look(self, pid: int, owner: Owner, config: Config) -> Look:
        self.began.release()
        if pid == 1:
            assert self.let.wait(PATIENCE)
        return Look(pid, exe="/program")


@pytest.fixture
def slow():
    """
    An inspector whose looks into process 1 hang, and what wakes us.
    """
    looker, clock, woken = Slow(), Clock(), threading.Semaphore(0)
    inspected = Inspector(looker, Shares(), lambda: QUICK, woken.release, clock)
    inspected.start()
    yield SimpleNamespace(looker=looker, clock=clock, woken=woken, inspector=inspected)
    looker.let.set()
    inspected.close()


def test_a_look_that_hangs_is_abandoned(slow):
    """
    The loop gets a refusal, and the next process is looked into.
    After three of them, no process of that owner is looked into.
    """
    slow.inspector.ask(1, EVIL)
    slow.inspector.ask(2, EVIL)
    assert slow.looker.began.acquire(timeout=PATIENCE)
    slow.inspector.abandon_hanging()
    assert slow.inspector.take() is None
    slow.clock.now += LOST
    slow.inspector.abandon_hanging()
    assert "did not come back" in str(slow.inspector.take().found.reason)
    assert slow.woken.acquire(timeout=PATIENCE)
    assert Look(2, exe="/program") == slow.inspector.take()
    assert 1 == slow.inspector.lost
    slow.looker.hangs.add(EVIL)
    assert "" == slow.looker.hangs.refusal(EVIL)
    slow.looker.hangs.add(EVIL)
    assert slow.looker.hangs.refusal(EVIL)
    slow.looker.let.set()
    assert slow.inspector.idle


def test_an_inspector_with_too_many_hanging_looks_is_stuck(slow):
    """
    It is stuck once one more look hangs, and not any more when they return.
    """
    for left in range(MOST_LOST + 1):
        assert (left, False) == (slow.inspector.lost, slow.inspector.stuck)
        slow.inspector.ask(1, EVIL)
        assert slow.looker.began.acquire(timeout=PATIENCE)
        slow.clock.now += LOST
        slow.inspector.abandon_hanging()
    assert (MOST_LOST, True) == (slow.inspector.lost, slow.inspector.stuck)
    slow.looker.let.set()
    deadline = time.monotonic() + PATIENCE
    while slow.inspector.lost and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert (0, False) == (slow.inspector.lost, slow.inspector.stuck)


def test_looks_are_finished_in_order(slow):
    """
    Each requested process is looked into once, and its result can be taken.
    """
    for pid in (2, 3):
        slow.inspector.ask(pid, EVIL)
    for _ in range(2):
        assert slow.woken.acquire(timeout=PATIENCE)
    assert [2, 3] == [slow.inspector.take().pid for _ in range(2)]
    assert slow.inspector.take() is None
    assert slow.inspector.idle
