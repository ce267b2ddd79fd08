# SPDX-License-Identifier: Apache-2.0
"""
The real-time priority of a summary: while a window is open, and not a moment longer.
"""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from scope_ebpf.kernel.urgency import Urgency, hurry
from scope_ebpf.runs import budgeted
from scope_ebpf.runs.budgeted import BudgetedTrace, BudgetOptions


class Policies:
    """
    The policy and priority of each thread, as the kernel would have them; 0 is this one.
    """

    def __init__(self, patch: pytest.MonkeyPatch, own: int, priority: int = 0) -> None:
        self.of = {0: (own, priority), 23: (own, priority)}
        patch.setattr(os, "sched_getscheduler", lambda pid: self.of[pid][0])
        patch.setattr(os, "sched_getparam", lambda pid: os.sched_param(self.of[pid][1]))
        patch.setattr(os, "sched_setscheduler", self.set)

    def set(self, pid: int, policy: int, parameter: os.sched_param) -> None:
        self.of[pid] = (policy, parameter.sched_priority)


def test_a_batch_job_is_one_again(monkeypatch: pytest.MonkeyPatch):
    """
    What runs as a batch job is urgent for a time and a batch job again.
    """
    policies, urgency = Policies(monkeypatch, os.SCHED_BATCH), Urgency()
    urgency.set(urgent=False)
    assert (os.SCHED_BATCH, 0) == policies.of[0]
    for _ in range(2):
        urgency.set(urgent=True)
        assert (os.SCHED_FIFO, 1) == policies.of[0]
    urgency.set(urgent=False)
    assert (os.SCHED_BATCH, 0) == policies.of[0]


@pytest.mark.parametrize("policy", [os.SCHED_FIFO, os.SCHED_RR, os.SCHED_RR | 0x40000000])
def test_a_priority_of_the_users_is_not_lowered(monkeypatch: pytest.MonkeyPatch, policy: int):
    """
    A command that was started with a real-time priority keeps it, and so does its attacher.
    """
    policies, urgency = Policies(monkeypatch, policy, 50), Urgency()
    hurry(23)
    urgency.set(urgent=True)
    assert {(policy, 50)} == set(policies.of.values())
    urgency.set(urgent=False)
    assert {(policy, 50)} == set(policies.of.values())


def test_without_permission_all_stays_as_it_was(monkeypatch: pytest.MonkeyPatch):
    """
    A refusal of the kernel is no error.
    """
    policies, urgency = Policies(monkeypatch, os.SCHED_OTHER), Urgency()

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    hurry(23)
    urgency.set(urgent=True)
    urgency.set(urgent=False)
    assert {(os.SCHED_OTHER, 0)} == set(policies.of.values())


class Run:
    """
    A run whose windows are opened and closed by the test; what is due is not for an hour.
    """

    def __init__(self) -> None:
        self.in_window = True
        self.left = 3600.0

    def next_due(self) -> float:
        return time.monotonic() + self.left

    def finish(self) -> None:
        pass

    def events(self, _counted: object) -> dict[str, Any]:
        return {}


def trace_of(run: Run, looked: list[int], policies: Policies) -> BudgetedTrace:
    """
    A trace whose looks at the VM add the policy that they run with to *looked*.
    """
    trace = BudgetedTrace.__new__(BudgetedTrace)
    state = SimpleNamespace(
        due=0.0, look=lambda: looked.append(policies.of[0][0]), counted=dict, begin=lambda: None
    )
    vars(trace).update(_run=run, state=state, _urgency=Urgency(), _cost=object(), _cpu_before=0.0)
    vars(trace).update(_target=SimpleNamespace(pid=os.getpid(), identity=None), _seconds=0.0)
    return trace


def test_the_vm_is_looked_at_with_the_usual_priority(monkeypatch: pytest.MonkeyPatch):
    """
    A window that its quota has closed is over at the next turn, before the VM is looked at; at
    the end of a window the VM is not looked at, and in a long one it is.
    """
    policies, run = Policies(monkeypatch, os.SCHED_OTHER), Run()
    looked: list[int] = []
    trace = trace_of(run, looked, policies)
    run.left = 0.001
    trace._turn(time.monotonic())
    assert (os.SCHED_FIFO, []) == (policies.of[0][0], looked)
    run.left = 3600.0
    trace._turn(time.monotonic())
    assert [os.SCHED_FIFO] == looked
    run.in_window = False  # by Run.on_exhausted, while it waited
    trace._turn(time.monotonic())
    assert [os.SCHED_FIFO, os.SCHED_OTHER] == looked


@pytest.mark.parametrize(
    ("used", "share", "noted"), [(0.1, 0.03, True), (0.1, 0.01, False), (3.0, 0.03, False)]
)
def test_what_an_idle_vm_takes_beyond_its_budget_is_explained(
    monkeypatch: pytest.MonkeyPatch, used: float, share: float, noted: bool
):
    """
    In ten seconds: a VM that uses less than two of CPU counts as if it used those.
    """
    trace = trace_of(Run(), [], Policies(monkeypatch, os.SCHED_OTHER))
    vars(trace).update(_options=BudgetOptions(10.0, 0.01), _used=used, _seconds=10.0)
    expected = ["the VM is nearly idle: hooks may take 1% of 0.2 cores"] * noted
    assert expected == trace._idle(share)


def test_a_run_that_ends_in_a_window_is_summed_up_with_the_usual_priority(
    monkeypatch: pytest.MonkeyPatch,
):
    """
    Reading the process table and the names of crashes may take a second.
    """
    policies, run = Policies(monkeypatch, os.SCHED_OTHER), Run()
    trace = trace_of(run, [], policies)
    seen: list[int] = []
    run.begin = lambda: None  # type: ignore[attr-defined]
    trace._options = SimpleNamespace(duration=1.0, budget=0.01, announced=False)  # type: ignore[assignment]
    trace._stop = SimpleNamespace(reason="")  # type: ignore[assignment]
    monkeypatch.setattr(
        budgeted.BudgetedTrace, "_watch", lambda self, _: self._turn(time.monotonic())
    )
    monkeypatch.setattr(
        budgeted.BudgetedTrace, "_sum_up", lambda *_: seen.append(policies.of[0][0])
    )
    assert trace._count() is None
    assert [os.SCHED_OTHER] == seen
