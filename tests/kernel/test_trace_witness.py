# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager

import pytest
from beams_run import PATIENCE, require
from tracing import BREAKPOINT, Variant, bytes_at, trace, wait_until

from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.kernel.attach.uprobes import has_multi
from scope_ebpf.results.summary import fold
from scope_ebpf.sessions import open_session, plan_target

SPAWNS = 200_000
MESSAGES = 400_000
#: What bpftrace counts, and the name that its count has. All are functions of every stock build.
WITNESSED = {
    "erl_create_process": "spawn",
    "erts_do_exit_process": "exit",
    "erts_send_message": "send",
}
RECEIVE = re.compile(r"_Z23beam_jit_remove_message[A-Z].*")


def witnessed(pid: int) -> dict[str, str]:
    """
    The functions of this emulator by their whole names, and the event each stands for.
    """
    (receive,) = inspect(pid).binary.matching(RECEIVE)
    return {**WITNESSED, receive.name: "receive"}


@contextmanager
def bpftrace(pid: int):
    """
    bpftrace counting the same functions of the same process; yields a function that ends it and
    returns its counts.
    """
    require(shutil.which("bpftrace"), "bpftrace is not installed")
    target = inspect(pid)
    names = witnessed(pid)
    program = " ".join(
        f"uprobe:/proc/{pid}/exe:{name} /pid == {pid}/ {{ @{event} = count(); }}"
        for name, event in names.items()
    )
    process = subprocess.Popen(
        ["bpftrace", "-f", "json", "-e", program], stdout=subprocess.PIPE, text=True
    )
    addresses = [target.base + target.binary.symbol(name).address for name in names]
    try:
        wait_until(
            lambda: (
                process.poll() is not None or set(bytes_at(pid, addresses).values()) == {BREAKPOINT}
            ),
            "bpftrace's breakpoints",
        )
        assert process.poll() is None, "bpftrace ended"

        def end() -> dict[str, int]:
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=PATIENCE)[0].splitlines()
            lines = [json.loads(line) for line in said if line.strip()]
            maps = [line["data"] for line in lines if line.get("type") == "map"]
            return {name.removeprefix("@"): count for one in maps for name, count in one.items()}

        yield end
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("variant", ["stock", "usdt", "symbols-of-usdt"], indirect=True)
def test_half_a_million_events_are_counted_as_planted_and_as_bpftrace_counts_them(variant: Variant):
    """
    200,000 spawns and exits and 400,000 sends and receives are counted, none is lost, and bpftrace
    counts the same in the same run.
    """
    beam = variant.beam
    with bpftrace(beam.pid) as end_of_bpftrace:
        with trace(beam.pid, *variant.words("spawn,exit,send,receive")) as run:
            beam.plant(f"spawns {SPAWNS}")
            beam.plant(f"messages {MESSAGES}")
            outcome = run.stop()
        witness = end_of_bpftrace()
    counts = {name: event["count"] for name, event in outcome.events.items()}
    # Two command lines, each of which is received.
    planted = {"spawn": SPAWNS, "exit": SPAWNS, "send": MESSAGES, "receive": MESSAGES + 2}
    assert planted == counts
    assert planted == witness
    assert 0 == outcome.document["lost_total"]


@pytest.mark.parametrize("kind", ["stock25", "usdt25"])
def test_both_kinds_of_links_count_the_same(kind: str, vm):
    """
    A kernel without uprobe_multi counts by perf events what a newer one counts by one link.
    """
    beam = vm(kind)
    target = inspect(beam.pid)
    via = "usdt" if kind == "usdt25" else "symbol"
    wanted = ("spawn", "exit", "hibernate", "port_open")
    planned = plan_target(target, wanted, via)
    found = []
    for multi in {has_multi(), False}:
        with open_session(target, planned, multi=multi) as session:
            session.count(on=True)
            beam.plant("spawns 23")
            beam.plant("ports 29")
            session.count(on=False)
            session.detach()
            events = fold(planned.plan, session.tallies(), session.durations())
            assert [] == session.failures
            found.append({name: event.count for name, event in events.items()})
    expected = {"spawn": 23, "exit": 23, "hibernate": 0, "port_open": 29}
    assert [expected] * len(found) == found
