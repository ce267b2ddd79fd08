# SPDX-License-Identifier: Apache-2.0
"""
Hooks of functions that were found, judged by what the VM counts.
"""

from __future__ import annotations

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.attach.plan import Attachment, Item, Plan
from scope_ebpf.budget.judge import Judge, counted, fits, growth, spread, surplus

ALL = {
    "spawned": 0,
    "processes": 0,
    "collections": 0,
    "context_switches": 0,
    "opened": 0,
    "ports": 0,
}


def plan(*names: str, source: str = "reference") -> Plan:
    def item(name: str) -> Item:
        hook = Attachment(f"{name}_entry", "process", f"f_{name}", 1, 1, source=source)
        return Item(name, "symbol", hook.name, (hook,), "")

    return Plan(tuple(item(name) for name in names))


def judge_of(*names: str, proven: tuple[str, ...] = (), source: str = "reference") -> Judge:
    return Judge(plan(*names, source=source), proven, ALL)


def test_an_event_agrees_when_it_counts_what_the_vm_counts():
    """
    An event is pending until 20 events agree, in windows or in all.
    """
    judge = judge_of("spawn", "exit")
    judge.add("spawn", 12, 12, 12)
    assert judge.pending == {"spawn", "exit"}
    judge.add("spawn", 11, 10, 12)
    judge.replace("exit", 4000, 3990, 4010)
    assert (judge.pending, judge.agreed, judge.refused) == (set(), {"spawn", "exit"}, {})


def test_a_window_that_fits_nearly_every_count_proves_nothing():
    """
    An event agrees only by windows in which the VM's count is known well.
    """
    judge = judge_of("spawn", "exit")
    judge.add("spawn", 900, 150, 1000)
    judge.add("exit", 900, 850, 1000)
    assert (judge.pending, judge.agreed, judge.refused) == ({"spawn"}, {"exit"}, {})
    judge.add("spawn", 9000, 8990, 9010)
    assert judge.agreed == {"spawn", "exit"}


@pytest.mark.parametrize(("count", "vm"), [(12, 4000), (0, 23), (3000, 130), (23, 0)])
def test_an_event_that_disagrees_twice_is_refused_by_name(count: int, vm: int):
    """
    A hook that counts more or less than the VM is refused with both counts.
    """
    judge = judge_of("spawn")
    judge.replace("spawn", count, vm, vm)
    assert judge.pending == {"spawn"}
    judge.replace("spawn", count, vm, vm)
    assert judge.pending == set()
    assert judge.refused == {"spawn": f"hook.spawn: counted {count:,}, the VM counted {vm:,}"}


def test_a_few_counts_agree_at_the_end_only_if_they_are_equal():
    """
    With fewer than 20 events, a run's figure is shown if it is the VM's, and refused if it is not.
    """
    judge = judge_of("spawn", "exit", "gc")
    judge.replace("spawn", 3, 3, 3)
    judge.replace("exit", 3, 2, 2)
    judge.finish()
    assert judge.refused == {
        "exit": "hook.exit: counted 3, the VM counted 2",
        "gc": "hook.gc: it was not compared with the VM's counter",
    }
    assert judge.agreed == set()


def test_what_needs_no_judgement_is_not_judged():
    """
    Symbols of the file itself and events that no counter counts are left out; debug files are not.
    """
    assert judge_of("spawn", source="").pending == set()
    assert judge_of("spawn", source="debug file").pending == {"spawn"}
    assert judge_of("send").pending == set()


def test_what_another_vm_has_proven_is_shown_and_compared():
    """
    Proven events are shown at once, and until the end, unless they disagree in this VM.
    """
    names = ("spawn", "exit", "gc", "port_open")
    judge = Judge(plan(*names), names[:3], ALL.keys() - {"collections"})
    assert judge.withheld() == {"port_open"}
    assert judge.pending == {"spawn", "exit", "port_open"}
    for _ in range(2):
        judge.add("spawn", 0, 23, 23)
    judge.add("exit", 7, 9, 9)
    judge.add("port_open", 7, 9, 9)
    judge.finish()
    assert judge.refused.keys() == {"spawn", "port_open"}
    assert judge.pending == judge.agreed == set()


def test_an_event_whose_counter_cannot_be_read_is_refused():
    """
    Without a counter to compare with, a function that was found is not used.
    """
    judge = Judge(plan("spawn", "port_close"), (), {"spawned": 0, "opened": 0})
    assert judge.pending == {"spawn"}
    assert judge.refused == {
        "port_close": "ports of the VM cannot be read to compare it with",
    }


def test_the_growth_of_counters_is_that_of_the_events():
    """
    Exits are spawns that are not there any more, and counters of 32 bits wrap.
    """
    since = dict.fromkeys(ALL, 0) | {"spawned": (1 << 32) - 3, "processes": 40, "dirty": 1}
    until = since | {"spawned": 20, "processes": 17, "collections": 9, "dirty": 5}
    assert growth("spawn", since, until) == 23
    assert growth("exit", since, until) == 46
    assert growth("gc", since, until) == 13
    # The word of a table's count has another counter in its upper half.
    opened = since | {"opened": 7 << 32 | 28, "ports": 5 << 32 | 3}
    assert growth("port_close", since, opened) == 25


def test_the_spread_of_what_is_there_is_that_of_its_table():
    """
    The processes that are there between the least and the most reading are the spread of exits.
    """
    readings = [ALL | {"processes": 7 << 32 | count} for count in (40, 63, 50)]
    assert spread("exit", readings) == 23
    assert spread("spawn", readings) == 0


def test_only_classes_that_the_vm_counts_are_compared():
    """
    Hibernations are no collections of the VM's statistics, and a schedule counts when it begins.
    """
    seen = {"gc": {"minor": 5, "major": 7, "hibernate": 100}, "schedule": {"in": 5, "out": 6}}
    for event, classes in seen.items():
        tallies = np.zeros(events.CLASSES, events.COUNTERS)
        for name, count in classes.items():
            tallies["count"][events.KINDS[event].classes.index(name)] = count
        assert counted(event, tallies) == {"gc": 12, "schedule": 5}[event]


def test_what_begins_must_end_as_often():
    """
    A schedule is seen right if it ends as often as it begins, but for what runs on a scheduler.
    """
    for more, agrees in ((3, True), (-3, True), (106, True), (120, False), (-900, False)):
        judge = Judge(plan("schedule"), (), ALL, 2)
        for _ in range(2):
            judge.replace("schedule", 2000, 2000, 2000, more)
        assert (judge.agreed == {"schedule"}) == agrees
        assert (judge.refused == {}) == agrees
    judge = Judge(plan("schedule"), (), ALL, 64)
    judge.add("schedule", 23, 23, 23, 23)
    assert judge.pending == {"schedule"}


def test_a_window_that_ends_while_processes_run_has_a_surplus_of_them():
    """
    Each window may have as many begins without an end as there are schedulers.
    """
    judge = Judge(plan("schedule"), (), ALL, 8)
    judge.add("schedule", 10, 10, 10, 8)
    judge.add("schedule", 10, 10, 10, -8)
    assert judge.refused == {}
    judge.add("schedule", 200, 200, 200, 5)
    assert judge.agreed == {"schedule"}
    tallies = np.zeros(events.CLASSES, events.COUNTERS)
    classes = events.KINDS["schedule"].classes
    tallies["count"][classes.index("in")], tallies["count"][classes.index("out")] = 5, 12
    assert (surplus("schedule", tallies), surplus("gc", tallies)) == (-7, 0)


def test_what_is_under_way_is_no_disagreement():
    """
    Four events and a twentieth may differ.
    """
    assert fits(23, 19, 19)
    assert not fits(24, 19, 19)
    assert fits(950, 996, 1000)
    assert not fits(900, 996, 1000)
