# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import collections
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import beams_run
from beams_run import PATIENCE
from tracing import Outcome, Variant, trace, wait_until

if TYPE_CHECKING:
    from pathlib import Path

#: More than fits into a ring of a megabyte, whose records are 64 bytes; the kernel never fills it.
FLOOD = 50_000
FITS = (1 << 20) // 64 - 1


def test_every_event_is_one_line(variant: Variant):
    """
    A stream has a line for each event that was counted, and each line parses.
    """
    with trace(variant.beam.pid, *variant.words("spawn,exit,send,receive"), form="jsonl") as run:
        variant.beam.plant("spawns 2300")
        variant.beam.plant("messages 4600")
        outcome = run.stop()
    lines = collections.Counter(line["event"] for line in outcome.lines)
    assert {"spawn": 2300, "exit": 2300, "send": 4600, "receive": 4602} == lines
    assert dict.fromkeys(lines, 0) == {name: outcome.reported(name)[1] for name in lines}
    assert dict(lines) == {name: outcome.reported(name)[0] for name in lines}


def test_a_line_says_who_did_what_to_whom(variant: Variant):
    """
    The lines of planted events name the processes, modules and reasons that were planted.
    """
    _, main, partner = variant.beam.ask("who").split()
    begin = time.time()
    with trace(variant.beam.pid, *variant.words("spawn,exit,send"), form="jsonl") as run:
        variant.beam.plant("exits other 23")
        variant.beam.plant("messages 32")
        lines = run.stop().lines
    end = time.time()
    spawns, exits, sends = (
        [x for x in lines if x["event"] == e] for e in ("spawn", "exit", "send")
    )
    assert 23 == len({line["pid"] for line in spawns})
    assert sorted(line["pid"] for line in spawns) == sorted(line["pid"] for line in exits)
    assert {"other"} == {line["class"] for line in exits}
    both = collections.Counter({(main, partner): 16, (partner, main): 16})
    assert both == collections.Counter((line["pid"], line["receiver"]) for line in sends)
    assert all(begin - 1 <= line["time"] <= end + 1 for line in lines)
    known = {(line["parent"], line["module"], line["function"]) for line in spawns}
    reasons = {line["reason"] for line in exits}
    if variant.via == "usdt":  # the probes give these as text, which is not read
        assert ({(None, None, None)}, {None}) == (known, reasons)
    else:
        assert ({(main, "planted", "leave")}, {"planted"}) == (known, reasons)


def test_a_line_says_how_long_and_how_much(variant: Variant):
    """
    A planted major collection has a duration, what it reclaimed, and who was collected.
    """
    _, main, _ = variant.beam.ask("who").split()
    with trace(variant.beam.pid, *variant.words("gc"), form="jsonl") as run:
        variant.beam.plant("gc_major 23")
        lines = [line for line in run.stop().lines if line["class"] == "major"]
    assert 23 <= len(lines) <= 27
    assert {main} == {line["pid"] for line in lines}
    assert all(0 < line["duration_seconds"] < 60 for line in lines)
    # Fifty cells of two words, and what the loop itself leaves.
    usual = collections.Counter(line["reclaimed_bytes"] for line in lines).most_common(1)[0][0]
    assert 800 <= usual < 1600


def test_a_text_stream_is_a_line_for_each_event(variant: Variant):
    """
    With --stream a person sees a line for each event, and the report when it is over.
    """
    with trace(variant.beam.pid, *variant.words("hibernate"), "--stream", form="text") as run:
        variant.beam.plant("hibernates 23")
        outcome = run.stop()
    lines = outcome.output.splitlines()
    assert 23 == len([line for line in lines if "hibernate" in line.split()]) == len(lines)
    assert "stopped: interrupted, after" in outcome.errors
    assert "lost: 0 records" in outcome.errors


def test_what_finds_no_room_is_lost_in_no_silence(variant: Variant):
    """
    With a ring that is too small and a reader that stands still, seen and lost are the planted.
    """
    with trace(variant.beam.pid, *variant.words("spawn,exit"), "--ring", "1", form="jsonl") as run:
        run.send(signal.SIGSTOP)
        variant.beam.plant(f"spawns {FLOOD}")
        run.send(signal.SIGCONT)
        outcome = run.stop()
    seen = collections.Counter(line["event"] for line in outcome.lines)
    reported = {name: outcome.reported(name) for name in ("spawn", "exit")}
    assert {"spawn": FLOOD, "exit": FLOOD} == {name: count for name, (count, _) in reported.items()}
    assert reported == {name: (FLOOD, FLOOD - seen[name]) for name in ("spawn", "exit")}
    assert FITS <= seen.total() < 2 * FLOOD
    assert f"lost: {2 * FLOOD - seen.total():,} records" in outcome.errors


def test_a_ring_that_wraps_many_times_gives_each_record_once(variant: Variant):
    """
    Of events that fill a small ring six times over, each is seen once or counted as lost.
    """
    with trace(variant.beam.pid, *variant.words("spawn,exit"), "--ring", "1", form="jsonl") as run:
        variant.beam.plant(f"spawns {FLOOD}")
        outcome = run.stop()
    for name in ("spawn", "exit"):
        pids = [line["pid"] for line in outcome.lines if line["event"] == name]
        assert len(pids) == len(set(pids))
        assert (FLOOD, FLOOD - len(pids)) == outcome.reported(name)
    assert FITS < len(outcome.lines)


def test_a_reader_that_does_not_read_costs_records_and_no_more(variant: Variant):
    """
    A full pipe behind scope-trace holds neither the VM nor the counts; what was lost is reported.
    """
    words = (*variant.words("spawn,exit"), "--ring", "1")
    with trace(variant.beam.pid, *words, form="jsonl", output=subprocess.PIPE) as run:
        variant.beam.plant(f"spawns {FLOOD}")
        run.send(signal.SIGINT)
        text, errors = run.process.communicate(timeout=PATIENCE)
    assert 0 == run.process.returncode
    lines = text.decode().splitlines()
    assert all(line.startswith('{"time":') and line.endswith("}") for line in lines)
    outcome = Outcome(0, "", errors.decode())
    assert (FLOOD, FLOOD) == (outcome.reported("spawn")[0], outcome.reported("exit")[0])
    assert f"lost: {2 * FLOOD - len(lines):,} records" in outcome.errors


def test_a_stream_shows_events_while_they_happen(variant: Variant):
    """
    An event is in the output long before the trace ends.
    """
    with trace(variant.beam.pid, *variant.words("hibernate"), form="jsonl") as run:
        variant.beam.plant("hibernates 23")
        wait_until(lambda: run.so_far().count(b"\n") == 23, "23 lines")
        run.stop()


def test_a_long_call_names_the_code_that_made_it_and_the_c_function(tmp_path: Path):
    """
    Of native functions that run for 20 ms: ``names_nif:spin/1``, and ``names_spin`` of its library.
    """
    environment = beams_run.native_functions(tmp_path)
    words = ("--events", "long_call", "--slow-call", "10")
    with beams_run.start_beam("stock25", "-s", "witness", env=environment) as beam:
        beam.expect("ready")
        assert beam.ask("spin spin 1 1") == "done spin 1"
        with trace(beam.pid, *words, form="jsonl") as run:
            assert beam.ask("spin spin 3 20") == "done spin 3"
            lines = [line for line in run.stop().lines if line["class"] == "nif"]
        with trace(beam.pid, *words, "--stream", form="text") as run:
            assert beam.ask("spin spin 3 20") == "done spin 3"
            text = run.stop().output
    assert {("names_nif:spin/1", "names_spin")} == {
        (line["function"], line["symbol"]) for line in lines
    }
    assert len(lines) == 3
    assert all(isinstance(line["code"], int) for line in lines)
    assert "code=names_nif:spin/1 native=names_spin" in text
