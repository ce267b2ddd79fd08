# SPDX-License-Identifier: Apache-2.0
"""The document of the daemon about one VM, ``/api/v1/vm/PID``."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from scope_ebpf.results.documents.checks import CheckDocument


class RankedProcess(TypedDict):
    """A process of a ranking."""

    #: Its registered name, or what it runs; ? if it is not known.
    name: str
    #: Messages, bytes, or reductions a second.
    value: int


class RankedProcesses(TypedDict):
    """The process table as it was last read; each ranking has the largest first."""

    age_seconds: float
    processes: int
    #: Messages in all mailboxes.
    messages: int
    #: Bytes of all processes.
    memory_bytes: int
    mailboxes: list[RankedProcess]
    memory: list[RankedProcess]
    #: By reductions a second.
    reductions: list[RankedProcess]


class SchedulerType(TypedDict):
    """The schedulers of one type."""

    type: Literal["normal", "dirty_cpu", "dirty_io"]
    #: Threads; null where they are not known, as the other fields.
    threads: int | None
    online: int | None
    #: Processes and ports in the run queues.
    waiting: int | None
    #: CPU seconds so far, and those of busy waiting among them.
    cpu_seconds: float | None
    busy_wait_seconds: float | None


class VmStatus(TypedDict):
    """What the daemon last read of one VM."""

    schema: Literal[1]
    pid: int
    #: The label of its series.
    node: str
    otp_release: str
    uptime_seconds: float
    cpu_seconds: float
    resident_bytes: int
    #: Normal schedulers at work in the last minute, as a part of those online; null if not known.
    utilization: float | None
    #: The last check; null before the first one, and where the VM cannot be checked.
    last_check: CheckDocument | None
    check_age_seconds: float | None
    #: Why the VM cannot be checked; null if it can.
    check_refused: str | None
    #: Null before the first reading, and where the table cannot be read.
    top: RankedProcesses | None
    schedulers: list[SchedulerType]
    #: The part of the VM's CPU that hooks took in the last minute, and their budget.
    overhead: float
    budget: float
    #: Parts of the VM that are not known.
    refused: list[str]
