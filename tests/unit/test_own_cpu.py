# SPDX-License-Identifier: Apache-2.0
"""
What readings say that they took themselves, in a process with other threads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from beam_image import make
from profile_fixtures import TARGET
from test_beam_memory_image import view

from scope_ebpf.beam.memory import process_memory
from scope_ebpf.beam.processes.table import LOAD, ProcessTable
from scope_ebpf.runs import check as checks


class Clock:
    """
    A reader whose thread and child have taken two seconds more each time that they are asked.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def read(self, *_: int) -> int:
        raise AssertionError

    def cpu_seconds(self) -> float:
        self.seconds += 2.0
        return self.seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory._Current, "reader", Clock())


def test_a_check_counts_its_own_thread_and_the_child_that_reads_for_it(monkeypatch):
    """
    What other threads of the daemon take is not in it.
    """
    identity = SimpleNamespace(check=lambda: None)
    target = SimpleNamespace(identity=identity, as_json=lambda: TARGET, pid=7)
    scene = SimpleNamespace(end=lambda: None, stopped=False)
    monkeypatch.setattr(checks, "PARTS", {})
    monkeypatch.setattr(checks, "Scene", lambda *_: scene)
    monkeypatch.setattr(checks, "require_target", lambda *_: None)
    found = checks.check(target, 0.0, lambda _: None)
    assert pytest.approx(2.0) == found.cpu_seconds
    assert 2.0 == found.as_json()["own_cpu_seconds"]


def test_a_reading_of_the_table_counts_its_own_thread():
    """
    It decides how often the table is read.
    """
    assert pytest.approx(2.0) == ProcessTable(view(make(3)).target, LOAD).snapshot().seconds
