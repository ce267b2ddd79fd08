# SPDX-License-Identifier: Apache-2.0
"""
Telemetry events of real VMs against a handler inside them, for each generation of the library.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import documents
import pytest
from beams_run import Beam, compiled_part, start_beam
from tracing import SCOPE_TRACE, Outcome, Run, require_root, scope_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS, ROUTES = 23, 5000
#: Options to count every event until the command is stopped.
ALL = ("--duration", "0", "--budget", "none", "--max-cost", "100%")
#: More than the kernel has rows for.
TOO_MANY = 17000


@contextmanager
def telling(kind: str, part: str) -> Iterator[Beam]:
    """
    A VM of *kind* with the telemetry of the folder *part*.
    """
    require_root()
    with start_beam(kind, "-pa", compiled_part(kind, part), "-s", "telling") as beam:
        beam.expect("ready")
        yield beam


@contextmanager
def telemetry(beam: Beam, *words: str) -> Iterator[Run]:
    """
    The command at work on *beam*.
    """
    command = (
        "telemetry",
        "--pid",
        str(beam.pid),
        "--duration",
        "0",
        "--budget",
        "none",
        "--max-cost",
        "100%",
    )
    form = () if "--format" in words else ("--format", "json")
    run = Run([*SCOPE_TRACE, *command, *form, *words], None)
    try:
        run.wait_for_counting()
        yield run
    finally:
        run.close()


def watched(beam: Beam, *commands: str, words: tuple[str, ...] = ()) -> Outcome:
    """
    What the command saw of *commands*.
    """
    with telemetry(beam, *words) as run:
        for command in commands:
            beam.ask(command)
        return run.stop()


def seen(document: dict[str, Any], prefixes: tuple[str, ...]) -> dict[tuple, tuple[int, int]]:
    """
    Count and sum in ns of each row whose event has one of *prefixes*.
    """
    found = {}
    for row in document["events"]:
        duration = row["duration_seconds"] or {"sum": 0}
        if row["event"].startswith(prefixes):
            labels = ("-" if value is None else value for value in row["labels"].values())
            found[row["event"], *labels] = row["count"], round(duration["sum"] * 1e9)
    return found


def truth(beam: Beam) -> dict[tuple, tuple[int, int]]:
    """
    The same of the handler inside, since the start.
    """
    found = {}
    for row in filter(None, beam.ask("truth").split("\x1e")):
        event, count, total, *labels = row.split("\x1f")
        found[event, *labels] = int(count), int(total)
    return found


EVENTS = ("phoenix.", "*.query", "oban.", "shop.")


TERMS = "persistent_term_get_1 + persistent_term_get_2"


@pytest.mark.parametrize(
    ("kind", "part", "before", "via"),
    [
        (kind, *how)
        for kind in ("stock25", "trixie27")
        for how in (
            ("telemetry-0.4", (), "ets_lookup_2"),
            ("telemetry-1.3", (), "ets_lookup_2"),
            ("telemetry-1.4", (), TERMS),
            ("telemetry-1.4", ("persist",), TERMS),
        )
    ]
    + [
        # Stripped, and without the names of its functions: nothing but a breakpoint.
        ("sid29", "telemetry-1.4", ("persist",), "telemetry:execute/3"),
    ],
)
def test_every_row_is_that_of_a_handler_inside(kind: str, part: str, before: tuple, via: str):
    """
    Count and sum of every label row, binaries of every kind, 32 keys; 33 keys are refused.
    """
    with telling(kind, part) as beam:
        for command in before:
            beam.ask(command)
        outcome = watched(beam, f"emit {ROUNDS}", "lookup 23")
        expected = truth(beam)
    document = outcome.document
    assert expected == seen(document, EVENTS)
    assert via == document["via"]
    assert {"large_map": 5 * ROUNDS} == {n: c for n, c in document["refused"].items() if c}
    # What the VM itself looks up meanwhile is counted as well; no breakpoint is hit by that.
    assert (kind != "sid29") == (document["cost"]["foreign"] >= 23)
    assert len(expected) >= 30
    ratios = {row["event"]: row["error_ratio"] for row in document["events"]}
    assert ratios["phoenix.router_dispatch.exception"] == 1
    assert ratios["oban.job.stop"] == 0
    assert ratios["shop.value"] is None
    assert outcome.complaints == []


@pytest.fixture(scope="module", params=["stock25", "trixie27"])
def beam(request):
    """
    A VM with a telemetry of 1.3.
    """
    with telling(request.param, "telemetry-1.3") as running:
        yield running


def test_code_is_loaded_again_meanwhile(beam):
    """
    Events before and after it are counted.
    """
    document = watched(beam, "routes 23", "reload", "reload", "routes 19").document
    rows = seen(document, ("phoenix.router_dispatch.stop",))
    assert 42 == sum(count for count, _ in rows.values())
    assert (2, 2000) == rows["phoenix.router_dispatch.stop", "1", "ShopWeb.PageController", "show"]


def test_a_breakpoint_sees_the_same(beam):
    """
    Every row is that of the handler inside, and no other lookup is a hit.
    """
    before = truth(beam)
    with telemetry(beam, "--via", "breakpoint") as run:
        beam.ask(f"emit {ROUNDS}")
        inside = truth(beam)
        document = run.stop().document
    expected = {}
    for row, (count, total) in inside.items():
        earlier = before.get(row, (0, 0))
        if count != earlier[0]:
            expected[row] = count - earlier[0], total - earlier[1]
    assert expected == seen(document, EVENTS)
    assert len(expected) >= 30
    assert 0 == document["cost"]["foreign"]
    assert "telemetry:execute/3" == document["via"]


def test_a_vm_with_many_other_lookups_gets_another_hook(beam):
    """
    By default hooks keep within a budget, what is not counted is reported, and how much was seen.
    """
    beam.ask("steady 40 300000")
    key = ("phoenix.router_dispatch.stop", "/steady", "ShopWeb.PageController", "show")
    before = truth(beam).get(key, (0, 0))[0]
    try:
        outcome = scope_trace("telemetry", "--pid", str(beam.pid), "-d", "3", "--format", "json")
    finally:
        beam.ask("still")
    inside = truth(beam)[key][0] - before
    document = outcome.document
    assert "telemetry:execute/3" == document["via"]
    assert 0 < document["sampling_ratio"] < 1
    assert "other lookups" in document["notes"][0]
    (row,) = (row for row in document["events"] if row["labels"].get("route") == "/steady")
    assert 0 < row["seen"] <= inside
    assert row["seen"] <= row["count"]
    assert row["count"] * (1 - 3 * row["count_error"]) <= inside
    assert pytest.approx(0.0002) == row["duration_seconds"]["mean"]


def test_many_routes_are_shown_as_those_with_most_events_and_the_others(beam):
    """
    No event is missing, however few rows are shown, and where the kernel had no more rows.
    """
    document = watched(beam, f"routes {ROUTES}", "routes 7", words=("--limit", "7")).document
    rows = document["events"]
    assert {str(n): 2 for n in range(1, 8)} == {
        row["labels"]["route"]: row["count"] for row in rows if not row["other"]
    }
    assert [ROUTES - 7] == [row["count"] for row in rows if row["other"]]
    document = watched(beam, f"routes {TOO_MANY}").document
    assert TOO_MANY == sum(row["count"] for row in document["events"])
    assert 0 < document["refused"]["overflow"] < 1000


def test_one_event_of_all_is_shown_by_its_pattern(beam):
    """
    Other events are left out.
    """
    document = watched(beam, "emit 1", words=("--events", "oban.*,*.query")).document
    assert {"oban.job.stop", "*.query"} == {row["event"] for row in document["events"]}


def test_the_table_for_people_has_the_labels(beam):
    """
    A line for each row, and no line break or escape of a label in it.
    """
    words = ("--format", "text")
    text = watched(beam, "emit 1", "hostile", words=words).output
    assert "route=/api/fast/:id plug=ShopWeb.PageController action=show" in text
    assert "route=?[2J?? plug=" in text
    assert text.splitlines()[-1].startswith("cost: ")


def test_a_stream_has_a_line_for_each_event(beam):
    """
    In JSON: its time, process, labels and duration; then the document with the same number.
    """
    words = ("--stream", "--format", "jsonl", "--events", "phoenix.router_dispatch.stop,shop.*")
    *lines, last = watched(beam, "routes 23", "loop unknown 19", words=words).output.splitlines()
    found = [documents.load(line) for line in lines]
    routes = [line["labels"]["route"] for line in found if line["labels"]]
    assert [str(n) for n in range(1, 24)] == routes
    assert 19 == sum(line["event"] == "shop.unknown" for line in found)
    assert {1e-6} == {line["duration_seconds"] for line in found}
    times = [line["time"] for line in found]
    assert sorted(times) == times
    assert [19, *[1] * 23] == sorted(
        (row["count"] for row in json.loads(last)["events"]), reverse=True
    )


def test_what_nobody_should_emit_is_counted_as_refused(beam):
    """
    Names that are none, huge maps, numbers that are no integers, labels of any other type.
    """
    document = watched(beam, "hostile").document
    refused = document["refused"]
    expected = {"name": 4, "large_map": 2, "measure": 2, "label": 7}
    assert expected == {name: count for name, count in refused.items() if count}
    rows = seen(document, ("phoenix.", "shop."))
    assert (4, -5) == rows["shop.hostile",]
    long = "/megabytes" * 6 + "/meg..."
    assert (1, 5) == rows["phoenix.router_dispatch.stop", long, "ShopWeb.PageController", "show"]


def test_a_vm_without_telemetry_gets_no_hook(vm: Callable[[str], Beam]):
    """
    One line says so.
    """
    outcome = scope_trace("telemetry", "--pid", str(vm("stock25").pid))
    assert 11 == outcome.code
    (line,) = outcome.errors.splitlines()
    assert "has no telemetry" in line


def test_a_vm_that_ends_meanwhile_ends_the_run_with_what_was_seen():
    """
    The rows are printed, and the exit code is that of a target that ended.
    """
    with telling("stock25", "telemetry-1.3") as beam, telemetry(beam) as run:
        beam.ask("routes 23")
        os.kill(beam.pid, signal.SIGKILL)
        outcome = run.wait()
    assert 9 == outcome.code
    assert '"other": false' in outcome.output
    assert "while it was traced" in outcome.errors


REQUESTS = 1000


def tree(number: int) -> list[tuple]:
    """
    The spans of request *number*: event, parent, and the label that distinguishes it.
    """
    fails = number % 10 == 0
    raised = number % 20 == 0
    spans: list[tuple] = [
        ("bandit.request.exception", None, "exit")
        if raised
        else ("bandit.request.stop", None, "5xx" if fails else "2xx"),
        ("phoenix.endpoint.stop", 0, "500" if fails else "200"),
        ("phoenix.router_dispatch." + ("exception" if fails else "stop"), 1, f"/r/{number}"),
    ]
    return spans + [("*.query", 2, f"q{n}") for n in range(1, number % 4 + 1)]


def test_requests_are_trees(beam):
    """
    Of 1,000 requests of five processes: parents, order, status, route and exception.
    """
    command = (
        "requests",
        "--pid",
        str(beam.pid),
        "--duration",
        "0",
        "--budget",
        "none",
        "--max-cost",
        "100%",
    )
    run = Run([*SCOPE_TRACE, *command, "--limit", str(REQUESTS), "--format", "json"], None)
    try:
        run.wait_for_counting()
        beam.ask("killed")
        beam.ask(f"requests {REQUESTS}")
        document = run.stop().document
    finally:
        run.close()
    assert (REQUESTS, REQUESTS // 10, 0) == tuple(document[n] for n in ("seen", "failed", "lost"))
    found = {}
    for one in document["requests"]:
        found[one["route"]] = [
            (span["event"], span["parent"], list(span["labels"].values())[at])
            for span in one["spans"]
            for at in [{"phoenix.endpoint.stop": 1, "*.query": 1}.get(span["event"], 0)]
        ]
        number = int(one["route"].removeprefix("/r/"))
        fails = number % 10 == 0
        assert (fails, "ArgumentError" if fails else None) == (one["failed"], one["exception"])
    assert {f"/r/{n}": tree(n) for n in range(1, REQUESTS + 1)} == found
    # The query that is of no request, and that of the process which was killed within one.
    assert 2 == document["left_out"]
    # Each event is a hit of the hook: three that begin and three that end, and queries.
    events = 3 + 1 + sum(6 + n % 4 for n in range(1, REQUESTS + 1))
    assert events == document["cost"]["hits"] - document["cost"]["foreign"]
    assert 5 == len({one["process"] for one in document["requests"]})
    times = [one["duration_seconds"] for one in document["requests"]]
    assert sorted(times, reverse=True) == times


def test_a_profile_by_route_has_the_planted_split(beam, tmp_path):
    """
    60, 30 and 10 parts: one ends by an exception, and one is within another; all else is outside.
    """
    path = tmp_path / "routes.folded"
    command = ("profile", "--pid", str(beam.pid), "--duration", "0", "--by", "route")
    more = ("--hz", "999", "--max-cost", "100%", "-o", str(path))
    run = Run([*SCOPE_TRACE, *command, *more], None)
    try:
        run.wait_for_counting()
        beam.ask("split 2500")
        beam.ask("burn 1000")
        outcome = run.stop()
    finally:
        run.close()
    found = Counter[str]()
    for line in path.read_text().splitlines():
        stack, _, weight = line.rpartition(" ")
        found[stack.split(";")[0]] += int(weight)
    planted = {
        "/cpu/60 ShopWeb.PageController show [phoenix.router_dispatch]": 0.6,
        "/cpu/30 ShopWeb.PageController show [phoenix.router_dispatch]": 0.3,
        "ShopWeb.CounterLive [phoenix.live_view.mount]": 0.1,
    }
    total = sum(found[name] for name in planted)
    samples = total * 999 / 1e6
    assert samples > 100
    for name, share in planted.items():
        assert pytest.approx(share, abs=max(0.03, 4 * (share / samples) ** 0.5)) == (
            found[name] / total
        )
    assert found["(outside of any request)"] > 0
    assert "outside of any request" in outcome.errors


def test_requests_of_a_route_are_shown_as_text(beam):
    """
    A line for each span, indented below the one that contains it; failed ones beyond the limit.
    """
    command = (
        "requests",
        "--pid",
        str(beam.pid),
        "--duration",
        "0",
        "--budget",
        "none",
        "--max-cost",
        "100%",
    )
    run = Run([*SCOPE_TRACE, *command, "--limit", "1", "--route", "/r/?0"], None)
    try:
        run.wait_for_counting()
        beam.ask("requests 50")
        text = run.stop().output
    finally:
        run.close()
    assert "5 requests, 5 failed" in text
    assert 5 == text.count("  failed\n")
    assert "        *.query " in text
