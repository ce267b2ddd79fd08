# SPDX-License-Identifier: Apache-2.0
"""
What hooks saw of servers: quantiles, what was cut off, errors, and the document.
"""

from __future__ import annotations

import json
from dataclasses import replace

import documents
import numpy as np
import pytest
from profile_fixtures import TARGET

from scope_ebpf import events
from scope_ebpf.results.genservers import Edge, GenServers, Module
from scope_ebpf.results.server_events import (
    Cost,
    EdgeCount,
    Messages,
    ServerEvents,
    Times,
    bounds,
    bucket_of,
)
from scope_ebpf.results.server_tags import tags_of
from scope_ebpf.runs.moments import error_of
from scope_ebpf.runs.server_leftovers import left_over
from scope_ebpf.sinks.servers import lines


def histogram(durations: list[float]) -> np.ndarray:
    found = np.zeros(events.SERVER_BUCKETS, np.int64)
    for seconds in durations:
        found[bucket_of(seconds)] += 1
    return found


def times(durations: list[float], cut: list[float] | None = None, reach: float | None = None):
    lost = None if cut is None else histogram(cut)
    return Times(histogram(durations), sum(durations), lost, reach)


def test_a_duration_lies_within_its_bucket():
    """
    From below the first bucket to above the last, and a bucket is at most a sixteenth wide.
    """
    for seconds in (0.0, 1e-7, 1e-6, 1.1e-3, 0.05, 1.0, 90.0, 200.0, 1e4):
        bucket = bucket_of(seconds)
        assert bounds()[bucket] <= seconds
        assert seconds < bounds()[bucket + 1] or bucket == events.SERVER_BUCKETS - 1
    assert max(bounds()[2:] / bounds()[1:-1]) <= 1.0625 + 1e-9


def test_quantiles_of_what_was_all_counted():
    """
    They are right to 6.25 %, the width of a bucket, and the mean is exact.
    """
    planted = [0.001] * 50 + [0.020] * 40 + [0.100] * 10
    found = times(planted)
    assert sum(planted) / 100 == found.mean()
    for part, seconds in ((0.4, 0.001), (0.8, 0.020), (0.99, 0.100)):
        assert seconds == pytest.approx(found.quantile(part), rel=0.0625)


def test_no_quantile_is_further_from_the_truth_than_a_bucket_is_wide():
    """
    Durations that are all alike lie at one end of their bucket, the worst case: within 8 %.
    """
    for start in bounds()[150:400]:
        for seconds in (start * 1.0001, start * 1.06):
            found = times([seconds] * 40)
            for part in (0.5, 0.9, 0.99):
                assert seconds == pytest.approx(found.quantile(part), rel=0.08)


def waiting(*rows: tuple[int, int]) -> np.ndarray:
    """
    Entries of messages, each a receiver and when it was sent.
    """
    found = np.zeros(len(rows), events.SERVER_MESSAGE)
    found["receiver"], found["sent_ns"] = zip(*rows, strict=True)
    return found


def test_entries_of_messages_that_wait_no_longer_are_found():
    """
    Those of a process that ended, and the oldest where a mailbox has fewer messages than entries.
    """
    entries = waiting((5, 30), (7, 10), (5, 10), (5, 20), (9, 10))
    assert [False, True, True, False, False] == left_over(entries, {5: 2, 9: 1}).tolist()
    assert [True] * 5 == left_over(entries, {}).tolist()
    assert [] == left_over(entries[:0], {5: 2}).tolist()


def test_what_windows_cut_off_counts_and_what_they_do_not_reach_is_null():
    """
    Exponential durations in windows of 50 ms: the median is that of all, p99 is not known.
    """
    random = np.random.default_rng(5)
    durations = random.exponential(0.03, 4000)
    left = random.uniform(0, 0.05, 4000)
    ended = durations <= left
    windowed = times(durations[ended].tolist(), left[~ended].tolist(), 0.05)
    median = float(np.median(durations))
    assert median == pytest.approx(windowed.quantile(0.5), rel=0.1)
    naive = times(durations[ended].tolist())
    assert naive.quantile(0.5) < 0.6 * median
    assert windowed.quantile(0.99) is windowed.mean() is None
    # Nor can a mean where what is longest is seen to its end by chance only.
    assert times([0.01] * 300 + [0.04] * 20, [], 0.05).mean() is None
    assert times([0.01] * 300 + [0.04] * 20, [], 0.1).mean() == pytest.approx(0.0119, rel=0.1)


def test_a_few_durations_of_a_window_tell_nothing():
    """
    What scatters so that 15 % are not certain is null; so is what is as short as a hook.
    """
    spread = [0.001 * number for number in range(1, 21)]
    assert times(spread, [], 0.5).quantile(0.5) is None
    assert times(spread).quantile(0.5) is not None
    assert times([0.005] * 100, [], 0.5).quantile(0.5) == pytest.approx(0.005, rel=0.0625)
    assert times([0.005] * 100, [], 0.5).quantile(0.99) is None
    assert times([2e-5] * 1000, [], 0.5).quantile(0.5) is None
    assert times([0.005] * 100, [], 0.5).unknown().quantile(0.5) is None


def test_durations_that_came_in_bursts_are_not_independent():
    """
    Where windows saw 50 % more or less calls, 900 of two kinds are as good as four.
    """
    found = times([0.002] * 450 + [0.004] * 450, [], 0.5)
    assert found.quantile(0.7) == pytest.approx(0.004, rel=0.0625)
    assert replace(found, bursts=0.5).quantile(0.7) is None
    assert replace(found, bursts=0.05).quantile(0.9) is not None
    assert replace(found, bursts=0.5).mean() is None
    assert 0.5 == found.plus(replace(found, bursts=0.5)).bursts


def test_what_light_windows_do_not_see_is_null():
    """
    Other messages than calls and casts, in JSON, in text, and in the sum with another module's.
    """
    unseen = replace(messages(), infos=None)
    assert unseen.as_json()["infos"] is None
    assert unseen.plus(messages()).infos is None
    assert (unseen.rates[2], unseen.served is None) == (None, False)
    found = view()
    found.add_events(ServerEvents({"shop": unseen}, cost=Cost(5, 100, 0.1, 0.01)))
    assert documents.load(json.dumps(found.as_json()))["modules"][0]["infos"] is None
    assert ["0.9", "0.3", "-"] == lines(found, "calls", 9)[2].split()[2:5]


def test_the_error_of_a_rate_grows_with_its_scatter():
    """
    It is that of a count at least, and whole where one window saw it all.
    """
    assert 0.1 == pytest.approx(error_of([1.0] * 4, [25] * 4))
    assert 0.3 * 1.6 < error_of([1.0] * 4, [10, 40, 10, 40]) < 0.5 * 1.7
    # Two windows may agree by chance.
    assert 1.0 == error_of([1.0] * 2, [1000, 1000]) > error_of([1.0] * 3, [1000] * 3)
    assert (1.0, 1.0) == (error_of([1.0] * 4, [0, 7, 0, 0]), error_of([1.0] * 4, [0] * 4))


def test_the_error_of_two_modules_is_that_of_the_larger():
    """
    A kind that windows have not seen of one of them leaves the other's error as it is.
    """
    many = replace(Messages.none(1.0), calls=300, errors=(0.1, 1.0, 0.0))
    few = replace(Messages.none(1.0), calls=100, errors=(0.5, 1.0, 0.0))
    assert (0.2, 1.0, 0.0) == pytest.approx(many.plus(few).errors)
    assert (0.1, 1.0, 1.0) == many.plus(replace(few, calls=0, errors=(1.0, 0.0, 1.0))).errors


def view() -> GenServers:
    module = Module("shop", "gen_server", 2.0, 0.5, 0.6, 1.0, 3, 1.0)
    return GenServers(TARGET, 10.0, 200, [module], [Edge("web", "shop", 1.0)])


def messages() -> Messages:
    answered = times([0.02] * 9)
    return Messages(10.0, 9, 3, 0, times([0.001] * 12), answered, answered, 2, 1, 1)


def test_hooks_and_looks_make_one_document():
    """
    Modules that looks did not see are there, waiting is the larger of both, and it fits its schema.
    """
    found = view()
    seen = ServerEvents({"shop": messages(), "gone\x1b[2J": messages()})
    seen.edges = {("web", "shop"): EdgeCount(9, 25.0), ("web", "gone\x1b[2J"): EdgeCount(9, None)}
    seen.cost = Cost(5, 100, 0.1, 0.01)
    found.add_events(seen)
    document = documents.load(json.dumps(found.as_json()))
    shop, gone = document["modules"]
    assert {"count": 9, "rate": 0.9, "error_ratio": 0.0} == shop["calls"]
    assert (2.5, 9) == (shop["waiting_callers"], document["edges"][0]["calls"])
    assert {"timeout": 2, "down": 1} == gone["failures"]
    assert gone["utilization"] is None
    assert 5 == document["cost"]["hooks"]
    text = lines(found, "calls", 9)
    assert all(line.isprintable() for line in text)
    assert "QUEUE" in text[1]
    assert " 0.9 " in text[2]


def test_calls_of_edges_are_those_of_the_looks_seconds():
    """
    Hooks that watched twice as long as the looks that are shown saw twice as many.
    """
    found = GenServers({}, 5.0, 10, [], [], [])
    seen = ServerEvents(edges={("web", "shop"): EdgeCount(20, 10.0)})
    found.add_events(seen, 10.0)
    (edge,) = found.edges
    assert (10, 1.0) == (edge.calls, edge.blocked)


def test_servers_that_nobody_waits_for_are_sorted_by_their_messages():
    """
    Those that do something come before those that do nothing.
    """
    found = view()
    found.modules = [Module(name, "gen_server", 1.0, 0.0, 0.0, 0.0, 0, 0.0) for name in "abc"]
    found.edges = []
    found.add_events(ServerEvents({"b": messages()}, cost=Cost(5, 100, 0.1, 0.01)))
    assert ["b", "a"] == [line.split()[0] for line in lines(found, "waiting", 9)[2:4]]


def test_tags_have_their_part_of_what_a_module_does():
    """
    Callers that wait for a tag that hooks do not distinguish are with the others, in text as well.
    """
    found = view()
    found.tags = tags_of({("shop", "add\x1b[2J"): 1.5, ("shop", "late"): 0.5, ("web", "ask"): 2.0})
    seen = ServerEvents({"shop": messages().plus(messages())})
    seen.tags = {("shop", "add\x1b[2J"): messages(), ("shop", None): messages()}
    seen.cost = Cost(5, 100, 0.1, 0.01)
    found.add_events(seen)
    document = documents.load(json.dumps(found.as_json()))
    tags = {(one["module"], one["tag"]): one for one in document["tags"]}
    assert {("shop", "add\x1b[2J"), ("shop", None), ("web", "ask")} == set(tags)
    assert (
        0.5 == tags["shop", "add\x1b[2J"]["service_share"] == tags["shop", None]["waiting_callers"]
    )
    assert (9, None) == (tags["shop", None]["calls"]["count"], tags["web", "ask"]["calls"])
    text = lines(found, "calls", 9, "tag")
    assert all(line.isprintable() for line in text)
    assert ["MODULE", "shop", "add", "(other)"] == [
        line.split()[0].partition("?")[0] for line in text[1:5]
    ]
    assert text[3].endswith("50% of the time")


def test_of_many_tags_those_that_most_wait_for_are_told_apart():
    """
    Without hooks too: eight of a module, and the rest together.
    """
    waiting = {("shop", f"tag_{number}"): float(number) for number in range(1, 12)}
    found = {one.tag: one.waiting_callers for one in tags_of(waiting)}
    assert {None: 1.0 + 2.0 + 3.0, **{f"tag_{n}": float(n) for n in range(4, 12)}} == found


def test_what_servers_became_is_one_with_what_they_began_as():
    """
    Counts of hooks, which know the first module, are added to those of the module that runs.
    """
    seen = ServerEvents({"began": messages(), "runs": messages(), "web": messages()})
    seen.tags = {("began", "add"): messages()}
    seen.edges = {("web", "began"): EdgeCount(9, 25.0), ("web", "runs"): EdgeCount(1, None)}
    found = seen.renamed({"began": "runs", "none": "web"})
    assert {"runs": 18, "web": 9} == {name: one.calls for name, one in found.modules.items()}
    assert [("runs", "add")] == [*found.tags]
    assert {("web", "runs"): EdgeCount(10, 25.0)} == found.edges


def test_two_slots_of_one_module_are_one():
    """
    Counts and times add up; what is unknown of one is unknown of both.
    """
    both = messages().plus(messages())
    assert (18, 6, 6, 2) == (both.calls, both.casts, both.failures, both.abandoned)
    assert 24 == both.queue.ended.sum()
    assert messages().queue.mean() == pytest.approx(both.queue.mean())
    windowed = times([0.01], [0.02], 0.05)
    assert (0.05, 2) == (windowed.plus(windowed).reach, windowed.plus(windowed).cut.sum())
    assert 0.0 == windowed.plus(windowed.unknown()).reach


def test_without_messages_a_module_has_none_or_unknown_ones():
    """
    Where everything was counted it has none; where windows alone looked that is not known.
    """
    for others, calls in ((Messages.none(10.0), 0), (None, None)):
        found = view()
        found.add_events(ServerEvents(others=others))
        seen = found.as_json()["modules"][0]["calls"]
        assert calls == (seen and seen["count"])
