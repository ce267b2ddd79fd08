# SPDX-License-Identifier: Apache-2.0
"""Documents about Erlang processes: ``top`` and ``ps``."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from scope_ebpf.results.documents.vms import Target

Status = Literal[
    "waiting", "free", "exiting", "garbage_collecting", "suspended", "running", "runnable"
]


class ProcessRow(TypedDict):
    """One process; null for what is not known or not there."""

    pid: str
    #: Registered name.
    name: str | None
    #: M:F/A.
    initial_call: str | None
    #: Behaviour of a process that proc_lib started.
    behaviour: str | None
    #: Callback module of that behaviour.
    module: str | None
    #: What proc_lib:set_label/1 set.
    label: str | None
    status: Status
    #: M:F/A.
    current_function: str | None
    reductions: int
    message_queue_len: int
    memory_bytes: int
    heap_words: int
    stack_words: int
    #: Off-heap binaries; one counts as often as the process refers to it.
    binary_bytes: int
    #: Minor collections since the last major one.
    minor_gcs: int
    #: Pid of the parent; null for a process of another node too.
    parent: str | None
    #: Pid of the group leader; null for a process of another node too.
    group_leader: str | None
    #: Present where memory_bytes is an estimate, the least that it can be.
    memory_estimated: NotRequired[Literal[True]]


class TopRow(ProcessRow):
    """One process in a table."""

    #: In a table that is sorted by collections: heap that they went through.
    collected_bytes_per_second: NotRequired[int]


class TopHead(TypedDict):
    """A table of processes, without its rows."""

    schema: Literal[1]
    target: Target
    #: Processes of the VM.
    processes_total: int
    #: Processes that were read.
    read: int
    #: Processes that changed while they were read, or could not be read.
    torn: int
    #: How long reading took.
    seconds: float


class TopDocument(TopHead):
    """The document of scope-trace top --once --format json."""

    processes: list[TopRow]


class Utilization(TypedDict):
    """Share of the time in which the online schedulers of a kind worked, without busy waiting."""

    normal: float
    dirty_cpu: float
    dirty_io: float


class VmFigures(TypedDict):
    """A VM as a whole; null for what could not be read."""

    uptime_seconds: float
    #: Whether the VM is stopped, so that its schedulers do nothing.
    stopped: bool
    #: CPU seconds per second, busy waiting included.
    cpu_cores: float | None
    #: Of the last five seconds.
    utilization: Utilization | None
    #: Normal schedulers that are online.
    schedulers_online: int | None
    #: Processes and ports that are ready to run, on average.
    run_queue: float | None
    processes: int | None
    process_limit: int | None
    resident_bytes: int | None
    #: Memory of the cgroup that has least left, without what the kernel gives up first.
    cgroup_bytes: int | None
    #: Its limit; null where no cgroup has one.
    cgroup_limit_bytes: int | None
    #: Pid of the owner; null where no message waits.
    longest_mailbox: str | None


class TopLineRow(ProcessRow):
    """One process in a line of a moving table; a rate is null before the second reading."""

    reductions_per_second: int | None
    #: In a table that is sorted by collections: heap that they went through, at least.
    collected_bytes_per_second: NotRequired[int | None]


class TopLine(TopHead):
    """A line of scope-trace top --format jsonl, one for each interval."""

    #: When it was read, seconds since 1970.
    time: float
    vm: VmFigures
    #: What keeps the VM from its work, and what could not be read.
    notes: list[str]
    #: Turns in which the whole table is read: a row may be that many turns old.
    parts: int
    sort: Literal["reductions", "memory", "mailbox", "gc", "pid", "binary"]
    processes: list[TopLineRow]


class StackFrame(TypedDict):
    """One frame of a stack."""

    #: M:F/A.
    function: str
    #: Source file and line; null where the code has none.
    location: str | None


class WaitsFor(TypedDict):
    """Whose reply a process waits for that has called a server."""

    #: Pid of the server; null where it called by name, without a timeout.
    server: str | None
    #: Registered name that it called; null where it called a pid.
    name: str | None
    #: Tag of the request, such as {add, _, _}.
    request: str
    #: Null for infinity.
    timeout_milliseconds: int | None


class Mailbox(TypedDict):
    """What the messages of a process hold."""

    #: Of messages that lie outside of its heap; of others the heap's words have them.
    outside_bytes: int
    #: Of off-heap binaries that those messages refer to, which binary_bytes of the process does not
    #: have; one counts as often as it is referred to.
    binary_bytes: int
    #: Whether not all messages could be read: then both are drawn from the first ones.
    estimated: bool


class Related(TypedDict):
    """A process or port of the same VM that a process is linked to, or has a monitor with."""

    #: A pid or port as Erlang writes it.
    process: str
    #: Registered name; null without one.
    name: str | None
    initial_call: str | None


class AllRelated(TypedDict):
    """The first ten of each kind; null where they could not be read surely."""

    links: list[Related] | None
    monitors: list[Related] | None
    watchers: list[Related] | None
    suspends: list[Related] | None
    suspended_by: list[Related] | None


class ProcessDetail(ProcessRow):
    """Everything that can be read of one process; a count is null where it was not read whole."""

    priority: Literal["max", "high", "normal", "low"]
    trap_exit: bool
    message_queue_data: Literal["on_heap", "off_heap"]
    old_heap_words: int
    fragment_words: int
    fullsweep_after: int
    #: The term of that name that proc_lib keeps.
    ancestors: str | None
    #: Why the process does not run.
    status_reason: str | None
    #: Null for a process that waits for no server's reply.
    waits_for: WaitsFor | None
    links: int | None
    monitors: int | None
    watchers: int | None
    aliases: int | None
    suspends: int | None
    suspended_by: int | None
    node_monitors: int | None
    related: AllRelated
    mailbox: Mailbox
    #: Shapes of the messages that wait longest.
    messages: list[str]
    #: From the innermost frame.
    stack: list[StackFrame]
    #: What changed each time it was read, and may be of two moments.
    moved: list[str]


class PsDocument(TypedDict):
    """The document of scope-trace ps --format json."""

    schema: Literal[1]
    target: Target
    process: ProcessDetail
