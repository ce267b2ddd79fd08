# SPDX-License-Identifier: Apache-2.0
"""
What observing costs a VM at full load: throughput with and without, in turns, in one go.

    sudo .venv/bin/python bench/overhead.py [--rounds 6] [--seconds 8]

Each load runs in one VM. Rounds alternate: without anything, with the daemon, and with all its
hooks always in (what the governor saves), in an order that is mixed for each round. Throughput is
what the VM counts itself, per second of CPU that the VM used, so that other work on the machine
disturbs little; the ratio is taken within each round, and the median of the rounds is shown.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import beams_run

from scope_ebpf.beam.constants import kernel_constants, known
from scope_ebpf.beam.counters import CounterReader
from scope_ebpf.beam.discover import inspect
from scope_ebpf.kernel.governed import GovernedSession
from scope_ebpf.kernel.uprobes import Attacher
from scope_ebpf.plan import DEFAULT_EVENTS, make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The load, and the counter of the VM that is its throughput.
LOADS = {
    "pingpong 4": "context_switches",
    "spawn 4": "spawned",
    "gc 4": "collections",
}
NAME = f"bench{os.getpid()}"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Meter:
    """Throughput of one VM, in events per second of its CPU."""

    def __init__(self, pid: int, counter: str) -> None:
        self.pid, self.counter = pid, counter
        self.reader = CounterReader(inspect(pid))

    def run(self, seconds: float) -> tuple[float, float]:
        """Events per CPU second, and CPUs used."""
        first, cpu, began = self._count(), cpu_seconds(self.pid), time.monotonic()
        time.sleep(seconds)
        events = (self._count() - first) % 2**32
        used = cpu_seconds(self.pid) - cpu
        return events / used, used / (time.monotonic() - began)

    def _count(self) -> int:
        return int(getattr(self.reader.read(), self.counter))


@contextlib.contextmanager
def with_daemon(pid: int, found: dict[str, list[float]]) -> Iterator[None]:
    """The daemon with its defaults, settled; what it used itself goes to *found*."""
    port = beams_run.free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(f'include_nodes = ["^{NAME}@"]\nmin_age = 0\nscan_interval = 1\n')
        config.flush()
        command = [sys.executable, "-m", "scope_ebpf.cli.daemon", "--config", config.name]
        process = subprocess.Popen(
            [*command, "--listen", f"127.0.0.1:{port}"], stderr=subprocess.DEVNULL
        )
        try:
            _settle(port)
            began, own, target = time.monotonic(), cpu_seconds(process.pid), cpu_seconds(pid)
            yield
            own = cpu_seconds(process.pid) - own
            target = cpu_seconds(pid) - target
            found["daemon, of the VM's CPU"].append(own / target)
            found["daemon, of a core"].append(own / (time.monotonic() - began))
            found["own estimate"].append(_metric(port, "scope_ebpf_overhead_ratio"))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _settle(port: int) -> None:
    """Wait until the daemon has taken hot hooks out and opened a few windows."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, StopIteration):
            if _metric(port, "scope_ebpf_windows_total") >= 4:
                return
        time.sleep(0.2)
    raise SystemExit("the daemon opened no windows within a minute")


def _metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(name + "{")).split()[-1])


@contextlib.contextmanager
def always(pid: int, found: dict[str, list[float]]) -> Iterator[None]:
    """Every hook in, all the time."""
    target = inspect(pid)
    settings, _ = kernel_constants(target)
    plan = make_plan(target.binary, target.flavor, DEFAULT_EVENTS, "auto", known(settings))
    with (
        Attacher() as attacher,
        GovernedSession(plan, pid, target.base, settings, attacher=attacher) as session,
    ):
        for item in plan.items:
            if item.attachments:
                session.attach(item.event)
                session.open_gate(item.event, None)
        hits = sum(session.hits().values())
        began = time.monotonic()
        yield
        passed = time.monotonic() - began
        found["hits/s, always on"].append((sum(session.hits().values()) - hits) / passed)


@contextlib.contextmanager
def nothing(_pid: int, _found: dict[str, list[float]]) -> Iterator[None]:
    """Nobody looks."""
    yield


WAYS = {"without": nothing, "daemon": with_daemon, "always": always}


def measure(load: str, rounds: int, seconds: float) -> None:
    port = str(beams_run.free_port())
    options = [
        *("-name", f"{NAME}@127.0.0.1", "-start_epmd", "false", "-erl_epmd_port", port),
        *("-kernel", "inet_dist_use_interface", "{127,0,0,1}", "+S", "2:2"),
    ]
    found: dict[str, list[float]] = {
        name: []
        for name in (
            "daemon, of the VM's CPU",
            "daemon, of a core",
            "own estimate",
            "hits/s, always on",
        )
    }
    lost: dict[str, list[float]] = {"daemon": [], "always": [], "without": []}
    with beams_run.planted("stock25", *options) as beam:
        meter = Meter(beam.pid, LOADS[load])
        beam.send(f"storm {load}")
        beam.expect("storming")
        meter.run(2.0)
        for _ in range(rounds):
            rates: dict[str, float] = {}
            # Without comes twice: how far the two differ is what the method cannot see.
            order = [*WAYS, "without"]
            random.shuffle(order)
            for way in order:
                with WAYS[way](beam.pid, found):
                    rate, _ = meter.run(seconds)
                if way == "without" and way in rates:
                    lost["without"].append(1 - rate / rates[way])
                    rates[way] = (rates[way] + rate) / 2
                else:
                    rates[way] = rate
            for way in ("daemon", "always"):
                lost[way].append(1 - rates[way] / rates["without"])
        beam.ask("stop")
    print(f"\n{load} ({LOADS[load]} per CPU second of the VM, {rounds} rounds of {seconds:g} s)")
    for way, values in lost.items():
        name = "without, twice" if way == "without" else f"lost with {way}"
        spread = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
        print(
            f"  {name:24} median {statistics.median(values):8.2%}"
            f"   quartiles {spread[0]:8.2%} {spread[2]:8.2%}"
        )
    for name, values in found.items():
        text = (
            f"{statistics.median(values):,.0f}"
            if "hits" in name
            else (f"{statistics.median(values):.2%}")
        )
        print(f"  {name:24} median {text:>8}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--loads", nargs="*", default=list(LOADS), choices=list(LOADS))
    arguments = parser.parse_args()
    for load in arguments.loads:
        measure(load, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
