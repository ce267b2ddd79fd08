# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
import pytest
from tracing import Outcome, require_root, trace, wait_until

from scope_ebpf.beam.vm.discover import inspect

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUND = 23
PIDS = [f"<0.{82 + i}.0>" for i in range(ROUND)]


@pytest.fixture(scope="module")
def toy() -> Iterator[beams_run.Beam]:
    require_root()
    with beams_run.toy() as program:
        yield program


@pytest.fixture(scope="module")
def outcome(toy: beams_run.Beam) -> Outcome:
    """
    The stream of one round, and the answer of the program to it.
    """
    with trace(toy.pid, "--via", "usdt", "--events", "all", form="jsonl") as run:
        answer = toy.ask("go")
        outcome = run.stop()
    assert re.fullmatch(r"done 23 enabled 15 forbidden 0", answer)
    return outcome


def of(outcome: Outcome, event: str) -> list[dict]:
    return [line for line in outcome.lines if line["event"] == event]


def test_every_probe_of_a_program_is_seen_as_often_as_it_fires(outcome: Outcome):
    """
    Each of the probes that may be attached fires 23 times and is seen 23 times.
    """
    expected = dict.fromkeys(
        ("spawn", "exit", "hibernate", "send", "receive", "port_open", "port_close"), ROUND
    )
    expected |= {"gc": 2 * ROUND, "port_busy": 2 * ROUND, "dist_output": 2 * ROUND}
    seen = collections.Counter(line["event"] for line in outcome.lines)
    del seen["thread"]  # the kernel's own, of this process as of any
    assert expected == seen
    assert "lost: 0 records" in outcome.errors


def test_the_dangerous_probes_of_a_program_are_not_enabled(toy: beams_run.Beam):
    """
    During a trace of everything by all means, the probes that would hang a VM stay switched off.
    """
    for via in ("usdt", "auto"):
        with trace(toy.pid, "--via", via, "--events", "all"):
            assert toy.ask("go").endswith("forbidden 0")


@pytest.mark.parametrize("event", ["spawn", "exit", "hibernate", "send", "port_open", "port_close"])
def test_the_process_of_a_probe_is_read_from_its_text(outcome: Outcome, event: str):
    """
    The pid that a probe gives as text is the pid of the line.
    """
    assert PIDS == [line["pid"] for line in of(outcome, event)]


def test_every_form_of_an_argument_is_read(outcome: Outcome):
    """
    Sizes in registers, in memory and as constants at three sites of one probe are read right.
    """
    words = [100 + i if i < 18 else 7 for i in range(ROUND)]
    assert [8 * count for count in words] == [line["size_bytes"] for line in of(outcome, "send")]
    receivers = [f"<0.{83 + i}.0>" for i in range(ROUND)]
    assert receivers == [line["receiver"] for line in of(outcome, "send")]
    assert [8 * (100 + i) for i in range(ROUND)] == [
        line["size_bytes"] for line in of(outcome, "receive")
    ]
    assert {"tcp_inet"} == {line["name"] for line in of(outcome, "port_open")}


def test_reasons_that_are_text_have_their_class(outcome: Outcome):
    """
    A reason that a probe gives as text is classed as the term would be.
    """
    classes = ("normal", "shutdown", "shutdown", "killed", "other")
    expected = [classes[i % 5] for i in range(ROUND)]
    assert expected == [line["class"] for line in of(outcome, "exit")]


def test_collections_that_are_probes_have_a_duration(outcome: Outcome):
    """
    The probes at both ends of a collection make its duration, and the last says what it reclaimed.
    """
    for name in ("minor", "major"):
        lines = [line for line in of(outcome, "gc") if line["class"] == name]
        assert [8 * (1000 + i) for i in range(ROUND)] == [x["reclaimed_bytes"] for x in lines]
        assert all(0 < line["duration_seconds"] < 60 for line in lines)
        assert {None} == {line["live_bytes"] for line in lines}


def semaphores(pid: int) -> set[int]:
    """
    The values of all semaphores of the program, from its memory.
    """
    target = inspect(pid)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        found = set()
        for site in target.binary.usdt_sites:
            memory.seek(target.base + site.semaphore)
            found.add(int.from_bytes(memory.read(2), "little"))
        return found


def test_semaphores_are_zero_again_after_the_trace(toy: beams_run.Beam):
    """
    A probe that was enabled for a trace is disabled after it, and fires for nobody.
    """
    with trace(toy.pid, "--via", "usdt") as run:
        assert max(semaphores(toy.pid)) >= 1
        run.stop()
    assert {0} == semaphores(toy.pid)
    assert "done 23 enabled 0 forbidden 0" == toy.ask("go")


def test_semaphores_are_zero_again_after_a_kill(toy: beams_run.Beam):
    """
    A trace that is killed leaves no probe enabled either.
    """
    with trace(toy.pid, "--via", "usdt") as run:
        run.close()
    wait_until(lambda: semaphores(toy.pid) == {0}, "semaphores of zero")
    assert "done 23 enabled 0 forbidden 0" == toy.ask("go")
