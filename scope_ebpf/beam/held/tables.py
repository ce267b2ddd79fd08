# SPDX-License-Identifier: Apache-2.0
"""
ETS tables: name, owner, type, objects, memory.

Each scheduler keeps the tables that it made in a ring. A row is kept only if its neighbours lead
back to it and its fields are those of a table; one that changes each time it is read is torn.

Sources: OTP-25.2.3 erts/emulator/beam/erl_db_util.h (DbTableCommon, DB_*), erl_db.c
(save_sched_table, table_info), erl_flxctr.h and .c (ErtsFlxCtr). The fields and flags are the same
in OTP 24 to 29.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.layouts.checks import fields, refused, schedulers
from scope_ebpf.beam.memory.process_memory import UnreadableMemoryError, column, cpu_seconds
from scope_ebpf.beam.memory.terms import ATOM_MASK, ATOM_TAG, PID_TAG

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

_WORD = 8
#: Tables of one VM that are read, and readings of what changes meanwhile.
_MOST, _ATTEMPTS = 1 << 17, 4
#: Tables that are gone, in one ring, before the walk of that ring ends.
_LOST_WAY = 1024
#: DB_*, flags of ``status``.
_PROTECTIONS = {1 << 0: "private", 1 << 1: "protected", 1 << 2: "public"}
_TYPES = {
    1 << 4: "set",
    1 << 5: "bag",
    1 << 6: "duplicate_bag",
    1 << 7: "ordered_set",
    1 << 8: "ordered_set",
}
_DELETED, _NAMED = 1 << 3, 1 << 11
#: ErtsFlxCtr: the number of counters, whether they are spread, then they or a pointer to them.
_COUNTERS, _SPREAD, _VALUES = 0, 4, 8
#: ErtsFlxCtrDecentralizedCtrArray: its block, whether it is being read, slots of one cache line
#: each; their block has one slot more than there are, for the alignment.
_BLOCK, _READING, _SLOTS, _SLOT = 0, 8, 16, 64
#: The word before a block: its size with that word, and flags (MBC_BLK_SZ_MASK).
_BLOCK_SIZE = (1 << 40) - 8
#: No VM has more slots: one for each scheduler, and one.
_MOST_SLOTS = 1025

ROW = np.dtype(
    [
        ("address", np.uint64),
        ("btid", np.uint64),
        ("name", np.uint64),
        ("owner", np.uint64),
        ("status", np.uint32),
        ("keypos", np.int32),
        ("compressed", np.bool_),
        ("objects", np.int64),
        ("memory_bytes", np.int64),
    ]
)


@dataclass(frozen=True, slots=True)
class TableReading:
    """The ETS tables at one moment."""

    #: Shape ``(n,)``, dtype :data:`ROW`; *name* and *owner* are terms.
    rows: NDArray[np.void]
    #: Tables that the schedulers count; those that are being deleted are among them.
    total: int
    #: Tables that changed each time they were read, and are not among the rows.
    torn: int
    #: CPU seconds of the reading.
    seconds: float
    #: Whether there are more tables than are read.
    cut: bool = False


class TableReader:
    """Reads the ETS tables of one VM. ReadRefusedError where they are not found or do not fit."""

    def __init__(self, target: Target) -> None:
        self._target, self._memory = target, target.memory
        names = ("all.next", "all.prev", "owner", "the_name", "btid", "counters", "status")
        self._at = {
            name: target.layout.offset("DbTableCommon", name)
            for name in (*names, "keypos", "compress")
        }
        self._size = max(self._at.values()) + _WORD
        self._normal = schedulers(target)["normal"]
        self._verify()

    def read(self) -> TableReading:
        """Read them all. Raises ReadRefusedError."""
        began = cpu_seconds()
        firsts, total = self._rings()
        found: dict[int, None] = {}
        lost = 0
        for first in firsts.tolist():
            lost += self._walk(first, found)
        addresses = np.fromiter(found, np.uint64, len(found))
        rows, torn = self._rows(addresses)
        cut = len(found) >= _MOST
        return TableReading(rows, total, torn + lost, cpu_seconds() - began, cut)

    def _rings(self) -> tuple[NDArray[np.uint64], int]:
        counts, firsts = fields(
            self._target,
            self._normal,
            "ErtsSchedulerData",
            ("ets_tables.count", np.uint64),
            ("ets_tables.clist", np.uint64),
        )
        return firsts[firsts != 0], int(counts.sum())

    def _walk(self, first: int, found: dict[int, None]) -> int:
        """Follow one ring into *found*; return how many tables went while it was followed."""
        path: list[int] = []
        table, lost = first, 0
        while len(found) < _MOST and lost < _LOST_WAY:
            following = self._following(table)
            if following is None:  # it is gone, or is being linked: go on from the one before
                lost += 1
                found.pop(table, None)
                if not path:
                    break
                table = path.pop()
                continue
            path.append(table)
            found[table] = None
            if following == first or following in found:
                break
            table = following
        return lost

    def _following(self, table: int) -> int | None:
        """The table behind one in its ring; None where the two do not lead to each other."""
        onward, back = self._at["all.next"], self._at["all.prev"]
        for _ in range(_ATTEMPTS):
            try:
                following = self._memory.u64(table + onward)
                if self._memory.u64(following + back) == table:
                    return following
            except UnreadableMemoryError:
                continue
        return None

    def _rows(self, addresses: NDArray[np.uint64]) -> tuple[NDArray[np.void], int]:
        """Rows of the tables at *addresses*, and how many of these could not be read whole."""
        parts, torn = [np.empty(0, ROW)], 0
        for _ in range(_ATTEMPTS):
            raw, read = self._memory.gather(addresses, self._size)
            rows, whole, deleted = self._parse(addresses, raw, read)
            parts.append(rows[whole & ~deleted])
            addresses = addresses[~whole]
            torn = len(addresses)
            if not torn:
                break
        return np.concatenate(parts), torn

    def _parse(
        self, addresses: NDArray[np.uint64], raw: NDArray[np.uint8], read: NDArray[np.bool_]
    ) -> tuple[NDArray[np.void], NDArray[np.bool_], NDArray[np.bool_]]:
        """Make rows: which of them are whole, and which are being deleted."""
        rows = np.zeros(len(addresses), ROW)
        rows["address"] = addresses
        for name, field in (("btid", "btid"), ("name", "the_name"), ("owner", "owner")):
            rows[name] = column(raw, self._at[field], np.uint64)
        rows["status"] = column(raw, self._at["status"], np.uint32)
        rows["keypos"] = column(raw, self._at["keypos"], np.int32)
        rows["compressed"] = column(raw, self._at["compress"], np.uint8) != 0
        deleted: NDArray[np.bool_] = rows["status"] & np.uint32(_DELETED) != 0
        whole = read & (rows["name"] & np.uint64(ATOM_MASK) == ATOM_TAG)
        whole &= rows["owner"] & np.uint64(0xF) == PID_TAG
        whole &= (rows["keypos"] > 0) & _has_one(rows["status"], tuple(_TYPES))
        whole &= _has_one(rows["status"], tuple(_PROTECTIONS)) | deleted
        whole &= self._count(rows, raw, whole)
        return rows, whole, deleted

    def _count(
        self, rows: NDArray[np.void], raw: NDArray[np.uint8], whole: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Fill in objects and memory; which of the rows have them."""
        at = self._at["counters"]
        good: NDArray[np.bool_] = column(raw, at + _COUNTERS, np.uint32) == 2
        spread = column(raw, at + _SPREAD, np.uint8) != 0
        rows["objects"] = column(raw, at + _VALUES, np.int64)
        rows["memory_bytes"] = column(raw, at + _VALUES + _WORD, np.int64)
        elsewhere = np.flatnonzero(good & whole & spread)
        arrays = rows["objects"][elsewhere].astype(np.uint64)
        sums, read = self._spread(arrays)
        rows["objects"][elsewhere], rows["memory_bytes"][elsewhere] = sums[:, 0], sums[:, 1]
        good[elsewhere] &= read
        good &= (rows["objects"] >= 0) & (rows["memory_bytes"] > 0)
        # As ets:info does: whole words.
        words = (rows["memory_bytes"] + (_WORD - 1)) // _WORD
        rows["memory_bytes"] = words * _WORD
        return good

    def _spread(self, arrays: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """
        Sum up counters that lie in slots, shape ``(n, 2)``, and which could be.

        While the VM adds them up itself, the sums are in two arrays, and neither is right.
        """
        sums = np.zeros((len(arrays), 2), np.int64)
        heads, read = self._memory.gather(arrays, _SLOTS)
        blocks = column(heads, _BLOCK, np.uint64)
        read &= column(heads, _READING, np.uint64) == 0
        read &= (blocks <= arrays) & (arrays - blocks <= _SLOT)
        sizes, there = self._memory.gather(blocks - np.uint64(_WORD), _WORD)
        size = (column(sizes, 0, np.uint64) & np.uint64(_BLOCK_SIZE)).astype(np.int64)
        counts = (size - _WORD - _SLOTS) // _SLOT - 1
        read &= there & (counts > 0) & (counts <= _MOST_SLOTS)
        for count in np.unique(counts[read]).tolist():  # one, unless a block is larger than asked
            same = np.flatnonzero(read & (counts == count))
            raw, ok = self._memory.gather(arrays[same] + np.uint64(_SLOTS), count * _SLOT)
            words = raw.view(np.int64).reshape(len(same), count, _SLOT // _WORD)
            sums[same] = words[:, :, :2].sum(axis=1)
            read[same] &= ok
        return sums, read

    def _verify(self) -> None:
        """Refuse the layout if most tables do not fit it."""
        reading = self.read()
        if len(reading.rows) < reading.torn or (reading.total and not len(reading.rows)):
            raise refused(self._target, "ETS tables have a name, an owner and a type", "tables are")


def type_of(status: int) -> str:
    """The type of a table, as ``ets:info(T, type)``."""
    return next(name for flag, name in _TYPES.items() if status & flag)


def protection_of(status: int) -> str:
    """The protection of a table, as ``ets:info(T, protection)``."""
    return next(name for flag, name in _PROTECTIONS.items() if status & flag)


def is_named(status: int) -> bool:
    """Whether a table is known by its name, as ``ets:info(T, named_table)``."""
    return bool(status & _NAMED)


def _has_one(words: NDArray[np.uint32], flags: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which of *words* have exactly one of *flags*."""
    counts = np.sum([words & np.uint32(flag) != 0 for flag in flags], axis=0)
    found: NDArray[np.bool_] = counts == 1
    return found
