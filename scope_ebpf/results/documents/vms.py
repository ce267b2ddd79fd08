# SPDX-License-Identifier: Apache-2.0
"""Documents about VMs: ``list``, ``doctor``, ``schedulers`` and the summary of a trace."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

#: How an event is seen.
Via = Literal["symbol", "usdt", "tracepoint", "unavailable"]
#: Kinds of threads of a VM.
Role = Literal["normal", "dirty_cpu", "dirty_io", "poll", "aux", "async"]
#: What a thread does.
Doing = Literal["running", "busy-waiting", "sleeping", "working", "suspended", "stopped"]


class Target(TypedDict):
    """The observed VM."""

    #: Its process on this host.
    pid: int
    #: Path of the emulator, as the kernel names it.
    exe: str
    #: Name of the node; null if it is not known.
    node: str | None
    otp_release: str
    erts_version: str
    flavor: Literal["jit", "emu"]
    #: Number of normal schedulers.
    schedulers: int


class Usage(TypedDict):
    """How full a table is."""

    used: int
    limit: int


class TableUsage(TypedDict):
    """How full the tables of a VM are whose limits end it."""

    processes: Usage
    ports: Usage
    atoms: Usage


class VmMarks(TypedDict):
    """What distinguishes one VM from another; null for what is not known."""

    #: Name of its user, or the number of one without a name.
    user: str | None
    #: Id of its container, 64 hexadecimal digits.
    container: str | None
    #: CPU seconds per second while the list was made.
    cpu_share: float | None
    resident_bytes: int | None
    #: What it was started for, by its command line: a release, a module, a script.
    application: str | None
    #: What it was started with, without what erl adds and without cookies; cut.
    command: str


class FoundVm(Target, VmMarks):
    """One VM of this host, before it is looked at."""

    #: The hooks that events can be seen by: USDT probes, function symbols, or none.
    hooks: Literal["usdt", "symbols", "none"]
    uptime_seconds: float


class VmHealth(TypedDict):
    """What is wrong with one VM, and how full its tables are."""

    #: What keeps the VM from its work; null if nothing does, and where refused says why that is
    #: not known.
    trouble: str | None
    #: Null if it could not be read.
    usage: TableUsage | None
    #: Why a part of the VM could not be read; null if all was.
    refused: str | None


class LoadedLibrary(TypedDict):
    """A well-known library or server that the VM has loaded."""

    name: str
    #: By the directory that it is loaded from; null where that does not say it.
    version: str | None


class TelemetryHook(TypedDict):
    """How the events of telemetry can be seen in the VM."""

    #: The hook; null where there is none.
    hook: str | None
    #: Why there is none.
    why: str | None


class VmLibraries(TypedDict, total=False):
    """What is loaded into one VM; there with --libraries only."""

    #: Null if the modules of the VM could not be read; refused says why.
    libraries: list[LoadedLibrary] | None
    #: Null if the VM has not loaded telemetry, or its modules could not be read.
    telemetry: TelemetryHook | None


class ListedVm(FoundVm, VmHealth, VmLibraries):
    """One VM of this host."""


class RefusedVm(TypedDict):
    """A VM that may not be looked at."""

    pid: int
    reason: str


class ListDocument(TypedDict):
    """The document of scope-trace list."""

    schema: Literal[1]
    beams: list[ListedVm]
    refused: list[RefusedVm]


class HostFact(TypedDict):
    """One requirement of the host."""

    name: str
    value: str
    #: What is wrong with it and what to do; null if it is met.
    problem: str | None


class EventHooks(TypedDict):
    """How one event can be seen on the VM."""

    event: str
    state: Literal["on", "off"]
    via: Via
    hooks: list[str]
    #: Number of addresses in the VM's code.
    places: int
    #: How its functions were found that the VM's program hides; null for the program's symbols.
    found_by: str | None
    #: Why it is unavailable, or seen by the second choice; may be empty.
    why: str
    #: Why it is attached on request only; null if it is attached by default.
    on_request: str | None
    #: Why the other kind of hook is unavailable.
    other_way: str | None


class Breakpoints(TypedDict):
    """Breakpoints in the VM's code, by function."""

    #: Those that a tool holds now.
    held: list[str]
    #: Those that nobody is known to hold.
    left: list[str]


class DaemonView(TypedDict):
    """What scope-ebpfd would not export of the VM."""

    #: Why it would refuse the whole VM; null if it would not.
    refused: str | None
    #: Events without hooks, with the reason.
    hooks: dict[str, str]
    #: Readings that it would refuse, with the reason.
    not_told: dict[str, str]


class ExaminedVm(TypedDict, total=False):
    """What doctor says of a VM; missing where only the host was looked at."""

    target: Target
    #: What could not be read of the VM, and why.
    refused: list[str]
    #: Null if the modules of the VM could not be read.
    libraries: list[LoadedLibrary] | None
    #: Null if the VM has not loaded telemetry, or its modules could not be read.
    telemetry: TelemetryHook | None
    hooks: list[EventHooks]
    breakpoints: Breakpoints
    daemon: DaemonView


class DoctorDocument(ExaminedVm):
    """The document of scope-trace doctor; all but the host needs a VM."""

    schema: Literal[1]
    host: list[HostFact]
    #: How hooks are detached.
    detach: str


class NativeFunction(TypedDict):
    """A native function that runs."""

    #: Path of the library, as the VM sees it.
    library: str
    #: Its Erlang name, M:F/A.
    function: str
    #: The library's own name of it; null where it has none.
    symbol: str | None


class RunQueue(TypedDict):
    """What is ready to run: processes by priority, and ports."""

    max: int
    high: int
    normal: int
    low: int
    ports: int


class SchedulerThread(TypedDict):
    """What one thread of the VM does; null for what is not known or not there."""

    kind: Role
    #: The VM's own number of the thread, from 1.
    number: int
    tid: int
    doing: Doing


class Scheduler(SchedulerThread):
    """What one thread of the VM does, and on what."""

    #: Pid of the process that it runs.
    process: str | None
    #: Registered name or initial call of that process.
    name: str | None
    #: The process's function; null during its garbage collection.
    function: str | None
    #: Whether the process is collecting garbage.
    collecting: bool
    #: The port that it runs.
    port: str | None
    nif: NativeFunction | None
    #: Null where schedulers of a kind share the queue of the first, and for other threads.
    run_queue: RunQueue | None


class SchedulerSplit(TypedDict):
    """What one scheduler was at, from samples: parts of 1 whose sum is 1."""

    samples: int
    #: By how much a part may be off, at 95 %.
    error: float
    #: Erlang code, BIFs, and operations on ETS tables.
    erlang: float
    gc: float
    nif: float
    port: float
    #: Polls for I/O, timers, and other work of the runtime.
    other: float
    busy_wait: float
    sleep: float


class SchedulerLook(Scheduler):
    """One thread over an interval; a rate is null where the VM keeps no count of it."""

    #: CPU seconds per second.
    cpu_share: float | None
    context_switches_per_second: float | None
    reductions_per_second: float | None
    #: How long, at least, it has been at the same work.
    unchanged_seconds: float
    #: Null without --split, and for threads that are no schedulers. Absent in older documents.
    split: NotRequired[SchedulerSplit | None]


class SchedulersDocument(TypedDict):
    """The document of scope-trace schedulers, one a line for each interval."""

    schema: Literal[1]
    target: Target
    #: What keeps the VM from its work; null if nothing does.
    trouble: str | None
    #: Why parts could not be read, by kind of thread.
    refused: dict[str, str]
    threads: list[SchedulerLook]
