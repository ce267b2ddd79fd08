# SPDX-License-Identifier: Apache-2.0
"""
The accuracy of the totals of a budgeted summary, and its cost.

    sudo .venv/bin/python bench/summary.py [--runs 10] [--seconds 10] [--loads ...]

A VM counts its own messages, spawns and collections (tests/workloads/bursts.erl). Summaries of it,
as ``scope-trace --pid PID`` makes them, are compared with that: at least 95 of 100 totals should be
within their stated error, and that should be 10 % at most. The truth is read before and after the
start and the end of a run, so it is known but for what happens meanwhile. The defaults are 50 runs,
ten of each load, and take about ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import beams_run
import windows_run

from scope_ebpf.attach.plan import DEFAULT_EVENTS
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.beam.vm.state import StateReader
from scope_ebpf.kernel.cost import CostMeasurement
from scope_ebpf.runs.budgeted import BudgetedTrace, BudgetOptions

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.summary import Summary

#: The load, the event that it counts itself, and by how many it is late: a spawner reports up to a
#: hundred processes at once, the others each event.
LOADS = {
    "steady": ("send", 8),
    "bursts": ("send", 8),
    "phases": ("send", 8),
    "spawn": ("spawn", 400),
    "gc": ("gc", 8),
}


class Witness(StateReader):
    """Reads the truth before and after the start and the end of a run."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._truth = windows_run.Truth(target.pid)
        self.readings: list[int] = []

    def begin(self) -> None:
        """Begin between two readings of the truth."""
        self.readings = [self._truth()]
        super().begin()
        self.readings.append(self._truth())

    def counted(self) -> dict[str, int] | None:
        """End between two more, the first time."""
        if len(self.readings) > 2:  # asked again, once all is over
            return super().counted()
        self.readings.append(self._truth())
        counted = super().counted()
        self.readings.append(self._truth())
        return counted

    def bounds(self, late: int) -> tuple[int, int]:
        """Lower and upper bound of the truth."""
        first, second, third, last = self.readings
        return third - second - late, last - first + late


def summarized(pid: int, seconds: float) -> tuple[Summary, Witness]:
    """One summary of the VM *pid*."""
    options = BudgetOptions(duration=seconds, budget=0.01)
    target = inspect(pid)
    with contextlib.closing(CostMeasurement(10)) as measurement:
        trace = BudgetedTrace(target, DEFAULT_EVENTS, options, measurement)
        witness = trace.state = Witness(target)
        error = trace.run()
    if error:
        raise error
    return trace.summary(), witness


class Result(NamedTuple):
    """Totals of one load: how many are within and out of their error, how many state none."""

    within: int
    out: int
    unstated: int
    #: The largest error that is stated.
    most: float


def measure(load: str, runs: int, seconds: float) -> Result:
    """Print a line of one load."""
    event, late = LOADS[load]
    within, stated, off, costs = 0, [], [], []
    with beams_run.start_beam("stock25", "+S", "1:1", "-s", "bursts") as beam:
        beam.expect("ready")
        assert beam.ask(f"run {load} 4") == "running"
        beam.favour()  # others on the machine are not what is measured
        for _ in range(runs):
            summary, witness = summarized(beam.pid, seconds)
            found, (low, high) = summary.events[event], witness.bounds(late)
            off.append(abs(2 * found.count / (low + high) - 1))
            costs.append(summary.cost.share_of_target or 0.0)
            if found.error_ratio < 1:
                error = found.error_ratio * found.count
                within += found.count - error <= high and low <= found.count + error
                stated.append(found.error_ratio)
    result = Result(within, len(stated) - within, runs - len(stated), max(stated, default=1.0))
    print(
        f"{load:8} {event:6} {within:6} {result.out:4} {result.unstated:8}"
        f" {statistics.median(stated or [1.0]):13.2%} {result.most:8.2%}"
        f" {statistics.median(off):11.2%} {max(off):8.2%} {statistics.median(costs):7.2%}",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--runs", type=int, default=10, help="summaries per load (default: 10)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each (default: 10)")
    parser.add_argument("--loads", nargs="*", default=list(LOADS), choices=list(LOADS))
    arguments = parser.parse_args()
    print(
        "load     event  within  out unstated  stated error     most  true error     most    cost"
    )
    results = [measure(load, arguments.runs, arguments.seconds) for load in arguments.loads]
    within, out, unstated = (sum(column) for column in list(zip(*results, strict=True))[:3])
    print(
        f"all: {within} of {within + out} totals within their stated error, {unstated} without one;"
        f" the largest stated error is {max(result.most for result in results):.2%}"
    )


if __name__ == "__main__":
    main()
