# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from tracing import Variant, trace


def summed(outcome, event: str, *classes: str) -> int:
    return sum(outcome.events[event]["by_class"][name] for name in classes)


def test_every_spawn_and_exit_is_counted(variant: Variant):
    """
    23 processes that are planted are 23 spawns and 23 normal exits, and none is lost.
    """
    outcome = variant.watch("spawn,exit", "spawns 23")
    assert (23, 23) == tuple(outcome.events[event]["count"] for event in ("spawn", "exit"))
    assert 23 == summed(outcome, "exit", "normal")
    assert 0 == outcome.document["lost_total"]


def test_every_exit_has_the_class_of_its_reason(variant: Variant):
    """
    Exits are normal, shutdown, killed, error or other, whatever the reason's form.
    """
    planted = {
        "normal": 2,
        "shutdown": 3,
        "shutdown_tuple": 5,
        "killed": 7,
        "error": 11,
        "other": 13,
    }
    commands = [f"exits {name} {count}" for name, count in planted.items()]
    found = variant.watch("exit", *commands).events["exit"]["by_class"]
    assert {"normal": 2, "shutdown": 8, "killed": 7, "error": 11, "other": 13} == found


def test_crashes_are_grouped_by_where_why_and_whose_they_are(variant: Variant):
    """
    Planted crashes of four kinds are as many groups, without the processes that ended as they
    should; probes that tell reasons as text give none.
    """
    planted = ("error",) * 5 + ("exit",) * 3 + ("killed",) * 2 + ("named",)
    commands = [f"crash {kind}" for kind in planted]
    outcome = variant.watch("exit", *commands, "exits normal 7")
    groups = [
        (*(row[key] for key in ("kind", "module", "function", "exit_reason", "name")), row["seen"])
        for row in outcome.document["crashes"]
    ]
    expected = [
        ("error", "crashing", "badly", "badarith", None, 5),
        ("other", "crashing", "leave", "out_of_stock", None, 3),
        ("killed", "crashing", "waits", "killed", None, 2),
        ("error", "crashing", "badly", "badarith", "crashing_name", 1),
    ]
    assert ([] if variant.via == "usdt" else expected) == groups


def test_every_message_is_counted_when_it_is_sent_and_when_it_is_taken(variant: Variant):
    """
    2,300 planted messages are as many sends, and as many receives beside that of the command.
    """
    outcome = variant.watch("send,receive", "messages 2300")
    assert {"local": 2300, "remote": 0} == outcome.events["send"]["by_class"]
    assert 2300 + 1 == outcome.events["receive"]["count"]


def test_every_collection_is_counted_by_its_kind(variant: Variant):
    """
    Planted collections are minor and major ones, and all together those that the VM counts itself.
    """
    beam = variant.beam
    with trace(beam.pid, *variant.words("gc")) as run:
        before = beam.stats()["collections"]
        beam.plant("gc_minor 2300")
        beam.plant("gc_major 1700")
        after = beam.stats()["collections"]
        outcome = run.stop()
    minor, major = (summed(outcome, "gc", name) for name in ("minor", "major"))
    assert after - before == pytest.approx(minor + major, abs=4)
    assert (2300, 1700) == (pytest.approx(minor, abs=4), pytest.approx(major, abs=4))
    durations = outcome.events["gc"]["durations"]
    assert (minor, major) == tuple(durations[name]["count"] for name in ("minor", "major"))


def test_every_hibernation_is_counted(variant: Variant):
    """
    23 hibernations that are planted are 23.
    """
    assert 23 == variant.watch("hibernate", "hibernates 23").events["hibernate"]["count"]


def test_every_port_is_counted_when_it_opens_and_when_it_closes(variant: Variant):
    """
    23 ports of a driver and 5 programs open and close 28 times.
    """
    outcome = variant.watch("port_open,port_close", "ports 23", "programs 5")
    assert (28, 28) == tuple(outcome.events[e]["count"] for e in ("port_open", "port_close"))


def test_every_port_that_becomes_busy_is_counted(variant: Variant):
    """
    Three ports that become busy, with writers suspended on each, are three; by function each port
    that closes is marked not busy, also where the compiler has put the function into its caller.
    """
    outcome = variant.watch("port_busy,port_close", "ports 23", *["busy_port 4"] * 3)
    busy = outcome.events["port_busy"]
    closed = outcome.events["port_close"]["count"] if busy["via"] == "symbol" else 0
    assert (23 <= closed) == (busy["via"] == "symbol")
    assert (3, 3 + closed) == (busy["count"], summed(outcome, "port_busy", "not_busy"))


def test_every_module_that_is_loaded_is_counted(variant: Variant):
    """
    23 modules that are loaded are 23, or the plan says that this variant has no hook for it.
    """
    if variant.via == "usdt":
        with_others = variant.watch("code_load,exit").events["code_load"]
        assert {"via": "unavailable", "reason": "OTP has no USDT probe for it"} == with_others
        return
    assert 23 == variant.watch("code_load", "code_loads 23").events["code_load"]["count"]


def test_every_schedule_in_has_its_schedule_out(variant: Variant):
    """
    What is scheduled in is scheduled out, but for the processes at the edges of the trace.
    """
    beam = variant.beam
    if variant.via == "usdt":
        reason = "under the JIT process__scheduled fires on dirty schedulers only"
        found = variant.watch("schedule,exit").events["schedule"]
        assert {"via": "unavailable", "reason": reason} == found
        return
    with trace(beam.pid, *variant.words("schedule")) as run:
        before = beam.stats()["context_switches"]
        beam.plant("messages 10000")
        switches = beam.stats()["context_switches"] - before
        schedule = run.stop().events["schedule"]
    scheduled_in, scheduled_out = schedule["by_class"]["in"], schedule["by_class"]["out"]
    assert scheduled_in == schedule["count"]
    assert scheduled_in == pytest.approx(scheduled_out, abs=2)
    # The VM counts those of dirty schedulers too, and leaves a few of its own out.
    assert switches == pytest.approx(scheduled_in, rel=0.01, abs=20)
    assert scheduled_out == pytest.approx(schedule["durations"]["out"]["count"], abs=2)


def test_every_long_call_is_counted_by_what_was_called(variant: Variant):
    """
    BIFs and NIFs of normal and of dirty schedulers are counted if they take as long as was said,
    and none is if that is a minute.
    """
    interpreter = variant.beam.emulator == "beam.emu.smp"
    if variant.via == "usdt" or interpreter:
        reason = "OTP's NIF and BIF probes fire for dirty NIFs only, or not at all"
        if interpreter:
            reason = f"the interpreter calls NIFs and BIFs without a function; {reason}"
        found = variant.watch("long_call,exit").events["long_call"]
        assert {"via": "unavailable", "reason": reason} == found
        return
    none = variant.watch("long_call", "dirty_calls 23", more=("--slow-call", "60000"))
    assert 0 == none.events["long_call"]["count"]
    slow = variant.watch("long_call", "long_bifs 5", more=("--slow-call", "5"))
    # The VM itself chooses on which kind of scheduler it goes on.
    assert 5 == slow.events["long_call"]["count"] == summed(slow, "long_call", "bif", "dirty_bif")
    durations = slow.events["long_call"]["durations"].values()
    assert 5 * 0.005 <= sum(histogram["total_seconds"] for histogram in durations)
    every = variant.watch("long_call", "gc_major 23", "dirty_calls 29", more=("--slow-call", "0"))
    expected = {"nif": 2 * 29, "bif": 23, "dirty_nif": 29, "dirty_bif": 0}
    assert expected == every.events["long_call"]["by_class"]


def test_a_vm_that_does_nothing_counts_nothing(variant: Variant):
    """
    The background of an idle VM is zero for everything that was not planted.
    """
    outcome = variant.watch("spawn,exit,hibernate,port_open,port_close,port_busy,dist_output")
    assert {0} == {event["count"] for event in outcome.events.values()}
