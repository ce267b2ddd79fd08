# SPDX-License-Identifier: Apache-2.0
"""The results of a ledger as the events of a summary: whole numbers, with their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.metrics.columns import COUNTS, SLOTS, sum_column
from scope_ebpf.results.summary import EventSummary, Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Item, Plan
    from scope_ebpf.budget.ledger import Ledger

#: The counter of the VM that counts an event.
COUNTED_BY_VM = {
    "spawn": "spawned",
    "exit": "exited",
    "gc": "collections",
    "schedule": "context_switches",
}


def fold(
    plan: Plan, ledger: Ledger, tallies: NDArray[np.void], counted: Mapping[str, int]
) -> dict[str, EventSummary]:
    """
    The summary of each event of *plan*.

    *tallies* has shape ``(kinds, classes)``; *counted* are counts of the VM itself, by counter.
    """
    return {
        item.event: _fold_event(
            item, ledger, tallies, counted.get(COUNTED_BY_VM.get(item.event, ""))
        )
        if item.attachments
        else EventSummary(item)
        for item in plan.items
    }


def _fold_event(
    item: Item, ledger: Ledger, tallies: NDArray[np.void], known: int | None
) -> EventSummary:
    kind = events.KINDS[item.event]
    result = ledger.result(item.event, known)
    sampled = result.sampling_ratio < 1
    counts = whole(result.totals[:COUNTS])
    by_class = {name: int(counts[n]) for n, name in enumerate(kind.classes)}
    count = by_class[kind.counted] if kind.counted else int(counts.sum())
    if not by_class.get("unknown", 1):
        del by_class["unknown"]
    return EventSummary(
        item=item,
        count=known if sampled and known is not None else count,
        lost=int(tallies["lost"][kind.id].sum()),
        refused=int(tallies["refused"][kind.id].sum()),
        by_class=by_class if len(kind.classes) > 1 else {},
        histograms=_histograms(kind, result.totals) if kind.histogram else {},
        error_ratio=round(result.error_ratio, 4),
        sampling_ratio=round(result.sampling_ratio, 6) if sampled else 1.0,
        counted_by="vm" if sampled and known is not None else "hooks",
    )


def whole(parts: NDArray[np.float64]) -> NDArray[np.int64]:
    """
    Round *parts* so that they sum up to their rounded sum.

    >>> whole(np.array([0.4, 0.4, 0.4])).tolist()
    [1, 0, 0]
    """
    low = np.floor(parts).astype(np.int64)
    over = round(float(parts.sum())) - int(low.sum())
    largest = np.argsort(low - parts, kind="stable")[: max(0, over)]
    low[largest] += 1
    return low


def _histograms(kind: events.Kind, totals: NDArray[np.float64]) -> dict[str, Histogram]:
    """Histograms of the classes that have durations."""
    wanted = kind.classes if kind.histogram == "all" else (kind.histogram,)
    found = {}
    for number, name in enumerate(kind.classes):
        first = sum_column(number)
        slots = whole(totals[first + 1 : first + 1 + SLOTS])
        if name in wanted and slots.any():
            found[name] = Histogram(float(totals[first]) / 1e9, tuple(slots.tolist()))
    return found
