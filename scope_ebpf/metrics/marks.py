# SPDX-License-Identifier: Apache-2.0
"""
Calls of marked functions of one VM, under a bounded number of names.

Pure: counts of windows go in, and each window stands for the time since the one before. Code that
a VM loads names its functions, so names that become labels are bounded at any time and over time.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.metrics.page import label_value
from scope_ebpf.metrics.ranking import Ranking

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.metrics.page import Page

OTHER = "other"
#: Series of one function, and those of the VM.
PER_FUNCTION, _FIXED = 4, 2
#: Seconds for which one window can stand.
_LONGEST = 900.0


class Calls(NamedTuple):
    """Calls of one function; of those that were timed, the sum of the durations, seconds."""

    calls: float = 0.0
    failures: float = 0.0
    timed: float = 0.0
    seconds: float = 0.0

    def plus(self, other: Calls, factor: float = 1.0) -> Calls:
        """The sum of these and *factor* times the others."""
        return Calls(*(a + factor * b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True)
class MarksReading:
    """What the windows saw of the marked functions of one VM, scaled up; by a label's value."""

    functions: tuple[tuple[str, Calls], ...] = ()
    #: Windows so far, and the seconds of all of them as a part of the time.
    windows: int = 0
    sampling_ratio: float = 0.0
    #: The standard error of all calls of the last windows, as a part of them.
    error_ratio: float = 0.0
    #: Why they cannot be read; "" if they can.
    refused: str = ""


class MarkSums:
    """Adds windows up, for at most *series* series."""

    def __init__(self, series: int) -> None:
        places = max(0, (series - _FIXED) // PER_FUNCTION - 1)
        self._ranking: Ranking[str] = Ranking(places)
        self._sums: dict[str, Calls] = {OTHER: Calls()}
        self._last: float | None = None
        self._windows, self._observed, self._passed = 0, 0.0, 0.0

    def add(
        self, calls: Mapping[str, Calls], seconds: float, now: float, error: float
    ) -> MarksReading:
        """
        Add the *calls* of a window of *seconds* that ended at *now*, in monotonic seconds.

        Those of no name are of others.
        """
        passed = seconds if self._last is None else max(seconds, now - self._last)
        self._last, factor = now, min(_LONGEST, passed) / seconds
        self._windows += 1
        self._observed += seconds
        self._passed += passed
        labelled: dict[str, Calls] = defaultdict(Calls)
        for name, counts in calls.items():
            label = label_value(name)
            labelled[label] = labelled[label].plus(counts)
        rest = labelled.pop("", Calls())  # of functions that were not counted apart
        worth = {name: counts.calls / seconds for name, counts in labelled.items()}
        named = self._ranking.update(worth, now)
        sums = {name: self._sums.get(name, Calls()) for name in (*sorted(named), OTHER)}
        sums[OTHER] = sums[OTHER].plus(rest, factor)
        for name, counts in labelled.items():
            place = name if name in named else OTHER
            sums[place] = sums[place].plus(counts, factor)
        self._sums = sums
        return MarksReading(
            tuple(sums.items()), self._windows, self._observed / self._passed, error
        )


def expose_marks(page: Page, node: str, found: MarksReading) -> None:
    """Add the functions."""
    if not found.windows:
        return
    for name, calls in found.functions:
        labels = {"node": node, "function": name}
        page.add("beam_marked_calls_total", calls.calls, **labels)
        page.add("beam_marked_failures_total", calls.failures, **labels)
        page.add("beam_marked_timed_calls_total", calls.timed, **labels)
        page.add("beam_marked_duration_seconds_total", calls.seconds, **labels)
    page.add("scope_ebpf_marks_sampling_ratio", found.sampling_ratio, node=node)
    page.add("scope_ebpf_marks_error_ratio", found.error_ratio, node=node)
