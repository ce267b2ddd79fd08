# SPDX-License-Identifier: Apache-2.0
"""
How long the VM's threads wait for a CPU, beside bpftrace that measures the same threads.
"""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import subprocess
import time

import beams_run
import numpy as np
import pytest
from test_daemon_threads import hogs, watch

from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.beam.vm.threads import ROLES, threads
from scope_ebpf.daemon.readings.threads import WatchedThreads

__all__ = ["watch"]

NORMAL = ROLES.index("normal")
#: Waits that are counted before the two are compared.
ENOUGH = 1000
#: The part of all waits that may lie in another slot: those under way when one of the two was read
#: and the other was not, and those at a slot's edge, since each reads the clock for itself.
TOLERANCE = 0.1
#: Runs a program where the kernel's tracepoints are listed; without systemd nobody mounts that.
WITH_TRACEFS = (
    *("unshare", "--mount", "sh", "-c"),
    'test -e "$0/events" || mount -t tracefs tracefs "$0" && exec "$@"',
    "/sys/kernel/tracing",
)
#: As runqlat: from the moment when a thread is woken, or loses its CPU while it can run.
PROGRAM = """
tracepoint:sched:sched_wakeup /@wanted[args->pid]/ {
  if (!@since[args->pid]) { @since[args->pid] = nsecs; }
}
tracepoint:sched:sched_switch {
  if (@wanted[args->prev_pid] && (args->prev_state & 0xff) == 0) {
    @since[args->prev_pid] = nsecs;
  }
  if (@wanted[args->next_pid]) {
    if (@since[args->next_pid]) { @waits = hist(nsecs - @since[args->next_pid]); }
    delete(@since[args->next_pid]);
  }
}
"""


@contextlib.contextmanager
def bpftrace(tids: list[int]):
    """
    bpftrace measuring the threads *tids*; gives a function that ends it and says its histogram.
    """
    beams_run.require(shutil.which("bpftrace"), "bpftrace is not installed")
    wanted = " ".join(f"@wanted[{tid}] = 1;" for tid in tids)
    begin = f'BEGIN {{ {wanted} printf("began\\n"); }}'
    program = ["bpftrace", "-f", "json", "-e", begin + PROGRAM]
    process = subprocess.Popen([*WITH_TRACEFS, *program], stdout=subprocess.PIPE, text=True)

    def end() -> dict[int, int]:
        process.send_signal(2)
        said, _ = process.communicate(timeout=60)
        slots: dict[int, int] = {}
        for line in filter(None, map(str.strip, said.splitlines())):
            reported = json.loads(line)
            if reported.get("type") == "hist" and "@waits" in reported["data"]:
                for bucket in reported["data"]["@waits"]:
                    slots[max(0, bucket.get("min", 0)).bit_length() - 1] = bucket["count"]
        return slots

    try:
        assert select.select([process.stdout], [], [], 60)[0], "bpftrace does not begin"
        for line in process.stdout:
            if "began" in line:
                break
        yield end
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def test_waits_beside_hogs_agree_with_runqlat(watch):
    """
    With a hog on each CPU the histogram moves up, and slot by slot it is the one of bpftrace.
    """
    with beams_run.planted("stock25", "+S", "2:2") as beam:
        tids = [t.tid for t in threads(beam.pid) if t.role == "normal"]
        seen = WatchedThreads(watch, inspect(beam.pid), watch.add())
        beam.send("storm pingpong 2")
        beam.expect("storming")

        def slots() -> np.ndarray:
            seen.tick()
            return seen.totals[NORMAL]["slots"].astype(int)

        with hogs(), bpftrace(tids) as end:
            before = slots()
            deadline = time.monotonic() + 60
            while (slots() - before).sum() < ENOUGH and time.monotonic() < deadline:
                select.select([], [], [], 0.05)  # until more waits are over
            ours = slots() - before
            theirs = np.zeros(len(ours), int)
            for slot, count in end().items():
                theirs[slot] = count
        assert beam.ask("stop").startswith("done storm")
        seen.close()
    assert ours.sum() >= ENOUGH, "the schedulers hardly ever waited"
    assert theirs.sum() == pytest.approx(ours.sum(), rel=TOLERANCE)
    assert np.abs(ours - theirs).sum() <= 2 * TOLERANCE * ours.sum(), (ours, theirs)
    # A hog has a slice of milliseconds: waits of more than 1 ms are there that an idle CPU has not.
    assert ours[20:].sum() > 0.01 * ours.sum(), ours
