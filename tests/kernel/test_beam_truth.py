# SPDX-License-Identifier: Apache-2.0
"""
What is read from outside, held against what the VM says of itself.
"""

from __future__ import annotations

import pytest
from beam_fixtures import SIZES, TRUTH, Mixed, Zoo, zoo  # noqa: F401 - a fixture

from scope_ebpf.beam.view import document

MOVES = {"reductions": 0}
KINDS = ("stock25", "usdt25", "trixie27", "sid29")


def read(mixed: Mixed) -> dict:
    viewer = mixed.viewer()
    snapshot = viewer.table.snapshot()
    return document(viewer.target, snapshot, viewer.describe(snapshot.rows))


def differences(mixed: Mixed) -> tuple[int, list[str]]:
    """
    Compare with what the VM says next; say how many rows stood still meanwhile.

    A process answers ``process_info`` itself and pays a reduction for it after the answer, so the
    reductions are those of the second answer.
    """
    before, seen, after = mixed.truth(), read(mixed), mixed.truth()
    ours = {row["pid"]: row for row in seen["processes"]}
    answering = next(iter(before))
    still = [pid for pid in before if before[pid] | MOVES == after.get(pid, {}) | MOVES]
    wrong = [
        f"{pid}.{key}: {ours[pid][key]!r} is {after[pid][key]!r}"
        for pid in still
        for key in TRUTH
        if pid != answering and ours[pid][key] != after[pid][key]
    ]
    assert set(before) == set(ours) == set(after)
    assert (len(before), 0) == (seen["read"], seen["torn"])
    assert seen["read"] == seen["processes_total"]
    return len(still), wrong


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_every_process_is_what_process_info_says(zoo: Zoo, kind: str):  # noqa: F811
    """
    Each column of each process of a quiet VM equals what ``erlang:process_info`` says.
    """
    mixed = zoo(kind)
    compared, wrong = differences(mixed)
    assert wrong[:20] == []
    assert compared >= SIZES[kind] * 0.85
