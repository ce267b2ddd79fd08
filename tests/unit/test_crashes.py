# SPDX-License-Identifier: Apache-2.0
"""
Crashes by module and reason: totals that never fall, under a bounded number of labels.
"""

from __future__ import annotations

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
