# SPDX-License-Identifier: Apache-2.0
"""
Requests as trees: what contains what, what did not end, what is shown.
"""

from __future__ import annotations

import pytest

from scope_ebpf.events import TELEMETRY_COUNTS
from scope_ebpf.results import requests as results
from scope_ebpf.results.requests import Requests, Span
from scope_ebpf.results.telemetry import Telemetry
from scope_ebpf.sinks.requests import lines

LEVELS = {"bandit.request": 1, "phoenix.endpoint": 2, "phoenix.router_dispatch": 3}
PID = 0x123


def play(requests: Requests, *steps: str, pid: int = PID, pause: int = 10) -> None:
    """
    Begin (+) and end (-) spans of a process, one step each *pause* ns; others are queries.
    """
    for n, step in enumerate(steps):
        now, name = 1000 + n * pause, step[1:]
        stem = tuple(name.split(".")[:2])
        if step[0] == "+":
            requests.start(pid, stem, LEVELS[name], now)
        elif step[0] == "-":
            labels = {"status": "500"} if "fails" in name else {"route": "/r"}
            # Its duration says nothing of its start.
            requests.end(pid, Span(name, labels, now - 1, now, root=True), stem)
        else:
            requests.end(pid, Span(step, {"source": "a"}, now - 1, now, root=False), None)


def shape(requests: Requests) -> list[list[tuple[str, int]]]:
    """
    Event and parent of each span, of the requests in the order of their starts.
    """
    requests.finish()
    found = sorted(requests.found(), key=lambda one: one.spans[0].start)
    return [[(s.event, p) for s, p in zip(r.spans, r.parents, strict=True)] for r in found]


def test_an_inner_span_may_end_after_the_outer_one():
    """
    The endpoint ends when the answer is sent, and the router after it.
    """
    requests = Requests(9)
    play(
        requests,
        *("+phoenix.endpoint", "+phoenix.router_dispatch", "query"),
        *("-phoenix.endpoint.stop", "late", "-phoenix.router_dispatch.stop", "alone"),
    )
    assert [
        [
            ("phoenix.endpoint.stop", -1),
            ("phoenix.router_dispatch.stop", 0),
            ("query", 1),
            ("late", 1),
        ]
    ] == shape(requests)
    assert 1 == requests.left_out
    (request,) = requests.found()
    assert 50e-9 == pytest.approx(request.seconds)


def test_processes_do_not_mix():
    """
    Spans of two processes at the same time are two requests.
    """
    requests = Requests(9)
    for step in ("+bandit.request", "query", "-bandit.request.stop"):
        for pid in (1, 2):
            play(requests, step, pid=pid)
    assert [[("bandit.request.stop", -1), ("query", 0)]] * 2 == shape(requests)


@pytest.mark.parametrize(
    ("steps", "expected", "left_out"),
    [
        # The run began within a request.
        (["query", "-phoenix.router_dispatch.stop", "-bandit.request.stop"], [], 3),
        # The process was killed, and another one has its pid.
        (["+bandit.request", "query", "+bandit.request", "-bandit.request.stop"], [1], 1),
        # It ended without an event.
        (["+phoenix.router_dispatch", "query", "+bandit.request", "-bandit.request.stop"], [1], 1),
        # The run ended within a request, whose root has ended.
        (
            ["+phoenix.endpoint", "+phoenix.router_dispatch", "query", "-phoenix.endpoint.stop"],
            [2],
            0,
        ),
        # And one whose root has not.
        (["+phoenix.endpoint", "query"], [], 1),
    ],
)
def test_what_has_no_start_or_no_end_is_left_out(steps: list, expected: list, left_out: int):
    """
    It is counted, and never put into another request.
    """
    requests = Requests(9)
    play(requests, *steps)
    assert expected == [len(one) for one in shape(requests)]
    assert left_out == requests.left_out


def test_processes_that_never_end_what_they_began_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    """
    The oldest goes first, so memory is bounded.
    """
    monkeypatch.setattr(results, "_MOST_OPEN", 3)
    monkeypatch.setattr(results, "_MOST_SPANS", 4)
    requests = Requests(9)
    for pid in range(5):
        play(requests, "+bandit.request", *["query"] * 9, pid=pid)
    assert 5 * 6 + 2 * 3 == requests.left_out
    play(requests, "-bandit.request.stop", pid=4)
    assert [4] == [len(one) for one in shape(requests)]


def under_way(requests: Requests) -> int:
    """
    Spans of all requests that have not ended.
    """
    return sum(len(stack[0].tree.spans) for stack in requests._open.values())


def test_all_requests_under_way_have_a_limit_of_spans(monkeypatch: pytest.MonkeyPatch):
    """
    The oldest requests are dropped and counted, whatever they consist of; others are whole.
    """
    monkeypatch.setattr(results, "_MOST_IN_ALL", 50)
    requests = Requests(99)
    for pid in range(20):
        play(requests, "+bandit.request", *["query"] * 8, pid=pid)
        play(requests, "+bandit.request", "+phoenix.endpoint", pid=100 + pid)
        assert under_way(requests) == requests._under_way <= 50
    # Of twenty with nine spans the last four have room, and of twenty with two the last five.
    assert 31 == requests.dropped
    assert 16 * 8 == requests.left_out
    for pid in range(20):
        play(requests, "-bandit.request.stop", pid=pid)
    assert [9] * 4 == [len(one) for one in shape(requests)]
    assert 0 == requests._under_way == under_way(requests)
    text = lines(requests, run_of({"node": None, "pid": 1, "otp_release": "25"}), str)
    assert "31 requests were given up: too many were under way at once" in text


@pytest.mark.parametrize("ending", ["-bandit.request.stop", "-bandit.request.fails"])
def test_requests_that_are_kept_have_a_limit_of_spans(monkeypatch: pytest.MonkeyPatch, ending: str):
    """
    Of the slowest the slowest remain, of failed ones the first; all are counted.
    """
    monkeypatch.setattr(results, "_MOST_KEPT", 30)
    requests = Requests(99)
    for pid in range(1, 8):
        play(requests, "+bandit.request", *["query"] * 9, ending, pid=pid, pause=10 * pid)
    fails = "fails" in ending
    assert (7, 7 * fails) == (requests.seen, requests.failures)
    assert [7, 6, 5, 1, 2, 3][: 6 if fails else 3] == [one.pid for one in requests.found()]
    assert (4 + 4 * fails) == requests.unkept


def run_of(target: dict) -> Telemetry:
    """
    A run in which nothing was counted.
    """
    counts = dict.fromkeys(TELEMETRY_COUNTS, 0)
    return Telemetry(target, "f", 1.0, [], counts)


def test_the_slowest_and_the_failed_ones_are_kept():
    """
    Within the limit, the time and the route that were asked for; all are counted.
    """

    def fill(requests: Requests) -> Requests:
        for n in range(1, 8):
            play(requests, "+bandit.request", "-bandit.request.stop", pid=n, pause=n * 1000)
        play(requests, "+phoenix.endpoint", "-phoenix.endpoint.fails", pid=9, pause=10)
        requests.finish()
        return requests

    kept = fill(Requests(2))
    assert [7000, 6000, 10] == [round(one.seconds * 1e9) for one in kept.found()]
    assert (8, 1) == (kept.seen, kept.failures)
    assert [True] == [one.failed for one in kept.found()][2:]
    assert 3 == fill(Requests(9, slower=5e-6)).seen
    assert 7 == fill(Requests(9, route="/*")).seen


def test_a_label_reaches_no_terminal_and_long_trees_are_cut():
    """
    Control characters are replaced, and a request has some lines at most.
    """
    requests = Requests(1)
    requests.start(PID, ("bandit", "request"), 1, 0)
    for n in range(50):
        requests.end(PID, Span("*.query", {"source": "\x1b[2J\n"}, n, n + 1, root=False), None)
    span = Span("bandit.request.stop", {"route": "\r\nroot:"}, 0, 99, root=True)
    requests.end(PID, span, ("bandit", "request"))
    run = run_of({"node": "a\nb", "pid": 1, "otp_release": "25"})
    text = lines(requests, run, lambda _: "<0.1.0>")
    assert all(line.isprintable() for line in text)
    assert len(text) < 40
    assert any("and 21 more" in line for line in text)
