# SPDX-License-Identifier: Apache-2.0
"""
Events of processes that the user names, and of durations that are long enough.
"""

from __future__ import annotations

import re

import pytest
from tracing import Variant, scope_trace, trace

#: 10 volleys of 16 messages each way between the main process and its partner, and 3 of the main
#: process to itself.
MESSAGES, VOLLEYS, OWN = "messages 323", 160, 3
EVENTS = "spawn,exit,send,receive,gc"


def watch(variant: Variant, events: str, *more: str) -> dict[str, int]:
    """
    How often each event happened, by a filtered trace, while the VM did much.
    """
    commands = (MESSAGES, "spawns 23", "gc_major 23")
    found = variant.watch(events, *commands, more=more).events
    return {event: of["count"] for event, of in found.items() if "count" in of}


def test_a_name_is_one_process(variant: Variant):
    """
    Of the main process alone count what it sends and takes, what it spawns and what it collects.
    """
    found = watch(variant, EVENTS, "--process", "planted_main")
    # Each of the three commands is received as well.
    took = {"receive": VOLLEYS + OWN + 3} if "receive" in found else {}
    assert {"send": VOLLEYS + OWN, "exit": 0, **took}.items() <= found.items()
    assert found["gc"] == pytest.approx(23, abs=2)
    # A USDT probe of a spawn names the child alone, so that event is refused.
    assert 23 == found.get("spawn", 23)


def test_a_pid_is_one_process(variant: Variant):
    """
    The partner answers, spawns nothing and does not end.
    """
    words = variant.beam.ask("who").split()
    found = watch(variant, EVENTS, "--process", words[2])
    assert (VOLLEYS, 0) == (found["send"], found["exit"])
    assert VOLLEYS == found.get("receive", VOLLEYS)
    assert 0 == found.get("spawn", 0)


def test_a_module_is_all_that_run_it(variant: Variant):
    """
    Both processes run the module ``planted``; sends of others do not count.
    """
    found = watch(variant, "send", "--process", "planted")
    assert {"send": 2 * VOLLEYS + OWN} == found


def test_lines_are_of_the_named_process_alone(stock):
    """
    A stream of one process has no line of another.
    """
    words = ("--events", "send,receive", "--process", "planted_partner")
    with trace(stock.pid, *words, form="jsonl") as run:
        stock.plant(MESSAGES)
        outcome = run.stop()
    assert {"planted_partner"} == {line["who"] for line in outcome.lines}
    assert 2 * VOLLEYS == len(outcome.lines)
    assert "events of 1 processes at most at one time were counted" in re.sub(
        r"\s+", " ", outcome.errors
    )


def test_what_is_too_short_is_not_counted(variant: Variant):
    """
    No collection and no schedule takes an hour; all take a millionth of a millisecond.
    """
    found = watch(variant, "gc,schedule", "--min-duration", "1h")
    # The JIT has no USDT probe of schedules.
    seen = {"gc", "schedule"} - ({"schedule"} if variant.via == "usdt" else set())
    assert dict.fromkeys(seen, 0) == found
    found = watch(variant, "gc,schedule", "--min-duration", "0.000001")
    assert found["gc"] >= 23
    assert found.get("schedule", 24) > 23


def test_lines_are_of_durations_that_are_long_enough(stock):
    """
    Of all schedules the long ones are written, and they are those that are counted.
    """
    shortest = 0.05
    words = ("--events", "schedule", "--min-duration", str(shortest))
    with trace(stock.pid, *words, form="jsonl") as run:
        stock.plant(MESSAGES)
        stock.plant("long_bifs 3")
        outcome = run.stop()
    durations = [line["duration_seconds"] for line in outcome.lines]
    assert durations
    assert min(durations) >= shortest / 1e3
    assert (len(durations), 0) == outcome.reported("schedule")


def test_a_process_that_is_not_there_is_an_error(stock):
    """
    What names no process, and what no event can be filtered by, is said before anything is hooked.
    """
    pid = str(stock.pid)
    outcome = scope_trace("--pid", pid, "--process", "no_such_name", "--duration", "1")
    assert "has no Erlang process no_such_name" in outcome.errors
    outcome = scope_trace("--pid", pid, "--process", "init", "--events", "thread")
    assert "it belongs to no Erlang process" in outcome.errors
    outcome = scope_trace("--pid", pid, "--min-duration", "1ms", "--events", "send")
    assert "--min-duration is of gc and schedule" in outcome.errors
