# SPDX-License-Identifier: Apache-2.0
"""
The check in the heading of ``top``: its steps, its verdict, and when the next one begins.
"""

from __future__ import annotations

import pytest

from scope_ebpf.cli import top_check
from scope_ebpf.cli.top_check import Checks
from scope_ebpf.errors import NoSuchProcessError, TooMuchError
from scope_ebpf.results.check import Check, Finding

TARGET = {"pid": 23}
FINDING = Finding("mailbox", "warning", {"name": "box"}, ("50 messages wait",), {})


class Clock:
    """
    A clock that is set by hand.
    """

    now = 100.0

    def monotonic(self) -> float:
        """
        The time it was set to.
        """
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """
    The clock that checks go by.
    """
    found = Clock()
    monkeypatch.setattr(top_check, "time", found)
    return found


def planned(monkeypatch, *checks: Check | Exception) -> list[float]:
    """
    Checks of two steps each that end so; the times at which steps were taken.
    """
    taken: list[float] = []
    left = list(checks)

    def steps(target, seconds, most):
        taken.append(top_check.time.monotonic())
        yield top_check.time.monotonic() + seconds
        taken.append(top_check.time.monotonic())
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(top_check, "steps", steps)
    return taken


def at(clock: Clock, checks: Checks, *times: float) -> None:
    """
    Offer a step at each of some times.
    """
    for clock.now in times:
        checks.step()


def test_a_verdict_is_shown_and_made_anew_after_a_rest(clock, monkeypatch):
    """
    Ten seconds later, or forty times its CPU time if that is more.
    """
    well = Check(TARGET, checked=["schedulers"], cpu_seconds=0.1)
    ill = Check(TARGET, findings=[FINDING], checked=["schedulers"], cpu_seconds=1.0)
    taken = planned(monkeypatch, well, ill, well)
    checks = Checks(TARGET)
    assert checks.span().text.startswith("check: the first")
    at(clock, checks, 100, 101, 103)
    assert ("check: good: nothing was found; 1 part was looked at", "dim") == checks.span()
    at(clock, checks, 112, 113, 116)
    assert ("check: warning: 50 messages wait", "alarm") == checks.span()
    at(clock, checks, 155, 156)
    assert [100, 103, 113, 116, 156] == taken


def test_a_vm_that_cannot_be_checked_says_why_and_one_that_ended_ends(clock, monkeypatch):
    """
    The screen goes on without a verdict; only the end of the VM ends it.
    """
    planned(monkeypatch, TooMuchError("more than 50,000 processes"), NoSuchProcessError("gone"))
    checks = Checks(TARGET)
    at(clock, checks, 100, 103)
    assert ("check: more than 50,000 processes", "dim") == checks.span()
    assert ["check: more than 50,000 processes"] == checks.lines()
    at(clock, checks, 113)
    with pytest.raises(NoSuchProcessError):
        at(clock, checks, 116)
