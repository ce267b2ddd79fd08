# SPDX-License-Identifier: Apache-2.0
"""
The accuracy of the mean duration of small collections, by the VM's own account.

    sudo .venv/bin/python bench/durations.py [--rounds 30] [--seconds 0.1]

A VM collects small heaps without a pause (tests/workloads/collecting.erl) while an exact summary
takes their durations; its microstate accounting (msacc) of the same time is the witness. What a
duration carries of the hooks is measured in this process, as for the summary. A line for each
round: the mean by the hooks, less what they carry, and by msacc, in microseconds. Both are times of
the clock, so where the VM had to wait for a CPU in a collection, which is seen by a duration of a
millisecond and more, the mean is that of the wait: such rounds are printed and left out. The
medians of the others should be within 10 %.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import beams_run

from scope_ebpf.kernel.cost import carried

if TYPE_CHECKING:
    from beams_run import Beam

#: No collection of these takes so many seconds.
_LONG = 5e-4
_TRACE = (sys.executable, "-m", "scope_ebpf.cli.main")
_WANTED = ("--exact", "--max-cost", "100%", "--events", "gc", "--duration", "0", "--format", "json")


def measured(beam: Beam, seconds: float) -> tuple[float, float, bool]:
    """
    Mean seconds of a collection by the hooks, and by the VM's own account.

    Last, whether the VM waited for a CPU in one.
    """
    command, pipe = [*_TRACE, "--pid", str(beam.pid), *_WANTED], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as tool:
        assert tool.stdout is not None
        assert tool.stderr is not None
        while "Ctrl-C ends it" not in (line := tool.stderr.readline()):
            if not line:
                raise SystemExit("scope-trace ended")
        took, count = beam.ask(f"run {seconds * 1e3:.0f}").split()[2:]
        tool.send_signal(signal.SIGINT)
        by_class = json.loads(tool.stdout.read())["events"]["gc"]["durations"].values()
    seen = sum(durations["count"] for durations in by_class)
    waited = any(
        slot["count"] and not slot["le_seconds"] < _LONG for d in by_class for slot in d["buckets"]
    )
    mean = sum(d["total_seconds"] for d in by_class) / seen
    return mean, int(took) / 1e6 / int(count), waited


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each round")
    arguments = parser.parse_args()
    hooks, msacc = [], []
    with beams_run.start_beam("stock25", "+S", "1:1", "-s", "collecting") as beam:
        beam.expect("ready")
        beam.favour()  # others on the machine are not what is measured
        print("hooks   less carried    msacc")
        for _ in range(arguments.rounds):
            by_hooks, by_vm, waited = measured(beam, arguments.seconds)
            own = carried()
            line = f"{by_hooks * 1e6:5.2f} {(by_hooks - own) * 1e6:8.2f} ({own * 1e6:.2f})"
            print(f"{line} {by_vm * 1e6:8.2f} {'waited for a CPU' * waited}", flush=True)
            if not waited:
                hooks.append(by_hooks - own)
                msacc.append(by_vm)
    if not hooks:
        raise SystemExit("the VM waited for a CPU in every round: nothing can be said")
    ours, theirs = statistics.median(hooks), statistics.median(msacc)
    print(
        f"medians: {ours * 1e6:.2f} us by hooks, {theirs * 1e6:.2f} by msacc: {ours / theirs:.1%}"
    )


if __name__ == "__main__":
    main()
