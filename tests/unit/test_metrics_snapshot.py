# SPDX-License-Identifier: Apache-2.0
"""
Process tables folded into a fixed number of figures.
"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scope_ebpf.metrics.snapshot import MAILBOX_STEPS, Reductions, SnapshotReading, Top

COLUMNS = ("id", "mailbox", "heap_words", "fragment_words", "old_heap", "old_hend", "abandoned")
ROW = np.dtype(
    [(name, np.int64 if name == "mailbox" else np.uint64) for name in COLUMNS]
    + [("heap", np.uint64), ("hend", np.uint64)]
)
STRUCT = 776


def table(mailboxes, words=None):
    rows = np.zeros(len(mailboxes), ROW)
    rows["id"] = np.arange(len(mailboxes)) + 1
    rows["mailbox"] = mailboxes
    rows["heap_words"] = 233 if words is None else words
    return rows


def test_processes_are_counted_by_their_mailbox():
    """
    Each step counts every process that has at least so many messages.
    """
    reading = SnapshotReading(3)
    reading.take_in(table([0, 1, 9, 10, 99, 1_000_000]), 0, STRUCT)
    assert dict(zip(MAILBOX_STEPS, reading.mailbox_counts.tolist(), strict=True)) == {
        1: 5,
        10: 3,
        100: 1,
        1_000: 1,
        10_000: 1,
        100_000: 1,
    }
    assert reading.messages == 1_000_119
    assert [Top(6, 1_000_000), Top(5, 99), Top(4, 10)] == reading.mailboxes


def test_memory_is_struct_and_heap():
    """
    A process of 1,000 words has its struct besides.
    """
    reading = SnapshotReading(1)
    reading.take_in(table([0], [1000]), 0, STRUCT)
    assert reading.memory == 8000 + STRUCT


def test_empty_mailboxes_are_in_no_ranking():
    """
    Where nobody waits, nobody is shown.
    """
    reading = SnapshotReading(3)
    reading.take_in(table([0, 0]), 0, STRUCT)
    assert [] == reading.mailboxes


@given(st.lists(st.integers(0, 10**6), max_size=60), st.integers(1, 7))
def test_parts_make_the_whole(mailboxes, parts):
    """
    A table that is read in parts has the figures of one that is read at once.
    """
    rows = table(mailboxes)
    whole, sum_of_parts = SnapshotReading(4), SnapshotReading(4)
    whole.take_in(rows, 0, STRUCT)
    for part in range(parts):
        sum_of_parts.take_in(rows[part::parts], 0, STRUCT)
    assert whole.mailbox_counts.tolist() == sum_of_parts.mailbox_counts.tolist()
    assert whole.messages == sum_of_parts.messages
    assert [t.value for t in whole.mailboxes] == [t.value for t in sum_of_parts.mailboxes]


def done(**reductions: int):
    """
    Rows of processes by pid, and what each has done since it began.
    """
    rows = np.zeros(len(reductions), np.dtype([("id", np.uint64), ("reductions", np.uint64)]))
    rows["id"] = [int(name[1:]) for name in reductions]
    rows["reductions"] = list(reductions.values())
    return rows


def test_the_busiest_are_those_that_did_most_since_the_last_snapshot():
    """
    Reductions of former times do not count, and a new process has done all of its own.
    """
    moments = iter([10.0, 12.0])
    reductions = Reductions(lambda: next(moments))
    first = done(p1=1_000_000, p2=50, p3=7)
    assert reductions.since(0, first)[1] == 0
    now = done(p3=7, p4=600, p1=1_000_100)
    reading = SnapshotReading(2)
    reading.take_in_rates(now, *reductions.since(0, now))
    assert [Top(4, 300), Top(1, 50)] == reading.rates
    assert reading.rate == 350


def test_a_pid_that_is_used_again_has_not_done_less_than_nothing():
    """
    A count that fell is taken for nothing, and an empty table for a table.
    """
    reductions = Reductions(iter([1.0, 2.0, 3.0]).__next__)
    reductions.since(0, done())
    assert reductions.since(0, done(p1=500))[0].tolist() == [500]
    assert reductions.since(0, done(p1=3))[0].tolist() == [0]
