# SPDX-License-Identifier: Apache-2.0
"""
What the daemon takes while it observes a VM that does nothing.

    bench/idle.py [--minutes 3] [--processes N] [--series N] [--no-checks]

Prints the daemon's share of a core, its memory and its threads, a line every half minute, with a
scrape each 15 s. All its processes count: those that hold breakpoints, read memory and parse files.
Memory that they share counts once (Pss). --processes are that many more processes in the VM,
--series is [genservers] series, and --no-checks is a daemon that makes no checks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import beams_run
import daemon_run

_SHARE, _MB = 0.005, 120.0
_SPAWN = "[spawn(fun() -> receive stop -> ok end end) || _ <- lists:seq(1, {})]."
_WARM_UP, _STEP, _SCRAPE = 20.0, 30.0, 15.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="default: 3")
    parser.add_argument("--processes", type=int, default=0, help="default: 0")
    parser.add_argument("--series", type=int, default=0, help="default: 0")
    parser.add_argument("--no-checks", action="store_true")
    given = parser.parse_args()
    flags, config = daemon_run.alone("idle")
    config += f"genservers = {{ series = {given.series} }}\n"
    config += 'findings_interval = "0s"\n' if given.no_checks else ""
    flags = (*flags, "+P", "1000000", "-eval", _SPAWN.format(given.processes))
    with (
        tempfile.TemporaryDirectory() as folder,
        beams_run.planted("stock25", *flags) as beam,
        daemon_run.daemon(Path(folder), config) as daemon,
    ):
        daemon.until_observed(beam.pid, "beam_top_memory_bytes")
        time.sleep(_WARM_UP)
        return _watch(daemon, given.minutes)


def _watch(daemon: daemon_run.Daemon, minutes: float) -> int:
    first, began = daemon.cpu_seconds(), time.monotonic()
    before = daemon.each()
    sizes = [daemon.resident_mb()]
    print("seconds  share of a core      MB  threads")
    while (passed := time.monotonic() - began) < 60 * minutes:
        ends = time.monotonic() + _STEP
        while time.monotonic() < ends:
            time.sleep(_SCRAPE)
            daemon.page()
        passed = time.monotonic() - began
        sizes.append(daemon.resident_mb())
        share = (daemon.cpu_seconds() - first) / passed
        line = f"{passed:7.0f}  {share:15.2%}  {sizes[-1]:6.1f}  {daemon.threads():7}"
        print(line, flush=True)
    for name, part in daemon.parts(passed, before):
        print(f"  {part}  {name}")
    return 0 if share <= _SHARE and max(sizes) <= _MB else 1


if __name__ == "__main__":
    sys.exit(main())
