# SPDX-License-Identifier: Apache-2.0
"""Documents about what a VM holds: ``ets``."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from scope_ebpf.results.documents.vms import Target


class EtsTable(TypedDict):
    """One ETS table."""

    name: str
    #: Whether it is known by its name.
    named: bool
    #: Pid of its owner.
    owner: str
    #: Registered name of its owner; null without one.
    owner_name: str | None
    type: Literal["set", "bag", "duplicate_bag", "ordered_set"]
    protection: Literal["private", "protected", "public"]
    keypos: int
    compressed: bool
    objects: int
    #: As ets:info(T, memory), in bytes.
    memory_bytes: int
    #: Of objects and bytes between the two looks; null for a table that the first did not see.
    objects_per_second: float | None
    bytes_per_second: float | None


class EtsDocument(TypedDict):
    """The ETS tables of one VM, sorted."""

    schema: Literal[1]
    target: Target
    #: Seconds between the two looks; 0 for one look.
    duration_seconds: float
    #: Tables that the VM counts; those that are being deleted are among them.
    tables_total: int
    #: Tables that were read.
    read: int
    #: Tables that changed each time they were read.
    torn: int
    #: Bytes of all tables that were read.
    memory_bytes: int
    #: CPU seconds of the looks.
    seconds: float
    #: As many of those that were read as --limit says.
    tables: list[EtsTable]
    #: What a reader of the figures should know.
    notes: list[str]


class HeldPort(TypedDict):
    """One port."""

    #: As Erlang writes it.
    port: str
    #: What it was opened with, as port_info(P, name); null if it could not be read.
    name: str | None
    driver: str | None
    #: Process of the program behind it; null for a port without one.
    os_pid: int | None
    #: Pid of the process that it is connected to.
    owner: str
    #: Registered name of that; null without one.
    owner_name: str | None
    #: What that runs.
    initial_call: str | None
    #: Bytes in the queue of its driver, as port_info(P, queue_size).
    queued_bytes: int
    #: Whether who sends to it is suspended.
    busy: bool
    #: Processes that it has suspended; null where they are too many to be read.
    waiting: int | None
    #: As port_info(P, input) and port_info(P, output).
    bytes_in: int
    bytes_out: int
    #: Between the two looks; null for a port that the first did not see.
    bytes_in_per_second: float | None
    bytes_out_per_second: float | None


class PortsDocument(TypedDict):
    """The ports of one VM, sorted."""

    schema: Literal[1]
    target: Target
    #: Seconds between the two looks; 0 for one look.
    duration_seconds: float
    #: Ports that the VM counts.
    ports_total: int
    #: Ports that were read.
    read: int
    #: Ports that changed each time they were read.
    torn: int
    #: Ports that are busy.
    busy: int
    #: Bytes in the queues of all ports that were read.
    queued_bytes: int
    #: Ports by driver, of the twenty drivers with most of them.
    drivers: dict[str, int]
    #: CPU seconds of the looks.
    seconds: float
    #: As many of those that were read as --limit says.
    ports: list[HeldPort]
    #: What a reader of the figures should know.
    notes: list[str]


class StackFrame(TypedDict):
    """One frame of a stack."""

    function: str
    #: Source file and line; null where the module has none.
    location: str | None


class StackGroup(TypedDict):
    """Processes that are alike."""

    count: int
    #: What they began with; of the first that was read where they are grouped otherwise.
    initial_call: str | None
    #: What they set as their label, as text; None where they have none or are grouped otherwise.
    label: str | None
    #: Innermost first; the function alone, or nothing, where they are not grouped by stack.
    stack: list[StackFrame]
    #: Whether further frames were not read.
    cut: bool
    #: Messages in all their mailboxes.
    messages: int
    #: Bytes of their structs and heaps.
    heap_bytes: int
    #: Pid of one of them.
    example: str


class StacksDocument(TypedDict):
    """All processes of one VM in groups, the largest first."""

    schema: Literal[1]
    target: Target
    by: Literal["stack", "call", "function", "label"]
    #: Processes that the VM counts.
    processes_total: int
    #: Processes that were read.
    read: int
    #: Processes that changed too fast to be read.
    torn: int
    #: Processes that ran while their stacks were read, and are in no group.
    moved: int
    groups_total: int
    #: CPU seconds of the look.
    seconds: float
    #: As many as --limit says.
    groups: list[StackGroup]
    #: What a reader of the figures should know.
    notes: list[str]
