# SPDX-License-Identifier: Apache-2.0
"""
All processes of a VM, grouped by equal stacks, by what they began with, where they are, or labels.

The stack of a process lies where it was put down when the process left its scheduler. Like the VM's
own (gather_stacktrace, OTP-25.2.3 erts/emulator/beam/erl_bif_info.c and beam_emu.c), its frames are
the words that may be addresses of code and are, two equal neighbours being one. Stacks are compared
by a hash of these with a key of this run, and only those that are shown are named.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.beam.processes.table import CHUNK, COLLECTING, IDENTITY, LOAD
from scope_ebpf.beam.processes.view import LABEL, Viewer
from scope_ebpf.beam.servers.waiting import ON_SCHEDULER

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.beam.code.tables import Mfa
    from scope_ebpf.beam.vm.target import Target

_WORD = 8
#: Words of each stack that are read, and frames of one that are named.
MOST_WORDS, _FRAMES = 64, 50
#: Groups that are distinguished; processes of further ones are counted together.
MOST_GROUPS = 20_000
#: Labels that are read: a VM can have one for each process, and each is read by itself.
MOST_LABELS = 50_000
#: Processes of one part of a table: some 8,000 if the number that the table counts is true.
_MOST_ROWS = 1 << 18
#: What processes are grouped by.
KEYS = ("stack", "call", "function", "label")


@dataclass(slots=True)
class Group:
    """Processes that are alike."""

    #: Pid term of the first that was seen.
    example: int
    #: Where it is: an address of code, and of an M:F/A (0 where the VM has set none).
    pc: int
    current: int
    #: Words of its stack that are addresses of code, innermost first.
    addresses: NDArray[np.uint64]
    #: What it began with.
    call: Mfa | None
    #: What ``proc_lib:set_label/1`` set, as text, where processes are grouped by it.
    label: str | None = None
    count: int = 0
    messages: int = 0
    #: Bytes of structs and heaps.
    bytes: int = 0
    #: Whether its stack has more words than were read.
    cut: bool = False


@dataclass(frozen=True, slots=True)
class StackReading:
    """All processes at about one time."""

    #: The largest first.
    groups: list[Group]
    total: int
    read: int
    #: Processes that changed too fast to be read.
    torn: int
    #: Processes that ran or collected meanwhile, which have no stack that could be read.
    moved: int
    #: Processes of groups beyond MOST_GROUPS, and with labels beyond MOST_LABELS.
    others: int
    #: CPU seconds of the reading.
    seconds: float


class StackReader:
    """Groups the processes of one VM. ReadRefusedError where these cannot be read."""

    def __init__(self, target: Target) -> None:
        self.viewer = Viewer(target, (*LOAD, *IDENTITY))
        self._memory, layout = target.memory, target.layout
        self._moving = [layout.offset("Process", name) for name in ("state", "reds")]
        odd = np.frombuffer(secrets.token_bytes(_WORD * (MOST_WORDS + 2)), np.uint64)
        self._key = odd | np.uint64(1)

    def read(self, by: str = "stack") -> StackReading:
        """Group all processes *by* one of KEYS."""
        began = cpu_seconds()
        self.viewer.refresh()
        table = self.viewer.table
        blocks = -(-table.slots // CHUNK)
        parts = max(1, min(blocks, table.count() // CHUNK))
        groups: dict[Hashable, Group] = {}
        read = torn = moved = others = labels = 0
        for part in range(parts):
            snapshot = table.snapshot(part, parts, _MOST_ROWS)
            rows = snapshot.rows
            read += len(rows)
            torn += snapshot.torn + snapshot.unreadable
            if by == "stack":
                found = self._by_stack(rows, groups)
                moved, others = moved + found[0], others + found[1]
            elif by == "label":
                found = self._by_label(rows, groups, MOST_LABELS - labels)
                labels, others = labels + found[0], others + found[1]
            else:
                others += self._by_name(rows, by, groups)
        made = sorted(groups.values(), key=lambda group: (-group.count, -group.bytes))
        return StackReading(made, table.count(), read, torn, moved, others, cpu_seconds() - began)

    def frames(self, group: Group) -> list[Mfa]:
        """Name the frames of a group's stack, innermost first."""
        code = self.viewer.code
        inner = code.location(group.pc)
        if inner is None and group.current:
            inner = code.mfa(group.current)
        found = [inner] if inner else []
        for address in group.addresses[:_FRAMES].tolist():
            # A return address may be the start of the next function's code.
            frame = code.location(address - 1)
            found += [frame] if frame else []
        return found[:_FRAMES]

    def _by_stack(self, rows: NDArray[np.void], groups: dict[Hashable, Group]) -> tuple[int, int]:
        """Add processes to *groups*; how many ran meanwhile, and how many are left over."""
        counts = np.minimum(rows["stack_words"], MOST_WORDS)
        words, owners = self._stacks(rows, counts)
        keep = words & np.uint64(3) == 0
        keep &= self.viewer.code.inside(words)
        words, owners = words[keep], owners[keep]
        before = np.zeros_like(words)
        before[1:] = words[:-1]
        first = np.ones(len(owners), np.bool_)
        first[1:] = owners[1:] != owners[:-1]
        before[first] = rows["pc"][owners[first]]
        keep = words != before
        words, owners = words[keep], owners[keep]
        hashes = self._hashes(rows, words, owners)
        still = self._stands(rows)
        rows, hashes, index = rows[still], hashes[still], np.flatnonzero(still)
        starts = np.searchsorted(owners, index), np.searchsorted(owners, index, side="right")

        def stack(row: int) -> NDArray[np.uint64]:
            found: NDArray[np.uint64] = words[starts[0][row] : starts[1][row]].copy()
            return found

        return int((~still).sum()), self._add(rows, hashes, groups, stack)

    def _by_name(self, rows: NDArray[np.void], by: str, groups: dict[Hashable, Group]) -> int:
        names = self.viewer.names
        found = names.initial_calls(rows) if by == "call" else names.current_functions(rows)
        return self._alike(rows, found, groups)

    def _by_label(
        self, rows: NDArray[np.void], groups: dict[Hashable, Group], most: int
    ) -> tuple[int, int]:
        """Add processes to *groups*, *most* of those with labels; how many have, and are left."""
        labelled = np.flatnonzero(self.viewer.names.dictionary(rows, LABEL) != 0)
        left = labelled[most:]
        rows = np.delete(rows, left)
        others = self._alike(rows, self.viewer.labels(rows), groups)
        for label, group in groups.items():
            group.label = cast("str | None", label)
        return len(labelled) - len(left), len(left) + others

    def _alike(
        self, rows: NDArray[np.void], found: Sequence[Hashable], groups: dict[Hashable, Group]
    ) -> int:
        """Add processes to *groups* by what was *found* of each; how many are left over."""
        numbers: dict[Hashable, int] = {}
        keys = np.array([numbers.setdefault(one, len(numbers)) for one in found], np.int64)
        empty = np.empty(0, np.uint64)
        return self._add(rows, keys, groups, lambda _: empty, list(numbers))

    def _add(
        self,
        rows: NDArray[np.void],
        keys: NDArray[np.uint64] | NDArray[np.int64],
        groups: dict[Hashable, Group],
        stack: Callable[[int], NDArray[np.uint64]],
        named: list[Hashable] | None = None,
    ) -> int:
        """Add processes to their *groups* by *keys*; return how many are left over."""
        unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)
        counts = np.bincount(inverse, minlength=len(unique))
        messages = np.bincount(inverse, weights=rows["mailbox"], minlength=len(unique))
        sizes = np.bincount(inverse, weights=self.viewer.heaps(rows), minlength=len(unique))
        others = 0
        calls = self.viewer.names.initial_calls(rows[first])
        for number, value in enumerate(unique.tolist()):
            key: Hashable = named[value] if named else value
            group = groups.get(key)
            if group is None:
                if len(groups) >= MOST_GROUPS:
                    others += int(counts[number])
                    continue
                at = int(first[number])
                group = groups[key] = _group(rows[at], stack(at), calls[number])
            group.count += int(counts[number])
            group.messages += int(messages[number])
            group.bytes += int(sizes[number])
        return others

    def _stacks(
        self, rows: NDArray[np.void], counts: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The innermost *counts* words of each stack, and the row that each word is of."""
        raw, read = self._memory.gather_flat(rows["stop"], counts * np.uint64(_WORD))
        owners = np.repeat(np.arange(len(rows)), counts.astype(np.int64))
        words = raw.view(np.uint64)
        good = read[owners]
        return words[good], owners[good]

    def _hashes(
        self, rows: NDArray[np.void], words: NDArray[np.uint64], owners: NDArray[np.int64]
    ) -> NDArray[np.uint64]:
        """A hash of where each process is and of all its frames, shape ``(n,)``."""
        starts = np.searchsorted(owners, np.arange(len(rows)))
        ranks = np.arange(len(owners)) - starts[owners]
        mixed = words * self._key[-1]
        mixed ^= mixed >> np.uint64(29)
        mixed *= self._key[1 + ranks]
        mixed ^= mixed >> np.uint64(32)
        sums = np.zeros(len(words) + 1, np.uint64)
        np.cumsum(mixed, dtype=np.uint64, out=sums[1:])
        ends = np.searchsorted(owners, np.arange(len(rows)), side="right")
        here = rows["pc"] * self._key[0]
        total: NDArray[np.uint64] = sums[ends] - sums[starts]
        total += here ^ here >> np.uint64(29)
        return total

    def _stands(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """Which processes are on no scheduler, and were not since their rows were read."""
        state, reds = self._moving
        places = [rows["pointer"] + np.uint64(at - at % _WORD) for at in (state, reds)]
        words, read = self._memory.scattered(np.concatenate(places))
        now, reductions = words.reshape(2, -1)
        now >>= np.uint64(8 * (state % _WORD))
        away = np.uint64(ON_SCHEDULER | COLLECTING)
        stands: NDArray[np.bool_] = (now | rows["state"]) & away == 0
        stands &= (reductions == rows["reductions"]) & read.reshape(2, -1).all(axis=0)
        return stands


def _group(row: np.void, addresses: NDArray[np.uint64], call: Mfa | None) -> Group:
    """A group without members yet, of which the process of *row* is an example."""
    pid, pc, current = int(row["id"]), int(row["pc"]), int(row["current"])
    return Group(pid, pc, current, addresses, call, cut=bool(row["stack_words"] > MOST_WORDS))
