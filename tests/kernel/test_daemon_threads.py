# SPDX-License-Identifier: Apache-2.0
"""
The VM's threads as the kernel schedules them, held against the kernel's own books.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import beams_run

from scope_ebpf import events
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.beam.vm.scheduler_addresses import SchedulerAddresses, SchedulerFinder
from scope_ebpf.beam.vm.threads import ROLES, threads
from scope_ebpf.cgroups import Throttling
from scope_ebpf.daemon.readings.threads import WatchedThreads
from scope_ebpf.errors import HostError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.observers.thread_watch import ThreadWatch
from scope_ebpf.runs.check import check

if TYPE_CHECKING:
    import numpy as np

    from scope_ebpf.metrics.reading import NifReading
    from scope_ebpf.results.check import Check

NORMAL = ROLES.index("normal")
#: Standard errors by which what is sampled may be off.
SIGMAS = 5
PATIENCE = beams_run.PATIENCE


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
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def look(seen: WatchedThreads, pid: int) -> tuple[tuple[tuple[float, float, int], ...], np.void]:
    """
    The kernel's accounting before and after the reading, and the reading; hogs make it slow.
    """
    before = books(pid)
    seen.tick()
    return (before, books(pid)), seen.totals[NORMAL].copy()


def test_waits_beside_a_hog_agree_with_schedstat(watch):
    """
    With a hog on each CPU the schedulers wait in the run queue, as long as schedstat says.
    """
    with beams_run.planted("stock25", "+S", "2:2") as beam:
        seen = WatchedThreads(watch, inspect(beam.pid), watch.add())
        beam.send("storm pingpong 2")
        beam.expect("storming")
        with hogs():
            first, ours = look(seen, beam.pid)
            while books(beam.pid)[1] - first[1][1] < 3.0:
                os.sched_yield()
            last, now = look(seen, beam.pid)
        assert beam.ask("stop").startswith("done storm")
        limited = Throttling(beam.pid).read()
        if limited is None or not limited.throttled:  # the tests themselves may have a quota
            assert int(now["off_ns"][events.OFF_REASONS.index("throttled")]) == 0
        waited = (int(now["waited_ns"]) - int(ours["waited_ns"])) / 1e9
        counted = int(now["slots"].sum() - ours["slots"].sum())
        # At least from the second look of the first to the first of the second, at most between
        # the others; what is under way at the edges is small beside it.
        least, most = ((last[n][1] - first[1 - n][1], last[n][2] - first[1 - n][2]) for n in (0, 1))
        assert 0.9 * least[0] <= waited <= 1.1 * most[0]
        assert 0.95 * least[1] - 4 <= counted <= 1.05 * most[1] + 4
        seen.close()


def test_the_number_of_a_target_is_free_again_though_the_kernel_refuses(watch, monkeypatch):
    """
    A map that cannot be read when a target goes costs no later target its number.
    """

    def refused(_: int) -> None:
        raise HostError("cannot read the map nifs")

    free = len(watch._free)
    target = watch.add()
    with monkeypatch.context() as patched:
        patched.setattr(watch, "_native_keys", refused)
        with pytest.raises(HostError):
            watch.remove(target)
    assert free == len(watch._free)
    assert target not in watch._targets


def test_time_off_the_cpu_has_a_reason(watch):
    """
    A VM that waits for its next command is idle; time on and off adds up to the time there was.
    """
    with beams_run.planted("stock25", "+S", "1:1", "+sbwt", "none") as beam:
        seen = WatchedThreads(watch, inspect(beam.pid), watch.add())
        _, _, before = books(beam.pid)
        for _ in range(20):
            beam.plant("messages 2000")
        turns = books(beam.pid)[2] - before
        seen.tick()
        off = dict(zip(events.OFF_REASONS, seen.totals["off_ns"][NORMAL].tolist(), strict=True))
        assert off["idle"] > off["blocked"]
        assert int(seen.totals["on_ns"][NORMAL]) > 0
        # The last turn on a CPU may still last.
        assert 1 < turns <= int(seen.totals["switches"][NORMAL]) + 1
        seen.close()


def test_a_thread_that_never_wakes_is_idle_all_the_time(watch):
    """
    Unused dirty schedulers are idle while they sleep, not only once they have woken.
    """
    with beams_run.planted("stock25", "+S", "1:1", "+SDio", "7") as beam:
        dirty = ROLES.index("dirty_io")
        beam.plant("messages 23")
        first = time.monotonic()
        seen = WatchedThreads(watch, inspect(beam.pid), watch.add())
        begun, before = time.monotonic(), seen.totals[dirty].copy()
        select.select([], [], [], 1.0)  # time passes
        last = time.monotonic()
        seen.tick()
        idle = (int(seen.totals["off_ns"][dirty, 0]) - int(before["off_ns"][0])) / 1e9
        assert 0.9 * 7 * (last - begun) <= idle <= 7 * (time.monotonic() - first)
        seen.close()


def test_tracepoints_may_be_detached_for_a_while(watch):
    """
    While they are nothing is counted, and time goes on as it went; it is counted again after that,
    of those that sleep all the time, too: in all each thread has as much time as there was.
    """
    with beams_run.planted("stock25", "+S", "2:2", "+SDio", "7") as beam:
        dirty = ROLES.index("dirty_io")
        beam.send("storm pingpong 2")
        beam.expect("storming")
        seen = WatchedThreads(watch, inspect(beam.pid), watch.add())

        def pass_time(seconds: float) -> None:
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                select.select([], [], [], 0.25)
                seen.tick()

        pass_time(1.0)  # until each has been switched
        began, before = time.monotonic(), seen.totals.copy()
        pass_time(2.0)
        watch.pause()
        counted = watch.totals(0)["switches"].copy()
        pass_time(2.0)
        assert counted.tolist() == watch.totals(0)["switches"].tolist()
        assert watch.resume()
        assert not watch.resume()
        seen.resumed()
        pass_time(2.0)
        passed = time.monotonic() - began
        assert beam.ask("stop").startswith("done storm")
        for kind, number in ((NORMAL, 2), (dirty, 7)):
            on = int(seen.totals["on_ns"][kind]) - int(before["on_ns"][kind])
            off = int(seen.totals["off_ns"][kind].sum()) - int(before["off_ns"][kind].sum())
            assert (on + off) / 1e9 == pytest.approx(number * passed, rel=0.1)
        assert (watch.totals(0)["switches"] > counted).any()
        seen.close()


def test_a_thread_that_is_never_switched_has_its_time_too(watch):
    """
    A scheduler that is not preempted was not seen to get its CPU, but is on it.
    """
    with beams_run.planted("stock25", "+S", "1:1") as beam:
        tid = next(thread.tid for thread in threads(beam.pid) if thread.role == "normal")
        beam.send("storm pingpong 1")
        beam.expect("storming")
        seen = WatchedThreads(watch, inspect(beam.pid), watch.add())
        os.sched_setscheduler(tid, os.SCHED_FIFO, os.sched_param(1))
        watch.pause()
        assert watch.resume()
        seen.resumed()
        before, first = int(seen.totals["on_ns"][NORMAL]), books(beam.pid)[0]
        while books(beam.pid)[0] - first < 0.5:
            select.select([], [], [], 0.05)  # time passes
        least = books(beam.pid)[0] - first
        seen.tick()
        os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))
        assert beam.ask("stop").startswith("done storm")
        assert (int(seen.totals["on_ns"][NORMAL]) - before) / 1e9 >= least - 0.1
        seen.close()


def test_an_open_interval_is_counted_once(watch):
    """
    Looked at all the time, schedulers that are switched all the time have as much as there is.
    """
    with beams_run.planted("stock25", "+S", "2:2") as beam:
        place, watched = watch.add(), time.monotonic_ns()
        seen = WatchedThreads(watch, inspect(beam.pid), place)
        beam.send("storm pingpong 2")
        beam.expect("storming")
        first = time.monotonic()
        seen.tick()
        began = last = time.monotonic()
        before = seen.totals[NORMAL].copy()
        while last < began + 3:
            last = time.monotonic()
            seen.tick()
            raw = watch.totals(place)[NORMAL]
            reported = int(raw["on_ns"]) + int(raw["off_ns"].sum())
            assert reported <= 2 * (time.monotonic_ns() - watched)
        now, ended = seen.totals[NORMAL], time.monotonic()
        assert beam.ask("stop").startswith("done storm")
        both = [int(now[name].sum()) - int(before[name].sum()) for name in ("on_ns", "off_ns")]
        # At least from after the first look to before the last, at most with what they took.
        assert 0.97 * 2 * (last - began) <= sum(both) / 1e9 <= 1.03 * 2 * (ended - first)
        seen.close()


def test_a_slot_that_is_used_again_begins_at_zero(watch):
    """
    The next target in a slot does not inherit the totals of the one before.
    """
    places = []
    for _ in range(2):
        with beams_run.planted("stock25", "+S", "1:1") as beam:
            places.append(watch.add())
            seen = WatchedThreads(watch, inspect(beam.pid), places[-1])
            before = watch.totals(places[-1])
            assert len(before) == events.THREAD_TYPES
            beam.plant("messages 2000")
            seen.tick()
            assert int(seen.totals["switches"].sum()) > 0
            seen.close()
        for _ in range(63):
            watch.remove(watch.add())
    assert places[0] == places[1]


class Spins(NamedTuple):
    """
    Of normal schedulers: samples, busy ones among them, CPU seconds, those without work as the VM
    says, and those at work as we say. What a check finds.
    """

    samples: int
    busy: int
    cpu: float
    spun: float
    worked: float
    verdict: Check | None

    def spread(self) -> float:
        """
        By how much the share of busy samples may be off, in all but one of a million cases.
        """
        share = min(max(self.busy / self.samples, 1 / self.samples), 1 - 1 / self.samples)
        return SIGMAS * math.sqrt(share * (1 - share) / self.samples)


def spins(watch, kind: str, enough: int, *options: str) -> Spins:
    """
    What a VM that is woken each millisecond does, until there are *enough* samples of it.
    """
    with beams_run.start_beam(kind, "+S", "2:2", *options, "-s", "witness") as beam:
        beam.expect("ready")
        beam.favour()  # beside hogs, who spins is hardly ever on a CPU
        seen, began = WatchedThreads(watch, inspect(beam.pid), watch.add()), time.monotonic()
        first, before = books(beam.pid)[0], seen.totals[NORMAL].copy()
        spun, worked = seen.accounting.sampled.busy_wait[0], 0.0
        deadline = time.monotonic() + PATIENCE
        while (samples := int(seen.totals[NORMAL]["samples"] - before["samples"])) < enough:
            assert time.monotonic() < deadline, f"{samples} samples only"
            worked += int(beam.ask("flicker 1000").partition("worked=")[2]) / 1e6
            seen.tick()
        ours = seen.accounting.sampled.working * (time.monotonic() - began)
        cpu = books(beam.pid)[0] - first
        busy = int(seen.totals[NORMAL]["busy_waits"] - before["busy_waits"])
        reported = seen.accounting.sampled.busy_wait[0] - spun
        assert reported == pytest.approx(busy / events.SAMPLE_HZ)
        seen.close()
        beam.ask("tick 20")
        found = None if "none" in options or kind == "trixie27" else verdict(beam)
    return Spins(samples, busy, cpu, cpu - worked, ours, found)


def verdict(beam: beams_run.Beam) -> Check | None:
    """
    A check of the VM: the first one that finds busy waiting; None where the host gives the VM no
    half of a CPU, which is not enough for it.
    """
    deadline, most = time.monotonic() + PATIENCE, 0.0
    while time.monotonic() < deadline:
        used, began = books(beam.pid)[0], time.monotonic()
        found = check(inspect(beam.pid), 1.5)
        if "busy_wait" in [one.kind for one in found.findings]:
            return found
        most = (books(beam.pid)[0] - used) / (time.monotonic() - began)
        if most < 0.6:
            return None
    raise AssertionError(f"{most} CPUs, but {found.verdict()}")


@pytest.mark.parametrize("kind", ["stock25", "trixie27", "sid29"])
def test_busy_waiting_is_distinguished_from_work(watch, kind):
    """
    Schedulers that spin for long are on a CPU without work, as scheduler_wall_time says they are.
    """
    found = spins(watch, kind, 200, "+sbwt", "very_long")
    theirs = found.spun / found.cpu
    assert theirs > 0.5
    # What is neither work nor waiting is the way into the system call that sleeps, and back.
    assert found.busy / found.samples == pytest.approx(theirs, abs=found.spread() + 0.1)
    # Utilization leaves out the waiting.
    work = found.cpu - found.spun
    assert found.worked == pytest.approx(work, abs=(found.spread() + 0.1) * found.cpu)
    assert found.worked < 0.6 * found.cpu
    if found.verdict:
        (first, *_) = found.verdict.sorted()
        assert ("busy_wait", "warning") == (first.kind, first.severity)
        assert first.evidence["share"] >= 0.3
    # Each sample stands for the same time.
    near = SIGMAS * math.sqrt(found.samples)
    assert found.samples == pytest.approx(
        found.cpu * events.SAMPLE_HZ, abs=near + 0.05 * found.samples
    )


def test_without_busy_waiting_there_is_none(watch):
    """
    The same work is hardly ever taken for busy waiting where the VM does not spin.
    """
    found = spins(watch, "stock25", 12, "+sbwt", "none")
    assert found.busy / found.samples < 0.5


def test_a_scheduler_that_is_not_found_has_no_busy_waiting(watch, monkeypatch):
    """
    Of a type with a scheduler that is not found nothing is reported, rather than no busy waiting;
    and once it is found, what it does.
    """
    find = SchedulerFinder.find
    hidden = {("normal", 2), ("dirty_io", 1)}

    def seldom(places: SchedulerFinder, role: str, number: int) -> SchedulerAddresses | None:
        return None if (role, number) in hidden else find(places, role, number)

    monkeypatch.setattr(SchedulerFinder, "find", seldom)
    with beams_run.start_beam("stock25", "+S", "2:2", "-s", "witness") as beam:
        beam.expect("ready")
        seen = WatchedThreads(watch, inspect(beam.pid), watch.add())
        assert [None, True, None] == [
            reported if reported is None else True for reported in seen.accounting.sampled.busy_wait
        ]
        hidden.clear()
        seen.tick()
        assert None not in seen.accounting.sampled.busy_wait
        seen.close()


@pytest.fixture(scope="module")
def spinning(tmp_path_factory):
    """
    A VM with native functions that compute for a given time.
    """
    beams_run.require(os.geteuid() == 0, "attaching BPF programs takes root")
    env = beams_run.native_functions(tmp_path_factory.mktemp("nif"))
    with beams_run.start_beam("stock25", "+S", "2:2", "-s", "witness", env=env) as beam:
        beam.expect("ready")
        beam.favour()  # two samples find a long call only if it keeps its CPU
        yield beam


def natives(seen: WatchedThreads, kind: str) -> NifReading:
    """
    The figures of a native function now.
    """
    for _ in range(10):
        seen.tick()
    return seen.accounting.sampled.nifs[f"names_nif:{kind}/1"]


@pytest.mark.parametrize("kind", ["spin", "dirty_spin"])
def test_long_native_calls_have_their_name(watch, spinning, kind):
    """
    7 calls of 500 ms are 7 long calls and 3.5 s of CPU under their name; short ones are none.

    A virtual machine may be halted for 100 ms and more by its host, which it does not notice.
    """
    seen = WatchedThreads(watch, inspect(spinning.pid), watch.add())
    assert spinning.ask(f"spin {kind} 7 500") == "done spin 7"
    long = natives(seen, kind)
    assert spinning.ask(f"spin {kind} 600 1") == "done spin 600"
    found = natives(seen, kind)
    seen.close()
    assert long.long_calls == 7
    assert found.long_calls <= 9  # a halt makes a short one long
    assert found.seconds == pytest.approx(7 * 0.5 + 600 * 0.001, rel=0.25)


@contextlib.contextmanager
def quota(pid: int, share: float):
    """
    A cgroup of its own for a process, which may use *share* of a CPU.
    """
    first, second = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    folder = (first if first.is_dir() else second) / f"scope-test-{pid}"
    if not first.is_dir():
        (second / "cgroup.subtree_control").write_text("+cpu")
    folder.mkdir()
    try:
        if first.is_dir():
            (folder / "cpu.cfs_period_us").write_text("100000")
            (folder / "cpu.cfs_quota_us").write_text(str(int(100_000 * share)))
        else:
            (folder / "cpu.max").write_text(f"{int(100_000 * share)} 100000")
        (folder / "cgroup.procs").write_text(str(pid))
        yield folder
    finally:
        (folder.parent / "cgroup.procs").write_text(str(pid))
        folder.rmdir()


def times_throttled(folder: Path) -> int:
    """
    Number of periods in which the kernel has throttled a cgroup.
    """
    stat = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    return int(stat["nr_throttled"])


def test_an_exhausted_cpu_quota_throttles(watch):
    """
    Two schedulers that may use half a CPU are kept from running for most of the time.
    """
    with beams_run.planted("stock25", "+S", "2:2") as beam, quota(beam.pid, 0.5) as folder:
        seen = WatchedThreads(watch, inspect(beam.pid), watch.add())
        throttling = Throttling(beam.pid)
        beam.send("storm pingpong 2")
        beam.expect("storming")
        while (read := throttling.read()) is None or read.throttled < 10:
            select.select([], [], [], 0.05)  # half a period
        assert beam.ask("stop").startswith("done storm")
        seen.tick()
        off = dict(zip(events.OFF_REASONS, seen.totals["off_ns"][NORMAL].tolist(), strict=True))
        # The kernel's is by CPU, ours by thread; no more than one of them can be on a CPU.
        assert off["throttled"] / 1e9 > 0.3 * read.seconds > 0
        assert read.throttled <= read.periods
        before = times_throttled(folder)
        assert before <= throttling.read().throttled <= times_throttled(folder)
        seen.close()


def test_a_thread_that_wakes_while_throttled_does_not_wait_for_a_cpu(watch):
    """
    Hogs use up the quota of a VM that sleeps: what it waits for when it wakes is no CPU.

    Since Linux 6.18 it is given a CPU and throttled on its way out of the kernel.
    """
    with beams_run.start_beam("stock25", "+S", "1:1", "+sbwt", "none", "-s", "witness") as beam:
        beam.expect("ready")
        beam.favour()  # what it waits for is not that others run
        with quota(beam.pid, 0.1) as folder, hogs() as running:
            for hog in running:
                (folder / "cgroup.procs").write_text(str(hog.pid))
            seen = WatchedThreads(watch, inspect(beam.pid), watch.add())
            before = seen.totals[NORMAL].copy()
            beam.ask("flicker 3000")
            seen.tick()
            off = seen.totals["off_ns"][NORMAL] - before["off_ns"]
        found = dict(zip(events.OFF_REASONS, off.tolist(), strict=True))
        assert found["throttled"] > 1e9
        assert found["throttled"] > found["queued"] + found["preempted"]
        waited = seen.totals["waited_ns"][NORMAL] - before["waited_ns"]
        assert int(waited) == found["queued"] + found["preempted"]
        seen.close()


def test_page_faults_are_those_of_the_threads(watch):
    """
    A collection of fresh memory faults on schedulers, and all types together are the process's own.
    """
    with beams_run.start_beam("stock25", "+S", "2:2", "-s", "witness") as beam:
        beam.expect("ready")
        seen = WatchedThreads(watch, inspect(beam.pid), watch.add())
        before = seen.accounting.minor[NORMAL]
        assert beam.ask("hold 20") == "done hold 20"
        for _ in range(10):
            seen.tick()
        fields = Path(f"/proc/{beam.pid}/stat").read_text().rpartition(")")[2].split()
        assert seen.accounting.minor[NORMAL] - before > (20 << 20) / 4096
        assert sum(seen.accounting.minor) == pytest.approx(int(fields[7]), abs=200)
        seen.close()
