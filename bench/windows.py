# SPDX-License-Identifier: Apache-2.0
"""
How often the truth lies within the stated error of a total that was made from windows.

    sudo .venv/bin/python bench/windows.py [--blocks 40] [--windows 20] [--hogs 0 4]

A VM counts its own messages, spawns and collections (tests/workloads/bursts.erl). Windows are
opened on it as the daemon does, at irregular times; after each block of them their total, with its
stated error, is compared with the VM's own count. With hogs, that many processes take all
the CPU they get beside it. At least 95 % of the blocks should be within their error. Blocks that
state an error of 100 %, because too little was seen, are only counted.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import beams_run
import windows_run

#: The load, and the event that it counts itself.
LOADS = {
    "steady": "send",
    "bursts": "send",
    "phases": "send",
    "spawn": "spawn",
    "gc": "gc",
}


def measure(load: str, hogs: int, blocks: int, windows: int) -> tuple[int, int]:
    """Print a line of one load; returns how many totals were within, of how many."""
    event, rng = LOADS[load], random.Random(1)
    with beams_run.start_beam("stock25", "+S", "2:2", "-s", "bursts") as beam:
        beam.expect("ready")
        assert beam.ask(f"run {load} 4") == "running"
        truth = windows_run.Truth(beam.pid)
        with windows_run.busy(hogs), windows_run.observing(beam, event) as eye:
            windows_run.block(truth, eye, event, 3, rng)
            found = [windows_run.block(truth, eye, event, windows, rng) for _ in range(blocks)]
    stated = [block for block in found if block.error < 1]
    within = sum(block.within for block in stated)
    bias = sum(block.found for block in found) / sum(block.truth for block in found) - 1
    print(
        f"{load:8} {event:8} {hogs:4} {f'{within}/{len(stated)}':>8} {blocks - len(stated):7}"
        f" {statistics.median(block.error for block in found):13.2%}"
        f" {statistics.median(abs(block.found / block.truth - 1) for block in found):11.2%}"
        f" {bias:8.2%}",
        flush=True,
    )
    return within, len(stated)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--blocks", type=int, default=40, help="totals per load (default: 40)")
    parser.add_argument("--windows", type=int, default=20, help="windows per total (default: 20)")
    parser.add_argument("--hogs", type=int, nargs="*", default=[0, 4])
    parser.add_argument("--loads", nargs="*", default=list(LOADS), choices=list(LOADS))
    arguments = parser.parse_args()
    print("load     event    hogs   within unstated  stated error  true error     bias")
    results = [
        measure(load, hogs, arguments.blocks, arguments.windows)
        for hogs in arguments.hogs
        for load in arguments.loads
    ]
    within, blocks = map(sum, zip(*results, strict=True))
    print(f"all: {within}/{blocks}, {within / blocks:.1%} of the totals within their stated error")


if __name__ == "__main__":
    main()
