# SPDX-License-Identifier: Apache-2.0
"""
The tables of loaded code, while code is loaded.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import beam_image
from beam_image import BASE

from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.names import Names


def loaded() -> tuple[beam_image.Image, CodeMap]:
    """
    A VM with one module, gen_server, in three sets, of which the first is in use.
    """
    image = beam_image.Image()
    beam_image.add_code(image)
    beam_image.add_atoms(image)
    image.roots["the_active_code_index"] = image.words(0)
    return image, CodeMap(image, Atoms(image))


def activate(image: beam_image.Image, number: int) -> None:
    struct.pack_into("<I", image.data, image.roots["the_active_code_index"] - BASE, number)


def test_a_set_that_is_being_made_is_not_read():
    """
    Of three sets only that in use counts, whatever the others hold.
    """
    image, code = loaded()
    size, count = image.layout.size("ranges"), image.layout.offset("ranges", "n")
    struct.pack_into("<Q", image.data, image.roots["r"] + size + count - BASE, 1 << 60)
    code.refresh()
    assert 1 == len(code)


@pytest.mark.parametrize(
    ("active", "sets", "found"),
    [
        ([0], [0], 1),
        ([0, 1, 1], [0, 1], 2),
        ([0, 1, 2, 0], [0, 1, 2], 3),
        ([0, 1, 2, 0, 1], [0, 1, 2], 3),
    ],
)
def test_a_set_that_went_out_of_use_meanwhile_is_read_again(
    monkeypatch: pytest.MonkeyPatch, active: list[int], sets: list[int], found: int
):
    """
    The set that is in use before and after its reading counts, and after three the last.
    """
    image, code = loaded()
    asked: list[int] = []

    def one(number: int) -> np.ndarray:
        asked.append(number)
        activate(image, active[min(len(asked), len(active) - 1)])
        return np.array([[16 * n, 16 * n + 8] for n in range(number + 1)], np.uint64)

    monkeypatch.setattr(code, "_set", one)
    code.refresh()
    assert (sets, found) == (asked, len(code))


def test_modules_that_are_not_loaded_are_looked_for_once(monkeypatch: pytest.MonkeyPatch):
    """
    Until code is loaded, neither is asked for again, nor are the names of all modules gathered.
    """
    image, code = loaded()
    gathered, asked = [], []
    names, attributes = code._names, code.attributes
    monkeypatch.setattr(code, "_names", lambda: gathered.append(1) or names())
    monkeypatch.setattr(code, "attributes", lambda name: asked.append(name) or attributes(name))
    target = SimpleNamespace(memory=image.memory, layout=image.layout)
    reader = Names(target, Atoms(image), code)
    for _ in range(3):
        assert [None, None] == [reader.declared(name) for name in ("gone", "away")]
    assert (1, ["gone", "away"]) == (len(gathered), asked)
    code.generation += 1
    assert reader.declared("gone") is None
    assert ["gone", "away", "gone"] == asked
