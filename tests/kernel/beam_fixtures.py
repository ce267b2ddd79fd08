# SPDX-License-Identifier: Apache-2.0
"""
VMs full of processes of every kind, shared by the tests that compare what we read with the truth.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import beams_run

from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm import discover

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The columns of ``names_mix:info``, in order.
TRUTH = (
    "pid",
    "name",
    "initial_call",
    "status",
    "current_function",
    "reductions",
    "message_queue_len",
    "memory_bytes",
    "heap_words",
    "stack_words",
    "minor_gcs",
    "parent",
    "group_leader",
    "label",
)
NUMBERS = (
    "reductions",
    "message_queue_len",
    "memory_bytes",
    "heap_words",
    "stack_words",
    "minor_gcs",
)
#: How many processes of mixed kinds live in each VM; the table names what is compared in full.
SIZES = {"stock25": 10000, "usdt25": 2000, "emu25": 1000, "trixie27": 10000, "sid29": 2000}


@dataclass
class Mixed:
    """
    A VM that runs ``names_mix``, and our view of it.
    """

    kind: str
    beam: beams_run.Beam

    def target(self) -> discover.Beam:
        return discover.inspect(self.beam.pid)

    def viewer(self) -> Viewer:
        return Viewer(self.target())

    def truth(self) -> dict[str, dict[str, object]]:
        """
        What ``erlang:process_info`` says of each process, by pid.
        """
        answer = self.beam.ask("info", 120)
        rows = [line.replace("\x1d", "\n").split("\x1f") for line in answer.split("\x1e")]
        made = [dict(zip(TRUTH, row, strict=True)) for row in rows]
        return {
            row["pid"]: {
                key: int(value) if key in NUMBERS else (value or None) for key, value in row.items()
            }
            for row in made
        }


class Zoo:
    """
    Starts each kind of VM once, when a test first asks for it.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._mixed: dict[str, Mixed] = {}

    def __call__(self, kind: str) -> Mixed:
        if kind not in self._mixed:
            size = str(SIZES[kind])
            started = beams_run.start_beam(kind, "-s", "names_mix", "-names_size", size)
            beam = self._stack.enter_context(started)
            beam.expect("ready", timeout=120)
            self._mixed[kind] = Mixed(kind, beam)
        return self._mixed[kind]


@pytest.fixture(scope="session")
def zoo() -> Iterator[Zoo]:
    beams_run.require(os.geteuid() == 0, "reading another process's memory takes root")
    with ExitStack() as stack:
        yield Zoo(stack)
