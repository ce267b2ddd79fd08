# SPDX-License-Identifier: Apache-2.0
"""
Snapshots of a VM that spawns as fast as it can, for a while.

    bench/churn.py [SECONDS] [SPAWNERS]

Every row of every snapshot is checked for impossible values: a mailbox, heap or
stack that is negative or larger than memory, an unknown status, a term that is no
atom, an address that is no function. Prints spawns per second, rows, torn rows, and how
many names of processes that ended meanwhile could not be read.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import beams_run

from scope_ebpf.beam.processes.table import PRIORITY, STATUS
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm import discover

if TYPE_CHECKING:
    from collections.abc import Mapping

_STATUS = {name for name, _ in STATUS} | {"waiting"}


def impossible(row: Mapping[str, Any]) -> list[str]:
    """
    The impossible values of a process, as text.
    """
    wrong = [
        f"{key} {row[key]}"
        for key in ("reductions", "message_queue_len", "memory_bytes", "heap_words", "stack_words")
        if not 0 <= int(str(row[key])) < 1 << 40
    ]
    wrong += [f"status {row['status']}"] * (row["status"] not in _STATUS)
    for key in ("initial_call", "current_function"):
        text = row[key]
        if text is not None and not str(text).rpartition("/")[2].isdecimal():
            wrong.append(f"{key} {text!r}")
    return wrong


def main(seconds: float, spawners: int) -> int:
    assert len(PRIORITY) == 4
    with beams_run.start_beam("stock25", "-s", "names_mix", "-names_size", "1000") as beam:
        beam.expect("ready")
        target = discover.inspect(beam.pid)
        viewer = Viewer(target)
        assert beam.ask(f"storm {spawners}") == "done"
        began, snapshots, rows, torn, nameless, errors = time.monotonic(), 0, 0, 0, 0, []
        while time.monotonic() - began < seconds:
            viewer.refresh()
            snapshot = viewer.table.snapshot()
            for row in viewer.describe(snapshot.rows):
                errors += impossible(row)
                nameless += row["initial_call"] is None
            snapshots, rows = snapshots + 1, rows + len(snapshot)
            torn += snapshot.torn + snapshot.unreadable
        elapsed = time.monotonic() - began
        spawned = int(beam.ask("calm").split()[1])
        print(
            f"{elapsed:.0f} s, {spawned / elapsed:,.0f} spawns/s, {snapshots} snapshots, "
            f"{rows} rows, {torn} torn, {nameless} without an initial call, "
            f"{len(errors)} impossible values"
        )
        print("\n".join(errors[:20]))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(
        main(
            float(sys.argv[1]) if len(sys.argv) > 1 else 600,
            int(sys.argv[2]) if len(sys.argv) > 2 else 4,
        )
    )
