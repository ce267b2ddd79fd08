# SPDX-License-Identifier: Apache-2.0
"""
What a check costs: its own CPU seconds on VMs with many processes that wait, and its verdict.

    sudo python bench/check.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import beams_run

COUNTS = (1_000, 20_000, 200_000)
_SPAWN = (
    "[spawn(fun() -> receive stop -> ok end end) || _ <- lists:seq(1, {})], io:put_chars([10])."
)


def main() -> None:
    """Print a line for each count."""
    for count in COUNTS:
        flags = ("+P", "1000000", "+S", "2:2")
        with beams_run.start_beam("stock25", *flags, eval=_SPAWN.format(count)) as beam:
            beam.readline()
            command = [sys.executable, "-m", "scope_ebpf.cli.main", "check", str(beam.pid)]
            done = subprocess.run(
                [*command, "--format", "json"], capture_output=True, text=True, check=False
            )
            found = json.loads(done.stdout)
            sys.stdout.write(
                f"{count:>9,} processes  {found['own_cpu_seconds']:.2f} s of CPU  "
                f"{found['verdict']['summary']}\n"
            )


if __name__ == "__main__":
    main()
