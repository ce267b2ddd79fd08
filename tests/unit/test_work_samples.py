# SPDX-License-Identifier: Apache-2.0
"""
Samples of what processes of several targets work on, in one map of the kernel.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.kernel.observers.thread_watch import WorkClock, Works


class AMap:
    """
    Stands for the kernel's map of samples on a host of two CPUs.
    """

    def __init__(self) -> None:
        self.rows: dict[bytes, list[int]] = {}

    def add(self, target: int, row: int, *by_cpu: int) -> None:
        key = np.zeros((), events.WORK_KEY)
        key["target"], key["row"] = target, row
        self.rows[key.tobytes()] = [*by_cpu]

    def keys(self) -> np.ndarray:
        return np.frombuffer(b"".join(self.rows), events.WORK_KEY)

    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        return self.keys(), np.array([*self.rows.values()], np.uint64).reshape(-1, 2)

    def discard(self, key: Any) -> None:
        self.rows.pop(key.tobytes(), None)


def works_in(samples: AMap) -> tuple[Works, dict[int, int]]:
    """
    Samples in that map, and the values of the gates by target.
    """
    gates: dict[int, int] = {}
    maps = {"work_gates": gates, "work_samples": samples}
    threads = SimpleNamespace(
        maps={"works": SimpleNamespace(fd=23)}, map=lambda name, *_: maps[name]
    )
    return Works(threads), gates


def test_samples_of_a_target_are_its_own():
    """
    By the number of what was worked on, of all CPUs; none of a target that was never sampled.
    """
    samples = AMap()
    works, _ = works_in(samples)
    samples.add(1, 0, 3, 20)
    samples.add(1, (1 << 63) | 5, 1, 0)
    samples.add(2, 0, 7, 0)
    assert {0: 23, (1 << 63) | 5: 1} == works.clock(1).samples()
    assert {0: 7} == works.clock(2).samples()
    assert {} == works.clock(3).samples()


def test_hooks_that_begin_again_give_the_room_back():
    """
    The map is of all targets: one whose hooks come and go with other names each time fills no more
    of it than one whose hooks stay.
    """
    samples = AMap()
    works, gates = works_in(samples)
    samples.add(2, 0, 7, 0)
    clock: WorkClock = works.clock(1)
    for name in range(23):
        clock.forget()
        assert 0 < clock.open() == gates[1]
        samples.add(1, (1 << 63) | name, 1, 1)
        assert 2 == len(samples.rows)
    works.remove(1)
    assert ({0: 7}, 0) == (works.clock(2).samples(), gates[1])
    assert {} == clock.samples()
