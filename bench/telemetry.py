# SPDX-License-Identifier: Apache-2.0
"""
What the hook of ``scope-trace telemetry`` takes of a VM's CPU, for each event and other lookup.

    sudo .venv/bin/python bench/telemetry.py

A VM with one scheduler does the same thing many times, with and without the command, in turns. The
least of all rounds counts, because nothing but the machine's other work makes a round longer.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from beams_run import Beam, compiled_part, start_beam

from scope_ebpf.budget.reference_counters import cpu_clock
from scope_ebpf.kernel import cost

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS, TURNS, CALLS = 4, 5, 20_000
VIAS = ("lookups", "breakpoint")
WHAT = {
    "three": "event with three labels",
    "struct": "event with two labels in a struct of 28 keys",
    "unknown": "event without a specification",
    "lookup": "ets:lookup/2 of another table",
    "term": "persistent_term:get/2 of another key",
}


def seconds(beam: Beam, what: str) -> float:
    """
    The least CPU time of one call, in some turns.
    """
    found = []
    for _ in range(TURNS):
        before = cpu_clock(beam.pid)
        beam.ask(f"loop {what} {CALLS}")
        found.append((cpu_clock(beam.pid) - before) / CALLS)
    return min(found)


@contextlib.contextmanager
def hooked_into(pid: int, via: str) -> Iterator[None]:
    """
    The command at work on process *pid* while the block runs, by the hook *via*.
    """
    command = [sys.executable, "-m", "scope_ebpf.cli.main", "telemetry", "--pid", str(pid)]
    command += ["--duration", "0", "--budget", "none", "--max-cost", "100%", "--via", via]
    pipe = subprocess.PIPE
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=pipe, text=True)
    assert run.stderr is not None
    for line in run.stderr:
        if "tracing process" in line:
            break
    try:
        yield
    finally:
        run.send_signal(signal.SIGINT)
        run.wait()
        run.stderr.close()


def main() -> None:
    """
    Print microseconds for each kind of call and each generation of telemetry.
    """
    print(f"us of the trap at a function alone: {1e6 * cost.measure().entry:.2f}")
    for kind in ("stock25", "trixie27"):
        for part in ("telemetry-1.3", "telemetry-1.4"):
            places = compiled_part(kind, part)
            with start_beam(kind, "-pa", places, "+S", "1", "-bare", "-s", "telling") as beam:
                beam.expect("ready")
                bare = dict.fromkeys(WHAT, 1.0)
                hooked = {via: dict(bare) for via in VIAS}
                for _ in range(ROUNDS):
                    bare |= {what: min(bare[what], seconds(beam, what)) for what in WHAT}
                    for via, least in hooked.items():
                        with hooked_into(beam.pid, via):
                            least |= {what: min(least[what], seconds(beam, what)) for what in WHAT}
            print(f"{kind}, {part}, us of the VM's CPU: bare, and more by {', '.join(VIAS)}")
            for what, text in WHAT.items():
                more = (hooked[via][what] - bare[what] for via in VIAS)
                figures = (1e6 * value for value in (bare[what], *more))
                print("  " + " ".join(f"{figure:6.2f}" for figure in figures) + f"  {text}")


if __name__ == "__main__":
    main()
