# SPDX-License-Identifier: Apache-2.0
"""The document of ``memory``: where the memory of a VM is, and who holds it."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from scope_ebpf.results.documents.held import EtsTable
from scope_ebpf.results.documents.vms import Target


class MemoryKinds(TypedDict):
    """Bytes by kind, as ``erlang:memory/0`` has them; null for what cannot be known."""

    total: int | None
    processes: int | None
    processes_used: int | None
    system: int | None
    atom: int | None
    atom_used: int | None
    binary: int | None
    code: int | None
    ets: int | None


class MemoryGrowth(TypedDict):
    """Growth of each kind, bytes a second; null for what cannot be known."""

    total: float | None
    processes: float | None
    processes_used: float | None
    system: float | None
    atom: float | None
    atom_used: float | None
    binary: float | None
    code: float | None
    ets: float | None


class HeldAllocator(TypedDict):
    """One allocator of the VM, over all its instances."""

    #: The VM's own name for it, such as eheap or binary.
    what: str
    carriers_bytes: int
    #: Of its own blocks, which may lie in carriers of others.
    blocks_bytes: int
    #: Of the blocks of any allocator in its carriers.
    inside_bytes: int
    #: The part of its carriers with blocks in them; null without carriers.
    used_share: float | None
    carriers_bytes_per_second: float | None
    blocks_bytes_per_second: float | None


class OutsideMemory(TypedDict):
    """Memory of the operating system's process; null for what the kernel does not say."""

    resident_bytes: int | None
    #: Of it, memory without a file.
    anonymous_bytes: int | None
    swapped_bytes: int | None
    #: All carriers of the VM's allocators; null where these could not be read.
    carriers_bytes: int | None
    #: Anonymous resident memory beyond the carriers, at least: of native libraries, C's own
    #: allocator, stacks of threads, and native code.
    beyond_carriers_bytes: int | None


class CgroupMemory(TypedDict):
    """The cgroup around the VM that is nearest to its memory limit."""

    used_bytes: int
    limit_bytes: int
    used_share: float
    #: Processes that the kernel has killed in it.
    oom_kills: int


class TableUse(TypedDict):
    """A table of the VM with one row for each thing."""

    what: Literal["processes", "ports", "atoms", "ets_tables"]
    used: int
    #: Null where there is no limit.
    limit: int | None
    used_share: float | None
    per_second: float | None


class PersistentTerm(TypedDict):
    """One persistent term."""

    #: Its key, as far as it can be written; null where it cannot.
    name: str | None
    memory_bytes: int


class PersistentTerms(TypedDict):
    """The persistent terms, as ``persistent_term:info/0`` counts them."""

    count: int
    memory_bytes: int
    largest: list[PersistentTerm]


class TimerCounts(TypedDict):
    """Timers that are set."""

    #: Of processes in ``receive ... after``.
    receive: int
    #: Of ``erlang:send_after`` and ``erlang:start_timer``.
    bif: int


class TimerReceiver(TypedDict):
    """One process that timers will send to."""

    pid: str
    #: Registered name; null without one.
    name: str | None
    initial_call: str | None
    #: Of ``erlang:send_after`` and ``erlang:start_timer`` to its pid, not to its name.
    timers: int
    #: Seconds until the first of them is due.
    next_due_seconds: float


class MemoryHolder(TypedDict):
    """One process that holds memory."""

    pid: str
    #: Registered name; null without one.
    name: str | None
    initial_call: str | None
    #: As process_info(P, memory).
    memory_bytes: int
    #: Whether memory_bytes is an estimate.
    memory_estimated: bool
    #: Off-heap binaries that it refers to; one counts as often as it is referred to.
    binary_bytes: int
    messages: int
    #: Off-heap binaries that its messages outside of its heap refer to, which are not in
    #: binary_bytes; an estimate where memory_bytes is one. Absent in older files of the daemon.
    message_binary_bytes: NotRequired[int]
    #: Of struct and heaps, and of binary_bytes; null for a process that is new, and for one look.
    heap_bytes_per_second: float | None
    binary_bytes_per_second: float | None


class MissingPart(TypedDict):
    """What could not be read."""

    what: str
    reason: str


class MemoryDocument(TypedDict):
    """The memory of one VM and the largest holders of each kind."""

    schema: Literal[1]
    target: Target
    #: When it was read, seconds since 1970.
    time: float
    #: Seconds between the two looks; 0 for one look.
    duration_seconds: float
    kinds: MemoryKinds
    #: Null for one look.
    kinds_per_second: MemoryGrowth | None
    allocators: list[HeldAllocator]
    outside: OutsideMemory
    #: Null without a limit of memory.
    cgroup: CgroupMemory | None
    tables: list[TableUse]
    persistent_terms: PersistentTerms | None
    timers: TimerCounts | None
    #: Those with most timers. Absent in older files of the daemon.
    timer_receivers: NotRequired[list[TimerReceiver]]
    #: The last atoms that were made, the newest first.
    newest_atoms: list[str]
    processes_total: int | None
    #: Processes that changed too fast to be read.
    torn: int
    #: Those with most memory, and those with most binaries.
    processes: list[MemoryHolder]
    #: Bytes of the kind processes that are not of the rows of ``processes``; null where that kind
    #: is not known.
    processes_beyond_rows_bytes: int | None
    binaries: list[MemoryHolder]
    ets_tables: list[EtsTable]
    not_read: list[MissingPart]
    #: CPU seconds of the looks.
    seconds: float
