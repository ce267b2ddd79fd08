# SPDX-License-Identifier: Apache-2.0
"""
Sums of looks at servers: time, a bounded number of names, and what the rest is.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_metrics_exposition import exported, reading, samples

from scope_ebpf.metrics.servers import OTHER, Counts, Edge, ServersReading, ServerSums


def series(found: ServersReading) -> dict[tuple[str, ...], float]:
    """
    What is exported of servers, by name and labels.
    """
    text = exported(replace(reading(), servers=found))
    return {
        (s.name, *(v for k, v in sorted(s.labels.items()) if k != "node")): s.value
        for s in samples(text)
        if s.name.startswith("beam_server_")
    }


def test_a_look_stands_for_the_time_since_the_one_before():
    """
    Two of three servers are busy for ten seconds, then one for five; four callers wait for ten.
    """
    sums = ServerSums(14)
    edge = Edge("web", "cart")
    sums.add({"cart": Counts(3, 1, 9, 7)}, {edge: 9}, 100.0)
    sums.add({"cart": Counts(3, 2, 4, 5)}, {edge: 4}, 110.0)
    found = series(sums.add({"cart": Counts(3, 1, 0, 2)}, {}, 115.0))
    assert 25 == found["beam_server_busy_seconds_total", "cart"]
    assert 40 == found["beam_server_blocked_seconds_total", "cart", "web"]
    assert (3, 0, 2) == tuple(
        found[f"beam_server_{what}", "cart"]
        for what in ("processes", "waiting_callers", "mailbox_messages")
    )


@pytest.mark.parametrize("most", [14, 23, 60, 1000])
def test_no_more_series_than_the_limit(most: int):
    """
    Of 500 modules and 500 edges that change all the time, as many have a name as fit.
    """
    sums, counts = ServerSums(most), []
    for look in range(9):
        names = [f"m{look % 7}_{n}" for n in range(500)]
        modules = {name: Counts(1, 1, n) for n, name in enumerate(names)}
        edges = {Edge(name, names[0]): float(n) for n, name in enumerate(names)}
        counts.append(len(series(sums.add(modules, edges, 400.0 * look))))
    assert min(most, 147) - 7 < max(counts) <= most


def test_calls_that_were_given_up_add_up():
    """
    Three of 23, then one of none that is new: its call was seen before.
    """
    sums = ServerSums(30)
    sums.add({"cart": Counts(1, 1, 9, 7, requests=23, abandoned=3)}, {}, 1.0)
    found = series(sums.add({"cart": Counts(1, 1, 9, 7, abandoned=1)}, {}, 2.0))
    assert 23 == found["beam_server_seen_requests_total", "cart"]
    assert 4 == found["beam_server_abandoned_requests_total", "cart"]


def test_names_of_an_hour_are_bounded():
    """
    A VM that names its servers anew at each look gets twenty names an hour; all work is counted.
    """
    sums, reported = ServerSums(60), set()
    for second in range(0, 3500, 25):
        found = sums.add({f"m{second}": Counts(1, 1, 1)}, {}, float(second))
        reported |= {one.module for one in found.modules}
    assert 21 == len(reported)
    assert OTHER in reported


def test_who_is_waited_for_has_a_name_before_who_is_there():
    """
    One module with callers among a thousand with many processes, and the rest is summed up.
    """
    sums = ServerSums(14)
    modules = {f"idle{n}": Counts(50, 0, 0, n) for n in range(1000)}
    found = sums.add(modules | {"cart": Counts(1, 1, 3, 5)}, {}, 1.0)
    assert ["cart", OTHER] == [one.module for one in found.modules]
    assert (50_000, 999) == (found.modules[1].processes, found.modules[1].longest)


def test_a_module_that_has_a_name_keeps_it_beside_its_equals():
    """
    Small differences from look to look do not swap names.
    """
    sums = ServerSums(14)
    for look in range(40):
        waits = {"a": Counts(1, 1, 1 + look % 2), "b": Counts(1, 1, 2 - look % 2)}
        found = sums.add(waits, {}, float(look))
        assert "b" == found.modules[0].module


def test_names_of_a_vm_are_labels_and_nothing_else():
    """
    Markup, quotes, control characters, and a module that is called as the rest.
    """
    names = ["<b>\x1b[2J", 'q"\n}', "x" * 400, OTHER]
    modules = {name: Counts(1, 1, 1) for name in names}
    edges = {Edge(name, name): 1.0 for name in names}
    sums = ServerSums(100)
    sums.add(modules, edges, 1.0)
    found = sums.add(modules, edges, 2.0)
    labels = [one.module for one in found.modules]
    assert len(labels) == len(set(labels)) == 4
    assert all(label.isprintable() and len(label) <= 255 for label in labels)
    assert 4 == sum(one.busy_seconds for one in found.modules)
    assert 4 == sum(one.seconds for one in found.edges)
    assert 28 == len(series(found))
