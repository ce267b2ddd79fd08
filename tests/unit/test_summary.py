# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import documents
import numpy as np

from scope_ebpf import events
from scope_ebpf.attach.plan import Attachment, Item, Plan
from scope_ebpf.results.summary import Cost, Histogram, Summary, fold

CPUS = 3
TARGET = {
    "pid": 1,
    "exe": "/usr/lib/erlang/erts-13.1.5/bin/beam.smp",
    "node": "shop@web1",
    "otp_release": "25",
    "erts_version": "13.1.5",
    "flavor": "jit",
    "schedulers": 2,
}


def seen(event: str, hook: str = "some_function", reason: str = "") -> Item:
    return Item(event, "symbol", hook, (Attachment("p", "f", hook, 1, 1),), reason)


def maps() -> tuple[np.ndarray, np.ndarray]:
    shape = (len(events.KINDS), events.CLASSES, CPUS)
    return np.zeros(shape, events.COUNTERS), np.zeros(shape, events.HISTOGRAM)


def plant(tallies: np.ndarray, event: str, name: str, *per_cpu: int, field: str = "count") -> None:
    kind = events.KINDS[event]
    tallies[field][kind.id, kind.classes.index(name)] = per_cpu


def summary_of(plan: Plan, tallies: np.ndarray, durations: np.ndarray, **changed) -> Summary:
    given = {
        "target": TARGET,
        "duration_seconds": 10.0,
        "stopped_because": "duration",
        "events": fold(plan, tallies, durations),
        "cost": Cost(123, 0.01, 0.001),
    }
    return Summary(**{**given, **changed})


def test_the_document_is_the_contract():
    """
    The JSON document has exactly the shape that other tools rely on.
    """
    tallies, durations = maps()
    plant(tallies, "spawn", "all", 400, 600, 0)
    reason = "dist__port_busy was not seen to fire when senders were suspended"
    plan = Plan(
        (seen("spawn", "erl_create_process"), Item("dist_busy", "unavailable", "", (), reason))
    )
    expected = {
        "schema": 1,
        "target": TARGET,
        "state": None,
        "duration_seconds": 10.0,
        "stopped_because": "duration",
        "events": {
            "spawn": {
                "count": 1000,
                "rate": 100.0,
                "lost": 0,
                "refused": 0,
                "via": "symbol",
                "hook": "erl_create_process",
                "error_ratio": 0.0,
                "sampling_ratio": 1.0,
                "counted_by": "hooks",
            },
            "dist_busy": {"via": "unavailable", "reason": reason},
        },
        "lost_total": 0,
        "cost": {"hits": 123, "cpu_seconds": 0.01, "share_of_target": 0.001},
        "notes": [],
    }
    document = summary_of(plan, tallies, durations).as_json()
    assert expected == document
    assert expected == documents.load(json.dumps(document))
    assert list(expected) == list(document)


def test_counts_of_all_cpus_and_classes_add_up():
    """
    An event's count is that of all its classes on all CPUs, and each class has its own.
    """
    tallies, durations = maps()
    plant(tallies, "exit", "normal", 1, 2, 3)
    plant(tallies, "exit", "killed", 10, 0, 0)
    event = fold(Plan((seen("exit"),)), tallies, durations)["exit"]
    classes = {"normal": 6, "shutdown": 0, "killed": 10, "error": 0, "other": 0}
    assert (16, classes) == (event.count, event.by_class)


def test_a_class_of_what_could_not_be_told_is_shown_when_it_has_any():
    """
    The class "unknown" is there only if an event has no known class.
    """
    tallies, durations = maps()
    plant(tallies, "gc", "unknown", 0, 0, 2)
    plant(tallies, "gc", "minor", 5, 0, 0)
    event = fold(Plan((seen("gc"),)), tallies, durations)["gc"]
    assert (7, {"unknown": 2, "minor": 5, "major": 0, "hibernate": 0}) == (
        event.count,
        event.by_class,
    )


def test_a_schedule_counts_once_though_it_is_in_and_out():
    """
    The count of schedules is that of scheduling in; out is shown beside it.
    """
    tallies, durations = maps()
    plant(tallies, "schedule", "in", 5, 5, 5)
    plant(tallies, "schedule", "out", 5, 5, 4)
    event = fold(Plan((seen("schedule"),)), tallies, durations)["schedule"]
    assert (15, {"in": 15, "out": 14}) == (event.count, event.by_class)


def test_what_was_lost_and_refused_is_summed_over_classes_and_cpus():
    """
    Losses of every class and CPU are shown beside the count they spoil, and in all.
    """
    tallies, durations = maps()
    plant(tallies, "send", "local", 1, 2, 3, field="lost")
    plant(tallies, "send", "remote", 0, 0, 4, field="lost")
    plant(tallies, "send", "local", 0, 7, 0, field="refused")
    plant(tallies, "spawn", "all", 0, 5, 0, field="lost")
    summary = summary_of(Plan((seen("spawn"), seen("send"))), tallies, durations)
    send = summary.events["send"]
    assert (10, 7, 15) == (send.lost, send.refused, summary.lost_total)
    assert 15 == summary.as_json()["lost_total"]


def test_the_histogram_has_the_slots_that_are_used():
    """
    A histogram has upper bounds in seconds, from the first slot in use to the last.
    """
    tallies, durations = maps()
    kind = events.KINDS["gc"]
    minor = durations[kind.id, kind.classes.index("minor")]
    minor["slots"][0, 10] = 2
    minor["slots"][1, 10] = 1
    minor["slots"][2, 12] = 4
    minor["total_ns"] = [3000, 2000, 20000]
    event = fold(Plan((seen("gc"),)), tallies, durations)["gc"]
    expected = {
        "minor": {
            "count": 7,
            "total_seconds": 2.5e-05,
            "buckets": [
                {"le_seconds": 2.048e-06, "count": 3},
                {"le_seconds": 4.096e-06, "count": 0},
                {"le_seconds": 8.192e-06, "count": 4},
            ],
        }
    }
    assert expected == event.as_json(10.0)["durations"]


def test_an_empty_histogram_is_left_out():
    """
    An event without durations has no histogram, and an empty one has no buckets.
    """
    tallies, durations = maps()
    event = fold(Plan((seen("schedule"),)), tallies, durations)["schedule"]
    assert "durations" not in event.as_json(10.0)
    assert {"count": 0, "total_seconds": 0.0, "buckets": []} == Histogram(0.0, (0,) * 40).as_json()


def test_a_trace_of_no_time_has_no_rate():
    """
    A trace that ended as it began has counts, and a rate of 0 instead of a division by it.
    """
    tallies, durations = maps()
    plant(tallies, "spawn", "all", 3, 0, 0)
    document = summary_of(
        Plan((seen("spawn"),)), tallies, durations, duration_seconds=0.0
    ).as_json()
    assert (3, 0.0) == (document["events"]["spawn"]["count"], document["events"]["spawn"]["rate"])


def test_an_event_says_why_it_is_not_seen_the_other_way():
    """
    A reason for the attach method that was taken is in the document.
    """
    tallies, durations = maps()
    event = fold(Plan((seen("exit", reason="no symbol"),)), tallies, durations)["exit"]
    assert "no symbol" == event.as_json(10.0)["reason"]


def test_what_the_target_used_may_be_unknown():
    """
    The share is null, and not a number made up, where the target's CPU time is not known.
    """
    tallies, durations = maps()
    summary = summary_of(Plan(()), tallies, durations, cost=Cost(1, 0.0000004, None))
    assert {"hits": 1, "cpu_seconds": 0.0, "share_of_target": None} == summary.as_json()["cost"]
