# SPDX-License-Identifier: Apache-2.0
"""
The state of a VM: utilization of schedulers, run queues, memory, the longest mailbox.

All of it is read from the VM's memory and costs it nothing. Schedulers are sampled at
irregular times; one that spins because it has nothing to do does not work
(``ErtsSchedulerSleepInfo``, OTP-25.2.3 erts/emulator/beam/erl_process.h).
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from scope_ebpf.beam.layouts.checks import KINDS
from scope_ebpf.beam.memory.terms import PidCodec
from scope_ebpf.beam.processes.table import IDENTITY, ProcessTable
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError, ScopeError
from scope_ebpf.relations import of_allocators, of_use
from scope_ebpf.sandbox.proc import status_number

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.counters import Counters
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents import traces

#: Seconds between two readings of the schedulers: drawn anew each time, since a program may have a
#: rhythm.
_SHORTEST, _LONGEST = 0.02, 0.06
#: Processes whose mailboxes are read; a sample of them in a VM that has more.
_MOST = 200_000
#: Fields of :class:`Counters` that count events.
_COUNTED = ("reductions", "context_switches", "spawned", "collections", "bytes_in", "bytes_out")


class Mailbox(NamedTuple):
    """The longest mailbox of those that were read."""

    #: Pid of its owner.
    pid: str
    #: Name, module or initial call of its owner.
    who: str | None
    messages: int
    #: Processes whose mailboxes were read.
    seen: int


class VmState(NamedTuple):
    """A VM over some time; None for what could not be read."""

    #: Share of the time in which the online schedulers of a kind worked.
    utilization: dict[str, float] | None = None
    #: Processes and ports in the run queues, on average.
    waiting: float | None = None
    #: The same, at most.
    most_waiting: int | None = None
    processes: int | None = None
    process_limit: int | None = None
    #: Memory as ``erlang:memory(total)`` counts it, bytes.
    memory_bytes: int | None = None
    #: Resident memory of the process, bytes.
    resident_bytes: int | None = None
    mailbox: Mailbox | None = None
    #: Events that the VM counted itself meanwhile, by their names.
    counted: dict[str, int] | None = None

    def as_json(self) -> traces.State:
        """The object ``state`` in the JSON document of a summary."""
        box = self.mailbox
        return {
            "utilization": cast("traces.Utilization | None", self.utilization),
            "run_queues": None
            if self.waiting is None
            else {"mean": round(self.waiting, 3), "most": self.most_waiting},
            "processes": self.processes,
            "process_limit": self.process_limit,
            "memory_bytes": self.memory_bytes,
            "resident_bytes": self.resident_bytes,
            "longest_mailbox": None
            if box is None
            else {"pid": box.pid, "who": box.who, "messages": box.messages, "seen": box.seen},
            "counted": cast("traces.VmCounts | None", self.counted),
        }


class StateReader:
    """Samples the state of *target* from now on; :attr:`refused` says why it cannot, or ""."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.refused = ""
        #: When the next :meth:`look` is due, monotonic seconds.
        self.due = 0.0
        self._random = random.Random()  # noqa: S311 - irregular, not secret
        self._working = np.zeros(len(KINDS))
        self._online = np.zeros(len(KINDS))
        self._waiting = self._most = self._looks = 0
        self._first: Counters | None = None
        self._last: Counters | None = None
        self._spawned = 0
        self._over = False
        self._counters: CounterReader | None = None
        try:
            self._counters = CounterReader(target)
        except ReadRefusedError as error:
            self.refused = str(error)

    def begin(self) -> None:
        """Start the VM's own counters at their values now."""
        self._first = self._last = self._read()
        self._spawned, self._over = 0, False

    def look(self) -> None:
        """Sample schedulers and run queues once."""
        self.due = time.monotonic() + self._random.uniform(_SHORTEST, _LONGEST)
        found = self._read()
        if found is None:
            return
        self._looks += 1
        self._working += found.working
        self._online += found.online
        waiting = sum(found.waiting)
        self._waiting, self._most = self._waiting + waiting, max(self._most, waiting)

    def counted(self) -> dict[str, int] | None:
        """Events that the VM counted from :meth:`begin` to the first call of this, or its end."""
        if not self._over:
            self._read()
            self._over = True
        if self._first is None or self._last is None:
            return None
        found = {name: getattr(self._last, name) - getattr(self._first, name) for name in _COUNTED}
        found["spawned"] = self._spawned
        found["exited"] = self._spawned - (self._last.processes - self._first.processes)
        if self._first.dirty_collections is None:
            del found["collections"]  # those of dirty schedulers are hidden
        return found

    def _read(self) -> Counters | None:
        if self._counters is None:
            return None
        try:
            found = self._counters.read()
        except ScopeError:
            return None
        if self._last is not None:
            self._spawned += (found.spawned - self._last.spawned) % 2**32
        self._last = found
        return found

    def state(self) -> VmState:
        """The state until now; reads the process table and the allocators once."""
        from scope_ebpf.beam.vm.allocators import AllocatorReader

        target, last = self._target, self._last
        online = np.maximum(self._online, 1)
        shares = (self._working / online).round(4).tolist() if self._looks else None
        limit = mailbox = memory = None
        with suppress(ScopeError):
            limit = self._counters.limits().processes if self._counters else None
        with suppress(ScopeError):
            found = AllocatorReader(target).read()
            wrong = of_allocators(found.allocators) or (found.memory and of_use(found.memory))
            memory = found.memory.total if found.memory and not wrong else None
        with suppress(ScopeError):
            mailbox = longest_mailbox(target)
        return VmState(
            utilization=dict(zip(KINDS, shares, strict=True)) if shares else None,
            waiting=self._waiting / self._looks if self._looks else None,
            most_waiting=self._most if self._looks else None,
            processes=last.processes if last else None,
            process_limit=limit,
            memory_bytes=memory,
            resident_bytes=_resident(target),
            mailbox=mailbox,
            counted=self.counted(),
        )


def longest_mailbox(target: Target, most: int = _MOST) -> Mailbox | None:
    """
    Return the longest mailbox of *most* processes or a few more; None where no message waits.

    Raises ReadRefusedError where there is no process table that can be read.
    """
    table = ProcessTable(target, IDENTITY)
    rows = table.snapshot(0, max(1, -(-table.count() // most))).rows
    if not len(rows) or not rows["mailbox"].max():
        return None
    row = rows[[rows["mailbox"].argmax()]]
    pid = PidCodec.of(target).texts(row["id"])[0]
    return Mailbox(pid, _owner(target, row), int(row["mailbox"][0]), len(rows))


def _owner(target: Target, row: np.ndarray[tuple[int], np.dtype[np.void]]) -> str | None:
    from scope_ebpf.beam.code.tables import CodeMap
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.processes.names import Names

    with suppress(ReadRefusedError):
        atoms = Atoms(target)
        names = Names(target, atoms, CodeMap(target, atoms))
        call, behaviour, module = names.identities(row)[0]
        who = names.registered(row)[0] or (module if behaviour else None)
        return who or (str(call) if call else None)
    return None


def _resident(target: Target) -> int | None:
    try:
        kilobytes = status_number(Path(f"/proc/{target.pid}/status").read_bytes(), "VmRSS")
        target.identity.check()
    except (OSError, NoSuchProcessError):
        return None
    return None if kilobytes is None else kilobytes * 1024
