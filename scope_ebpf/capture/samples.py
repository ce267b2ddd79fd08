# SPDX-License-Identifier: Apache-2.0
"""Samples of the VM in a capture, beside records: names, threads, queues; all bounded."""

from __future__ import annotations

from dataclasses import dataclass, field

from scope_ebpf.capture.facts import LINES, SCHEDULERS
from scope_ebpf.capture.values import SIGNED, Value
from scope_ebpf.errors import CaptureError

#: Memory for all that is kept, bytes; an hour of a busy VM with 64 schedulers takes a quarter.
ROOM = 768 << 20
#: Bytes of memory, at most, for a row, a number in one, a pair in one, and a character.
_ROW, _NUMBER, _PAIR, _CHARACTER = 400, 40, 150, 4
#: Names, and processes of one sample of mailboxes, in a block.
_IN_A_BLOCK = 1 << 18
#: An atom has 255 characters; a label of a process has some of these.
_NAME = 2048
#: A tid of Linux is less.
_TID = (1 << 32) - 1


@dataclass(slots=True)
class Name:
    """Names of a process when it was read last."""

    name: str | None
    initial_call: str | None
    behaviour: str | None
    module: str | None

    @property
    def who(self) -> str | None:
        """The shortest text that identifies the process."""
        return self.name or (self.module if self.behaviour else None) or self.initial_call


@dataclass
class Samples:
    """All samples; CaptureError for a block that exceeds the limit of memory."""

    processes: dict[int, Name] = field(default_factory=dict)
    atoms: dict[int, str] = field(default_factory=dict)
    #: Functions, Erlang's and native ones, by the addresses of long calls.
    addresses: dict[int, str] = field(default_factory=dict)
    #: Marked functions by their ids.
    marked: dict[int, str] = field(default_factory=dict)
    #: tid: role, number.
    threads: dict[int, tuple[str, int]] = field(default_factory=dict)
    #: Time in ns, and the length of each scheduler's run queue.
    run_queues: list[tuple[int, list[int]]] = field(default_factory=list)
    #: Time in ns, and messages that wait, by process.
    mailboxes: list[tuple[int, dict[int, int]]] = field(default_factory=list)
    #: Memory that is left, bytes.
    room: int = field(default_factory=lambda: ROOM, repr=False)

    def take_names(self, block: Value) -> None:
        """Add a block of names."""
        for row in block.get("processes", []).items(_IN_A_BLOCK):
            term, parts = row.row(2)
            name = Name(*(_name(part) for part in parts.row(4)))
            self._need(_ROW + _CHARACTER * sum(len(part.raw or "") for part in parts.row(4)))
            self.processes[term.whole()] = name
        for table, texts in (
            ("atoms", self.atoms),
            ("addresses", self.addresses),
            ("marked", self.marked),
        ):
            for row in block.get(table, []).items(_IN_A_BLOCK):
                word, text = row.row(2)
                self._need(_ROW + _CHARACTER * len(text.text(_NAME)))
                texts[word.whole()] = text.text(_NAME)

    def take_samples(self, block: Value) -> None:
        """Add a block of samples."""
        for row in block.get("threads", []).items(_IN_A_BLOCK):
            tid, role, number = row.row(3)
            self._need(_ROW)
            self.threads[tid.whole(_TID)] = (role.text(64), number.whole())
        for row in block.get("run_queues", []).items(_IN_A_BLOCK):
            time_ns, lengths = row.row(2)
            found = [length.whole(SIGNED, -SIGNED) for length in lengths.items(3 * SCHEDULERS)]
            self._need(_ROW + _NUMBER * len(found))
            self.run_queues.append((time_ns.whole(SIGNED), found))
        for row in block.get("mailboxes", []).items(_IN_A_BLOCK):
            time_ns, pairs = row.row(2)
            messages = dict(map(_pair, pairs.items(LINES)))
            self._need(_ROW + _PAIR * len(messages))
            self.mailboxes.append((time_ns.whole(SIGNED), messages))

    def _need(self, size: int) -> None:
        if size > self.room:
            raise CaptureError("there is no room in memory for more names and samples")
        self.room -= size


def _name(value: Value) -> str | None:
    return None if value.raw is None else value.text(_NAME)


def _pair(row: Value) -> tuple[int, int]:
    process, messages = row.row(2)
    return process.whole(), messages.whole(SIGNED)
