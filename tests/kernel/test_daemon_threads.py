# SPDX-License-Identifier: Apache-2.0
"""
The VM's threads as the kernel schedules them, held against the kernel's own books.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import beams_run

from scope_ebpf import events
from scope_ebpf.beam.threads import ROLES, threads
from scope_ebpf.daemon.threads import WatchedThreads
from scope_ebpf.kernel import host
from scope_ebpf.kernel.tracepoints import TYPES, ThreadWatch

NORMAL = ROLES.index("normal")


@pytest.fixture
def watch():
    """
    The tracepoints, for one test.
    """
    beams_run.require(os.geteuid() == 0, "attaching BPF programs takes root")
    beams_run.require(host.pid_namespace() == (0, 0), "we are in a pid namespace of our own")
    attached = ThreadWatch()
    yield attached
    attached.close()


def books(pid: int) -> tuple[float, float, int]:
    """
    Seconds on a CPU and ready without one, and turns on a CPU, of the normal schedulers: schedstat.
    """
    rows = [
        Path(f"/proc/{pid}/task/{t.tid}/schedstat").read_text().split()
        for t in threads(pid)
        if t.role == "normal"
    ]
    on, waited, turns = (sum(int(row[place]) for row in rows) for place in range(3))
    return on / 1e9, waited / 1e9, turns


@contextlib.contextmanager
def hogs():
    """
    As many processes that never sleep as there are CPUs.
    """
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_waits_beside_a_hog_agree_with_the_kernels_books(watch):
    """
    With a hog on each CPU the schedulers wait in the run queue, as long as schedstat says.
    """
    with beams_run.planted("stock25", "+S", "2:2") as beam:
        seen = WatchedThreads(watch, beam.pid, watch.add())
        beam.send("storm pingpong 2")
        beam.expect("storming")
        with hogs():
            # From one figure to the next: what is under way at the edges is small beside it.
            seen.tick()
            first, ours = books(beam.pid), seen.totals[NORMAL].copy()
            while books(beam.pid)[1] - first[1] < 1.0:
                os.sched_yield()
            seen.tick()
            last, now = books(beam.pid), seen.totals[NORMAL].copy()
        assert beam.ask("stop").startswith("done storm")
        waited = (int(now["waited_ns"]) - int(ours["waited_ns"])) / 1e9
        assert waited == pytest.approx(last[1] - first[1], rel=0.1)
        counted = int(now["slots"].sum() - ours["slots"].sum())
        assert counted == pytest.approx(last[2] - first[2], abs=0.05 * (last[2] - first[2]) + 4)
        seen.close()


def test_what_is_off_the_cpu_is_off_for_a_reason(watch):
    """
    A VM that waits for its next command is idle; time on and off adds up to the time there was.
    """
    with beams_run.planted("stock25", "+S", "1:1") as beam:
        seen = WatchedThreads(watch, beam.pid, watch.add())
        for _ in range(20):
            beam.plant("messages 2000")
        seen.tick()
        off = dict(zip(events.OFF_REASONS, seen.totals["off_ns"][NORMAL].tolist(), strict=True))
        assert off["idle"] > off["blocked"]
        assert int(seen.totals["on_ns"][NORMAL]) > 0
        assert int(seen.totals["switches"][NORMAL]) >= 20
        seen.close()


def test_a_place_that_is_used_again_begins_at_nothing(watch):
    """
    The next target in a place does not inherit the totals of the one before.
    """
    places = []
    for _ in range(2):
        with beams_run.planted("stock25", "+S", "1:1") as beam:
            places.append(watch.add())
            seen = WatchedThreads(watch, beam.pid, places[-1])
            before = watch.totals(places[-1])
            assert len(before) == TYPES
            beam.plant("messages 2000")
            seen.tick()
            assert int(seen.totals["switches"].sum()) > 0
            seen.close()
        for _ in range(63):
            watch.remove(watch.add())
    assert places[0] == places[1]
