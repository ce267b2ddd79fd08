# SPDX-License-Identifier: Apache-2.0
"""
CPU seconds of one look at what a VM holds: 10,000 ETS tables more than it is born with.

    sudo .venv/bin/python bench/held.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from beams_run import start_beam

from scope_ebpf.beam.held.tables import TableReader
from scope_ebpf.beam.vm.discover import inspect

TABLES, LOOKS = 10_000, 5


def main() -> None:
    """
    Print the slowest of some looks for each release.
    """
    for kind in ("stock25", "trixie27", "sid29"):
        with start_beam(kind, "-s", "holding") as beam:
            beam.expect("ready")
            beam.ask(f"many {TABLES}")
            reader = TableReader(inspect(beam.pid))
            looks = [reader.read() for _ in range(LOOKS)]
            slowest = max(look.seconds for look in looks)
            print(f"{kind}: {len(looks[0].rows):,} tables, {slowest:.2f} s of CPU a look")


if __name__ == "__main__":
    main()
