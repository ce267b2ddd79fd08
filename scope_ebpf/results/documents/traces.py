# SPDX-License-Identifier: Apache-2.0
"""The summary of a trace or a capture."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from scope_ebpf.results.documents.vms import Target, Via


class Bucket(TypedDict):
    """One slot of a histogram."""

    #: Its upper end; each slot begins where the one before ends, at half of that.
    le_seconds: float
    count: int


class HistogramDocument(TypedDict):
    """A histogram of durations, from the first slot in use to the last."""

    count: int
    total_seconds: float
    buckets: list[Bucket]


class HistogramLine(HistogramDocument):
    """The line of a histogram in scope-trace run --format jsonl."""

    #: Its name.
    histogram: str


class CountedEvent(TypedDict):
    """An event that was counted."""

    count: int
    #: Events a second.
    rate: float
    #: Events that were counted but found no room in the ring.
    lost: int
    #: Events whose memory could not be read.
    refused: int
    via: Via
    #: Names of the hooks.
    hook: str
    #: The part by which the count may be off, in 95 of 100 cases.
    error_ratio: float
    #: The part of the time in which the event was counted; below 1, classes and durations are
    #: estimates.
    sampling_ratio: float
    #: Where the count comes from: from hooks, or from a counter of the VM.
    counted_by: Literal["hooks", "vm"]
    #: Counts by class, of an event that has several.
    by_class: NotRequired[dict[str, int]]
    #: Durations by class, of an event that takes time.
    durations: NotRequired[dict[str, HistogramDocument]]
    #: Why it was seen by the second choice of hooks.
    reason: NotRequired[str]


class UnavailableEvent(TypedDict):
    """An event that could not be seen."""

    via: Via
    #: Why it could not be seen.
    reason: str


class Utilization(TypedDict):
    """The share of the time in which the online schedulers of a kind worked."""

    normal: float
    dirty_cpu: float
    dirty_io: float


class RunQueues(TypedDict):
    """Processes and ports in the run queues."""

    mean: float
    most: int | None


class LongestMailbox(TypedDict):
    """The longest mailbox of those that were read."""

    #: Pid of its owner.
    pid: str
    #: Name, module or initial call of its owner.
    who: str | None
    messages: int
    #: Processes whose mailboxes were read.
    seen: int


class VmCounts(TypedDict):
    """What the VM counted itself during the trace."""

    reductions: int
    context_switches: int
    spawned: int
    #: Missing where the collections of dirty schedulers are hidden.
    collections: NotRequired[int]
    bytes_in: int
    bytes_out: int
    exited: int


class State(TypedDict):
    """The VM during the trace; null for what could not be read."""

    utilization: Utilization | None
    run_queues: RunQueues | None
    processes: int | None
    process_limit: int | None
    #: Memory as erlang:memory(total) counts it.
    memory_bytes: int | None
    #: Resident memory of the operating system's process.
    resident_bytes: int | None
    longest_mailbox: LongestMailbox | None
    counted: VmCounts | None


class CostDocument(TypedDict):
    """What observing took from the VM; null for what is not known."""

    #: Hits of all programs on the VM.
    hits: int
    cpu_seconds: float | None
    #: The part that this is of the CPU that the VM used.
    share_of_target: float | None


class TimesOfCalls(TypedDict):
    """Seconds of the calls of one server."""

    count: int
    mean: float
    #: Null where there were too many to keep all.
    p50: float | None
    p99: float | None


class CallsOfServer(TypedDict):
    """The calls of one server, by its label."""

    server: str
    calls: int
    #: Calls that the exit of the server has ended.
    down: int
    #: Calls of which no answer was taken until the end: given up, or still open.
    unanswered: int
    #: All answered calls together.
    blocked_seconds: float
    #: From request to answer.
    call_seconds: TimesOfCalls | None
    #: From the request until the server took it.
    queue_seconds: TimesOfCalls | None
    #: From then to its reply.
    service_seconds: TimesOfCalls | None


class CrashGroup(TypedDict):
    """Processes that ended by an error, a kill or another reason, in the same way."""

    #: The class of the exit.
    kind: Literal["error", "killed", "other"]
    #: Where it crashed, by its stack trace; else what it was started with. Null if unknown.
    module: str | None
    function: str | None
    #: Of the source; null without a stack trace.
    line: int | None
    #: What names the reason: an atom, the first element of a tuple, the struct of an exception.
    exit_reason: str | None
    #: Registered name.
    name: str | None
    #: Those that were seen; where exits have a sampling ratio below 1 there were more.
    seen: int


class SummaryDocument(TypedDict):
    """The document of a trace with --format json, and of scope-trace summary."""

    schema: Literal[1]
    target: Target
    #: Null in the summary of a capture.
    state: State | None
    duration_seconds: float
    #: Why the trace ended.
    stopped_because: str
    #: By the name of the event.
    events: dict[str, CountedEvent | UnavailableEvent]
    #: Records that found no room in the ring.
    lost_total: int
    cost: CostDocument
    #: What a reader of the figures should know.
    notes: list[str]
    #: In the summary of a capture with send and receive: calls of servers, by their time.
    calls: NotRequired[list[CallsOfServer]]
    #: Where exits were counted: crashes by what they have in common, most first.
    crashes: NotRequired[list[CrashGroup]]
