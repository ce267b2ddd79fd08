# SPDX-License-Identifier: Apache-2.0
"""
Totals by two counters of the VM, held against simulated programs whose totals are known.

A kind of work has rates at full speed: events, context switches and reductions per second, and the
factor by which hooks slow it down.
"""

from __future__ import annotations

import numpy as np
import pytest

from scope_ebpf.budget.estimate import Estimate
from scope_ebpf.budget.fits import Kinds, Line, found_by, keeps_kinds

#: Pairs that send each other messages; work without any; the same messages by fewer switches.
TALK, WORK, MANY = (3e5, 3e5, 3e6, 4.0), (0.0, 6e4, 2.5e8, 1.0), (6e5, 1.2e5, 1.2e6, 5.0)
#: What both counters take for messages.
SILENT = (0.0, 3e5, 3e6, 1.0)
WINDOW, STEP, SECONDS = 0.0015, 0.1, 10.0


def phases(rng: np.random.Generator, kinds: list[tuple[float, ...]], mean: float) -> np.ndarray:
    """
    Rates in each millisecond of a program that changes its work every *mean* seconds.
    """
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < SECONDS * 1000:
        length = max(1, int(rng.exponential(mean) * 1000))
        parts.append(np.tile(kinds[rng.integers(len(kinds))], (length, 1)))
    return np.concatenate(parts)[: int(SECONDS * 1000)]


def summarized(
    rng: np.random.Generator, rates: np.ndarray, windows: int, *, fewer_switches: float = 1.0
) -> tuple[float, float, float]:
    """
    A run of ten seconds with *windows* at random times: estimate, truth, error.

    Hooks make switches of the first kind of work fewer by that factor.
    """
    estimate = Estimate(1, 1)
    for at in np.sort(rng.choice(np.arange(10, len(rates) - 5), windows, replace=False)):
        events, switches, reductions, slow = rates[at]
        before = rates[at - 10 : at].mean(axis=0)
        part = WINDOW / slow
        seen = int(events * part + rng.random())
        woken = switches * part * (fewer_switches if events else 1.0)
        second = float(int(woken + rng.random())), float(before[1])
        estimate.window(np.array([float(seen)]), reductions * part, WINDOW, before[2], second)
    steps = rates.reshape(-1, int(STEP * 1000), 4).sum(axis=1) / 1000
    error = estimate.settle([(reductions, STEP, by) for _, by, reductions, _ in steps])
    return float(estimate.total[0]), float(steps[:, 0].sum()), 1.0 if error is None else error


def test_a_program_that_alternates_has_a_small_error_that_is_true():
    """
    Of phases with and without messages, 40 windows give a total within 4 %, and the truth is there.
    """
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found, truth, error = summarized(rng, phases(rng, [TALK, WORK], 0.3), 40)
        assert abs(found - truth) <= error * found, seed
        assert error < 0.04, seed


def of_sixty(kinds: list, windows: int, most: float) -> tuple[int, int]:
    """
    How many of sixty runs state an error below *most*, and how many of these are within it.
    """
    stated = within = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found, truth, error = summarized(rng, phases(rng, kinds, 0.3), windows)
        stated += error < most
        within += error < most and abs(found - truth) <= error * found
    return stated, within


def test_work_with_more_messages_for_a_switch_is_not_understated():
    """
    Where the messages per switch change by a factor of five, 90 of 100 runs are within their error.

    The error is of 95 in 100; of 60 that may be less by three times their scatter.
    """
    stated, within = of_sixty([TALK, MANY], 25, 1.0)
    assert stated > 40
    assert within >= 0.866 * stated


def test_windows_without_events_are_not_taken_for_slow_ones():
    """
    Where both counters grow as fast without messages, 90 of 100 runs are within their error.

    Hooks slow only the windows with messages down; of 60 that may be less as above.
    """
    stated, within = of_sixty([TALK, SILENT], 40, 0.5)
    assert stated > 20
    assert within >= 0.866 * stated


def test_windows_with_other_work_than_without_hooks_are_not_trusted():
    """
    Hooks under which a process handles two messages at each wake-up double the messages by switch:
    the error says so.
    """
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rates = phases(rng, [TALK, WORK], 0.3)
        found, truth, error = summarized(rng, rates, 25, fewer_switches=0.5)
        assert error >= 1 or abs(found - truth) <= error * found, seed


def windows(*some: tuple[float, float, float]) -> np.ndarray:
    """
    Columns of windows at full speed: counts, reductions, switches.
    """
    return np.array([(n, r, WINDOW, r / WINDOW, s, s / WINDOW) for n, r, s in some], np.float64).T


def test_a_phase_without_any_window_is_doubtful():
    """
    Windows saw one kind of work. A step of another kind may have any number of messages.
    """
    columns = windows(*[(400 + n, 4000 + n, 400) for n in range(20)])
    alike, other = (4e6, 10.0, 4e5), (8e8, 10.0, 2e5)
    known = found_by(Kinds, columns, np.array([alike]))
    assert 4.1e5 == pytest.approx(known.total, rel=0.02)
    assert known.error < 0.05 * known.total
    doubtful = found_by(Kinds, columns, np.array([alike, other]))
    assert doubtful.error > 0.5 * doubtful.total


def test_few_windows_have_no_small_error():
    """
    Windows that are all alike do not exclude work that is hardly ever done: of five, a tenth.
    """
    found = found_by(Kinds, windows(*[(400, 4000, 400)] * 5), np.array([(4e6, 10.0, 4e5)]))
    assert found.error >= 0.1 * found.total


def test_windows_are_compared_with_the_time_before_them():
    """
    Windows whose ratio of the counters differs from that before, always in one direction, are not
    of the same kinds; where they differ in both directions that is not known.
    """
    columns = windows(*[(400, 4000, 400)] * 10)
    assert keeps_kinds(columns) is True
    columns[5] *= 2
    assert keeps_kinds(columns) is False
    columns[5, ::2] /= 4
    assert keeps_kinds(columns) is None


def test_a_window_without_any_work_says_nothing_by_both_counters():
    """
    Beside hogs the target gets no CPU in some windows: they leave the total as it is.
    """
    columns = windows(*[(400 + n % 3, 4000, 400) for n in range(10)])
    idle = windows(*[(0, 0, 0)] * 10)
    step = np.array([(4e6, 10.0, 4e5)])
    with_idle = np.concatenate([columns, idle], axis=1)
    assert found_by(Kinds, columns, step) == found_by(Kinds, with_idle, step)
    assert found_by(Line, columns, step) != found_by(Line, with_idle, step)
