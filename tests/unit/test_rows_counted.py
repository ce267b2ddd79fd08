# SPDX-License-Identifier: Apache-2.0
"""
The count of a table of processes against its slots, in a VM that changes while both are read.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from beam_image import Image

from scope_ebpf.beam.processes.counted import check_rows
from scope_ebpf.errors import ReadRefusedError

TABLE, SLOTS = 0x1000, 1024
LAYOUT = Image().layout


class Busy:
    """
    Memory in which each look finds the next of *readings*: count, slots in use, count.
    """

    def __init__(self, *readings: tuple[int, int, int]) -> None:
        self.counts = [count for before, _, after in readings for count in (before, after)]
        self.seen = [seen for _, seen, _ in readings]

    def u32(self, address: int) -> int:
        if address == TABLE + LAYOUT.offset("ErtsPTab", "r.o.max"):
            return SLOTS
        assert TABLE + LAYOUT.offset("ErtsPTab", "vola.tile.count") == address
        return self.counts.pop(0)

    def u64(self, address: int) -> int:
        return 1

    def words(self, _: int, slots: int) -> np.ndarray:
        used = np.zeros(slots, np.uint64)
        used[: self.seen.pop(0)] = 64
        return used


def check(*readings: tuple[int, int, int]) -> None:
    check_rows(
        SimpleNamespace(
            memory=Busy(*readings),
            layout=LAYOUT,
            find=lambda _: None,
            address=lambda _: TABLE,
            pid=0,
            erts_version="13.1.5",
        )
    )


@pytest.mark.parametrize(
    "readings",
    [
        [(45, 45, 45)],
        # It makes 30 processes while the slots are read, and has 40 of them read.
        [(45, 60, 75)],
        # The last reading alone is off.
        [(45, 48, 46), (44, 40, 44), (45, 52, 45), (45, 90, 45)],
        # A small VM with a burst in each reading.
        [(30, 50, 30), (31, 52, 31), (30, 51, 30), (32, 54, 32)],
        # One that stands still while it makes some.
        [(45, 40, 45)] * 4,
    ],
)
def test_a_busy_vm_is_counted_where_one_reading_fits(readings: list[tuple[int, int, int]]):
    """
    A small VM makes and ends as many processes as it has while they are counted.
    """
    check(*readings)


@pytest.mark.parametrize(
    "readings",
    [
        [(45, 30, 45)] * 4,
        [(45, 500, 45), (46, 501, 46), (45, 500, 45), (46, 500, 46)],
        [(400, 45, 400), (401, 45, 401), (400, 45, 400), (401, 45, 401)],
        # A word that jumps over everything is no count.
        [(0, 45, 1 << 30), (3, 45, 1 << 31), (0, 45, 1 << 30), (5, 45, 1 << 29)],
    ],
)
def test_what_is_no_count_of_the_slots_is_refused(readings: list[tuple[int, int, int]]):
    """
    However much of it changes.
    """
    with pytest.raises(ReadRefusedError, match="counts them"):
        check(*readings)
