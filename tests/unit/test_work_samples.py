# SPDX-License-Identifier: Apache-2.0
"""
What processes of several targets work on: each target has maps of its own.
"""

from __future__ import annotations

from types import SimpleNamespace

from scope_ebpf.kernel.observers.thread_watch import Works


class AMap(dict):
    """
    Stands for a map of the kernel.
    """

    def discard(self, key: int) -> None:
        self.pop(key, None)


def test_a_target_has_maps_of_its_own_until_it_is_removed():
    """
    Also one whose hooks come and go; a clock that was closed changes nothing any more.
    """
    maps = {name: AMap() for name in ("work_gates", "target_works", "target_samples")}
    works = Works(SimpleNamespace(map=lambda name, *_: maps[name]))
    other, clock = works.clock(2), works.clock(1)
    other.use(30, 31)
    for turn in range(23):
        clock.use(40 + turn, 41 + turn)
        assert 0 < clock.open() == maps["work_gates"][1]
        assert {2: 30, 1: 40 + turn} == maps["target_works"]
        assert {2: 31, 1: 41 + turn} == maps["target_samples"]
        clock.leave()
        assert ({2: 30}, {2: 31}) == (maps["target_works"], maps["target_samples"])
    clock.use(7, 8)
    assert works.clock(1) is clock
    works.remove(1)
    clock.use(7, 8)
    assert clock.open() > maps["work_gates"][1] == 0
    assert ({2: 30}, {2: 31}) == (maps["target_works"], maps["target_samples"])
    assert works.clock(1) is not clock
