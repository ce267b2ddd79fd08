# SPDX-License-Identifier: Apache-2.0
"""
Crashes by module and reason: totals that never fall, under a bounded number of labels.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.daemon.readings import groups
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError, ReadRefusedError
from scope_ebpf.metrics.crashes import OTHER, CrashSums, CrashTotal


def test_crashes_that_share_module_and_reason_are_one_series():
    """
    Rows that differ in line or name only are added up, and an unknown name is empty.
    """
    found = CrashSums().update([("a", "badarg", 2), ("a", "badarg", 21), ("b", None, 1)])
    assert found == (
        CrashTotal("a", "badarg", 23),
        CrashTotal("b", "", 1),
        CrashTotal(OTHER, OTHER, 0),
    )


def test_later_pairs_are_other_and_no_series_falls():
    """
    The first pairs keep their series when others crash more often later.
    """
    sums = CrashSums(most=2)
    first = [("a", "x", 3), ("b", "x", 2), ("c", "x", 1)]
    assert [3, 2, 1] == [one.total for one in sums.update(first)]
    later = sums.update([*first[:2], ("c", "x", 500), ("d", "x", 40)])
    assert [("a", 3), ("b", 2), (OTHER, 540)] == [(one.module, one.total) for one in later]


def test_a_label_that_nobody_may_choose_freely_is_bounded():
    """
    Control characters and long names of a VM do not get into labels as they are.
    """
    module, reason, _ = CrashSums().update([("a\x1b[2J", "r" * 500, 1)])[0]
    assert "\x1b" not in module
    assert len(reason) < 500


def crashes_with(
    monkeypatch: pytest.MonkeyPatch, *answers: Exception | dict
) -> groups.NamedTotals[CrashTotal]:
    """
    A VM with three crashes of one module, whose atoms give these answers one after the other.
    """
    left = list(answers)

    def texts(_: object) -> dict[int, str]:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(groups, "Atoms", lambda _: SimpleNamespace(texts=texts))
    key = np.zeros((), events.CRASH)
    key["module"], key["reason"] = 7, 8
    rows = [(key, 3)]
    return groups.NamedTotals(None, lambda: rows, ("module", "reason"), CrashSums().update)


@pytest.mark.parametrize("error", [NoAnswerError("hangs"), NoSuchProcessError("ended")])
def test_a_name_that_does_not_come_holds_the_loop_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception
):
    """
    The loop gets the error, and drops the VM: with the figures of before it would wait again.
    """
    found = crashes_with(monkeypatch, error)
    with pytest.raises(type(error)):
        found.read()


def test_names_that_cannot_be_read_now_are_read_with_the_next_reading(
    monkeypatch: pytest.MonkeyPatch,
):
    """
    Until then the figures are those of before.
    """
    found = crashes_with(monkeypatch, ReadRefusedError("torn"), {7: "shop", 8: "badarg"})
    assert (CrashTotal(OTHER, OTHER, 0),) == found.read()
    assert CrashTotal("shop", "badarg", 3) in found.read()
