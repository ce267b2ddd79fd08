# SPDX-License-Identifier: Apache-2.0
"""
What the commands need of root: four capabilities, from Linux 6.6 on.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest
from beams_run import require
from tracing import SCOPE_TRACE, Run, scope_trace, trace

from scope_ebpf.kernel.attach.uprobes import has_multi

if TYPE_CHECKING:
    from pathlib import Path

    import beams_run

#: Neither CAP_SYS_ADMIN nor anything else of root's.
FOUR = "-all,+bpf,+perfmon,+sys_ptrace,+dac_read_search"
LIMITED = ("setpriv", f"--bounding-set={FOUR}", "--inh-caps", FOUR, "--clear-groups")


@pytest.fixture(autouse=True)
def _links_of_many_places() -> None:
    require(has_multi(), f"Linux {platform.release()} asks for CAP_SYS_ADMIN")


def test_planted_events_are_counted_with_four_capabilities(stock: beams_run.Beam):
    """
    A trace without CAP_SYS_ADMIN counts what was planted, and says what it cost.
    """
    with trace(stock.pid, "--events", "spawn,exit", prefix=LIMITED) as run:
        stock.plant("spawns 23")
        document = run.stop().document
    assert 23 == document["events"]["spawn"]["count"]
    assert document["cost"]["hits"] >= 23


@pytest.mark.parametrize(
    "words",
    [
        ("profile",),
        ("profile", "--off-cpu"),
        ("calls", "lists:map/2"),
        ("record", "-o", "/dev/null"),
    ],
    ids=" ".join,
)
def test_a_command_runs_with_four_capabilities(stock: beams_run.Beam, words: tuple[str, ...]):
    """
    Every command that attaches something does so without CAP_SYS_ADMIN.
    """
    more = ("--pid", str(stock.pid), "--duration", "0.5")
    outcome = scope_trace(*words, *more, prefix=LIMITED)
    assert 0 == outcome.code, outcome.errors
    assert "Traceback" not in outcome.errors


@pytest.mark.parametrize("command", ["top", "ps", "schedulers"])
def test_memory_is_read_with_four_capabilities(stock: beams_run.Beam, command: str):
    """
    What is read of a VM's memory needs no more.
    """
    words = {"top": ("--once",), "ps": ("init",), "schedulers": ("--once",)}[command]
    outcome = scope_trace(command, *words, "--pid", str(stock.pid), prefix=LIMITED)
    assert 0 == outcome.code, outcome.errors


#: Each function by a name that another one, a comment or a text has, too.
SPAWNS = """
#include "beam.h"

/* int on_spawn_entry(struct pt_regs *ctx) { return 0; } */
#define SAID "int on_spawn_entry(struct pt_regs *ctx) {"
BEAM_COUNT(spawned, u64 all;);

int on_spawn_entry(struct pt_regs *ctx)
{
        struct spawned key = {};

        beam_count(spawned, key);
        return 0;
}

int on_spawn_return(struct pt_regs *ctx)
{
        return 0;
}
"""


@pytest.mark.parametrize("by_macro", [False, True])
def test_a_probe_counts_its_hits_itself(stock: beams_run.Beam, tmp_path: Path, by_macro: bool):
    """
    Of 23 planted spawns with two hooks 46 hits; of a function that a macro writes none is claimed.
    """
    probe = tmp_path / "spawns.c"
    text = SPAWNS
    if by_macro:
        head = "#define RETURN int on_spawn_return(struct pt_regs *ctx)\n"
        text = head + text.replace("int on_spawn_return(struct pt_regs *ctx)\n", "RETURN\n")
    probe.write_text(text)
    words = ("run", str(probe), "--pid", str(stock.pid), "--duration", "0", "--format", "jsonl")
    run = Run([*LIMITED, *SCOPE_TRACE, *words], None)
    try:
        run.wait_for_counting()
        assert 23 == stock.plant("spawns 23")
        outcome = run.stop()
    finally:
        run.close()
    assert 0 == outcome.code, outcome.errors
    assert [{"count": "spawned", "all": 0, "n": 23}] == outcome.lines
    reported = "cost: not known" if by_macro else "cost: 46 hits, at least 0.0"
    assert reported in outcome.errors
