# SPDX-License-Identifier: Apache-2.0
"""
Growth of ETS tables, and flags of their status.
"""

from __future__ import annotations

import numpy as np
import pytest

from scope_ebpf.beam.held.tables import ROW, is_named, protection_of, type_of
from scope_ebpf.cli.ets import growth
from scope_ebpf.cli.main import main


def table(address: int, btid: int, objects: int, size: int) -> np.ndarray:
    row = np.zeros(1, ROW)
    row["address"], row["btid"], row["objects"], row["memory_bytes"] = address, btid, objects, size
    return row


def test_a_new_table_at_an_old_address_has_no_growth():
    """
    Only a table of the same address and identifier has grown; others are new.
    """
    before = np.concatenate([table(8, 1, 10, 100), table(16, 2, 10, 100)])
    after = np.concatenate([table(16, 3, 99, 900), table(8, 1, 7, 123), table(24, 4, 1, 1)])
    objects, size = growth(before, after)
    assert [-3.0] == objects[~np.isnan(objects)].tolist()
    assert [True, False, True] == np.isnan(size).tolist()
    assert 23.0 == size[1]


def test_flags_of_a_table():
    """
    Both kinds of ordered sets are ordered sets, and other flags do not matter.
    """
    assert ["set", "bag", "duplicate_bag", "ordered_set", "ordered_set"] == [
        type_of(1 << bit | 1 << 9 | 1 << 1) for bit in range(4, 9)
    ]
    assert ["private", "protected", "public"] == [protection_of(1 << bit | 16) for bit in range(3)]
    assert is_named(1 << 11)
    assert not is_named(16)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--duration", "0"], "looks twice"),
        (["--once", "--sort", "growth"], "shows no growth"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_vm_is_looked_at(words, why, capsys):
    """
    Without a second look there is no growth.
    """
    assert 2 == main(["ets", "--pid", "1", *words])
    assert why in capsys.readouterr().err
