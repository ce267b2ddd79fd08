# SPDX-License-Identifier: Apache-2.0
"""
The first cases of each kind that ``make fuzz`` does a million of.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

HERE = Path(__file__).parent
for near in (HERE, HERE.parent / "unit"):
    sys.path.insert(0, str(near))

import fuzz  # noqa: E402 - after the path
import images  # noqa: E402


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_nothing_that_a_stranger_gives_us_is_a_traceback_a_hang_or_a_flood(
    name: str, tmp_path: Path
):
    """
    10,000 mutations with a fixed seed are refused or read, each in its seconds and its memory.
    """
    _, share = fuzz.KINDS[name]
    totals = fuzz.run(name, fuzz.kind_of(name, tmp_path), range(round(10_000 * share)))
    assert {} == totals.examples
    # What is refused always, or never, is no mutation of what is good.
    assert 0 < totals.refused < totals.cases


def test_the_recorded_image_is_read_whole_by_all_that_reads_a_vm(tmp_path: Path):
    """
    Nothing is refused of what is not changed, so the image has all that is read today.
    """
    recorded = images.Images(tmp_path)
    for part in (*images.PARTS, images._searches):
        hidden = tuple(images.SEARCHES) if part is images._searches else ()
        memory = images.Evil(recorded._image, Random(1), 0.0)
        target = images.target_of(recorded._facts, memory, images.Binary(recorded._facts, hidden))
        with images._surroundings(memory, recorded._threads, recorded._facts["tables"]):
            part(target)


def test_a_case_that_raises_anything_else_is_a_failure():
    """
    What is no ScopeError is counted by its type and frame, and so is a case that does not end.
    """

    class Odd:
        def run(self, random):
            if random.random() < 0.5:
                raise KeyError("x")
            while True:
                pass

    before, fuzz.PATIENCE = fuzz.PATIENCE, 0.05
    try:
        totals = fuzz.run("odd", Odd(), range(10))
    finally:
        fuzz.PATIENCE = before
    assert {"KeyError", "HangError"} == {failure.split()[0] for failure in totals.failures}
    assert (10, 10, 0) == (totals.cases, totals.failures.total(), totals.refused)
