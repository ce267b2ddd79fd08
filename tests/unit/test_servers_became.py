# SPDX-License-Identifier: Apache-2.0
"""
Servers that run another module than the one they began with: maps in a memory of our own.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from scope_ebpf.beam.servers.became import _of_map
from scope_ebpf.errors import ReadRefusedError

ATOMS = {7: "mod", 8: "ejabberd_c2s", 9: "lang"}
MOD, C2S, LANG = (index << 6 | 0x0B for index in ATOMS)


class Memory:
    """
    Words by address; what is not there cannot be read.
    """

    def __init__(self, blocks: dict[int, list[int]]) -> None:
        self.all = {a + 8 * n: word for a, words in blocks.items() for n, word in enumerate(words)}

    def words(self, address: int, count: int) -> np.ndarray:
        if any(address + 8 * n not in self.all for n in range(count)):
            raise ReadRefusedError("gone")
        return np.array([self.all[address + 8 * n] for n in range(count)], np.uint64)

    def u64(self, address: int) -> int:
        return int(self.words(address, 1)[0])


def found(blocks: dict[int, list[int]]) -> str | None:
    """
    What is found where a stack has the boxed term at 0x1000.
    """
    atoms = SimpleNamespace(
        indices=lambda texts: {text: index for index, text in ATOMS.items() if text in texts},
        texts=lambda indices: {index: ATOMS[index] for index in indices},
    )
    viewer = SimpleNamespace(atoms=atoms, target=SimpleNamespace(memory=Memory(blocks)))
    return _of_map(viewer, np.array([0x1000 | 2, LANG], np.uint64))


def kind(number: int, children: int) -> int:
    """
    The header of a map: what it is, and a bit for each child (erl_map.h).
    """
    return 0x3C | number << 6 | children << 16


def test_the_module_is_found_in_a_small_map_and_in_a_large_one():
    """
    A tuple of keys with the values behind it; a tree whose leaves are pairs.
    """
    small = {0x1000: [kind(0, 0), 2, 0x2002, 0x0F, C2S], 0x2000: [2 << 6, LANG, MOD]}
    assert "ejabberd_c2s" == found(small)
    large = {
        0x1000: [kind(3, 0b101), 40, 0x2001, 0x3002],
        0x2000: [LANG, 0x0F],
        0x3000: [kind(1, 0b1000), 0x4001],
        0x4000: [MOD, C2S],
    }
    assert "ejabberd_c2s" == found(large)


@pytest.mark.parametrize(
    "blocks",
    [
        {},
        {0x1000: [3 << 6, 1, 2]},
        {0x1000: [kind(0, 0), 1 << 40, 0x2002], 0x2000: [2 << 6, LANG, MOD]},
        {0x1000: [kind(3, 0b1), 40, 0x1002, 0]},
        {0x1000: [kind(3, 0b1), 40, 0x3002], 0x3000: [kind(1, 0b1), 0x3002]},
        {0x1000: [kind(0, 0), 1, 0x2002, 0x0F], 0x2000: [1 << 6, MOD]},
    ],
)
def test_what_is_no_map_or_has_changed_says_nothing(blocks):
    """
    Nothing there, a tuple, an impossible size, a tree that leads back to itself, no atom.
    """
    assert found(blocks) is None
