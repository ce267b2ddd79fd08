# SPDX-License-Identifier: Apache-2.0
"""
What ``top`` costs the VM that it watches: work per CPU second, in paired runs.

    bench/top_cost.py [PAIRS] [SECONDS]

A VM with 10,000 processes computes on every scheduler, with ``top`` watching it
once a second and without, in turns. Work is counted per second of the VM's own
CPU time, so that other work on the machine does not count.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import beams_run  # noqa: E402 - found by the line above

_TOP = """
import argparse, sys
from scope_ebpf.cli import top
parser = argparse.ArgumentParser()
top.add_arguments(parser)
top.run(parser.parse_args(sys.argv[1:]))
"""


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def work(beam: beams_run.Beam, seconds: int) -> float:
    before = cpu_seconds(beam.pid)
    done = int(beam.ask(f"work {seconds}", timeout=60 + seconds).split()[1])
    return done / (cpu_seconds(beam.pid) - before)


def main(pairs: int, seconds: int) -> int:
    ratios = []
    with beams_run.start_beam("stock25", "-s", "names_mix", "-names_size", "10000") as beam:
        beam.expect("ready", timeout=120)
        work(beam, 1)
        for pair in range(pairs):
            measured = {}
            for watched in (pair % 2 == 0, pair % 2 == 1):
                top = None
                if watched:
                    command = [sys.executable, "-c", _TOP, "--pid", str(beam.pid)]
                    top = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
                measured[watched] = work(beam, seconds)
                if top is not None:
                    assert top.poll() is None
                    top.kill()
                    top.wait()
            ratios.append(measured[True] / measured[False])
    mean = statistics.mean(ratios)
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    print(
        f"{pairs} pairs of {seconds} s: work per CPU second of the VM with top / without = "
        f"{mean:.4f} +- {error:.4f} (standard error); single pairs "
        f"{min(ratios):.3f} to {max(ratios):.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(
        main(
            int(sys.argv[1]) if len(sys.argv) > 1 else 20,
            int(sys.argv[2]) if len(sys.argv) > 2 else 3,
        )
    )
