# SPDX-License-Identifier: Apache-2.0
"""
What works on emulators that were built with other compilers and options.

    bench/builds.py [KIND ...]      default: stock25, and the odd ones that are there

The kinds are those of tests/beams_run.py; tests/beams/build-odd.sh builds the odd ones. For each:
planted events beside their counts, or why there is no count, collections beside the VM's own
answer, what is refused of its memory, and a planted split of CPU time (60, 30, 10 %).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench"), str(ROOT / "tests/kernel")]

from profile import MODULES, profile, stacks  # noqa: E402

import beams_run  # noqa: E402 - found by the line above
from tracing import trace  # type: ignore[import-not-found]  # noqa: E402

from scope_ebpf.beam.processes.table import IDENTITY  # noqa: E402
from scope_ebpf.beam.processes.view import Viewer  # noqa: E402
from scope_ebpf.beam.vm.allocators import AllocatorReader  # noqa: E402
from scope_ebpf.beam.vm.connections import ConnectionReader  # noqa: E402
from scope_ebpf.beam.vm.counters import CounterReader  # noqa: E402
from scope_ebpf.beam.vm.discover import inspect  # noqa: E402
from scope_ebpf.beam.vm.schedulers import Schedulers  # noqa: E402
from scope_ebpf.errors import ScopeError  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.vm.discover import Beam

EVENTS = "spawn,exit,send,receive,hibernate,port_open,port_close,gc"
#: The command, and the counts that it plants.
PLANTED = {
    "spawns 23": {"spawn": 23, "exit": 23},
    "exits error 7": {"spawn": 7, "exit": 7},
    "messages 2300": {"send": 2300, "receive": 2300},
    "hibernates 23": {"hibernate": 23, "spawn": 1, "exit": 1, "send": 23, "receive": 23},
    "ports 23": {"port_open": 23, "port_close": 23},
}


def odd() -> list[str]:
    """The kinds of tests/beams/build-odd.sh that were built."""
    names = (re.match(r"odd-[a-z]+(-[a-z]+)?", path.name) for path in beams_run.cache().iterdir())
    return sorted({name[0] for name in names if name})


def main(kinds: list[str]) -> None:
    """Print a paragraph for each kind."""
    for kind in kinds:
        print(f"{kind}:", flush=True)
        with beams_run.planted(kind) as beam:
            doctor(beam)
            counts(beam)
            memory(inspect(beam.pid), beam)
        split(kind)


def doctor(beam: beams_run.Beam) -> None:
    """Which events are available."""
    command = (sys.executable, "-m", "scope_ebpf.cli.main", "doctor", "--format", "json")
    done = subprocess.run([*command, str(beam.pid)], cwd=ROOT, capture_output=True, check=False)
    found = json.loads(done.stdout)
    off = {hook["event"]: hook["why"] for hook in found["hooks"] if hook["state"] == "off"}
    print(f"  doctor: not available {off}, refused {found['refused']}")


def counts(beam: beams_run.Beam) -> None:
    """Planted events beside what was counted; each command is one more that is received."""
    with trace(beam.pid, "--exact", "--max-cost", "100%", "--events", EVENTS) as run:
        before = beam.stats()["collections"]
        for command in PLANTED:
            beam.plant(command)
        collections = beam.stats()["collections"] - before
        events = run.stop().events
    with trace(beam.pid, "--exact", "--max-cost", "100%", "--events", "code_load") as run:
        beam.plant("code_loads 23")
        events |= run.stop().events
    planted = {name: sum(each.get(name, 0) for each in PLANTED.values()) for name in events}
    # Statistics leave out the collections of hibernating processes.
    planted |= {"gc": collections + planted["hibernate"], "code_load": 23}
    planted["receive"] += len(PLANTED) + 2  # and answers within the VM, which ``stats`` waits for
    for name, found in events.items():
        text = found["count"] if found["via"] != "unavailable" else found["reason"]
        print(f"  {name}: {text} of {planted[name]}")


def memory(target: Beam, beam: beams_run.Beam) -> None:
    """What is read of the VM's memory, and what is refused."""

    def refusal(read: Callable[[], object]) -> str:
        try:
            read()
        except ScopeError as error:
            return str(error)
        return "read"

    readings: dict[str, Callable[[], object]] = {
        "allocators": lambda: AllocatorReader(target).read(),
        "connections": lambda: ConnectionReader(target).read(),
        "processes": Viewer(target).table.snapshot,
    }
    for name, read in readings.items():
        print(f"  {name}: {refusal(read)}")
    schedulers = Schedulers(target, Viewer(target, IDENTITY))
    schedulers.read()
    print(f"  schedulers: {schedulers.refused or 'read'}")
    try:
        own, found = beam.stats(), CounterReader(target).read()
        print(f"  collections: {found.collections}, the VM counts {own['collections']}")
    except ScopeError as error:
        print(f"  counters: {error}")


def split(kind: str) -> None:
    """A planted split of CPU time beside what the VM measured."""
    with (
        tempfile.TemporaryDirectory() as folder,
        beams_run.start_beam(kind, "-s", "split") as beam,
    ):
        beam.expect("ready")
        beam.ask("run 0")
        output = Path(folder) / "out.json"
        with profile(beam.pid, "-o", str(output)):
            truth = [int(n) for n in beam.ask("run 10", timeout=90).split()[2:]]
        found: Counter[str] = Counter()
        for stack, weight in stacks(output):
            found.update({m: weight for m in MODULES if f"{m}:work/1" in stack})
    shares = [100 * found[module] / max(1, sum(found.values())) for module in MODULES]
    real = [100 * spent / sum(truth) for spent in truth]
    print(f"  split: {shares[0]:.1f} / {shares[1]:.1f} / {shares[2]:.1f} % sampled, by the VM's "
          f"clock {real[0]:.1f} / {real[1]:.1f} / {real[2]:.1f} %")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:] or ["stock25", *odd()])
