# SPDX-License-Identifier: Apache-2.0
"""
Figures that cannot be are refused by name, and the others go on.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from capture_fixtures import END, TARGET, head, maps
from test_metrics_exposition import reading

from scope_ebpf import relations
from scope_ebpf.attach.plan import Attachment, Item
from scope_ebpf.beam.vm.allocators import Allocator, AllocatorReading, MemoryUse
from scope_ebpf.beam.vm.connections import Connections
from scope_ebpf.metrics.snapshot import Top
from scope_ebpf.results.summary import EventSummary, Histogram, Summary, fold

GOOD = MemoryUse(100, 60, 50, 10, 10, 5)


@pytest.mark.parametrize(
    ("use", "errors"),
    [
        (GOOD, []),
        (GOOD._replace(processes_used=61), ["processes_used 61 is more than processes 60"]),
        (GOOD._replace(processes=101), ["processes 101 is more than total 100", "system is -1"]),
        (GOOD._replace(ets=-4656), ["ets is -4,656"]),
        (MemoryUse(None, 60, 50, 10, None, None), []),
    ],
)
def test_of_memory_parts_are_at_most_wholes_and_nothing_is_negative(
    use: MemoryUse, errors: list[str]
):
    """
    What is not known breaks nothing.
    """
    assert sorted(errors) == sorted(relations.of_use(use))


def test_blocks_fill_at_most_their_carriers():
    """
    Of each kind of carrier by itself.
    """
    kinds = {"mbcs": (100, 80), "sbcs": (10, 11)}
    one = Allocator("eheap", 110, 91, kinds)
    errors = relations.of_allocators([one])
    assert ["eheap sbcs blocks 11 is more than eheap sbcs carriers 10"] == errors


def test_a_table_may_be_counted_above_its_limit_by_its_schedulers():
    """
    Each scheduler counts a process or port before it finds the table full; atoms never are more.
    """
    whole = reading()
    counters, limits = whole.counters, whole.limits
    ahead = sum(counters.schedulers)
    for name in ("processes", "ports"):
        full = counters._replace(**{name: getattr(limits, name) + ahead})
        assert [] == relations.of_counters(full, limits)
        above = counters._replace(**{name: getattr(limits, name) + ahead + 23})
        assert 1 == len(relations.of_counters(above, limits))
    atoms = counters._replace(atoms=limits.atoms + 1)
    assert 1 == len(relations.of_counters(atoms, limits))


def test_what_cannot_be_of_a_reading_is_left_out_and_named():
    """
    Each part by itself; what was right is exported as before.
    """
    whole = reading()
    assert (whole, {}) == relations.checked(whole)
    counters = whole.counters._replace(atoms=whole.limits.atoms + 1)
    taken = replace(whole.snapshot, memories=[Top(1, whole.snapshot.memory + 1)])
    allocators = AllocatorReading((), GOOD._replace(processes_used=61))
    memory = replace(whole.memory, allocators=allocators, connections=Connections((0, 0), 5, 1))
    name, event = next(iter(whole.events.items()))
    events = whole.events | {name: event._replace(totals=-np.ones_like(event.totals))}
    wrong = replace(whole, counters=counters, snapshot=taken, memory=memory, events=events)
    left, why = relations.checked(wrong)
    assert {"counters", "processes", "erlang_memory", "connections", name} == why.keys()
    assert (left.counters, left.snapshot, left.memory.connections) == (None, None, None)
    assert left.memory.allocators == AllocatorReading((), None)
    assert whole.events.keys() - left.events.keys() == {name}


def test_a_trace_with_more_durations_than_events_says_so():
    """
    Every figure is shown, with a note that these cannot be right.
    """
    tallies, durations = maps(spawn=23)
    good = Summary(TARGET, 2.5, "duration", fold(head().plan, tallies, durations), END.cost)
    assert good == relations.checked_summary(good)
    durations["slots"][..., 3] += 100
    bad = good._replace(events=fold(head().plan, tallies, durations))
    assert any("durations" in note for note in relations.checked_summary(bad).notes)


def budgeted(**changed) -> Summary:
    """
    A summary with 1,000 collections of two classes, of which moments were seen.
    """
    parts = {"by_class": {"minor": 490, "major": 510}, "histograms": {}} | changed
    durations = parts.pop("durations", 0)
    if durations:
        parts["histograms"] = {"minor": Histogram(0.1, (0, durations))}
    plan = Item("gc", "symbol", "f", (Attachment("p", "f", "f", 1, 1),), "")
    event = EventSummary(plan, **{"count": 1000, "sampling_ratio": 0.01, **parts})
    return Summary(TARGET, 2.5, "duration", {"gc": event}, END.cost)


@pytest.mark.parametrize(
    ("changed", "notes"),
    [
        ({"durations": 1049, "error_ratio": 0.05}, 0),
        ({"durations": 1060, "error_ratio": 0.05}, 1),
        ({"durations": 1003}, 0),  # three figures, each rounded by itself
        ({"durations": 1004}, 1),
        ({"durations": 1001, "sampling_ratio": 1.0}, 1),
        ({"count": 1049, "error_ratio": 0.05}, 0),
        ({"count": 1060, "error_ratio": 0.05}, 1),
        ({"count": 9000, "counted_by": "vm"}, 0),
        ({"count": 1001, "counted_by": "vm", "sampling_ratio": 1.0}, 1),
        ({"durations": 1060, "counted_by": "vm"}, 1),
    ],
)
def test_estimates_break_a_relation_only_beyond_their_error(changed: dict, notes: int):
    """
    A count of the VM need not be the sum of estimates; exact counts must agree.
    """
    assert notes == len(relations.checked_summary(budgeted(**changed)).notes)


@pytest.mark.parametrize(
    ("seconds", "changed", "refused"),
    [
        (5.9, {}, 0),  # half a second a scheduler for what came before the time began
        (6.1, {}, 1),
        (6.9, {"sampling_ratio": 0.01, "counted_by": "vm"}, 0),  # an estimate
        (7.1, {"sampling_ratio": 0.01, "counted_by": "vm"}, 1),
        (7.1, {"sampling_ratio": 0.01, "error_ratio": 0.5}, 0),
        (45.7, {"via": "usdt"}, 0),  # with those of dirty schedulers
    ],
)
def test_schedules_that_took_longer_than_there_were_schedulers_are_refused(
    seconds: float, changed: dict, refused: int
):
    """
    Two schedulers had 5 s in 2.5 s; what is far beyond that is no duration of a schedule.
    """
    changed = dict(changed)
    hooks = (Attachment("p", "f", "f", 1, 1),)
    event = EventSummary(
        Item("schedule", changed.pop("via", "symbol"), "f", hooks, ""),
        count=2_000_000,
        by_class={"in": 1_000_000, "out": 1_000_000},
        histograms={"out": Histogram(seconds, (0, 1_000_000))},
        **changed,
    )
    target = {**TARGET, "schedulers": 2}
    seen = Summary(target, 2.5, "duration", {"schedule": event}, END.cost)
    found = relations.checked_summary(seen)
    assert refused == len(found.notes) == 1 - len(found.events["schedule"].histograms)
    assert found.events["schedule"].by_class == event.by_class
    assert found.notes == relations.checked_summary(seen._replace(notes=found.notes)).notes
