# SPDX-License-Identifier: Apache-2.0
"""
What a reference of another build is good for: planted counts on stock OTP 29, by each alone.

    bench/references.py [REFERENCE ...]      default: those of the package

For each: the functions that it finds at other addresses than the first reference does, the events
whose counts are exactly those planted, those that are refused with the reason, and wrong counts.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/kernel")]

import beams_run  # noqa: E402 - found by the line above
from tracing import scope_trace, trace  # type: ignore[import-not-found]  # noqa: E402

from scope_ebpf.beam.hidden import memory, shelf  # noqa: E402
from scope_ebpf.beam.hidden.reference import parse  # noqa: E402

COMMANDS = (
    *("spawns 23", "exits killed 7", "exits error 5", "ports 23", "programs 5"),
    *("gc_minor 2300", "gc_major 1700"),
)
#: What the first commands plant, and what others do in a trace of their own.
COUNTS = {"spawn": 35, "exit": 35, "port_open": 28, "port_close": 28}
OTHERS = (
    ("messages 2300", {"send": 2300, "receive": 2301}),
    ("hibernates 23", {"hibernate": 23}),
    ("code_loads 23", {"code_load": 23}),
)
#: Collections that the VM may make by itself meanwhile.
_SLACK = 4


def main(files: list[str]) -> None:
    """Print a paragraph for each reference."""
    first: dict[str, int] = {}
    with beams_run.planted("sid29") as beam:
        for file in map(Path, files or sorted(map(str, shelf.SHIPPED.iterdir()), reverse=True)):
            reference = parse(file.read_bytes(), file.name)
            with tempfile.TemporaryDirectory() as folder:
                os.environ["SCOPE_EBPF_CACHE"] = str(Path(folder, "cache"))
                os.environ[shelf.VARIABLE] = str(Path(folder, "shelf"))
                for name in ("cache", "shelf"):
                    Path(folder, name).mkdir(mode=0o755)
                copy = Path(folder, "shelf", shelf.name_of(reference.build))
                shutil.copyfile(file, copy)
                copy.chmod(0o644)
                print(f"{file.name}: {reference.build}", flush=True)
                _one(beam, first)


def _one(beam: beams_run.Beam, first: dict[str, int]) -> None:
    scope_trace("doctor", str(beam.pid))
    kept = [path.stem for path in memory.folder().glob("*.json")]
    found = memory.recall(kept[0]) if kept else None  # nothing by one of another flavour
    places = {name: place.start for name, place in found.places.items()} if found else {}
    first.update(places if not first else {})
    elsewhere = [name for name in places if places[name] != first.get(name)]
    print(f"  {len(places)} functions, elsewhere: {', '.join(elsewhere) or 'none'}")
    right, refused, wrong = [], {}, {}
    for planted, read in _runs(beam):
        for event, count in planted.items():
            slack = _SLACK if event == "gc" else 0
            row = read[event]
            if "count" not in row:
                refused[event] = row["reason"]
            elif abs(row["count"] - count) <= slack:
                right.append(event)
            else:
                wrong[event] = (row["count"], count)
    print(f"  right: {', '.join(right)}")
    for event, reason in refused.items():
        print(f"  refused: {event}: {reason}")
    print(f"  wrong: {wrong or 'none'}", flush=True)


def _runs(beam: beams_run.Beam) -> list[tuple[dict[str, int], dict[str, Any]]]:
    """What was planted, and what was read, of each trace."""
    before = beam.stats()["collections"]
    outcome = _watch(beam, ",".join((*COUNTS, "gc")), *COMMANDS)
    collected = beam.stats()["collections"] - before
    found = [({**COUNTS, "gc": collected}, outcome)]
    found += [(counts, _watch(beam, ",".join(counts), line)) for line, counts in OTHERS]
    return found


def _watch(beam: beams_run.Beam, events: str, *commands: str) -> dict[str, Any]:
    with trace(beam.pid, "--events", f"{events},thread") as run:
        for command in commands:
            beam.plant(command)
        outcome = run.stop()
    events_: dict[str, Any] = outcome.events
    return events_


if __name__ == "__main__":
    main(sys.argv[1:])
