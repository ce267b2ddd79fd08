# SPDX-License-Identifier: Apache-2.0
"""
The forecast of ``--exact`` for its cost to a VM, beside the actual cost.

    sudo .venv/bin/python bench/forecast.py [--rounds 3] [--seconds 3] [--loads ...]

Eight pairs pass messages on one scheduler; how much they rest and how much they compute between
their messages differs by the load. All costs are shares of the CPU that the VM uses. A line for
each run: the forecast, the summary's figure, and, as the witness, how much less was done in a
second of the VM's CPU than in the seconds before and after. The factor is that between forecast
and summary. Last, each load once more under the default ``--max-cost``:
when it ended by itself, in seconds.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import beams_run
import windows_run

from scope_ebpf.budget.reference_counters import cpu_clock

if TYPE_CHECKING:
    from beams_run import Beam

#: Round trips, work and milliseconds of rest, for each pair, again and again.
LOADS = {
    "light": "20 0 10",  # some 5 % of a CPU
    "half": "200 0 5",
    "computing": "1 100000 0",
    "mixed": "1 20000 0",
    "mostly messages": "1 4000 0",
    "saturating": "100 0 0",
}
_TRACE = (sys.executable, "-m", "scope_ebpf.cli.main")
_FORECAST = re.compile(r"this takes about (\d+)%")


@dataclass(frozen=True)
class Found:
    """Shares of the VM's CPU: forecast, summary, and by what was *done*; when it stopped."""

    before: float
    after: float
    done: float
    seconds: float
    stopped: str

    @property
    def factor(self) -> float:
        """Between forecast and summary, 1 or more."""
        low, high = sorted((max(self.before, 0.005), max(self.after, 0.005)))
        return high / low


class Work:
    """What the VM *beam* does in each second of its CPU."""

    def __init__(self, beam: Beam) -> None:
        self._pid, self._count = beam.pid, windows_run.Truth(beam.pid)

    def begin(self) -> tuple[int, float]:
        """Messages and CPU seconds until now."""
        return self._count(), cpu_clock(self._pid)

    def since(self, began: tuple[int, float]) -> float:
        """Messages in a second of CPU since *began*."""
        count, cpu = self.begin()
        return (count - began[0]) / (cpu - began[1])

    def alone(self, seconds: float) -> float:
        """The same of the next *seconds*."""
        began = self.begin()
        time.sleep(seconds)
        return self.since(began)


def run(beam: Beam, work: Work, seconds: float, *options: str) -> Found:
    """One ``--exact`` run."""
    usual = work.alone(1.0)
    wanted = ["--pid", str(beam.pid), "--exact", "--format", "json", "--duration", str(seconds)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*_TRACE, *wanted, *options], stdout=pipe, stderr=pipe, text=True
    ) as tool:
        assert tool.stdout is not None
        assert tool.stderr is not None
        lines = []
        for line in tool.stderr:
            lines.append(line)
            if "Ctrl-C ends it" in line:
                break
        began = work.begin()
        time.sleep(min(seconds, 1.0) * 0.8)  # an end by itself comes later than that
        beside = work.since(began)
        summary: dict[str, Any] = json.loads(tool.stdout.read())
    before = _FORECAST.search("".join(lines))
    if not before:
        raise SystemExit(f"no forecast in {lines}")
    usual = (usual + work.alone(1.0)) / 2
    return Found(
        int(before[1]) / 100,
        summary["cost"]["share_of_target"],
        1 - beside / usual,
        summary["duration_seconds"],
        summary["stopped_because"],
    )


def measure(load: str, rounds: int, seconds: float) -> list[float]:
    """Print the lines of one load; the factors."""
    factors = []
    with beams_run.start_beam("stock25", "+S", "1:1", "-s", "bursts") as beam:
        beam.expect("ready")
        work = Work(beam)
        assert beam.ask(f"pace 8 {LOADS[load]}") == "running"
        work.alone(1.0)
        for _ in range(rounds):
            found = run(beam, work, seconds, "--max-cost", "100%")
            factors.append(found.factor)
            print(
                f"{load:16} {found.before:8.0%} {found.after:8.1%} {found.done:8.1%}"
                f" {found.factor:7.2f}",
                flush=True,
            )
        found = run(beam, work, 5.0)
        print(
            f"{load:16} by default: ended after {found.seconds:.2f} s: {found.stopped}", flush=True
        )
    return factors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    parser.add_argument("--loads", nargs="*", default=list(LOADS), choices=list(LOADS))
    arguments = parser.parse_args()
    print(f"{'load':16} {'forecast':>8} {'came to':>8} {'by work':>8} {'factor':>7}")
    factors = [
        factor
        for load in arguments.loads
        for factor in measure(load, arguments.rounds, arguments.seconds)
    ]
    within = sum(factor <= 1.5 for factor in factors)
    print(f"all: largest factor {max(factors):.2f}; {within} of {len(factors)} within 1.5")


if __name__ == "__main__":
    main()
