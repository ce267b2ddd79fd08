# SPDX-License-Identifier: Apache-2.0
"""Sorted, distinct and contained values, with numpy's own functions as the witness."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from scope_ebpf.arrays import distinct, distinct_rows, grouped, within


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_values_are_told_as_numpy_tells_them(count: int):
    """
    Values, rows and who is among others are those of np.unique and np.isin.
    """
    chance = np.random.default_rng(count)
    values = chance.integers(0, 2**63, 40, np.uint64)[chance.integers(0, 40, count)]
    rows = chance.integers(0, 9, (count, 2)).astype(np.uint64)
    some = values[: count // 3]
    assert np.array_equal(distinct(values), np.unique(values))
    for own, theirs in zip(
        grouped(values), np.unique(values, return_index=True, return_inverse=True), strict=True
    ):
        assert np.array_equal(own, theirs)
    assert np.array_equal(distinct_rows(rows), np.unique(rows, axis=0))
    assert np.array_equal(within(values, some), np.isin(values, some))


def test_a_stream_starts_without_what_it_does_not_need():
    """
    What is slow to load and of no use before the first event is not loaded with a trace.
    """
    slow = ("numpy.ma", "rich", "_hashlib", "zipfile", "capstone", "scope_ebpf.budget.governor")
    code = f"""
import sys, numpy as np
import scope_ebpf.cli.main, scope_ebpf.cli.trace, scope_ebpf.sinks.stream
import scope_ebpf.beam.processes.labels
from scope_ebpf.arrays import distinct, distinct_rows, within
ids = np.array([1, 2**63, 3], np.uint64)
distinct(ids), distinct_rows(np.stack((ids, ids), axis=1)), within(ids, ids)
print([name for name in {slow!r} if name in sys.modules])
"""
    # Coverage would load some of them.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain
    )
    assert found.stdout == "[]\n"
