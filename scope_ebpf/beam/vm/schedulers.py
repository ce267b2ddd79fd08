# SPDX-License-Identifier: Apache-2.0
"""
What each scheduler does now, from its own data, its run queue and the kernel.

Reads a VM that is stopped or wedged like any other. What is on a scheduler is
read without stopping it: process and function may be of two instants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from scope_ebpf.beam.layouts.checks import KINDS, fields, schedulers
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import PortCodec, is_pid, is_port
from scope_ebpf.beam.processes.table import COLLECTING, PRIORITY
from scope_ebpf.beam.vm.nifs import native_function
from scope_ebpf.beam.vm.threads import ROLES, Thread, threads
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Container

    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.beam.vm.nifs import NativeFunction
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents import vms

_WORD = 8
#: ErtsSchedulerSleepInfo.flags and its bits (OTP-25.2.3 and 27.3.4.1 erl_process.h).
SLEEP_FLAGS = 24
#: The flag of sleeping is set by spinning schedulers, too; the kind of sleep only by sleeping ones.
SLEEPING, WAITING, SUSPENDED = 1 << 1 | 1 << 2, 1 << 3, 1 << 4
_QUEUE_INFO = 12  # ErtsRunQueueInfo: length, longest, reductions


class Queue(NamedTuple):
    """One run queue; counters are since the VM began."""

    #: Processes that are ready to run, by priority.
    lengths: dict[str, int]
    #: Ports that are ready to run.
    ports: int
    reductions: int
    #: Context switches.
    switches: int


class _Process(NamedTuple):
    """The process on a scheduler: pid, name or initial call, function outside of a collection."""

    pid: str | None = None
    name: str | None = None
    function: str | None = None
    collecting: bool = False


class Scheduler(NamedTuple):
    """One thread of the VM, and what it runs; None for what is not known or not there."""

    thread: Thread
    #: ``running``, ``busy-waiting``, ``sleeping``, ``working`` (the runtime's own work),
    #: ``suspended`` or ``stopped``.
    doing: str
    #: Pid of the process that it runs.
    process: str | None = None
    #: Registered name or initial call of that process.
    name: str | None = None
    #: Function of that process; None during its garbage collection.
    function: str | None = None
    #: Port that it runs.
    port: str | None = None
    nif: NativeFunction | None = None
    #: None where the schedulers of a kind share the queue of the first, and for other threads.
    queue: Queue | None = None
    #: True during a garbage collection of the process.
    collecting: bool = False

    def as_json(self) -> vms.Scheduler:
        """Give the fields of one scheduler in ``schedulers --format json``."""
        queue, nif = self.queue, self.nif
        return {
            "kind": cast("vms.Role", self.thread.role),
            "number": self.thread.number,
            "tid": self.thread.tid,
            "doing": cast("vms.Doing", self.doing),
            "process": self.process,
            "name": self.name,
            "function": self.function,
            "collecting": self.collecting,
            "port": self.port,
            "nif": cast("vms.NativeFunction | None", nif and nif._asdict()),
            "run_queue": cast(
                "vms.RunQueue | None", queue and queue.lengths | {"ports": queue.ports}
            ),
        }


class Schedulers:
    """Reads all schedulers of one VM; *viewer* puts names on what they run."""

    def __init__(self, target: Target, viewer: Viewer) -> None:
        self._target = target
        self._viewer = viewer
        self._ports = PortCodec.of(target)
        self.refused: dict[str, str] = {}
        self._addresses: dict[str, list[int]] = {}
        try:
            self._addresses = {role: found.tolist() for role, found in schedulers(target).items()}
        except ReadRefusedError as error:
            self.refused = dict.fromkeys(KINDS, str(error))

    def read(self, roles: Container[str] = ROLES) -> list[Scheduler]:
        """Read every thread that has one of the *roles* once."""
        found = threads(self._target.pid)
        return [self._read(thread) for thread in found if thread.role in roles]

    def _read(self, thread: Thread) -> Scheduler:
        addresses = self._addresses.get(thread.role, ())
        if not 0 < thread.number <= len(addresses):
            return Scheduler(thread, _kernel_view(thread))
        try:
            return self._scheduler(thread, addresses[thread.number - 1])
        except ReadRefusedError as error:
            self.refused[thread.role] = str(error)
            return Scheduler(thread, _kernel_view(thread))

    def _scheduler(self, thread: Thread, address: int) -> Scheduler:
        layout, memory = self._target.layout, self._target.memory
        field = {
            name: layout.offset("ErtsSchedulerData", name)
            for name in (
                "no",
                "dirty_no",
                "ssi",
                "current_process",
                "current_port",
                "current_nif",
                "run_queue",
            )
        }
        raw = memory.read(address, max(field.values()) + _WORD)
        value = {name: int.from_bytes(raw[at : at + _WORD], "little") for name, at in field.items()}
        if thread.number not in (value["no"], value["dirty_no"] & 0xFFFFFFFF):
            raise ReadRefusedError(f"scheduler {thread.number} calls itself {value['no']}")
        flags = memory.u32(value["ssi"] + SLEEP_FLAGS)
        busy = value["current_process"] or value["current_port"]
        doing = _doing(thread, flags, running=bool(busy))
        queue = None
        if thread.role == "normal" or thread.number == 1:
            queue = self._queue(value["run_queue"])
        if doing not in ("running", "stopped"):
            return Scheduler(thread, doing, queue=queue)
        found = self._process(value["current_process"])
        nif = native_function(self._target, value["current_nif"], found.function)
        port = self._port(value["current_port"])
        return Scheduler(
            thread, doing, found.pid, found.name, found.function, port, nif, queue, found.collecting
        )

    def _process(self, pointer: int) -> _Process:
        """Return the process at *pointer*, and the function that it is in."""
        if not pointer:
            return _Process()
        try:
            pid = self._target.memory.u64(pointer)
            rows = self._viewer.table.one(pid)
        except ReadRefusedError:
            return _Process()
        if not is_pid(pid) or not len(rows):
            return _Process()
        # The noted function is the process's last one, not what the scheduler does now.
        collecting = bool(int(rows["state"][0]) & COLLECTING)
        names = self._viewer.names
        current = names.current_functions(rows)[0]
        name = names.registered(rows)[0] or names.initial_calls(rows)[0]
        text = str(current) if current and not collecting else None
        return _Process(self._viewer.pids.text(pid), str(name) if name else None, text, collecting)

    def _port(self, pointer: int) -> str | None:
        if not pointer:
            return None
        try:
            port = self._target.memory.u64(pointer)
        except ReadRefusedError:
            return None
        return self._ports.text(port) if is_port(port) else None

    def _queue(self, address: int) -> Queue:
        layout = self._target.layout
        raw = np.frombuffer(
            self._target.memory.read(address, layout.size("ErtsRunQueue")), np.uint8
        ).reshape(1, -1)

        def value(offset: int, kind: type[np.generic]) -> int:
            return int(column(raw, offset, kind)[0])

        first = layout.offset("ErtsRunQueue", "procs.prio_info")
        lengths = {
            priority: value(first + _QUEUE_INFO * index, np.int32)
            for index, priority in enumerate(PRIORITY)
        }
        return Queue(
            lengths,
            value(layout.offset("ErtsRunQueue", "ports.info.len"), np.int32),
            value(layout.offset("ErtsRunQueue", "procs.reductions"), np.uint64),
            value(layout.offset("ErtsRunQueue", "procs.context_switches"), np.uint64),
        )


def running_nifs(target: Target) -> dict[int, int]:
    """
    Processes in a native function: addresses of their structs and of the calls' environments.

    Empty where the schedulers are not found.
    """
    try:
        addresses = np.concatenate(list(schedulers(target).values()))
        names = (("current_process", np.uint64), ("current_nif", np.uint64))
        found = fields(target, addresses, "ErtsSchedulerData", *names)
    except ReadRefusedError:
        return {}
    pairs = zip(*(column.tolist() for column in found), strict=True)
    return {process: native for process, native in pairs if process and native}


def _kernel_view(thread: Thread) -> str:
    """The state of a thread that the kernel alone shows."""
    if thread.state in "Tt":
        return "stopped"
    return "working" if thread.state in "RD" else "sleeping"


def _doing(thread: Thread, flags: int, *, running: bool) -> str:
    if thread.state in "Tt":
        return "stopped"
    if running:
        return "running"
    if flags & SUSPENDED:
        return "suspended"
    if flags & SLEEPING:
        return "sleeping"
    return "busy-waiting" if flags & WAITING else _kernel_view(thread)
