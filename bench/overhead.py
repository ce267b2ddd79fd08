# SPDX-License-Identifier: Apache-2.0
"""
What observing costs a VM at full load: throughput with and without, in turns, in one go.

    sudo .venv/bin/python bench/overhead.py [--rounds 5] [--seconds 3] [--loads ...] [--idle 15]

Each load runs in one VM. A round has four slices: without anything, with the daemon and its
defaults, with sends always traced (what the governor saves), and without again; every other round
has them backwards. Throughput is what was done per second of CPU that the VM used, so that other
work on the machine disturbs little; wall-clock throughput stands beside it. Ratios are taken within
each round; shown are their mean and its 95 % confidence interval. Daemon CPU includes that of
the process that holds its breakpoints. The defaults take about eight minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import beams_run
import psutil
from overhead_loads import LOADS, Load, named

from scope_ebpf.beam.constants import kernel_constants
from scope_ebpf.beam.discover import inspect
from scope_ebpf.kernel.cost import measure as measure_cost
from scope_ebpf.kernel.session import Session
from scope_ebpf.metrics.scaling import quantile
from scope_ebpf.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    Found = defaultdict[str, list[float]]

#: Seconds until the daemon has taken hot hooks out and got to know the VM, at least and at most: a
#: load that is not hot has no windows.
_AT_LEAST, _SETTLE = 5.0, 8.0


def cpu_seconds(pid: int) -> float:
    """The CPU clock of a process (clock_getcpuclockid)."""
    return time.clock_gettime((~pid << 3) | 2)


class Daemon:
    """A daemon with its defaults, that looks at one VM only."""

    def __init__(self, exe: str) -> None:
        self._port = beams_run.free_port()
        self._config = tempfile.NamedTemporaryFile("w", suffix=".toml")  # noqa: SIM115
        self._config.write(f"include_paths = ['^{exe}$']\nmin_age = 0\n")
        self._config.flush()
        command = [sys.executable, "-m", "scope_ebpf.cli.daemon", "--config", self._config.name]
        self.process = subprocess.Popen(
            [*command, "--listen", f"127.0.0.1:{self._port}"], stderr=subprocess.DEVNULL
        )

    def family(self) -> list[psutil.Process]:
        """The daemon, and what holds its breakpoints."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children()]

    def cpu(self) -> float:
        """Seconds of CPU of both."""
        return sum(cpu_seconds(process.pid) for process in self.family())

    def metric(self, name: str) -> float:
        """The first sample of a series."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(name + "{")).split()[-1])

    def settle(self) -> None:
        """Return when it has opened a few windows and some time after, or has had the time to."""
        deadline = time.monotonic() + 60
        since = None
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, StopIteration):
                windows = self.metric("scope_ebpf_windows_total")
                since = since or time.monotonic()
                passed = time.monotonic() - since
                if passed > (_AT_LEAST if windows >= 4 else _SETTLE):
                    return
            time.sleep(0.2)
        raise SystemExit("the daemon does not see the VM")

    def end(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self._config.close()


@contextlib.contextmanager
def with_daemon(load: Load, found: Found) -> Iterator[None]:
    daemon = Daemon(str(Path(f"/proc/{load.pid}/exe").readlink()))
    try:
        daemon.settle()
        own, target, hooks = daemon.cpu(), cpu_seconds(load.pid), _hooks(daemon)
        yield
        target = cpu_seconds(load.pid) - target
        found["daemon's own CPU, of the VM's"].append((daemon.cpu() - own) / target)
        found["hits x cost, of the VM's CPU"].append((_hooks(daemon) - hooks) / target)
    finally:
        daemon.end()


def _hooks(daemon: Daemon) -> float:
    return daemon.metric("scope_ebpf_hook_cpu_seconds_total")


@contextlib.contextmanager
def with_sends_traced(load: Load, found: Found) -> Iterator[None]:
    target = inspect(load.pid)
    settings, _ = kernel_constants(target)
    plan = make_plan(target.binary, target.flavor, ("send",))
    with Session(plan, load.pid, target.base, settings) as session:
        session.count(on=True)
        hits, used = session.hits(), cpu_seconds(load.pid)
        yield
        news = {program: count - hits[program] for program, count in session.hits().items()}
        used = cpu_seconds(load.pid) - used
        found["sends traced: hits x cost, of the VM's CPU"].append(_cost.total(news) / used)


@contextlib.contextmanager
def without(_load: Load, _found: Found) -> Iterator[None]:
    yield


WAYS = (("without", without), ("daemon", with_daemon), ("sends", with_sends_traced))
_cost = measure_cost()


def slice_of(load: Load, seconds: float) -> tuple[float, float]:
    """Work for each second of the VM's CPU, and for each second."""
    cpu, began = cpu_seconds(load.pid), time.monotonic()
    done = load.work(seconds)
    return done / (cpu_seconds(load.pid) - cpu), done / (time.monotonic() - began)


def measure(name: str, rounds: int, seconds: float) -> None:
    found: Found = defaultdict(list)
    with LOADS[name]() as load:
        slice_of(load, 2.0)
        for number in range(rounds):
            rates: dict[str, list[tuple[float, float]]] = defaultdict(list)
            order = [*WAYS, WAYS[0]]
            for way, context in order if number % 2 else reversed(order):
                with context(load, found):
                    rates[way].append(slice_of(load, seconds))
            first, last = rates["without"]
            for column, per in enumerate(("CPU second", "second")):
                base = (first[column] + last[column]) / 2
                found[f"without, first to last, per {per}"].append(last[column] / first[column])
                for way in ("daemon", "sends"):
                    found[f"{way} to without, per {per}"].append(rates[way][0][column] / base)
        print(f"\n{name}: {load.unit}, {rounds} rounds of 4 x {seconds:g} s")
    for label in sorted(found):
        print(f"  {label:46} {interval(found[label])}", flush=True)


def interval(values: list[float]) -> str:
    """Mean and 95 % confidence interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:9.2%}"
    off = quantile(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:9.2%}  [{mean - off:8.2%} .. {mean + off:8.2%}]"


def idle(seconds: float) -> None:
    """A VM that does nothing: what the daemon takes beside it."""
    with beams_run.planted("stock25", *named()) as beam:
        daemon = Daemon(str(Path(f"/proc/{beam.pid}/exe").readlink()))
        try:
            daemon.settle()
            cpu, began = daemon.cpu(), time.monotonic()
            memory = _memory(daemon)
            time.sleep(seconds)
            share = (daemon.cpu() - cpu) / (time.monotonic() - began)
            print(f"\nidle VM, {seconds:g} s: the daemon takes {share:.2%} of a core")
            print(f"  resident at first {memory}")
            print(f"  resident at last  {_memory(daemon)}")
        finally:
            daemon.end()


def _memory(daemon: Daemon) -> str:
    own, *others = [process.memory_info().rss / 1e6 for process in daemon.family()]
    return f"{own:.1f} MB, and {sum(others):.1f} MB of what holds its breakpoints"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each slice")
    parser.add_argument("--loads", nargs="*", default=list(LOADS), choices=list(LOADS))
    parser.add_argument("--idle", type=float, default=15.0, help="seconds; 0 leaves it out")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("attaching BPF programs takes root: sudo")
    if arguments.idle:
        idle(arguments.idle)
    for name in arguments.loads:
        measure(name, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
