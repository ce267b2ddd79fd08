# SPDX-License-Identifier: Apache-2.0
"""
Which VMs are admitted, and when one that was refused is looked at again.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from scope_ebpf.daemon import admission
from scope_ebpf.daemon.admission import Admission, NoRoomError
from scope_ebpf.daemon.config import Config
from scope_ebpf.daemon.looks.hangs import MOST, Hangs
from scope_ebpf.daemon.looks.owners import ROOT, Owner
from scope_ebpf.daemon.looks.programs import FIRST, Program, Refused
from scope_ebpf.errors import HostError, NoAnswerError, NothingToAttachError, ReadRefusedError

ALICE, BOB = Owner(1001, ""), Owner(1002, "")


class Looks:
    """
    A scanner that keeps the looks that are requested: pid and pause in seconds.
    """

    def __init__(self) -> None:
        self.requested: list[tuple[int, float]] = []

    def again(self, pid: int, seconds: float) -> None:
        self.requested.append((pid, seconds))


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def admitting(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> Admission:
    """
    Admission with descriptors for four targets.
    """
    limit = admission._RESERVED + 4 * admission._PER_TARGET
    monkeypatch.setattr(admission, "_file_limit", lambda: limit)
    return Admission(Config(), looks, Refused(), Hangs())


def observed(admitting: Admission, pid: int, owner: Owner) -> str:
    label = admitting.admit(pid, f"n{pid}@host", owner)
    admitting.accept(pid, owner)
    return label


def test_a_vm_that_waits_for_room_is_looked_at_when_another_ends(admitting, looks):
    """
    Two of four are for one owner; the third is refused, and looked at at once when one ends.
    """
    assert ["n1@host", "n2@host"] == [observed(admitting, pid, ALICE) for pid in (1, 2)]
    with pytest.raises(NoRoomError, match="2 VMs of uid 1001 are observed") as refused:
        admitting.admit(3, None, ALICE)
    assert "n4@host" == observed(admitting, 4, BOB)
    admitting.refuse(3, refused.value, ALICE)
    admitting.retry_waiting()
    assert [(3, FIRST)] == looks.requested
    admitting.release(1)
    admitting.retry_waiting()
    assert [(3, FIRST), (3, 0.0)] == looks.requested


def test_without_free_descriptors_no_vm_is_admitted(admitting, monkeypatch):
    """
    The error says what to raise, and the VM has no label.
    """
    monkeypatch.setattr(admission, "_file_limit", lambda: admission._RESERVED)
    with pytest.raises(NoRoomError, match="raise LimitNOFILE"):
        admitting.admit(1, "a@b", ROOT)
    monkeypatch.undo()
    assert "a@b" == admitting.admit(2, "a@b", ROOT)


def test_a_refusal_is_logged_once_and_its_pause_doubles(admitting, looks, caplog):
    """
    Observing the VM resets both.
    """
    for _ in range(2):
        admitting.refuse(7, ReadRefusedError("the layout does not fit"), ALICE)
    assert {7: "the layout does not fit"} == admitting.refused
    assert [(7, FIRST), (7, 2 * FIRST)] == looks.requested
    assert 1 == sum(record.getMessage() == "refused" for record in caplog.records)
    admitting.accept(7, ALICE)
    assert {} == admitting.refused
    admitting.refuse(7, ReadRefusedError("the layout does not fit"), ALICE)
    assert (7, FIRST) == looks.requested[-1]


def test_memory_that_hangs_blocks_its_program_and_then_its_owner(admitting, looks):
    """
    The program is looked at again after an hour, and no process of the owner after three of them.
    """
    for pid in range(MOST):
        assert "" == admitting.hang_refusal(ALICE)
        admitting.refuse(pid, NoAnswerError("it hangs"), ALICE, Program(1, pid, ALICE))
    assert {3600.0} == {seconds for _, seconds in looks.requested}
    assert "3 processes of uid 1001" in admitting.hang_refusal(ALICE)
    assert "" == admitting.hang_refusal(BOB)


def test_strict_ends_where_a_vm_or_a_hook_is_refused(admitting):
    """
    Otherwise the reason is only logged.
    """
    error = ReadRefusedError("the layout does not fit")
    admitting.report(7, error)
    admitting.require_hooks(7, {"gc": "no permission"})
    admitting.apply_config(replace(Config(), strict=True))
    with pytest.raises(ReadRefusedError):
        admitting.report(7, error)
    with pytest.raises(NothingToAttachError, match="process 7 has no hook for gc: no permission"):
        admitting.require_hooks(7, {"gc": "no permission"})
    with pytest.raises(HostError):
        admitting.refuse(8, NoRoomError("no room"), ALICE)
