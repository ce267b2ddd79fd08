# SPDX-License-Identifier: Apache-2.0
"""
The process table of a running VM, read from outside as arrays.

A row is kept only if it is one process from beginning to end: its slot pointed
to it before and after, its own pid leads back to the slot, nothing was making
or ending it, and its heap pointers are in order. What fails is read again, and
then counted as torn. Each number of a row is one that the VM had; those of a
process that runs meanwhile need not all be of the same instant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.arrays import grouped, joined, picked
from scope_ebpf.beam.memory.near import structs
from scope_ebpf.beam.memory.process_memory import column, cpu_seconds
from scope_ebpf.beam.memory.terms import ATOM_MASK, ATOM_TAG, PidCodec
from scope_ebpf.beam.processes.counted import check_rows
from scope_ebpf.errors import ReadRefusedError, TooMuchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

#: Rows in one reading: 4,096 structs are 3 MB, which stay in the processor's cache.
CHUNK = 4096
#: Blocks whose slots are read by one call, where few of them are in use.
_BLOCKS = 16
#: Slots that are read again together: further ones in the same 512 bytes cost nothing.
_LINE = 64
#: Readings of a row that changes meanwhile, before it is counted as torn.
ATTEMPTS = 4
#: ERTS_PTAB_MAX_SIZE, OTP-25.2.3 erts/emulator/beam/erl_ptab.h.
_MAX_SLOTS = 1 << 27
#: Unreadable slots, each of which costs some calls: a forged table has millions.
_MOST_MISSED = 1 << 16
#: No heap, stack or mailbox is larger.
_MAX_WORDS = 1 << 36
_WORD = 8
#: A symbol that is a whole Process, and the size in the word before a block (MBC_BLK_SZ_MASK,
#: OTP-25.2.3 erts/emulator/beam/erl_alloc_util.c).
_WHOLE_PROCESS, _BLOCK_SIZE = "erts_invalid_process", (1 << 40) - 8
#: Processes that a layout is checked against before it is used.
_SAMPLE = 64

# ERTS_PSFLG_*, OTP-25.2.3 erts/emulator/beam/erl_process.h, the same in OTP 24 to 29: flag N is
# bit 6 + N, above three pairs of priority bits.
FREE, EXITING = 1 << 10, 1 << 11
ACTIVE, RUNNING, SUSPENDED, COLLECTING = 1 << 13, 1 << 15, 1 << 16, 1 << 17
ACTIVE_SYS, RUNNING_SYS = 1 << 20, 1 << 21
DIRTY_ACTIVE_SYS, DIRTY_RUNNING, DIRTY_RUNNING_SYS = 1 << 28, 1 << 29, 1 << 30

#: Statuses of ``process_info(P, status)``: the first flag that is set decides
#: (erts_process_state2status, OTP-25.2.3 erts/emulator/beam/erl_process.c).
STATUS = (
    ("free", FREE),
    ("exiting", EXITING),
    ("garbage_collecting", COLLECTING),
    ("suspended", SUSPENDED),
    ("running", RUNNING | RUNNING_SYS | DIRTY_RUNNING | DIRTY_RUNNING_SYS),
    ("runnable", ACTIVE | ACTIVE_SYS | DIRTY_ACTIVE_SYS),
)
PRIORITY = ("max", "high", "normal", "low")

#: The locks that only the creation or the end of a process holds all at once
#: (ERTS_PROC_LOCKS_ALL, OTP-25.2.3 erts/emulator/beam/erl_process_lock.h).
_ALL_LOCKS = 0x1F


class Field(NamedTuple):
    """A column: its name, the field of struct process, its type there."""

    name: str
    source: str
    kind: type[np.generic]


#: Columns that every reading needs, to know that a row is whole.
_CORE = (
    Field("id", "common.id", np.uint64),
    Field("state", "state", np.uint32),
    Field("locks", "lock.flags", np.uint32),
    Field("heap", "heap", np.uint64),
    Field("htop", "htop", np.uint64),
    Field("stop", "stop", np.uint64),
    Field("hend", "hend", np.uint64),
    Field("heap_words", "heap_sz", np.uint64),
    Field("abandoned", "abandoned_heap", np.uint64),
)
#: Columns that show how busy and how large a process is.
LOAD = (
    Field("reductions", "reds", np.uint64),
    Field("old_heap", "old_heap", np.uint64),
    Field("old_hend", "old_hend", np.uint64),
    Field("fragment_words", "mbuf_sz", np.uint64),
    Field("minor_gcs", "gen_gcs", np.uint16),
)
#: Columns that identify it.
IDENTITY = (
    Field("registered", "common.u.alive.reg", np.uint64),
    Field("dictionary", "dictionary", np.uint64),
    Field("module", "u.initial.module", np.uint64),
    Field("function", "u.initial.function", np.uint64),
    Field("arity", "u.initial.arity", np.uint64),
    Field("pc", "i", np.uint64),
    Field("current", "current", np.uint64),
    Field("parent", "parent", np.uint64),
    Field("group_leader", "group_leader", np.uint64),
)
#: Columns that the exact size in bytes needs besides.
SIZES = (
    Field("links", "common.u.alive.links", np.uint64),
    Field("monitors", "common.u.alive.monitors", np.uint64),
    Field("watchers", "common.u.alive.lt_monitors", np.uint64),
    Field("first_message", "sig_qs.first", np.uint64),
    Field("message_end", "sig_qs.last", np.uint64),
    Field("psd", "psd", np.uint64),
    Field("arg_reg", "arg_reg", np.uint64),
    Field("registers", "arity", np.uint8),  # the low byte of a word up to OTP 26
)
#: Columns of its off-heap binaries.
BINARIES = (
    Field("off_heap_words", "off_heap.overhead", np.uint64),
    Field("old_binaries", "bin_old_vheap", np.uint64),
)
#: Everything else that is shown of one process.
DETAIL = (
    Field("flags", "flags", np.uint32),
    Field("middle_message", "sig_qs.cont", np.uint64),
    Field("outer_message", "sig_inq.first", np.uint64),
    Field("max_minor_gcs", "max_gen_gcs", np.uint16),
)
ALL = (*LOAD, *IDENTITY, *SIZES, *BINARIES)


@dataclass(slots=True)
class Snapshot:
    """Processes of one reading of the table, and what the reading missed and cost."""

    #: Structured array, shape ``(n,)``: the columns that were asked for, and always ``slot``,
    #: ``pointer``, ``id``, ``state``, ``heap_words``, ``stack_words`` and ``mailbox``.
    rows: NDArray[np.void]
    #: Processes that the table itself counts.
    total: int
    #: Processes that changed too fast to be read.
    torn: int
    #: Processes whose memory could not be read.
    unreadable: int
    #: Slots of the torn and unreadable ones, shape ``(torn + unreadable,)``.
    missed: NDArray[np.int64]
    #: CPU time of the reading.
    seconds: float

    def __len__(self) -> int:
        return len(self.rows)


class _Found(NamedTuple):
    """Rows that are whole, and the slots of those that changed too fast or could not be read."""

    rows: list[NDArray[np.void]]
    torn: list[int]
    unreadable: list[int]


class ProcessTable:
    """Reads struct after struct of one VM's process table."""

    def __init__(self, target: Target, fields: Sequence[Field] = ALL) -> None:
        self._memory = target.memory
        self._layout = layout = target.layout
        self._table = table = checked_table(target)
        self._codec = PidCodec.of(target)
        self._slots = self._memory.u64(table + layout.offset("ErtsPTab", "r.o.tab"))
        self.slots = self._memory.u32(table + layout.offset("ErtsPTab", "r.o.max"))
        self._invalid = self._memory.u64(table + layout.offset("ErtsPTab", "r.o.invalid_element"))
        self.fields = (*_CORE, *fields)
        offsets = [layout.offset("Process", item.source) for item in self.fields]
        mailbox = ("sig_qs.len", "sig_inq.len")
        if layout.has("Process", "sig_qs.mq_len"):  # since OTP 27
            mailbox = ("sig_qs.mq_len", "sig_inq.mlenoffs")
        self._mailbox = [layout.offset("Process", name) for name in mailbox]
        self._offsets = offsets
        # Only as much of each struct as holds the columns.
        self._size = max(*offsets, *self._mailbox) + _WORD
        names = [(item.name, item.kind) for item in self.fields]
        extra = [("slot", np.uint32), ("pointer", np.uint64), ("mailbox", np.int64)]
        self._dtype = np.dtype([*names, *extra, ("stack_words", np.uint64)])
        self._verify(target)

    def _verify(self, target: Target) -> None:
        """Check the layout with the oldest processes there are; refuse it if most do not fit."""
        check_rows(target)
        for first in range(0, self.slots, CHUNK):
            slots, pointers = self._filled(range(first, first + 1))
            if not len(slots):
                continue
            rows, read = self._rows(slots[:_SAMPLE], pointers[:_SAMPLE])
            back = read & (self._codec.slot(rows["id"]) == rows["slot"])
            whole = read & self._whole(rows)
            self._require(target, "pids lead back to their slots", back)
            self._require(target, "heap pointers are in order", whole)
            if target.find(_WHOLE_PROCESS) is None:  # else its size is compared
                fits = self._fits_block(rows["pointer"][read])
                self._require(target, "a process has the size of its block", fits)
            if "registered" in (self._dtype.names or ()):
                named = self._named(rows[read & (rows["registered"] != 0)])
                self._require(target, "names lead back to their processes", named)
            return
        # A VM without any process is about to begin, or to end.

    def _require(self, target: Target, check: str, good: NDArray[np.bool_]) -> None:
        if int(good.sum()) * 2 < len(good):
            raise ReadRefusedError(
                f"process {target.pid} (OTP {target.otp_release}): the check that {check} "
                f"holds for {int(good.sum())} of {len(good)} processes, so "
                f"{self._layout} does not fit and no process is read"
            )

    def _fits_block(self, pointers: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether the word before each struct is the size of a block that holds it."""
        heads, read = self._memory.gather(pointers - np.uint64(_WORD), _WORD)
        sizes = column(heads, 0, np.uint64) & np.uint64(_BLOCK_SIZE)
        fits: NDArray[np.bool_] = read & (sizes == self._layout.size("Process") + _WORD)
        return fits

    def _named(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """Whether what registers each process leads to it, and has an atom."""
        layout = self._layout
        entries, read = self._memory.gather(rows["registered"], layout.size("RegProc"))
        owners = column(entries, layout.offset("RegProc", "p"), np.uint64)
        names = column(entries, layout.offset("RegProc", "name"), np.uint64)
        good: NDArray[np.bool_] = read & (owners == rows["pointer"])
        good &= names & np.uint64(ATOM_MASK) == ATOM_TAG
        return good

    def count(self) -> int:
        """Return how many processes the table itself counts."""
        count = self._memory.u32(self._table + self._layout.offset("ErtsPTab", "vola.tile.count"))
        return count if count < 1 << 31 else 0

    def _filled(self, blocks: range) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Read blocks of the table, given by their first slots: the slots in use, what is there."""
        size = min(CHUNK, self.slots)
        firsts = np.array(blocks, np.int64)
        starts = np.minimum(firsts, self.slots - size)  # nothing behind the table is read
        raw, read = self._memory.gather(self._slot_addresses(starts), _WORD * size)
        if not read.all():
            raise ReadRefusedError(
                f"process {self._memory.pid}: its process table cannot be read, and so no process"
            )
        words = raw.view(np.uint64).reshape(-1)
        used = np.flatnonzero(words != 0)  # eight times as fast as of words
        slots, pointers = starts[used // size] + used % size, self._live(words[used])
        there = (pointers != 0) & (slots >= firsts[used // size])
        return slots[there], pointers[there]

    def _look(self, slots: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Read some slots; 0 where there is no process, and beyond the table as it was found."""
        size = min(_LINE, self.slots)
        inside = np.minimum(slots, self.slots - 1)
        firsts = np.minimum(inside // size * size, self.slots - size)
        lines, _, line = grouped(firsts)
        raw, _ = self._memory.gather(self._slot_addresses(lines), _WORD * size)
        found = self._live(raw.view(np.uint64)[line, inside - firsts])
        return np.where(slots < self.slots, found, np.uint64(0))

    def _slot_addresses(self, slots: NDArray[np.int64]) -> NDArray[np.uint64]:
        return np.uint64(self._slots) + slots.astype(np.uint64) * np.uint64(_WORD)

    def _live(self, slots: NDArray[np.uint64]) -> NDArray[np.uint64]:
        # A slot that is being taken has a bit set or holds the invalid process.
        return np.where((slots == self._invalid) | (slots & np.uint64(7) != 0), 0, slots)

    def snapshot(self, part: int = 0, parts: int = 1, most: int | None = None) -> Snapshot:
        """
        Read every process, or every *parts*-th block of the table from *part* on.

        Blocks of slots are taken in turn, so that old and young processes are
        in every part alike. Raises TooMuchError where there are more than *most* processes: the
        number that the table itself counts need not be true.
        """
        began = cpu_seconds()
        blocks = range(part * CHUNK, self.slots, parts * CHUNK)
        # A struct is read soon after its slot: no more slots at once than a block of structs.
        run = max(1, min(_BLOCKS, self.slots // max(1, self.count())))
        found = _Found([np.empty(0, self._dtype)], [], [])
        for at in range(0, len(blocks), run):
            self._settle(found, *self._filled(blocks[at : at + run]))
            if most is not None and sum(map(len, found.rows)) > most:
                raise TooMuchError(
                    f"process {self._memory.pid}: more than {most:,} processes are in what is read "
                    "at once of its process table, so they are not read"
                )
        return self._snapshot(found, began)

    def one(self, pid: int) -> NDArray[np.void]:
        """Read the one process with this pid term, shape ``(1,)``; ``(0,)`` if it is not there."""
        snapshot = self.at(self.slots_of(np.array([pid], np.uint64)))
        if snapshot.torn or snapshot.unreadable:
            raise ReadRefusedError("the process changed faster than it could be read: try again")
        found: NDArray[np.void] = snapshot.rows[snapshot.rows["id"] == pid]
        return found

    def slots_of(self, pids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the slots of these pid terms, without those that the table cannot have."""
        slots = self._codec.slot(pids)
        found: NDArray[np.int64] = slots[slots < self.slots].astype(np.int64)
        return found

    def at(self, slots: NDArray[np.int64]) -> Snapshot:
        """Read the processes in some slots of the table."""
        began = cpu_seconds()
        pointers = self._look(slots)
        there = pointers != 0
        found = _Found([np.empty(0, self._dtype)], [], [])
        self._settle(found, slots[there], pointers[there])
        return self._snapshot(found, began)

    def _snapshot(self, found: _Found, began: float) -> Snapshot:
        rows = joined(found.rows)
        missed = np.array(found.torn + found.unreadable, np.int64)
        torn, unreadable = len(found.torn), len(found.unreadable)
        return Snapshot(rows, self.count(), torn, unreadable, missed, cpu_seconds() - began)

    def _settle(
        self, found: _Found, slots: NDArray[np.int64], pointers: NDArray[np.uint64]
    ) -> None:
        """Read what slots point to until each row is whole, or ATTEMPTS times."""
        read = np.ones(len(slots), np.bool_)
        for _ in range(ATTEMPTS):
            if not len(slots):
                return
            spawned, free = self._spawned(), self.slots - self.count()
            rows, read = self._rows(slots, pointers)
            whole = read & self._whole(rows)
            after = self._look(slots)
            if (self._spawned() - spawned) % (1 << 32) >= free // 2:
                whole &= self._same_id(rows)
            same = after == pointers
            found.rows.append(picked(rows, whole & same & (rows["state"] & FREE == 0)))
            # A slot that is empty now held a process that has ended: nothing is missing.
            again = ~(whole & same) & (after != 0)
            slots, pointers, read = slots[again], after[again], read[again]
        found.torn.extend(slots[read].tolist())
        found.unreadable.extend(slots[~read].tolist())
        if len(found.torn) + len(found.unreadable) > _MOST_MISSED:
            raise ReadRefusedError(
                f"process {self._memory.pid}: more than {_MOST_MISSED:,} slots of its process "
                "table lead to no process, so none is read"
            )

    def _rows(
        self, slots: NDArray[np.int64], pointers: NDArray[np.uint64]
    ) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        found = structs(self._memory, pointers, self._size)
        rows = np.empty(len(pointers), self._dtype)
        rows["slot"], rows["pointer"] = slots, pointers
        for item, offset in zip(self.fields, self._offsets, strict=True):
            rows[item.name] = found.column(offset, item.kind)
        inner, outer = (found.column(offset, np.int64) for offset in self._mailbox)
        rows["mailbox"] = inner + outer
        rows["stack_words"] = (rows["hend"] - rows["stop"]) // np.uint64(_WORD)
        return rows, found.read

    def _whole(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """Return which rows cannot be two processes, or one half made."""
        number = rows["id"] & np.uint64(0xF) == 3
        slot = self._codec.slot(rows["id"]) == rows["slot"]
        made = rows["locks"] & np.uint32(_ALL_LOCKS) != _ALL_LOCKS
        made |= rows["state"] & np.uint32(EXITING) != 0
        heap, top, stop, end = (rows[name] for name in ("heap", "htop", "stop", "hend"))
        order = (heap != 0) & (heap <= top) & (top <= stop) & (stop <= end)
        # While a native function works, the heap proper may be replaced (``abandoned_heap``).
        size = (end - heap == rows["heap_words"] * np.uint64(_WORD)) | (rows["abandoned"] != 0)
        mailbox = (rows["mailbox"] >= 0) & (rows["mailbox"] < _MAX_WORDS)
        whole: NDArray[np.bool_] = number & slot & made & order & size & mailbox
        whole &= rows["heap_words"] < _MAX_WORDS
        if "old_heap" in (self._dtype.names or ()):
            old = rows["old_hend"] - rows["old_heap"]  # huge where the end comes first
            whole &= (rows["old_heap"] == 0) | (old < _WORD * _MAX_WORDS)
            whole &= rows["fragment_words"] < _MAX_WORDS
        return whole

    def still(self, rows: NDArray[np.void]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """
        Return which processes are still there, and whose mailboxes begin where they did.

        Only then is the data behind a process's pointers that process's.
        """
        slots, there = self._memory.gather(self._slot_addresses(rows["slot"]), _WORD)
        there &= column(slots, 0, np.uint64) == rows["pointer"]
        there &= self._same_id(rows)
        calm = there.copy()
        have = np.flatnonzero(there & (rows["first_message"] != 0))
        offset = np.uint64(self._layout.offset("Process", "sig_qs.first"))
        first, _ = self._memory.gather(rows["pointer"][have] + offset, _WORD)
        calm[have] &= column(first, 0, np.uint64) == rows["first_message"][have]
        return there, calm

    def _same_id(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """
        Read the pids again.

        A slot is used again only after all that are free, so this is needed
        only when as many processes were made within one reading.
        """
        offset = np.uint64(self._layout.offset("Process", "common.id"))
        again, read = self._memory.gather(rows["pointer"] + offset, _WORD)
        same: NDArray[np.bool_] = read & (again.view(np.uint64)[:, 0] == rows["id"])
        return same

    def _spawned(self) -> int:
        """Read the VM's running count of slots that were taken."""
        offset = self._layout.offset("ErtsPTab", "vola.tile.aid_ix")
        return self._memory.u32(self._table + offset)


def checked_table(target: Target) -> int:
    """
    Give the address of the process table, after a check of its struct and of struct process.

    It knows how large a process is, and the number of slots once more as the mask of a slot
    (OTP-25.2.3 erts/emulator/beam/erl_ptab.c, erts_ptab_init_table).
    Raises ReadRefusedError.
    """
    table, layout, memory = target.address("erts_proc"), target.layout, target.memory
    slots, mask, size = (
        memory.u32(table + layout.offset("ErtsPTab", f"r.o.{name}"))
        for name in ("max", "pix_mask", "element_size")
    )
    if not 0 < slots <= _MAX_SLOTS or mask != slots - 1:
        raise ReadRefusedError(
            f"process {target.pid}: its process table claims {slots} slots and a mask of "
            f"{mask:#x}, so {layout} does not fit and no process is read"
        )
    if size != layout.size("Process"):
        raise ReadRefusedError(
            f"process {target.pid}: its process table is of processes of {size} bytes, expected "
            f"{layout.size('Process')}, so {layout} does not fit and no process is read"
        )
    return table


def statuses(states: NDArray[np.uint32]) -> list[str]:
    """The result of ``process_info(P, status)`` for each state word."""
    names = np.full(len(states), "waiting", object)
    for name, bits in reversed(STATUS):
        names[states & np.uint32(bits) != 0] = name
    return names.tolist()


def base_bytes(rows: NDArray[np.void], process_size: int) -> NDArray[np.uint64]:
    """
    Return the bytes of each process's struct and heaps, shape ``(n,)``.

    This is most of ``process_info(P, memory)``, as far as it can be computed from
    the struct alone: without mailbox, links, monitors and dictionary.
    """
    old = np.where(rows["old_heap"] != 0, rows["old_hend"] - rows["old_heap"], 0)
    abandoned = np.where(rows["abandoned"] != 0, rows["hend"] - rows["heap"], 0)
    words = (rows["heap_words"] + rows["fragment_words"]) * np.uint64(_WORD)
    total: NDArray[np.uint64] = words + old + abandoned + np.uint64(process_size)
    return total


def binary_bytes(rows: NDArray[np.void]) -> NDArray[np.int64]:
    """
    Return the bytes of off-heap binaries of each process, shape ``(n,)``, by the columns BINARIES.

    The virtual heap that ``process_info(P, garbage_collection_info)`` returns: a binary counts as
    often as the process refers to it.
    """
    words = rows["off_heap_words"] + rows["old_binaries"]
    found: NDArray[np.int64] = (words * np.uint64(_WORD)).astype(np.int64)
    return found
