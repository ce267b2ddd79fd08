# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.attach.plan import Attachment, Item, Plan
from scope_ebpf.budget.fold import fold, whole
from scope_ebpf.budget.ledger import Result
from scope_ebpf.metrics.columns import WIDTH, sum_column


class Ledger:
    """
    A ledger of one result.
    """

    def __init__(self, result: Result) -> None:
        self._result = result
        self.known: int | None = None

    def result(self, _event: str, known: int | None = None) -> Result:
        self.known = known
        return self._result


def folded(event: str, result: Result, **counted: int):
    item = Item(event, "symbol", "f", (Attachment("p", "f", "f", 1, 1),), "")
    tallies = np.zeros((len(events.KINDS), events.CLASSES), events.COUNTERS)
    return fold(Plan((item,)), Ledger(result), tallies, counted)[event]


def totals(event: str, **classes: float) -> np.ndarray:
    row = np.zeros(WIDTH)
    for name, count in classes.items():
        row[events.KINDS[event].classes.index(name)] = count
    return row


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], []),
        ([1.0, 2.0], [1, 2]),
        ([0.6, 0.6, 0.6], [1, 1, 0]),
        ([10.2, 0.4, 0.4], [10, 1, 0]),
        ([0.1, 0.1], [0, 0]),
    ],
)
def test_rounded_parts_sum_up_to_the_rounded_whole(parts: list[float], expected: list[int]):
    """
    The parts that are shown are as many as the whole that is shown.
    """
    found = whole(np.array(parts))
    assert expected == found.tolist()
    assert round(sum(parts)) == found.sum()


def test_an_estimate_is_whole_numbers_with_its_error():
    """
    Counts are integers as ever; beside them stand the error and how much was looked at.
    """
    event = folded("send", Result(totals("send", local=1000.4, remote=9.3), 0.0412, 0.021))
    assert (1010, {"local": 1001, "remote": 9}) == (event.count, event.by_class)
    assert (0.0412, 0.021, "hooks") == (event.error_ratio, event.sampling_ratio, event.counted_by)
    document = event.as_json(10.0)
    assert (1010, int) == (document["count"], type(document["count"]))
    assert {"error_ratio": 0.0412, "sampling_ratio": 0.021}.items() <= document.items()


def test_what_the_vm_counts_itself_is_said_to_be_from_there():
    """
    Of an event in windows the VM's own count is shown; what hooks have counted whole is theirs.
    """
    sampled = folded("spawn", Result(totals("spawn", all=99.7), 0.0, 0.02), spawned=101)
    assert (101, "vm") == (sampled.count, sampled.counted_by)
    counted = folded("spawn", Result(totals("spawn", all=100.0), 0.0, 1.0), spawned=101)
    assert (100, "hooks") == (counted.count, counted.counted_by)


def test_durations_are_rounded_and_keep_their_sum():
    """
    A histogram has whole numbers in its slots, and the seconds that were estimated.
    """
    row = totals("gc", minor=10.0)
    first = sum_column(events.KINDS["gc"].classes.index("minor"))
    row[first], row[first + 11], row[first + 12] = 2.5e9, 6.6, 3.4
    histogram = folded("gc", Result(row, 0.0, 0.5)).histograms["minor"]
    assert (2.5, 7, 3) == (histogram.total_seconds, histogram.slots[10], histogram.slots[11])
