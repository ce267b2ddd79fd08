# SPDX-License-Identifier: Apache-2.0
"""
Whether ``ps`` shows one moment of processes that change while they are read.

    sudo .venv/bin/python bench/ps.py [--answers 1000] [--hogs 2]

The processes of tests/workloads/moving.erl run in a few functions of their own alone: one every
10 ms, one whose heap is replaced every 10 ms, a server that is called hundreds of times a second,
and one with 40 callers in its mailbox, of which it takes one every 20 ms. Beside them processes
take all the CPU they get. An answer is wrong if a frame is of another process, a message is not one
of the server's, or links, monitors and watchers are not those of process_info. What is said to
have moved is not compared; the number of answers that say so is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import beams_run
from moving_run import CALL, STACKS, ask
from windows_run import busy

from scope_ebpf.beam.vm.discover import inspect

if TYPE_CHECKING:
    from beams_run import Beam

_SLOW = "moving_slow"
#: Of a server's 40 callers each waits or is served; one may be between two calls.
_WATCHERS = {"moving_slow": range(39, 41), "moving_server": range(5)}


def judge(name: str, answer: dict[str, Any], still: str) -> Counter[str]:
    """What is wrong in an *answer* about *name*; *still* is what process_info says of it."""
    moved: list[str] = answer["moved"]
    wrong = Counter[str]()
    if name in STACKS and "stack" not in moved:
        stack = tuple(frame["function"] for frame in answer["stack"])
        wrong["foreign stacks"] += stack not in STACKS[name]
    if name == _SLOW and "messages" not in moved:
        wrong["wrong tags"] += sum(tag != CALL for tag in answer["messages"])
    watchers = _WATCHERS.get(name, range(1))
    if not {"monitors", "watchers", "links"} & set(moved):
        wrong["wrong watchers"] += answer["watchers"] not in watchers
        monitors, links = (int(word) for word in (still.split()[1], still.split()[3]))
        wrong["wrong monitors or links"] += (answer["monitors"], answer["links"]) != (
            monitors,
            links,
        )
    return wrong


def measure(beam: Beam, name: str, answers: int) -> Counter[str]:
    """Print a line of one process; what was wrong in all answers."""
    target, found, moved = inspect(beam.pid), Counter[str](), 0
    still, began = beam.ask(f"counts {name}"), time.monotonic()
    for _ in range(answers):
        answer = ask(target, name)
        moved += bool(answer["moved"])
        found += judge(name, answer, still)
    wrong = ", ".join(f"{count} {what}" for what, count in found.items()) or "nothing wrong"
    each = 1e3 * (time.monotonic() - began) / max(1, answers)
    said = f"{answers} answers, {moved} said to have moved"
    print(f"{name:14} {said}, {wrong}; {each:.0f} ms each", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=1000, help="in all (default: 1000)")
    parser.add_argument("--hogs", type=int, default=os.cpu_count() or 2)
    arguments = parser.parse_args()
    names = [*STACKS, _SLOW]
    with (
        beams_run.start_beam("stock25", "-s", "moving") as beam,
        busy(arguments.hogs),
    ):
        beam.expect("ready")
        share = -(-arguments.answers // len(names))
        found = sum((measure(beam, name, share) for name in names), Counter[str]())
    wrong = dict(found) or "none wrong"
    print(f"all: {share * len(names)} answers beside {arguments.hogs} hogs: {wrong}")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
