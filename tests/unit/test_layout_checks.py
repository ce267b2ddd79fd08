# SPDX-License-Identifier: Apache-2.0
"""
Checks of structs in memory that changes while it is read.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import beam_image

from scope_ebpf.beam.processes.blocks import Blocks

#: Bytes of the struct whose blocks are planted.
SIZE = 40


class Planted:
    """
    Blocks of a struct: each is as large as SIZE and *rest* bytes.
    """

    def __init__(self) -> None:
        self.image = beam_image.Image()
        self.blocks = Blocks(self.target())

    def target(self) -> SimpleNamespace:
        image = self.image
        return SimpleNamespace(
            memory=image.memory, layout=image.layout, address=image.address, pid=0
        )

    def fits(self, *rests: int) -> list[bool]:
        image = self.image
        at = [image.put(struct.pack("<QQ", 0, SIZE + 8 + rest)) + 16 for rest in rests]
        image.data += bytes(-len(image.data) % beam_image.PAGE)
        sizes = np.full(len(at), SIZE)
        return self.blocks.fits("ErtsMessage", np.array(at, np.uint64), sizes).tolist()


def test_a_few_blocks_that_were_used_again_disprove_no_size():
    """
    One reading of freed memory is unsure; the next ones fit again, and so does the size.
    """
    planted = Planted()
    assert [True, True] == planted.fits(0, 16)
    assert [False] * 3 == planted.fits(4096, -8, 4096)
    assert not planted.blocks.disproves("ErtsMessage")
    assert [True] * 3 == planted.fits(0, 0, 0)


def test_many_blocks_that_do_not_fit_disprove_a_size_until_others_fit():
    """
    From 64 on, of which half do not fit.
    """
    planted = Planted()
    planted.fits(*[0] * 32, *[4096] * 31)
    assert not planted.blocks.disproves("ErtsMessage")
    planted.fits(4096)
    assert planted.blocks.disproves("ErtsMessage")
    assert not planted.blocks.knows("ErtsMessage")
    planted.fits(*[0] * 32)
    assert planted.blocks.knows("ErtsMessage")
    assert not planted.blocks.disproves("ErtsMessage")
    planted.fits(*[4096] * 1000)
    assert planted.blocks.disproves("ErtsMessage")
    planted.fits(*[0] * 300)
    assert planted.blocks.knows("ErtsMessage")
