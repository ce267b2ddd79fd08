# SPDX-License-Identifier: Apache-2.0
"""The figures of one target at one moment: plain data, made by the daemon, read by a scrape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.allocators import AllocatorReading
    from scope_ebpf.beam.vm.connections import Connections
    from scope_ebpf.beam.vm.counters import Counters, Limits
    from scope_ebpf.cgroups import MemoryLimit, Throttled
    from scope_ebpf.metrics.columns import EventReading
    from scope_ebpf.metrics.crashes import CrashTotal
    from scope_ebpf.metrics.downs import DownTotal
    from scope_ebpf.metrics.findings import FindingsReading
    from scope_ebpf.metrics.marks import MarksReading
    from scope_ebpf.metrics.servers import ServersReading
    from scope_ebpf.metrics.snapshot import SnapshotReading
    from scope_ebpf.metrics.telemetry import TelemetryReading


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """Figures of the VM's process from ``/proc``; times are in seconds."""

    #: User and system time.
    cpu_seconds: float
    user_seconds: float
    rss_bytes: int
    #: Since 1970.
    start_time: float
    uptime: float
    #: None where no cgroup of the process has a CPU quota.
    throttled: Throttled | None


class NifReading(NamedTuple):
    """Native functions (NIFs) of one name, as the sampling timer found them."""

    #: Seconds on a CPU.
    seconds: float
    #: Calls that were longer than the sampling interval.
    long_calls: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """Figures of the sampling timer."""

    #: Seconds of busy waiting by type of scheduler, in the order of KINDS; None for a type of which
    #: some schedulers are not found in the VM's memory.
    busy_wait: tuple[float | None, ...]
    #: Error with 95 % confidence of the share of busy waiting in the CPU time of the last minute.
    error_ratio: float
    #: By ``m:f/a``; the last is ``other``.
    nifs: dict[str, NifReading]
    #: Normal schedulers at work, on average over the last minute; None where it is not known.
    working: float | None = None


@dataclass(frozen=True, slots=True)
class ThreadAccounting:
    """Figures of the VM's threads from ``/proc``, by type of thread in the order of ROLES."""

    #: Number of threads.
    counts: tuple[int, ...]
    #: Page faults; one more element for all other threads of the process.
    minor: tuple[int, ...]
    major: tuple[int, ...]
    sampled: Sampled | None = None


class PeerReading(NamedTuple):
    """The links to one peer, or to all peers that have no name of their own."""

    #: A label value.
    peer: str
    #: Bytes that wait in the VM and its driver.
    queued: int
    #: Links that are full.
    full: int
    #: Processes that wait for them, and seconds for which one of them was seen waiting.
    suspended: int
    longest: float
    #: Bytes from and to it; None where they are not known.
    octets: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Parts of the VM's memory that are read now and then; None where that is refused."""

    allocators: AllocatorReading | None = None
    connections: Connections | None = None
    peers: tuple[PeerReading, ...] = ()
    #: Why parts are refused, by part.
    refused: dict[str, str] = field(default_factory=dict)
    #: Seconds of CPU that the next reading will take.
    seconds: float = 0.0
    #: When it was begun, seconds since 1970; 0 if there was no reading.
    taken: float = 0.0


@dataclass(frozen=True, slots=True)
class HooksReading:
    """Figures of the hooks of one target since they were loaded."""

    #: Share of the target's CPU that observing may take, and that it took in the last minute.
    budget: float = 0.0
    overhead: float = 0.0
    #: Seconds of the target's CPU that observing took.
    seconds: float = 0.0
    #: How often the quota of an event was exhausted.
    exhausted: int = 0
    #: Windows that were opened.
    windows: int = 0
    #: Events without room for their record, and missed runs of programs.
    lost: int = 0
    #: Reads of the target's memory that failed in BPF programs.
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """All figures of one target; what could not be read is None."""

    #: The label.
    node: str
    #: Labels of ``beam_target_info``.
    info: dict[str, str]
    #: Number of normal schedulers.
    schedulers: int
    process: ProcessReading
    events: dict[str, EventReading]
    counters: Counters | None
    limits: Limits | None
    hooks: HooksReading
    #: Reads of the target's memory that failed in the daemon.
    failed_reads: int
    accounting: ThreadAccounting | None = None
    memory: MemoryReading | None = None
    #: Totals by type of thread, shape ``(6,)`` of ``events.THREAD_TOTALS``, in the order of ROLES.
    threads: NDArray[np.void] | None = None
    snapshot: SnapshotReading | None = None
    #: None where no cgroup of the process has a memory limit.
    memory_limit: MemoryLimit | None = None
    findings: FindingsReading | None = None
    servers: ServersReading | None = None
    #: None where exits are not observed.
    crashes: tuple[CrashTotal, ...] | None = None
    #: None where lost connections are not observed.
    downs: tuple[DownTotal, ...] | None = None
    telemetry: TelemetryReading | None = None
    marks: MarksReading | None = None
