# SPDX-License-Identifier: Apache-2.0
"""
Counters that the VM keeps itself: all are exported, and some are reference counters of events.

A reference counter grows along with an event and is known at all times. The number of events in a
window divided by the growth of the counter in that window is a rate that also holds outside of
windows. Python reads the counters at each tick; BPF programs read them at the bounds of a window.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.memory.process_memory import word_iovecs
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.counters import Counters, Limits
    from scope_ebpf.beam.vm.target import Target

#: The reference counter of an event. All other events use reductions: the number of messages that
#: a program sends per function call does not change when hooks slow it down.
_COUNTERS = {
    "spawn": "spawned",
    "exit": "spawned",
    "gc": "collections",
    "port_open": "opened",
    "port_close": "opened",
    "schedule": "context_switches",
}
#: Events that their reference counter counts one by one.
COUNTED_EVENTS = frozenset(("spawn", "port_open"))
#: Events whose reference counter counts them, and hardly anything else.
EXACT_COUNTERS = frozenset(("spawn", "port_open", "gc", "schedule"))
#: The counters from which the rate of an event is known before any hook is attached.
RATE_COUNTERS = {
    "spawn": "spawned",
    "exit": "spawned",
    "gc": "collections",
    "schedule": "context_switches",
}
#: The second reference counter of events that use reductions, for programs that alternate between
#: kinds of work: a message wakes a process. It is not the first one, because the number of messages
#: that are handled per wake-up does change when hooks slow a program down.
_SECOND = "context_switches"
#: The counters that wrap, and their modulus.
_WRAP = {"spawned": 1 << 32, "opened": 1 << 32}
#: The reference counter of events whose own cannot be read: monotonic time in nanoseconds.
TIME = "time"


class CounterSnapshot(NamedTuple):
    """
    All reference counters of a target at one moment.

    Attributes:
        at: monotonic seconds.
        cpu_seconds: CPU that the target had used.
        counters: values by name.
    """

    at: float
    cpu_seconds: float
    counters: dict[str, int]


class WordRange(NamedTuple):
    """
    Where a counter lies in the VM's memory: it is the sum of some 8-byte words.

    Attributes:
        address: address of the first word.
        stride: bytes from one word to the next.
        words: number of words.
    """

    address: int
    stride: int
    words: int


class CounterSample(NamedTuple):
    """
    The reference counter of one event at one moment.

    Attributes:
        time_ns: monotonic time of the reading, in nanoseconds.
        value: value of the counter.
        second: value of the event's second reference counter, if it has one.
    """

    time_ns: int
    value: int
    second: int | None = None


def cpu_clock(pid: int) -> float:
    """
    User and system seconds of a process to the nanosecond (clock_getcpuclockid(3)).

    OSError if it has ended.
    """
    return time.clock_gettime((~pid << 3) | 2)


class ReferenceCounters:
    """
    The counters of *target*. Where they cannot be read, time is the counter of every event.

    Attributes:
        refused: why the counters cannot be read; "" if they can.
        limits: the VM's limits of processes, ports and atoms; None where they cannot be read.
    """

    def __init__(self, target: Target) -> None:
        self.refused = ""
        self.limits: Limits | None = None
        self._reader: CounterReader | None = None
        self._memory = target.memory
        self._addresses: dict[str, NDArray[np.uint64]] = {}
        self._spawned = self._last = 0
        try:
            self._reader = CounterReader(target)
            self._addresses = self._reader.addresses()
        except ReadRefusedError as error:
            self.refused = str(error)
            return
        self._every = word_iovecs(np.concatenate(list(self._addresses.values())))
        sizes = [len(addresses) for addresses in self._addresses.values()]
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._spawned = self._last = self._reader.read().spawned
        self.limits = self._reader.limits()

    def read(self) -> Counters | None:
        """All counters now, *spawned* extended beyond 2^32; None where they cannot be read."""
        if self._reader is None:
            return None
        try:
            counters = self._reader.read()
        except ReadRefusedError:
            return None
        self._spawned += (counters.spawned - self._last) % 2**32
        self._last = counters.spawned
        return counters._replace(spawned=self._spawned)

    def schedulers(self) -> int:
        """The number of normal schedulers; 0 where the counters cannot be read."""
        return len(self._addresses.get("context_switches", ()))

    def names(self) -> frozenset[str]:
        """The names of the counters that can be read."""
        return frozenset(self._addresses)

    def name_of(self, event: str) -> str:
        """The name of the reference counter of *event*."""
        name = _COUNTERS.get(event, "reductions")
        return name if name in self._addresses else TIME

    def second_of(self, event: str) -> str | None:
        """The name of the second reference counter of *event*, if it has one."""
        return _SECOND if self.name_of(event) == "reductions" else None

    def now(self) -> dict[str, int]:
        """Every reference counter now, by name. Raises ReadRefusedError."""
        values = {TIME: time.monotonic_ns()}
        if not self._addresses:
            return values
        sums = np.add.reduceat(self._memory.words_at(self._every), self._starts)
        values |= dict(zip(self._addresses, sums.tolist(), strict=True))
        return values

    def sample(self, event: str, values: dict[str, int] | None = None) -> CounterSample:
        """The counter of *event* in *values*, those of :meth:`now`. Raises ReadRefusedError."""
        values = self.now() if values is None else values
        second = self.second_of(event)
        counter = values[self.name_of(event)]
        return CounterSample(values[TIME], counter, values[second] if second else None)

    def sample_of_hit(self, event: str, read: tuple[int, int, int]) -> CounterSample:
        """The counter of *event* as a BPF program *read* it: time in ns, counter, second one."""
        time_ns, value, second = read
        return CounterSample(time_ns, value, second if self.second_of(event) else None)

    def ranges(self, event: str) -> tuple[WordRange, WordRange | None] | None:
        """Memory of the first and second counter of *event*; None where its counter is time."""
        first, second = self._range(self.name_of(event)), self.second_of(event)
        if first is None:
            return None
        return first, self._range(second) if second else None

    def _range(self, name: str) -> WordRange | None:
        addresses = self._addresses.get(name)
        if addresses is None:
            return None
        stride = int(addresses[1] - addresses[0]) if len(addresses) > 1 else 0
        return WordRange(int(addresses[0]), stride, len(addresses))

    def growth(self, event: str, since: int, until: int) -> float:
        """Growth of the counter of *event* from the value *since* to the later value *until*."""
        return float((until - since) % _WRAP.get(self.name_of(event), 1 << 64))
