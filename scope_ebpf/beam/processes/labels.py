# SPDX-License-Identifier: Apache-2.0
"""
Names for the pids that events carry, from a bounded cache.

A pid's word is used again after some 2**28 processes up to OTP 25, and a
process may take or lose its name at any time. So a label is kept for a while
only, and looked up again after that.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.arrays import distinct, within
from scope_ebpf.beam.memory.terms import PidCodec, is_pid
from scope_ebpf.beam.processes.names import Names
from scope_ebpf.beam.processes.table import IDENTITY, ProcessTable
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scope_ebpf.beam.code.tables import CodeMap
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: Labels kept, and for how many seconds.
CAPACITY = 1 << 14
FRESH = 5.0


class Label(NamedTuple):
    """
    The names of a pid. All but *pid* is None for a process that has ended, or was not readable.

    *mailbox* is the number of messages that waited when the label was made.
    """

    pid: str
    name: str | None = None
    initial_call: str | None = None
    behaviour: str | None = None
    module: str | None = None
    mailbox: int | None = None

    @property
    def who(self) -> str | None:
        """The shortest text that identifies the process: name, else module, else initial call."""
        return self.name or (self.module if self.behaviour else None) or self.initial_call

    def __str__(self) -> str:
        """Write ``<0.97.0> rabbit_channel (gen_server2, mailbox 14,210)``."""
        who = self.who
        facts = [self.behaviour] if self.behaviour else []
        facts += [f"mailbox {self.mailbox:,}"] if self.mailbox else []
        return " ".join(
            part for part in (self.pid, who, f"({', '.join(facts)})" if facts else None) if part
        )


class Labels:
    """Labels of one VM's processes; *clock* is in seconds."""

    def __init__(
        self,
        target: Target,
        atoms: Atoms,
        code: CodeMap,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = ProcessTable(target, IDENTITY)
        self._names = Names(target, atoms, code)
        self._pids = PidCodec.of(target)
        self._clock = clock
        self._kept: dict[int, tuple[float, Label]] = {}
        self._slots = self._table.slots
        self.misses = 0

    def labels(self, pids: Iterable[int], most: int | None = None) -> dict[int, Label]:
        """
        Name many pids, given as terms; terms that are no pid of this VM are left out.

        At most *most* of those that must be looked up are; the others are left out.
        """
        wanted = {pid for pid in pids if is_pid(pid)}
        oldest = self._clock() - FRESH
        found = {
            pid: kept[1]
            for pid in wanted
            if (kept := self._kept.get(pid)) is not None and kept[0] > oldest
        }
        missing = sorted(wanted - found.keys())[:most]
        if missing:
            self.misses += len(missing)
            fresh = self._look(missing)
            self._keep(fresh)
            found.update(fresh)
        return found

    def label(self, pid: int) -> Label:
        """Name one pid, given as a term."""
        found = self.labels([pid]).get(pid)
        return found if found is not None else Label(hex(pid))

    def _look(self, pids: list[int]) -> dict[int, Label]:
        terms = np.array(pids, np.uint64)
        texts = self._pids.texts(terms)
        labels = {pid: Label(text) for pid, text in zip(pids, texts, strict=True)}
        slots = self._pids.slot(terms)
        try:
            rows = self._table.at(distinct(slots[slots < self._slots]).astype(np.int64)).rows
        except ReadRefusedError:
            return labels
        # A slot that holds another process by now says nothing of the wanted one.
        rows = rows[within(rows["id"], terms)]
        names, identities = self._names.registered(rows), self._names.identities(rows)
        for row, name, (call, behaviour, module) in zip(rows, names, identities, strict=True):
            pid = int(row["id"])
            labels[pid] = labels[pid]._replace(
                name=name,
                initial_call=str(call) if call else None,
                behaviour=behaviour,
                module=module,
                mailbox=int(row["mailbox"]),
            )
        return labels

    def _keep(self, fresh: dict[int, Label]) -> None:
        now = self._clock()
        for pid, label in fresh.items():
            # The oldest come first, so that they are the first to go.
            self._kept.pop(pid, None)
            self._kept[pid] = (now, label)
        for pid in list(self._kept)[: max(0, len(self._kept) - CAPACITY)]:
            del self._kept[pid]
