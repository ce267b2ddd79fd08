# SPDX-License-Identifier: Apache-2.0
"""
What of the table and the heading of ``top`` fits a width.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from scope_ebpf.cli.top_cells import COLUMNS, FUNCTION, MEMORY, NAME, PID, RATE, columns
from scope_ebpf.screen.cells import cut, padded, width
from scope_ebpf.screen.layout import Span, fit, flow, texts

LONG = ("<0.1764.0>", "a_name_that_is_long_enough_to_be_cut", "902k", "~1.2M", "1.5k", "waiting")
ROW = (*LONG, "some_module:some_function_of_it/12")
EMPTY = ("<0.1.0>", "init", "0", "22k", "0", "waiting", "init:loop/1")


@pytest.mark.parametrize("cells", [20, 30, 40, 60, 80, 120, 200])
def test_names_give_way_and_figures_are_whole(cells: int):
    """
    At each width the line fits, every figure that is shown is whole, pid and sort column are shown.
    """
    sizes = fit(COLUMNS, [ROW, EMPTY], cells, {PID, RATE})
    shown = texts(COLUMNS, ROW, sizes)
    assert width(" ".join(shown.values())) <= cells
    for index in shown.keys() - {NAME, FUNCTION}:
        assert shown[index].strip() == ROW[index]
    assert {PID, RATE} <= shown.keys()
    assert (cells >= 80) == (len(shown) == len(COLUMNS))
    if cells >= 200:
        assert [text.strip() for text in shown.values()] == [*ROW]


def test_the_least_important_column_goes_first():
    """
    From wide to narrow one column after the other is left out, and none comes back.
    """
    seen = [set(fit(COLUMNS, [ROW], cells, {PID, RATE})) for cells in range(120, 10, -1)]
    assert all(after <= before for before, after in pairwise(seen))
    assert ({*range(len(COLUMNS))}, {PID, RATE}) == (seen[0], seen[-1])


def test_a_table_without_rows_has_headings():
    """
    The columns are as wide as their headings, or as they are at least.
    """
    sizes = fit(COLUMNS, [], 80)
    assert all(sizes[n] >= len(one.heading) or one.cut for n, one in enumerate(COLUMNS))


def test_collections_replace_reductions():
    """
    The same columns but one, whose heading says what is in it.
    """
    assert [n for n in range(len(COLUMNS)) if COLUMNS[n] != columns("gc")[n]] == [RATE]
    assert columns("gc")[RATE].heading == "GC/S"
    assert [n for n in range(len(COLUMNS)) if COLUMNS[n] != columns("binary")[n]] == [MEMORY]


@pytest.mark.parametrize("cells", [10, 20, 33, 60, 200])
def test_a_heading_is_broken_between_figures_only(cells: int):
    """
    Each figure stands whole in one line, in its order, and no line is longer than it must be.
    """
    words = ["pid 4711", "schedulers 85% of 4", "run queue 3.1", "processes 1,723/262,144"]
    lines = ["".join(text for text, _ in line) for line in flow(map(Span, words), cells)]
    assert "  ".join(lines) == "  ".join(words)
    assert all(width(line) <= cells or line in words for line in lines)


@pytest.mark.parametrize(
    ("text", "cells", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab\u2026"),
        ("\u6f22\u5b57\u6f22", 6, "\u6f22\u5b57\u6f22"),
        ("\u6f22\u5b57\u6f22", 5, "\u6f22\u5b57\u2026"),
        ("\u6f22\u5b57\u6f22", 4, "\u6f22\u2026"),
        ("e\u0301a\u0308u", 3, "e\u0301a\u0308u"),
        ("abc", 0, ""),
        ("abc", 1, "\u2026"),
    ],
)
def test_a_text_is_cut_to_the_cells_that_it_takes(text: str, cells: int, shown: str):
    """
    Wide characters take two and combining ones none.
    """
    assert shown == cut(text, cells)
    assert width(padded(text, cells)) == cells
    assert width(padded(text, cells, right=True)) == cells
