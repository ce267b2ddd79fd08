# SPDX-License-Identifier: Apache-2.0
"""What is known of one target at one moment: plain data, made by the daemon, read by a scrape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf import events

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.allocators import AllocatorReading
    from scope_ebpf.beam.vm.connections import Connections
    from scope_ebpf.beam.vm.counters import Counters, Limits
    from scope_ebpf.cgroups import Throttled
    from scope_ebpf.metrics.snapshot import SnapshotReading

#: Columns of an event's totals: the counts of its classes, then for each class its sum of
#: durations in ns and its slots.
SLOTS = events.HISTOGRAM_SLOTS
COUNTS = events.CLASSES
WIDTH = COUNTS + events.CLASSES * (1 + SLOTS)


def sum_column(class_number: int) -> int:
    """Where the sum of durations of a class stands in the totals; its slots follow."""
    return COUNTS + class_number * (1 + SLOTS)


@dataclass(frozen=True, slots=True)
class EventReading:
    """One event: its totals (``WIDTH`` columns), and how well they are known."""

    totals: NDArray[np.float64]
    mode: str
    via: str
    reason: str
    sampling_ratio: float
    error_ratio: float


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """What ``/proc`` says of the VM's process; times in seconds."""

    cpu_seconds: float
    user_seconds: float
    rss_bytes: int
    start_time: float
    uptime: float
    throttled: Throttled | None


class NativeReading(NamedTuple):
    """What the clock found of native functions of one name: seconds on a CPU, and long calls."""

    seconds: float
    long_calls: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """
    What the clock found: seconds of busy waiting by type of scheduler, in the order of KINDS,
    None for a type of which some schedulers are not found in the VM's memory.

    *error_ratio* is by how much the share of busy waiting in the CPU time of the last
    minute may be off, in 95 of 100 cases. *natives* are by ``m:f/a``, the last is ``other``.
    """

    busy_wait: tuple[float | None, ...]
    error_ratio: float
    natives: dict[str, NativeReading]


@dataclass(frozen=True, slots=True)
class ThreadBooks:
    """
    What ``/proc`` says of the threads: how many there are by type, in the order of ROLES.

    *minor* and *major* are their page faults; the last of each are those of all
    other threads of the process.
    """

    counts: tuple[int, ...]
    minor: tuple[int, ...]
    major: tuple[int, ...]
    sampled: Sampled | None = None


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """
    What is read of the VM's memory now and then; None where it is refused.

    *seconds* is the CPU time that reading it again will take, *taken* the time when it was begun,
    in seconds since 1970; 0 if there was none.
    """

    allocators: AllocatorReading | None = None
    connections: Connections | None = None
    #: Why parts of it are refused, by part.
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    taken: float = 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One target; what could not be read is None."""

    node: str
    info: dict[str, str]
    schedulers: int
    process: ProcessReading
    events: dict[str, EventReading]
    counters: Counters | None
    limits: Limits | None
    budget: float
    overhead: float
    hook_seconds: float
    trips: int
    windows: int
    lost: int
    refused_kernel: int
    refused_user: int
    books: ThreadBooks | None = None
    memory: MemoryReading | None = None
    #: Totals by type of thread, shape ``(6,)`` of ``events.THREAD_TOTALS``, in the order of ROLES.
    threads: NDArray[np.void] | None = None
    snapshot: SnapshotReading | None = None
