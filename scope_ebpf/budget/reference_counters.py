# SPDX-License-Identifier: Apache-2.0
"""
What the VM counts itself: all of it to be exported, and some of it as the measure of events.

A measure goes along with an event, and is known for all the time: what was counted of
the event in a window, over how far its measure went on, is a rate that holds outside.
We read it whenever we take stock, and the BPF programs at the edges of a window.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.memory.process_memory import word_iovecs
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.counters import Counters, Limits
    from scope_ebpf.beam.vm.target import Target

#: Which of the VM's counters goes along with an event; the others go along with reductions, because
#: how many messages a program sends for each of its calls does not change when hooks slow it down.
_MEASURES = {
    "spawn": "spawned",
    "exit": "spawned",
    "gc": "collections",
    "port_open": "opened",
    "port_close": "opened",
    "schedule": "context_switches",
}
#: Events that their counter counts itself, each by one.
COUNTED = frozenset(("spawn", "port_open"))
#: Which measure tells how often an event happens, before any hook is in.
TOLD_BY = {
    "spawn": "spawned",
    "exit": "spawned",
    "gc": "collections",
    "schedule": "context_switches",
}
#: What goes along with messages besides, where programs do now this and now that: a message wakes
#: somebody. It is not theirs in the first place, because how many messages are handled each time
#: does change when hooks slow a program down.
_SECOND = "context_switches"
#: The counters that wrap, and where.
_WRAP = {"spawned": 1 << 32, "opened": 1 << 32}
#: The measure of events whose counter cannot be read: nanoseconds.
TIME = "time"


@dataclass(frozen=True, slots=True)
class Rates:
    """The measures of a target by their names, and the CPU that it had used, at one moment."""

    at: float
    cpu_seconds: float
    measures: dict[str, int]


@dataclass(frozen=True, slots=True)
class Words:
    """Where a measure is counted: *words* of 8 bytes, each *stride* bytes behind the last."""

    address: int
    stride: int
    words: int


@dataclass(frozen=True, slots=True)
class Mark:
    """
    A measure, and the monotonic time when it was read, ns.

    *second* is the second measure of the event, if it has one.
    """

    time_ns: int
    measure: int
    second: int | None = None


def cpu_clock(pid: int) -> float:
    """
    User and system seconds of a process to the nanosecond (clock_getcpuclockid(3)).

    OSError if it has ended.
    """
    return time.clock_gettime((~pid << 3) | 2)


class Measures:
    """
    The counters of *target*, where they can be read; *refused* says why they cannot.

    Without them time is the measure of everything.
    """

    def __init__(self, target: Target) -> None:
        self.refused = ""
        self.limits: Limits | None = None
        self._reader: CounterReader | None = None
        self._memory = target.memory
        self._places: dict[str, NDArray[np.uint64]] = {}
        self._spawned = self._last = 0
        try:
            self._reader = CounterReader(target)
            self._places = self._reader.addresses()
        except ReadRefusedError as error:
            self.refused = str(error)
            return
        self._every = word_iovecs(np.concatenate(list(self._places.values())))
        sizes = [len(places) for places in self._places.values()]
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._spawned = self._last = self._reader.read().spawned
        self.limits = self._reader.limits()

    def read(self) -> Counters | None:
        """All counters now, *spawned* without its wrapping at 2^32; None where they are refused."""
        if self._reader is None:
            return None
        try:
            counters = self._reader.read()
        except ReadRefusedError:
            return None
        self._spawned += (counters.spawned - self._last) % 2**32
        self._last = counters.spawned
        return replace(counters, spawned=self._spawned)

    def of(self, event: str) -> str:
        """The name of the measure of *event*."""
        name = _MEASURES.get(event, "reductions")
        return name if name in self._places else TIME

    def second(self, event: str) -> str | None:
        """The name of another measure that goes along with *event*, if there is one."""
        return _SECOND if self.of(event) == "reductions" else None

    def now(self) -> dict[str, int]:
        """Every measure, by its name, as it is now. Raises ReadRefusedError."""
        found = {TIME: time.monotonic_ns()}
        if not self._places:
            return found
        sums = np.add.reduceat(self._memory.words_at(self._every), self._starts)
        found |= dict(zip(self._places, sums.tolist(), strict=True))
        return found

    def reading(self, event: str, found: dict[str, int] | None = None) -> Mark:
        """The measure of *event*, now or as :meth:`now` has *found* it. Raises ReadRefusedError."""
        found = self.now() if found is None else found
        second = self.second(event)
        return Mark(found[TIME], found[self.of(event)], found[second] if second else None)

    def mark(self, event: str, edge: tuple[int, int, int]) -> Mark:
        """What a BPF program has read at an *edge* of *event*."""
        time_ns, measure, second = edge
        return Mark(time_ns, measure, second if self.second(event) else None)

    def words(self, event: str) -> tuple[Words, Words | None] | None:
        """
        Where a BPF program reads the measure of *event*, and its second one.

        None where the measure is time.
        """
        first, second = self._words_of(self.of(event)), self.second(event)
        if first is None:
            return None
        return first, self._words_of(second) if second else None

    def _words_of(self, name: str) -> Words | None:
        places = self._places.get(name)
        if places is None:
            return None
        stride = int(places[1] - places[0]) if len(places) > 1 else 0
        return Words(int(places[0]), stride, len(places))

    def passed(self, event: str, since: int, until: int) -> float:
        """How far the measure of *event* went on from one reading to a later one."""
        return float((until - since) % _WRAP.get(self.of(event), 1 << 64))
