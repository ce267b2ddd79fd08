# SPDX-License-Identifier: Apache-2.0
"""
The summary of a trace: the maps of a session folded into one plain record.

Pure. The JSON of :meth:`Summary.as_json` is a contract; fields are added, never
renamed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from scope_ebpf import events

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Item, Plan
    from scope_ebpf.beam.vm.state import VmState
    from scope_ebpf.results.documents import traces, vms

SCHEMA: Literal[1] = 1


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram of durations."""

    #: The sum of all durations.
    total_seconds: float
    #: Slot N counts the durations from 2^N ns up to 2^(N+1).
    slots: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of durations."""
        return sum(self.slots)

    def as_json(self) -> traces.HistogramDocument:
        """Only the slots between the first and the last that are not empty."""
        used = [n for n, count in enumerate(self.slots) if count]
        slots = range(used[0], used[-1] + 1) if used else range(0)
        return {
            "count": self.count,
            "total_seconds": self.total_seconds,
            "buckets": [{"le_seconds": 2 ** (n + 1) / 1e9, "count": self.slots[n]} for n in slots],
        }


@dataclass(frozen=True, slots=True)
class EventSummary:
    """
    The counts and durations of one event.
    """

    #: How the event was seen, or why it was not.
    item: Item
    count: int = 0
    #: Events that were counted but found no room in the ring.
    lost: int = 0
    #: Events whose memory could not be read.
    refused: int = 0
    #: Counts by class.
    by_class: dict[str, int] = field(default_factory=dict)
    #: Durations by class.
    histograms: dict[str, Histogram] = field(default_factory=dict)
    #: The part by which the count may be off, in 95 of 100 cases.
    error_ratio: float = 0.0
    #: The part of the time in which the event was counted; below 1, classes and durations are
    #: estimates.
    sampling_ratio: float = 1.0
    #: Where the count comes from: from hooks, or from a counter of the VM.
    counted_by: Literal["hooks", "vm"] = "hooks"

    def as_json(self, duration_seconds: float) -> traces.CountedEvent | traces.UnavailableEvent:
        """As the contract has it: unavailable events say why, and nothing else."""
        if not self.item.attachments:
            return {"via": self.item.via, "reason": self.item.reason}
        document: traces.CountedEvent = {
            "count": self.count,
            "rate": round(self.count / duration_seconds, 3) if duration_seconds else 0.0,
            "lost": self.lost,
            "refused": self.refused,
            "via": self.item.via,
            "hook": self.item.hook,
            "error_ratio": self.error_ratio,
            "sampling_ratio": self.sampling_ratio,
            "counted_by": self.counted_by,
        }
        if self.by_class:
            document["by_class"] = self.by_class
        if self.histograms:
            document["durations"] = {n: h.as_json() for n, h in self.histograms.items()}
        if self.item.reason:
            document["reason"] = self.item.reason
        return document


class Cost(NamedTuple):
    """
    What observing took from the target.
    """

    #: Hits of all programs on the target.
    hits: int
    #: CPU that the hits took, by the cost of a hit on this host; None if that is not known.
    cpu_seconds: float | None
    #: The part that this is of the CPU that the target used; None if that is not known.
    share_of_target: float | None


class Summary(NamedTuple):
    """A whole trace."""

    #: The VM, as JSON.
    target: vms.Target
    duration_seconds: float
    #: Why it ended.
    stopped_because: str
    #: By the name of the event, in the order of the plan.
    events: dict[str, EventSummary]
    cost: Cost
    #: What a reader of the figures should know.
    notes: tuple[str, ...] = ()
    #: The state of the VM meanwhile; None if it was not looked at, as in a capture.
    state: VmState | None = None
    #: Calls by server; None if there are none to show, as in a trace.
    calls: list[traces.CallsOfServer] | None = None
    #: Crashes by what they have in common; None if exits were not counted, as in a capture.
    crashes: list[traces.CrashGroup] | None = None

    @property
    def lost_total(self) -> int:
        """Records that found no room in the ring."""
        return sum(event.lost for event in self.events.values())

    def as_json(self) -> traces.SummaryDocument:
        """The document of ``--format json``."""
        cpu = self.cost.cpu_seconds
        document: traces.SummaryDocument = {
            "schema": SCHEMA,
            "target": self.target,
            "state": self.state.as_json() if self.state else None,
            "duration_seconds": round(self.duration_seconds, 6),
            "stopped_because": self.stopped_because,
            "events": {n: e.as_json(self.duration_seconds) for n, e in self.events.items()},
            "lost_total": self.lost_total,
            "cost": {
                "hits": self.cost.hits,
                "cpu_seconds": None if cpu is None else round(cpu, 6),
                "share_of_target": self.cost.share_of_target,
            },
            "notes": list(self.notes),
        }
        if self.calls is not None:
            document["calls"] = self.calls
        if self.crashes is not None:
            document["crashes"] = self.crashes
        return document


def fold(
    plan: Plan, tallies: NDArray[np.void], durations: NDArray[np.void]
) -> dict[str, EventSummary]:
    """
    The events of *plan* out of a session's maps.

    *tallies* and *durations* have shape ``(kinds, classes, cpus)``.
    """
    return {
        item.event: _fold_event(item, tallies, durations)
        if item.attachments
        else EventSummary(item)
        for item in plan.items
    }


def _fold_event(item: Item, tallies: NDArray[np.void], durations: NDArray[np.void]) -> EventSummary:
    kind = events.KINDS[item.event]
    counts = tallies["count"][kind.id].sum(axis=1)
    by_class = {name: int(counts[n]) for n, name in enumerate(kind.classes)}
    if not by_class.get("unknown", 1):
        del by_class["unknown"]
    return EventSummary(
        item=item,
        count=by_class[kind.counted] if kind.counted else int(counts.sum()),
        lost=int(tallies["lost"][kind.id].sum()),
        refused=int(tallies["refused"][kind.id].sum()),
        by_class=by_class if len(kind.classes) > 1 else {},
        histograms=_histograms(kind, durations[kind.id]) if kind.histogram else {},
    )


def _histograms(kind: events.Kind, durations: NDArray[np.void]) -> dict[str, Histogram]:
    """By class, those that have any durations."""
    wanted = kind.classes if kind.histogram == "all" else (kind.histogram,)
    found = {}
    for number, name in enumerate(kind.classes):
        slots = durations["slots"][number].sum(axis=0)
        if name in wanted and slots.any():
            total = int(durations["total_ns"][number].sum()) / 1e9
            found[name] = Histogram(total, tuple(slots.tolist()))
    return found
