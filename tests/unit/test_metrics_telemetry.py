# SPDX-License-Identifier: Apache-2.0
"""
Sums of telemetry events: estimates, a bounded number of series, and what the rest is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from test_metrics_exposition import exported, reading, samples

from scope_ebpf import events
from scope_ebpf.metrics.page import Page
from scope_ebpf.metrics.ranking import NEW
from scope_ebpf.metrics.telemetry import (
    FAMILIES,
    JOBS,
    LEAST_SERIES,
    OTHER,
    QUERIES,
    REQUESTS,
    VIEWS,
    Counted,
    Family,
    Span,
    TelemetryReading,
    TelemetrySums,
    expose_telemetry,
    kind_of,
    worked,
)
from scope_ebpf.telemetry.specs import of_series

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Of a duration of 3 ms: 2^21 ns (1 + 1 / 4) and more.
SLOT = 4 * 21 + 1
PREFIXES = (
    "beam_http_",
    "beam_live_",
    "beam_db_",
    "beam_job_",
    "beam_route_",
    "beam_telemetry_",
    "scope_ebpf_tele",
)
SPAN = Span(10.0, 1.0, {}, {})


def counted(event: str, number: float = 1.0, ns: float = 3e6, /, **labels: str | None) -> Counted:
    """
    So many events of 3 ms, which waited for as long.
    """
    slots = np.zeros(events.TELEMETRY_SLOTS)
    slots[SLOT] = number
    each = np.full(events.TELEMETRY_MEASURES, number)
    return Counted(event, labels, number, each, each * ns, slots)


def series(found: TelemetryReading) -> dict[tuple[str, ...], float]:
    """
    What is exported of telemetry, by name and labels.
    """
    text = exported(replace(reading(), telemetry=found))
    return {
        (s.name, *(v for k, v in sorted(s.labels.items()) if k != "node")): s.value
        for s in samples(text)
        if s.name.startswith(PREFIXES)
    }


def routed(route: str, number: float = 1.0, status: str = "2xx") -> Counted:
    """
    Requests of one route.
    """
    labels = {"route": route, "method": "GET", "status": status}
    return counted("phoenix.router_dispatch.stop", number, **labels)


def test_requests_are_a_histogram_and_count_by_name():
    """
    Estimates are added up as they are; what raised has a status of its own, and its exception.
    """
    sums = TelemetrySums(300)
    raised = {"route": "/a", "method": "GET", "exception": "KeyError"}
    failed = counted("phoenix.router_dispatch.exception", 3.0, **raised)
    sums.add([routed("/a", 20.4), failed], SPAN, 10.0)
    found = series(sums.add([routed("/a", 2.8), routed("/a", 7, "5xx")], SPAN, 20.0))
    name = "beam_http_request_duration_seconds"
    assert 23 == found[f"{name}_count", "GET", "/a", "2xx"]
    assert 0.0696 == pytest.approx(found[f"{name}_sum", "GET", "/a", "2xx"])
    below, above = (str(2**power / 1e9) for power in (20, 23))
    assert (0, 23) == tuple(
        found[f"{name}_bucket", le, "GET", "/a", "2xx"] for le in (below, above)
    )
    assert 7 == found[f"{name}_count", "GET", "/a", "5xx"]
    assert 3 == found[f"{name}_count", "GET", "/a", "exception"]
    assert 3 == found["beam_http_exceptions_total", "KeyError", "/a"]
    assert 30.2 == pytest.approx(
        found["beam_telemetry_events_total", "phoenix.router_dispatch.stop"]
    )


def test_each_library_has_its_series():
    """
    Queries with their time in the queue, jobs, callbacks, responses; what is missing is empty.
    """
    event = {"view": "C", "event": "inc"}
    sums = TelemetrySums(500)
    sums.add([counted("phoenix.live_component.handle_event.stop", 2.0, **event)], SPAN, 0.0)
    found = series(
        sums.add(
            [
                counted(
                    "*.query", 5.0, repo="Shop.Repo", source=None, command="select", result="ok"
                ),
                counted("oban.job.exception", 2.0, worker="W", queue="mail", state="failure"),
                counted("phoenix.live_view.mount.stop", 4.0, view="V"),
                counted("phoenix.live_component.handle_event.stop", 6.0, **event),
                counted("phoenix.live_view.render.exception", 1.0, view="V", exception="E"),
                counted("bandit.request.stop", 9.0, status="4xx"),
                counted("shop.cart.add", 8.0),
            ],
            SPAN,
            1.0,
        )
    )
    assert 5 == found["beam_db_query_duration_seconds_count", "select", "Shop.Repo", "ok", ""]
    assert (0.015, 5) == (
        found["beam_db_queue_seconds_total", "Shop.Repo"],
        found["beam_db_queue_waits_total", "Shop.Repo"],
    )
    assert 2 == found["beam_job_duration_seconds_count", "mail", "failure", "W"]
    assert 0.006 == found["beam_job_queue_seconds_total", "mail"]
    assert 4 == found["beam_live_view_duration_seconds_count", "mount", "", "V"]
    component = "beam_live_view_duration_seconds_count", "component.handle_event"
    assert (2, 6) == (found[*component, OTHER, "C"], found[*component, "inc", "C"])
    assert 1 == found["beam_live_view_exceptions_total", "render", "E", "V"]
    assert 9 == found["beam_http_responses_total", "bandit", "4xx"]
    assert 8 == found["beam_telemetry_events_total", "shop.cart.add"]


def test_work_has_cpu_time_and_is_no_event():
    """
    By kind, route and callback; what is outside of any request, and what has no labels.
    """
    news = [
        worked("phoenix.router_dispatch.stop", "/a", 1.5),
        worked("phoenix.live_view.mount.stop", "V", 0.25),
        worked("oban.job.stop", "W", 0.5),
        worked("oban.job.stop", "", 0.75, other=True),
        worked("", "", 2.0),
        worked("", "", 4.0, other=True),
    ]
    found = series(TelemetrySums(500).add(news, SPAN, 1.0))
    name = "beam_route_cpu_seconds_total"
    assert {
        ("", "http", "/a"): 1.5,
        ("mount", "live_view", "V"): 0.25,
        ("", "jobs", "W"): 0.5,
        ("", "jobs", OTHER): 0.75,
        ("", "outside", ""): 2.0,
        ("", OTHER, OTHER): 4.0,
    } == {key[1:]: value for key, value in found.items() if key[0] == name and value}
    assert not any("work" in text for key in found for text in key)


def test_names_of_prom_ex():
    """
    In milliseconds, under the name of the release; series that differ in other labels are added up.
    """
    sums = TelemetrySums(500)
    news = [
        counted("phoenix.router_dispatch.stop", 5.0, route="/a", method="GET", status="2xx"),
        counted("phoenix.live_view.mount.stop", 4.0, view="V"),
        counted("phoenix.live_view.render.stop", 4.0, view="V"),
        counted("*.query", 5.0, repo="R", source="s", command="select", result="ok"),
        counted("*.query", 2.0, repo="R", source="s", command="select", result="error"),
    ]
    page = Page(prom_ex=True)
    expose_telemetry(page, "9 Shop@host", sums.add(news, SPAN, 1.0))
    found = {
        (one.name, *(v for k, v in sorted(one.labels.items()) if k != "node")): one.value
        for family in page.families()
        for one in family.samples
    }
    first, http = "_9_shop_prom_ex_", "phoenix_http_request_duration_milliseconds"
    assert 5 == found[f"{first}phoenix_http_requests_total", "GET", "/a", "2xx"]
    assert 15 == pytest.approx(found[f"{first}{http}_sum", "GET", "/a", "2xx"])
    # The bound of 2^23 ns is above 3 ms, that of 2^20 ns below.
    assert 5 == found[f"{first}{http}_bucket", "8.388608", "GET", "/a", "2xx"]
    assert 0 == found[f"{first}{http}_bucket", "1.048576", "GET", "/a", "2xx"]
    assert 4 == found[f"{first}phoenix_live_view_mount_duration_milliseconds_count", "V"]
    query = f"{first}ecto_repo_query_total_time_milliseconds_count"
    assert 7 == found[query, "select", "R", "s"]
    assert not any("render" in name for name, *_ in found if first in name)
    assert page.samples == len(found)


def all_kinds(look: int, many: int) -> list[Counted]:
    """
    Events of every family and outcome, with names that are new in each of seven looks.
    """
    names, specs = [f"n{look % 7}_{n}" for n in range(many)], of_series()
    ends = {
        "status": ["2xx", "3xx", "4xx", "5xx", "odd"],
        "result": ["ok", "error", "odd"],
        "state": ["success", "failure", "discard", "odd"],
    }
    known = []
    for n, name in enumerate(names):
        for spec in specs:
            ended = {
                label: ends[label][n % len(ends[label])] for label in spec.labels if label in ends
            }
            known.append(counted(spec.name, 1.0 + n, **dict.fromkeys(spec.labels, name) | ended))
            if spec.work:
                known.append(worked(spec.name, name, 1.0))
    known += [worked("", "", 1.0), worked("", "", 1.0, other=True)]
    return known + [counted(f"shop.{name}", 1.0) for name in names]


@pytest.mark.parametrize("most", [LEAST_SERIES, 900])
def test_no_more_series_than_the_limit(most: int):
    """
    However many labels change all the time, in every family at once.
    """
    sums, counts = TelemetrySums(most), []
    errors = dict.fromkeys(("http", "live_view", "database", "jobs", "events"), (1.0, 0.1))
    for look in range(3):
        span = Span(10.0, 1.0, errors, {})
        counts.append(len(series(sums.add(all_kinds(look, 40), span, 600.0 * look))))
    assert 0.8 * most < max(counts) <= most


def test_a_family_that_is_alone_may_have_nearly_all_series():
    """
    What others do not need is not kept for them.
    """
    sums = TelemetrySums(300)
    found = sums.add([routed(f"/{n}", 100.0 + n) for n in range(100)], SPAN, 1.0)
    routes = [one for one in found.series if one.family is REQUESTS]
    assert len(routes) * REQUESTS.cost > 250
    assert sum(one.number for one in routes) == sum(100.0 + n for n in range(100))


def ended(found: TelemetryReading, family: Family, label: str) -> dict[str, float]:
    """
    Events of a family by how they ended, with and without names.
    """
    totals: Counter[str] = Counter()
    for one in found.series:
        if one.family is family:
            totals[one.labels[family.labels.index(label)]] += one.number
    return dict(totals)


@pytest.mark.parametrize(
    ("family", "event", "label", "good", "bad"),
    [
        (REQUESTS, "phoenix.router_dispatch.stop", "status", "2xx", "5xx"),
        (QUERIES, "*.query", "result", "ok", "error"),
        (JOBS, "oban.job.stop", "state", "success", "failure"),
    ],
)
def test_what_has_no_name_keeps_how_it_ended(
    family: Family, event: str, label: str, good: str, bad: str
):
    """
    Of 60 routes, tables or workers, of which a few have a name, a tenth fails: a tenth is seen.
    """
    sums = TelemetrySums(LEAST_SERIES)
    names = [name for name in family.labels if name != label]
    news = [
        counted(event, number, **dict.fromkeys(names, f"n{n}"), **{label: how})
        for n in range(60)
        for how, number in ((good, 90.0), (bad, 10.0))
    ]
    for look in range(3):
        found = sums.add(news, SPAN, 10.0 * look)
    assert {good: 3 * 5400, bad: 3 * 600} == ended(found, family, label)
    assert len([one for one in found.series if one.family is family]) < 60


def test_a_route_with_a_name_has_its_failures_with_it():
    """
    They are few, and come before the successes of routes that are seldom asked for.
    """
    sums = TelemetrySums(LEAST_SERIES)
    often = [routed("/often", 900.0), routed("/often", 100.0, "5xx")]
    found = sums.add([*often, *(routed(f"/{n}", 300.0) for n in range(30))], SPAN, 1.0)
    numbers = {one.labels: one.number for one in found.series if one.family is REQUESTS}
    assert 100 == numbers["/often", "GET", "5xx"]


def test_events_without_a_row_of_their_own_are_exceptions_where_their_name_says_so():
    """
    Requests that raised, of which the kernel kept no labels; of others it is not known.
    """
    zeros = [np.zeros(n) for n in (4, 4, events.TELEMETRY_SLOTS)]
    news = [
        Counted(f"phoenix.router_dispatch.{end}", None, number, *zeros)
        for end, number in (("exception", 23.0), ("stop", 7.0))
    ]
    found = TelemetrySums(LEAST_SERIES).add(news, SPAN, 1.0)
    assert {"exception": 23, OTHER: 7} == ended(found, REQUESTS, "status")


def test_a_client_cannot_invent_methods():
    """
    Those that no standard has are one label.
    """
    news = [
        counted("plug.router_dispatch.stop", 2.0, route="/*", method=method, status="4xx")
        for method in ("PATCH", *(f"M{n}" for n in range(40)))
    ]
    found = TelemetrySums(500).add(news, SPAN, 1.0)
    assert {"PATCH": 2, OTHER: 80} == ended(found, REQUESTS, "method")


def clicks(view: str, names: Iterable[str], number: float) -> list[Counted]:
    """
    So many events of each name that browsers sent to a view.
    """
    event = "phoenix.live_view.handle_event.stop"
    return [counted(event, number, view=view, event=name) for name in names]


def shown(found: TelemetryReading) -> dict[str, float]:
    """
    The sums of those events, by their names.
    """
    return ended(found, VIEWS, "event")


REAL, INVENTED = [f"real{n}" for n in range(5)], [f"x{n}" for n in range(200)]


def test_a_burst_of_invented_events_takes_no_names():
    """
    The view's own, which come after it, have theirs with the second look; nothing is lost.
    """
    sums = TelemetrySums(500)
    sums.add(clicks("V", INVENTED, 1000.0), SPAN, 0.0)
    for look in range(1, 4):
        found = sums.add(clicks("V", REAL, 50.0), SPAN, 10.0 * look)
    assert dict.fromkeys(REAL, 100.0) | {OTHER: 200_000.0 + 250.0} == {
        name: number for name, number in shown(found).items() if number
    }
    assert ("V", "handle_event", OTHER) in {one.labels for one in found.series}


def test_known_events_survive_a_flood_that_goes_on():
    """
    Invented names that come often, look after look: half of the new names at most are such, and
    views that are new have theirs.
    """
    sums = TelemetrySums(300)
    for look in range(3):
        sums.add(clicks("V", REAL, 5.0), SPAN, 10.0 * look)
    for look in range(3, 20):
        sums.add(clicks("V", [*REAL, *INVENTED], 90_000.0), SPAN, 10.0 * look)
    mounts = [counted("phoenix.live_view.mount.stop", 1.0, view=f"N{n}") for n in range(3)]
    for look in range(20, 30):
        found = sums.add(
            [*clicks("V", REAL, 5.0), *clicks("V", INVENTED, 9e4), *mounts], SPAN, 10.0 * look
        )
    assert all(shown(found)[name] > 1_000_000 for name in REAL)
    assert {"N0", "N1", "N2"} < {one.labels[0] for one in found.series if one.family is VIEWS}
    assert sum(name.startswith("x") for name in shown(found)) <= NEW


def test_counters_never_fall():
    """
    Durations below zero, names that come and go, hooks that are attached anew.
    """
    sums, before = TelemetrySums(LEAST_SERIES), {}
    for look in range(12):
        news = [routed(f"/{n}", 10.0 + (n * look) % 13) for n in range(look, look + 9)]
        negative = counted("shop.negative", 1.0, -5e15)
        refused = {"large_map": 5 * (look % 3)}
        found = sums.add([*news, negative], Span(10.0, 1.0, {}, refused), 10.0 * look)
        now = {key: n for key, n in series(found).items() if not key[0].endswith("_ratio")}
        assert all(now[key] >= before[key] for key in now.keys() & before.keys())
        before = now
    assert 40 == before["scope_ebpf_telemetry_undecoded_total", "large_map"]
    assert ("beam_telemetry_events_total", OTHER) in before


def test_a_rare_job_keeps_its_name_while_there_is_room():
    """
    One an hour: between two of them its counter stays, and does not begin anew.
    """
    sums = TelemetrySums(300)
    job = counted("oban.job.stop", 1.0, worker="Yearly", queue="slow", state="success")
    sums.add([job], SPAN, 0.0)
    for look in range(1, 360):
        sums.add([routed("/a", 5000.0)], SPAN, 10.0 * look)
    found = series(sums.add([job], SPAN, 3600.0))
    assert 2 == found["beam_job_duration_seconds_count", "slow", "success", "Yearly"]


def test_labels_are_hostile_text():
    """
    Markup, quotes, control characters, length, and a text that is called as the rest.
    """
    names = ["<b>\x1b[2J", 'q"\n}', "x" * 400, OTHER]
    news = [routed(name, 2.0) for name in names]
    other = Counted("*.query", None, 3.0, *(np.zeros(n) for n in (4, 4, events.TELEMETRY_SLOTS)))
    found = TelemetrySums(500).add([*news, other], SPAN, 1.0)
    texts = [text for one in found.series for text in one.labels]
    assert all(text.isprintable() and len(text) <= 255 for text in texts)
    labels = [one.labels for one in found.series if one.family is REQUESTS]
    assert len(labels) == len(set(labels)) == 5
    assert 8 == sum(one.number for one in found.series if one.family is REQUESTS)
    assert {OTHER, "*.query"} == {one.labels[0] for one in found.series if one.number == 3}


def test_errors_are_those_of_the_last_minute():
    """
    95 % of the estimates of the spans together; 1 where windows saw nothing of a kind.
    """
    sums = TelemetrySums(200)
    sums.add([], Span(30.0, 0.1, {"http": (5000.0, 0.9)}, {}), 0.0)
    sums.add([], Span(30.0, 0.2, {"http": (300.0, 0.1), "jobs": (5.0, 0.2)}, {}), 100.0)
    found = sums.add([], Span(10.0, 0.6, {"http": (100.0, 0.4), "jobs": (0.0, 0.0)}, {}), 110.0)
    assert 1.96 * 50 / 400 == pytest.approx(found.errors["http"])
    assert 1.96 * 0.2 == pytest.approx(found.errors["jobs"])
    assert {"http", "jobs"} == found.errors.keys()
    assert 0.3 == pytest.approx(found.ratio)
    last = sums.add([], Span(10.0, 0.5, {}, {}), 900.0)
    assert 1.0 == last.errors["jobs"]


def test_specifications_have_the_labels_of_their_series():
    """
    Each event of a family has its labels, but those that the family fixes or that may be missing.
    """
    assert {kind_of(spec.name) for spec in of_series()} == {"http", "live_view", "database", "jobs"}
    known = {label for family in FAMILIES for label in family.labels}
    for spec in of_series():
        assert spec.labels.keys() <= known, spec.name
