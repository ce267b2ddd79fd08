# SPDX-License-Identifier: Apache-2.0
"""The records of a capture as rows, and which processes and threads are in it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.capture.facts import PID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scope_ebpf.capture.reader import Capture

#: Records that are worked on at once.
BATCH = 1 << 16
#: Processes whose load is counted, and threads that the kernel scheduled.
MOST = 1 << 20
#: A word of a record that is not known.
UNKNOWN = 0xFFFFFFFFFFFFFFFF
#: Set in the number of a process whose pid is a text, that of a USDT probe.
TEXT_PID = 1 << 64
_IN = events.KINDS["schedule"].classes.index("in")


class Row(NamedTuple):
    """One record, with its time since boot."""

    time: int
    kind: int
    cls: int
    tid: int
    process: int
    words: list[int]


def rows(batch: NDArray[np.void], to_boot: int) -> Iterator[Row]:
    """Rows of a batch; *to_boot* ns make its times those since boot."""
    # A pid of a USDT probe is no term, and must not be taken for one.
    flagged = (batch["flags"] & events.FLAG_TEXT_PID) != 0
    processes = batch["process"].tolist()
    if flagged.any():
        processes = [
            p | TEXT_PID if text and p else p for p, text in zip(processes, flagged, strict=True)
        ]
    columns = (
        (batch["time_ns"].astype(np.int64) + to_boot).tolist(),
        *(batch[name].tolist() for name in ("kind", "class", "tid")),
        processes,
        batch["body"].tolist(),
    )
    return map(Row._make, zip(*columns, strict=True))


def survey(capture: Capture) -> tuple[set[int], list[int]]:
    """Find the threads that the kernel scheduled, and all processes, the busiest first."""
    tids: set[int] = set()
    busy: dict[int, int] = defaultdict(int)
    schedule, thread, packet = (
        events.KINDS[name].id for name in ("schedule", "thread", "dist_out")
    )
    for batch in capture.batches(BATCH):
        if len(tids) < MOST:
            found = np.minimum(batch["tid"][batch["kind"] == thread], PID)
            tids.update(np.unique(found).tolist())
        # A packet names its sender by a text, which would be another process.
        own = (batch["kind"] != thread) & (batch["kind"] != packet)
        rows = batch[own & (batch["process"] != 0)]
        spent = np.ones(len(rows), np.int64)
        out = (rows["kind"] == schedule) & (rows["class"] != _IN)
        durations = rows["body"][:, 0]
        timed = out & (durations != UNKNOWN)
        spent[timed] += durations[timed].astype(np.int64)
        text = (rows["flags"] & events.FLAG_TEXT_PID) != 0
        for flag in np.unique(text):
            pids, where = np.unique(rows["process"][text == flag], return_inverse=True)
            sums = np.bincount(where, spent[text == flag])
            for pid, total in zip(pids.tolist(), sums.tolist(), strict=True):
                busy[pid | TEXT_PID if flag else pid] += int(total)
        if len(busy) > MOST:
            kept = sorted(busy, key=busy.__getitem__, reverse=True)[: MOST // 2]
            busy = defaultdict(int, {pid: busy[pid] for pid in kept})
    return tids, sorted(busy, key=busy.__getitem__, reverse=True)
