# SPDX-License-Identifier: Apache-2.0
"""
What a profile's timer takes from a scheduler that never rests.

A VM with one scheduler, which stays on one CPU. Between slices only the timer changes: whether it
runs, and how fast. What it takes is measured by two independent methods:

gaps   A native function looks at the CPU's time stamps without pause and adds up what is missing
       between them: interrupts. Slices at 99 Hz beside slices without, in turns (on off off on).
       That is the time itself, so a busy machine hardly disturbs it, but not what comes after an
       interrupt, in caches that are colder.
slope  Work of Erlang code (reductions) for each second of the thread's clock, which goes on in
       interrupts, over ticks per second, with the timer up to fifty times as fast. That is all that
       a tick takes, and large enough to be seen; it is scaled to 99 Hz.
"""

from __future__ import annotations

import fcntl
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
import numpy as np

from scope_ebpf.beam.stacks.sampling import sample_settings, scheduler_threads
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.beam.vm.threads import threads
from scope_ebpf.kernel.attach import perf_events
from scope_ebpf.kernel.observers.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

    Floats = NDArray[np.float64]

ROOT = Path(__file__).parents[1]
HZ = 99
#: Pairs of slices for the gaps, and milliseconds of a slice.
_PAIRS, _MILLISECONDS = 120, 200
#: Rounds of all rates (ticks a second) for the slope, and seconds of each slice.
_ROUNDS, _SLICE, _RATES = 500, 0.02, (0, 10_000, 20_000)
#: Clock and work are read within this time, ns; the clock asks the thread's CPU for it.
_TOGETHER = 50_000
#: Erlang frames of its process, which are copied with each sample.
_DEPTH = 300
#: Seconds of two profiles.
_LENGTHS = (5, 25)
#: PERF_EVENT_IOC_ENABLE and _DISABLE, _IO('$', 0) and _IO('$', 1).
_ENABLE, _DISABLE = 0x2400, 0x2401
#: What the kernel may change by itself if sampling takes too long.
_LIMITS = ("perf_event_max_sample_rate", "perf_cpu_time_max_percent")


class Timer(Sampler):
    """A sampler whose timers are turned on and off, and whose rate is set."""

    def rate(self, ticks: int) -> None:
        """Set the rate of every CPU's timer, ticks a second; 0 stops it."""
        list(self.records())
        for fd in self._timers:
            fcntl.ioctl(fd, _ENABLE if ticks else _DISABLE, 0)
            if ticks:
                perf_events.set_period(fd, round(1e9 / ticks))

    def usual(self) -> int:
        """Ticks a second of a profile with the default rate."""
        return round(1e9 / self._tick)


class Bench:
    """One VM with one scheduler on one CPU, and the timer."""

    def __init__(self, beam: beams_run.Beam, target: Target, timer: Timer) -> None:
        self.beam = beam
        self.timer = timer
        self._memory = target.memory
        self._reductions = int(CounterReader(target).addresses()["reductions"][0])
        (tid,) = (thread.tid for thread in threads(target.pid) if thread.role == "normal")
        *others, self._cpu = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(tid, {self._cpu})
        os.sched_setaffinity(0, set(others) or {self._cpu})
        # To the nanosecond: the clock of clock_gettime is brought up to date by ticks.
        clock = perf_events.Attributes(
            type=perf_events.TYPE_SOFTWARE, config=perf_events.SW_TASK_CLOCK
        )
        self._clock = perf_events.perf_event_open(clock, pid=tid)

    def gaps(self, ticks: int) -> tuple[int, float, float]:
        """Number of gaps at a rate of ticks a second, their seconds, and all seconds."""
        self.timer.rate(ticks)
        answer = self.beam.ask(f"gaps {_MILLISECONDS} {_DEPTH}").split()[2:]
        return int(answer[0]), int(answer[1]) / 1e9, int(answer[2]) / 1e9

    def speed(self, ticks: int) -> float | None:
        """Work for each second on the CPU; None if the thread hardly ran."""
        self.timer.rate(ticks)
        cpu, work = self._now()
        time.sleep(_SLICE)
        cpu_after, work_after = self._now()
        used = cpu_after - cpu
        return (work_after - work) / used if used > _SLICE / 4 else None

    def _now(self) -> tuple[float, int]:
        """Clock and work, read together."""
        while True:
            began = time.monotonic_ns()
            before = os.read(self._clock, 8)
            work = self._memory.u64(self._reductions)
            after = os.read(self._clock, 8)
            if time.monotonic_ns() - began < _TOGETHER:
                return sum(int.from_bytes(t, "little") for t in (before, after)) / 2e9, work

    def interrupts(self) -> int:
        """Interrupts of the CPU's timer since it runs, whatever they were for."""
        lines = Path("/proc/interrupts").read_text().splitlines()
        column = lines[0].split().index(f"CPU{self._cpu}")
        (local,) = (line for line in lines if line.lstrip().startswith("LOC:"))
        return int(local.split()[column + 1])


@contextmanager
def bench() -> Iterator[Bench]:
    """A VM, and a timer that has not begun."""
    limits = _limits()
    source = beams_run.WORKLOADS / "gaps_nif.c"
    include = next(Path("/usr/lib/erlang").glob("erts-*/include"))
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/gaps_nif"
        command = ["gcc", "-O2", "-shared", "-fPIC", f"-I{include}", "-o", f"{library}.so"]
        subprocess.run([*command, str(source)], check=True)
        environment = {"GAPS_NIF": library}
        with beams_run.start_beam("stock25", "+S", "1:1", "-s", "gaps", env=environment) as beam:
            beam.expect("ready")
            target = inspect(beam.pid)
            with Timer(target.identity, sample_settings(target), HZ) as timer:
                timer.add_schedulers(scheduler_threads(target))
                own = Bench(beam, target, timer)
                timer.start()
                yield own
                timer.stop()
                counts = timer.counts()
    print(f"  {counts['taken']:,} samples were taken, {counts['lost']:,} found no room")
    assert limits == _limits(), "the kernel changed its limits of sampling meanwhile"


def _limits() -> list[str]:
    return [Path(f"/proc/sys/kernel/{name}").read_text().strip() for name in _LIMITS]


def gaps(own: Bench) -> None:
    """Print what interrupts take more with a profile."""
    rows = []
    own.gaps(0)
    usual = own.timer.usual()
    for number in range(_PAIRS):
        order = (usual, 0) if number % 2 else (0, usual)
        rows.append({rate: own.gaps(rate) for rate in order})
    found = np.array([(row[usual], row[0]) for row in rows])  # pairs x on, off x 3
    rate = found[:, :, 0] / found[:, :, 2]
    share = found[:, :, 1] / found[:, :, 2]
    more = share[:, 0] - share[:, 1]
    ticks = float(np.median(rate[:, 0] - rate[:, 1]))
    middle, low, high = bootstrap(more, trimmed)
    print(
        f"  gaps: {_PAIRS} pairs of {_MILLISECONDS} ms: {_percent(middle, low, high)} of the time "
        f"more with a profile at {HZ} Hz, for {ticks:.0f} interrupts more a second, "
        f"{1e6 * middle / ticks:.1f} us each; without it {trimmed(share[:, 1]):.3%} for "
        f"{np.median(rate[:, 1]):.0f}, "
        f"{1e6 * trimmed(share[:, 1]) / float(np.median(rate[:, 1])):.1f} us each",
        flush=True,
    )


def slope(own: Bench) -> None:
    """Print what one tick costs, from lost work over ticks a second."""
    seconds = round(len(_RATES) * _ROUNDS * (_SLICE + 0.005) * 1.5) + 5
    own.beam.send(f"work {seconds} {_DEPTH}")
    _check_rate(own)
    began = time.monotonic()
    rounds: list[list[float]] = []
    while len(rounds) < _ROUNDS and time.monotonic() - began < seconds - 3:
        found = {rate: own.speed(rate) for rate in random.sample(_RATES, len(_RATES))}
        whole = [speed for rate in _RATES if (speed := found[rate]) is not None]
        if len(whole) == len(_RATES):
            rounds.append(whole)
    own.timer.rate(0)
    speeds = np.array(rounds, np.float64)
    for column, rate in enumerate(_RATES[1:], 1):
        pair = speeds[:, [0, column]]
        middle, low, high = bootstrap(pair, _lost)
        each = [1e6 * value / rate for value in (middle, low, high)]
        scaled = [value * own.timer.usual() / rate for value in (middle, low, high)]
        print(
            f"  slope: {len(pair)} pairs of {_SLICE} s at {rate:,} ticks a second: work lost "
            f"{_percent(middle, low, high)}: {each[0]:.2f} us a tick [{each[1]:.2f} .. "
            f"{each[2]:.2f}], so at {HZ} Hz ({own.timer.usual()} ticks) {_percent(*scaled)}",
            flush=True,
        )
    own.beam.readline(timeout=60 + seconds)


def _check_rate(own: Bench) -> None:
    """The timer ticks at the rate that was set; /proc/interrupts is the witness."""
    fastest = _RATES[-1]
    own.timer.rate(fastest)
    before, began = own.interrupts(), time.monotonic()
    time.sleep(0.2)
    seen = (own.interrupts() - before) / (time.monotonic() - began)
    assert 0.9 < seen / fastest < 1.2, f"{seen:,.0f} interrupts a second, {fastest:,} asked for"


def _lost(speeds: Floats) -> float:
    """The share of work lost, of pairs: without, with."""
    return 1 - float(np.exp(trimmed(np.log(speeds[:, 1] / speeds[:, 0]))))


def trimmed(values: Floats) -> float:
    """The mean without the lowest and the highest tenth."""
    ordered = np.sort(values)
    cut = len(ordered) // 10
    return float(ordered[cut : len(ordered) - cut].mean())


def bootstrap(values: Floats, of: Callable[[Floats], float]) -> tuple[float, float, float]:
    """An estimate, and its 95 % interval from 2,000 samples drawn of its rows."""
    generator = np.random.default_rng(23)
    drawn = [of(values[generator.integers(0, len(values), len(values))]) for _ in range(2000)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return of(values), float(low), float(high)


def _percent(middle: float, low: float, high: float) -> str:
    return f"{middle:.3%} [{low:.3%} .. {high:.3%}]"


def timer_cost() -> None:
    """Print what the timer takes from a busy scheduler."""
    with bench() as own:
        print(f"cost: a scheduler that never rests, {_DEPTH} Erlang frames")
        gaps(own)
        slope(own)


def reader_cost() -> None:
    """
    Print what the profiler itself takes on other CPUs, as the kernel counted it when it ended.

    Two lengths separate the cost of each second from that of start and end.
    """
    with beams_run.start_beam("stock25", "-s", "split") as beam:
        beam.expect("ready")
        beam.send("run 120 4")
        used = [_reader_seconds(beam.pid, seconds) for seconds in _LENGTHS]
    short, long = _LENGTHS
    each = (used[1] - used[0]) / (long - short)
    print(
        f"cost: scope-trace's own CPU beside a VM of {os.cpu_count()} busy CPUs: {each:.3%} of a "
        f"CPU while it samples, and {used[0] - each * short:.2f} s to begin and end"
    )


def _reader_seconds(pid: int, seconds: int) -> float:
    command = [sys.executable, "-m", "scope_ebpf.cli.main", "profile", "--pid", str(pid)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [*command, "--duration", str(seconds), "-o", f"{folder}/out.folded"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
