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


def weights(rows):
    """
    Bytes of each: a word of heap is eight.
    """
    return 8 * rows["heap_words"].astype(np.int64)


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
    rows = table([0, 1, 9, 10, 99, 1_000_000])
    reading.add(rows, 0, weights(rows))
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


def test_the_largest_are_ranked_by_their_exact_bytes():
    """
    A closer look at the largest changes their order, and the sum of all by as much.
    """
    reading = SnapshotReading(2)
    rows = table([0, 0, 0], [1000, 900, 10])
    reading.add(rows, 0, weights(rows))
    assert [Top(1, 8000), Top(2, 7200)] == reading.memories
    reading.refine_memory({2: 9000})
    assert [Top(2, 9000), Top(1, 8000)] == reading.memories
    assert reading.memory == 8000 + 9000 + 80


def test_empty_mailboxes_are_in_no_ranking():
    """
    Without messages there is no process to show.
    """
    reading = SnapshotReading(3)
    rows = table([0, 0])
    reading.add(rows, 0, weights(rows))
    assert [] == reading.mailboxes


@given(st.lists(st.integers(0, 10**6), max_size=60), st.integers(1, 7))
def test_parts_make_the_whole(mailboxes, parts):
    """
    A table that is read in parts has the figures of one that is read at once.
    """
    rows = table(mailboxes)
    whole, sum_of_parts = SnapshotReading(4), SnapshotReading(4)
    whole.add(rows, 0, weights(rows))
    for part in range(parts):
        sum_of_parts.add(rows[part::parts], 0, weights(rows[part::parts]))
    assert whole.mailbox_counts.tolist() == sum_of_parts.mailbox_counts.tolist()
    assert whole.messages == sum_of_parts.messages
    assert [t.value for t in whole.mailboxes] == [t.value for t in sum_of_parts.mailboxes]


NONE = np.empty(0, np.int64)


def done(**reductions: int):
    """
    Rows of processes by pid, each in the slot of its number, and what they have done so far.
    """
    kinds = [("id", np.uint64), ("slot", np.uint32), ("reductions", np.uint64)]
    rows = np.zeros(len(reductions), np.dtype(kinds))
    rows["id"] = rows["slot"] = [int(name[1:]) for name in reductions]
    rows["reductions"] = list(reductions.values())
    return rows


def rates(reductions: Reductions, rows, missed=NONE):
    """
    The reading of a table of one part with these *rows*.
    """
    return reductions.rates(0, 1, rows, np.array(missed, np.int64)).tolist()


def test_the_busiest_are_those_that_did_most_since_the_last_snapshot():
    """
    Reductions of former times do not count, and a new process has done all of its own.
    """
    reductions = Reductions(iter([10.0, 12.0]).__next__)
    assert [0, 0, 0] == rates(reductions, done(p1=1_000_000, p2=50, p3=7))
    now = done(p3=7, p4=600, p1=1_000_100)
    reading = SnapshotReading(2)
    reading.add_rates(now, reductions.rates(0, 1, now, NONE))
    assert [Top(4, 300), Top(1, 50)] == reading.rates
    assert reading.rate == 350


def test_a_count_that_no_process_can_reach_is_no_rate():
    """
    Counts that rise by more than a core can do, and two readings at one time of the clock.
    """
    reductions = Reductions(iter([1.0, 2.0, 2.0]).__next__)
    rates(reductions, done(p1=1, p2=1, p3=1))
    assert [0, 0, 9] == rates(reductions, done(p1=1 << 62, p2=1 << 40, p3=10))
    assert [0, 0, 0] == rates(reductions, done(p1=1 << 62, p2=1 << 40, p3=11))


def test_a_pid_that_is_used_again_has_not_done_less_than_nothing():
    """
    A count that fell is taken for nothing, and an empty table for a table.
    """
    reductions = Reductions(iter([1.0, 2.0, 3.0]).__next__)
    rates(reductions, done())
    assert [500] == rates(reductions, done(p1=500))
    assert [0] == rates(reductions, done(p1=3))


def test_what_a_process_has_done_in_its_life_is_no_rate():
    """
    Who was missed has no rate until it is seen twice, whether it was known before or not.
    """
    reductions = Reductions(iter([1.0, 2.0, 3.0, 4.0]).__next__)
    rates(reductions, done(p1=10**12), missed=[2])
    assert [0] == rates(reductions, done(p2=10**12), missed=[1])
    assert [0, 5] == rates(reductions, done(p1=10**12 + 90, p2=10**12 + 5))
    assert [7, 0] == rates(reductions, done(p1=10**12 + 97, p2=10**12 + 5))


def test_a_new_process_counts_though_others_were_missed():
    """
    Nobody was in its slot before, so all that it has done is new.
    """
    reductions = Reductions(iter([1.0, 3.0]).__next__)
    rates(reductions, done(), missed=[1])
    assert [0, 30] == rates(reductions, done(p1=10**12, p2=60))


@given(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=2, max_size=6), st.sets(st.integers(1, 31)))
def test_rates_are_right_whatever_the_parts_are(cuts, slots):
    """
    Five reductions per second are that rate in any number of parts, before and now.
    """
    moment = [0.0]
    reductions = Reductions(lambda: moment[0])
    for turn, parts in enumerate(cuts):
        moment[0] += 100
        for part in range(parts):
            moment[0] += 1
            here = {f"p{n}": int(5 * moment[0]) for n in slots if n % parts == part}
            rates = reductions.rates(part, parts, done(**here), NONE).tolist()
            assert [5.0 * (turn > 0)] * len(here) == rates
