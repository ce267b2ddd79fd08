# SPDX-License-Identifier: Apache-2.0
"""
What a duration carries of the hooks that take it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracing import require_root

from scope_ebpf.attach.plan import Item
from scope_ebpf.errors import HostError
from scope_ebpf.kernel import cost
from scope_ebpf.results.summary import EventSummary, Histogram
from scope_ebpf.runs.trace import carried_notes

if TYPE_CHECKING:
    import pytest


def events(mean_us: float) -> dict[str, EventSummary]:
    """
    A hundred minor collections of that mean.
    """
    slots = (0,) * 10 + (100,)
    histogram = Histogram(100 * mean_us / 1e6, slots)
    item = Item("gc", "symbol", "", (), "")
    return {"gc": EventSummary(item, 100, histograms={"minor": histogram})}


def test_a_short_duration_is_told_to_carry_its_hooks(monkeypatch: pytest.MonkeyPatch):
    """
    Of 3 us on average 1.2 us are the hooks' own, and of 50 us no part that matters.
    """
    monkeypatch.setattr(cost, "carried", lambda: 1.2e-6)
    (reported,) = carried_notes(events(3.0))
    assert reported.startswith("durations of gc minor are 3.0 us on average, about 1.2 us of which")
    assert [] == carried_notes(events(50.0))


def test_a_host_where_hooks_cannot_be_timed_keeps_its_summary(monkeypatch: pytest.MonkeyPatch):
    """
    That their share is not known is a note, and no error that takes the summary along.
    """

    def refused() -> float:
        raise HostError("cannot probe ourselves")

    monkeypatch.setattr(cost, "carried", refused)
    assert ["the time of the hooks, which durations contain, could not be measured"] == (
        carried_notes(events(3.0))
    )
    assert [] == carried_notes(events(500.0))


def test_what_hooks_add_to_a_duration_is_measured_on_this_host():
    """
    A function that returns at once takes longer than nothing by it, and less than 100 us.
    """
    require_root()
    assert 0 < cost.carried() < 1e-4
