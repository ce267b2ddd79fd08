# SPDX-License-Identifier: Apache-2.0
"""
Relations between figures that always hold, whatever a VM does.

A figure that breaks one was read from a wrong address, even if every other check has passed. Code
that exports or prints figures checks them here first, and reports those that fail. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scope_ebpf.beam.vm.allocators import Allocator, MemoryUse
    from scope_ebpf.beam.vm.connections import Connections
    from scope_ebpf.beam.vm.counters import Counters, Limits
    from scope_ebpf.metrics.columns import EventReading
    from scope_ebpf.metrics.reading import MemoryReading, Reading
    from scope_ebpf.metrics.snapshot import SnapshotReading
    from scope_ebpf.results.summary import EventSummary, Summary

#: Names of figures, each a part and its whole.
Pairs = tuple[tuple[str, str], ...]
_USE: Pairs = (
    ("processes_used", "processes"),
    ("processes", "total"),
    ("binary", "total"),
    ("ets", "total"),
    ("loaded_code", "total"),
)
_COUNTERS: Pairs = (("dirty_collections", "collections"),)
#: The relative error of a sum of estimates.
_ROUNDING = 1e-6
#: By which part a sum of durations from windows may be too long, and by how many seconds of each
#: scheduler what was counted before the time of a trace began.
_ESTIMATED, _AROUND = 0.2, 0.5


def impossible(
    figures: Mapping[str, float | None], pairs: Pairs = (), apart: float = 0.0
) -> list[str]:
    """
    The *figures* that cannot be: those below zero, and parts of *pairs* above their whole.

    Returns a text for each. A figure that is None or missing is not known and breaks nothing.
    *apart* is by how much a part may be above its whole, since both are estimates.
    """
    found = [f"{name} is {value:,}" for name, value in figures.items() if (value or 0) < 0]
    for part, whole in pairs:
        small, large = figures.get(part), figures.get(whole)
        if small is None or large is None:
            continue
        if small > large + abs(large) * _ROUNDING + apart:
            found.append(f"{part} {small:,} is more than {whole} {large:,}")
    return found


def of_use(use: MemoryUse) -> list[str]:
    """Errors of ``erlang:memory/0``."""
    names = ("total", "processes", "processes_used", "binary", "ets", "loaded_code", "system")
    return impossible({name: getattr(use, name) for name in names}, _USE)


def of_allocators(allocators: Iterable[Allocator]) -> list[str]:
    """Errors of the allocators: blocks that are larger than the carriers they lie in."""
    found = []
    for one in allocators:
        for kind, (carriers, blocks) in one.kinds.items():
            here, there = f"{one.name} {kind} blocks", f"{one.name} {kind} carriers"
            found += impossible({there: carriers, here: blocks}, ((here, there),))
        found += impossible({f"{one.name} blocks": one.blocks})
    return found


def of_counters(counters: Counters, limits: Limits | None) -> list[str]:
    """Errors of a VM's counters: more rows than a table has, more schedulers online than exist."""
    names = ("context_switches", "reductions", "collections", "reclaimed_words", "ets_tables")
    figures = {name: getattr(counters, name) for name in (*names, "dirty_collections")}
    figures |= {"waiting": min(counters.waiting, default=0)}
    pairs = _COUNTERS
    for number, (online, there) in enumerate(
        zip(counters.online, counters.schedulers, strict=True)
    ):
        part, whole = f"online {number}", f"schedulers {number}"
        figures |= {part: online, whole: there}
        pairs = (*pairs, (part, whole))
    found = impossible(figures, pairs)
    # A scheduler counts a new process or port before it looks at the limit, and takes that back
    # (erts_ptab_new_element, OTP-25.2.3 erts/emulator/beam/erl_ptab.c). No atom is counted so.
    ahead = sum(counters.schedulers)
    for name, apart in (("processes", ahead), ("ports", ahead), ("atoms", 0)) if limits else ():
        limit = f"limit of {name}"
        pair = {name: getattr(counters, name), limit: getattr(limits, name)}
        found += impossible(pair, ((name, limit),), apart)
    return found


def of_connections(connections: Connections) -> list[str]:
    """Errors of the connections to other nodes."""
    figures = {"queued": connections.queued, "busy": connections.busy}
    figures["nodes"] = sum(connections.nodes) + connections.pending
    return impossible(figures, (("busy", "nodes"),))


def of_snapshot(taken: SnapshotReading) -> list[str]:
    """Errors of a process table: rankings that are more than the sum of all processes."""
    found = []
    for name, ranking, total in (
        ("mailboxes", taken.mailboxes, taken.messages),
        ("memories", taken.memories, taken.memory),
        ("rates", taken.rates, taken.rate),
    ):
        top = sum(one.value for one in ranking)
        pair = (f"the largest {name}", f"all {name}")
        found += impossible(dict(zip(pair, (top, total), strict=True)), (pair,))
    return found


def of_event(event: EventReading) -> list[str]:
    """Errors of an event: counts below zero, and a sampling ratio above one."""
    figures = {"the least of its counts": float(event.totals.min(initial=0.0))}
    figures |= {"sampling_ratio": event.sampling_ratio, "one": 1.0}
    return impossible(figures, (("sampling_ratio", "one"),))


def checked(reading: Reading) -> tuple[Reading, dict[str, str]]:
    """The reading without the figures that cannot be, and why, by the name of each error."""
    refused: dict[str, str] = {}

    def holds(what: str, why: list[str]) -> bool:
        if why:
            refused[what] = "; ".join(why)
        return not why

    counters, snapshot, memory = reading.counters, reading.snapshot, reading.memory
    if counters and not holds("counters", of_counters(counters, reading.limits)):
        counters = None
    if snapshot and not holds("processes", of_snapshot(snapshot)):
        snapshot = None
    if memory:
        memory = _memory(memory, refused)
    events = {name: one for name, one in reading.events.items() if holds(name, of_event(one))}
    if not refused:
        return reading, refused
    return replace(
        reading, counters=counters, snapshot=snapshot, memory=memory, events=events
    ), refused


def _memory(memory: MemoryReading, refused: dict[str, str]) -> MemoryReading:
    allocators, connections = memory.allocators, memory.connections
    if allocators and (why := of_allocators(allocators.allocators)):
        refused["allocators"] = "; ".join(why)
        allocators = None
    if allocators and allocators.memory and (why := of_use(allocators.memory)):
        refused["erlang_memory"] = "; ".join(why)
        allocators = allocators._replace(memory=None)
    if connections and (why := of_connections(connections)):
        refused["connections"] = "; ".join(why)
        connections, memory = None, replace(memory, peers=())
    return replace(memory, allocators=allocators, connections=connections)


def of_summary(summary: Summary) -> list[str]:
    """
    Errors of a trace: more classes or durations than events.

    Estimates may differ by their stated error.
    """
    found = []
    for name, event in summary.events.items():
        classes = sum(event.by_class.values()) if event.by_class else None
        durations = sum(histogram.count for histogram in event.histograms.values())
        whole = event.count if classes is None else classes
        events, of_all = f"{name} events", f"{name} of all classes"
        figures = {
            events: event.count,
            f"{name} durations": durations,
            of_all: whole,
            f"{name} lost": event.lost,
            f"{name} refused": event.refused,
        }
        pairs: Pairs = ((f"{name} durations", of_all if event.by_class else events),)
        if not _of_two_sources(event):
            pairs += ((events, of_all),)
        found += impossible(figures, pairs, _apart(event, whole))
    return found


def _of_two_sources(event: EventSummary) -> bool:
    """Whether the count is the VM's, and the classes come from windows."""
    return event.sampling_ratio < 1 and event.counted_by == "vm"


def _apart(event: EventSummary, whole: int) -> float:
    """By how many events two estimates of one event may differ; 0 where all was counted."""
    if event.sampling_ratio >= 1:
        return 0.0
    # Each class and each of its histograms is rounded by itself.
    return event.error_ratio * whole + len(event.by_class) + len(event.histograms)


def checked_summary(summary: Summary) -> Summary:
    """The summary with a note on each figure that cannot be, and without durations that cannot."""
    notes = tuple(f"these figures cannot be right: {why}" for why in of_summary(summary))
    events = summary.events
    if why := _too_long(summary):
        events = {**events, "schedule": replace(events["schedule"], histograms={})}
        notes += (f"durations of schedule are refused: {why}",)
    if not notes:
        return summary
    # A recorded summary was checked when it was made.
    return summary._replace(events=events, notes=tuple(dict.fromkeys((*summary.notes, *notes))))


def _too_long(summary: Summary) -> str:
    """
    Why durations of schedule cannot be: they are longer than all schedulers had time.

    Each duration contains a part of its own hooks, which is much of a slice of a microsecond. USDT
    probes see slices of dirty schedulers too, which are not among the schedulers of a target.
    """
    schedulers, event = summary.target.get("schedulers"), summary.events.get("schedule")
    if not isinstance(schedulers, int) or event is None or event.item.via != "symbol":
        return ""
    there = schedulers * summary.duration_seconds
    seen = sum(histogram.total_seconds for histogram in event.histograms.values())
    margin = 0.0 if event.sampling_ratio >= 1 else max(event.error_ratio, _ESTIMATED)
    if seen <= there * (1 + margin) + schedulers * _AROUND:
        return ""
    return (
        f"{seen:.1f} s in all, while all schedulers together had {there:.1f} s; slices are so "
        "short that they are mostly the time of the hooks"
    )
