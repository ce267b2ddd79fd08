# SPDX-License-Identifier: Apache-2.0
"""
What `scope-trace calls` costs the VM: one call that is watched, and threads with no calls.

    sudo python bench/calls.py

Each round runs the same calls with and without breakpoints, one after the other, and compares the
CPU time of the VM; the median of the rounds is quoted. The ratio for code that is not watched shows
what breakpoints cost that are never hit.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import beams_run

from scope_ebpf.beam.code.functions import Function, Functions, parse
from scope_ebpf.beam.code.modules import Modules
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.beam.vm.threads import threads
from scope_ebpf.kernel.observers.call_watch import BreakpointSite, CallWatch

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target

#: Fewer than the ring holds, so that each is copied whole.
CALLS = 4_000
UNWATCHED = 2_000_000
ROUNDS = 11
#: More than a run can make, so that none is cut off.
_LIMIT = 1_000_000


def functions(target: Target, *patterns: str) -> list[Function]:
    """The functions that *patterns* mean."""
    atoms = Atoms(target)
    found = Functions(target, atoms, Modules(target, atoms))
    return [function for pattern in patterns for function in found.find(parse(pattern))]


def watched(target: Target, chosen: list[Function], beam: beams_run.Beam, command: str) -> float:
    """CPU seconds that *command* takes while *chosen* are watched, and each call is looked at."""
    tids = [t.tid for t in threads(target.pid) if t.role == "normal"]
    layout = target.layout
    subtag = layout.facts.map_subtag
    with CallWatch(target.identity, _LIMIT, layout.offset("Process", "hend"), subtag) as watch:
        watch.set([BreakpointSite(f.address, *f.terms, f.arity) for f in chosen], tids)
        watch.open(on=True)
        return seconds(beam, command)


def seconds(beam: beams_run.Beam, command: str) -> float:
    """CPU seconds of the VM for *command*."""
    before = cpu_seconds(beam.pid)
    beam.plant(command)
    return cpu_seconds(beam.pid) - before


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have used, as the kernel's scheduler counts it."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def main() -> None:
    """Print the cost of a hit and of a breakpoint that is not hit."""
    with beams_run.start_beam("stock25", "-s", "called") as beam:
        beam.expect("ready")
        target = inspect(beam.pid)
        hit = functions(target, "called:loop/1")
        other = functions(target, "called:nap/1", "called:fail/1", "called:nest/1", "called:tail/1")
        costs, ratios = [], []
        for _ in range(ROUNDS):
            bare = seconds(beam, f"loop {CALLS}")
            costs.append((watched(target, hit, beam, f"loop {CALLS}") - bare) / (CALLS + 1) * 1e6)
            bare = seconds(beam, f"loop {UNWATCHED}")
            ratios.append(watched(target, other, beam, f"loop {UNWATCHED}") / bare)
    print(f"one watched call: {statistics.median(costs):.1f} us")
    print(f"  rounds: {' '.join(f'{cost:.1f}' for cost in costs)}")
    print(
        f"code that is not watched, four breakpoints set: {statistics.median(ratios):.3f} of bare"
    )
    print(f"  rounds: {' '.join(f'{ratio:.3f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
