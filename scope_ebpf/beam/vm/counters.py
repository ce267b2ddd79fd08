# SPDX-License-Identifier: Apache-2.0
"""
The VM's own counters, read from its memory: exact, and free for the VM.

Run queues and scheduler data are checked before use (``layouts.checks``). Sources: OTP-25.2.3
erts/emulator/beam/erl_process.h (struct ErtsRunQueue_, struct
ErtsSchedulerData_, ErtsSchedulerSleepInfo), erl_ptab.h (ErtsPTab), index.h
(IndexTable), erl_db.c (erts_ets_table_count), io.c (reply_io_bytes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scope_ebpf.beam.layouts.checks import KINDS, check_counts, fields, queues, schedulers
from scope_ebpf.beam.memory.process_memory import word_iovecs
from scope_ebpf.beam.processes.table import checked_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

#: ErtsSchedulerSleepInfo.flags, and the bit of a scheduler that is not online.
SLEEP_FLAGS, SUSPENDED = 24, 1 << 4
#: Those of a scheduler that has nothing to do: it sleeps, or spins until there is something.
_IDLE = 1 << 1 | 1 << 2 | 1 << 3
_SUSPENDED, _NOT_WORKING = np.uint64(SUSPENDED), np.uint64(SUSPENDED | _IDLE)

#: Behind the count of a table: how many slots were taken from its queue of free ones
#: (vola.tile.aid_ix, OTP-25.2.3 erts/emulator/beam/erl_ptab.h; 32 bits that wrap).
_TAKEN = 4
#: The bits of a word that are a counter of 64 or of 32 bits.
_WORD, _INT = (1 << 64) - 1, (1 << 32) - 1


class Counters(NamedTuple):
    """
    One reading of the counters that the VM keeps itself.

    Units are counts, unless a field says another.
    """

    context_switches: int
    reductions: int
    #: Processes and ports ready to run: each normal scheduler, then dirty CPU, then dirty IO.
    run_queues: NDArray[np.int32]
    #: Schedulers by :data:`KINDS`.
    schedulers: tuple[int, ...]
    #: Schedulers that are online, by :data:`KINDS`.
    online: tuple[int, ...]
    #: Garbage collections; those on dirty schedulers only if *dirty_collections* is known.
    collections: int
    #: Words that these collections reclaimed.
    reclaimed_words: int
    #: The part of *collections* on dirty schedulers; None if unknown.
    dirty_collections: int | None
    #: Bytes read by ports on normal schedulers.
    bytes_in: int
    #: Bytes written by ports on normal schedulers.
    bytes_out: int
    ets_tables: int
    #: Grows by one for each process that is made, modulo 2^32, from any number.
    spawned: int
    processes: int
    ports: int
    atoms: int
    #: Schedulers that are online and neither sleep nor spin for lack of work, by :data:`KINDS`.
    working: tuple[int, ...] = ()

    @property
    def waiting(self) -> tuple[int, int, int]:
        """Processes and ports ready to run, by :data:`KINDS`."""
        *normal, cpu, io = self.run_queues.tolist()
        return sum(normal), cpu, io


class Limits(NamedTuple):
    """Sizes of the tables of a VM, entries."""

    processes: int
    ports: int
    atoms: int


class CounterReader:
    """Reads the counters of one VM. ReadRefusedError where they cannot be found or do not fit."""

    def __init__(self, target: Target) -> None:
        self._memory = target.memory
        self._layout = target.layout
        self._schedulers = schedulers(target)
        check_counts(target)
        self._queues = queues(target, self._schedulers)
        data = np.concatenate([self._schedulers[kind] for kind in KINDS])
        self._sleepers = fields(target, data, "ErtsSchedulerData", ("ssi", np.uint64))[0]
        self._tables = {
            "erts_proc": checked_table(target),
            "erts_port": target.address("erts_port"),
        }
        self._taken = self._layout.offset("ErtsPTab", "vola.tile.count") + _TAKEN
        self._atoms = target.address("erts_atom_table")
        self._dirty_gc = target.find("dirty_gc.info")
        parts = self._parts()
        sizes = [len(addresses) for addresses, _ in parts.values()]
        starts = np.cumsum([0, *sizes[:-1]])
        self._slices = {
            name: slice(start, start + size)
            for name, start, size in zip(parts, starts.tolist(), sizes, strict=True)
        }
        self._words = word_iovecs(np.concatenate([found for found, _ in parts.values()]))
        self._masks = np.repeat(np.array([mask for _, mask in parts.values()], np.uint64), sizes)
        self._ends = np.cumsum(sizes)
        #: Where the schedulers of each kind end.
        self._kinds = np.cumsum([len(self._schedulers[kind]) for kind in KINDS])

    def _parts(self) -> dict[str, tuple[NDArray[np.uint64], int]]:
        """Where the words of each counter lie, and the bits of them that count."""
        queue, data, table = "ErtsRunQueue", "ErtsSchedulerData", "ErtsPTab"
        normal, count = self._schedulers["normal"], "vola.tile.count"
        parts = {
            "switches": (self._queues + self._at(queue, "procs.context_switches"), _WORD),
            "reductions": (self._queues + self._at(queue, "procs.reductions"), _WORD),
            "lengths": (self._queues + self._at(queue, "len"), _INT),
            "collections": (normal + self._at(data, "gc_info.garbage_cols"), _WORD),
            "reclaimed": (normal + self._at(data, "gc_info.reclaimed"), _WORD),
            "bytes_in": (normal + self._at(data, "io.in"), _WORD),
            "bytes_out": (normal + self._at(data, "io.out"), _WORD),
            "ets_tables": (normal + self._at(data, "ets_tables.count"), _WORD),
            "sleep_flags": (self._sleepers + np.uint64(SLEEP_FLAGS), _INT),
        }
        single = {
            "spawned": self._tables["erts_proc"] + self._taken,
            "processes": self._tables["erts_proc"] + self._layout.offset(table, count),
            "ports": self._tables["erts_port"] + self._layout.offset(table, count),
            "atoms": self._atoms + self._layout.offset("IndexTable", "entries"),
        }
        parts |= {name: (np.array([address], np.uint64), _INT) for name, address in single.items()}
        if self._dirty_gc is not None:
            pair = np.array([self._dirty_gc, self._dirty_gc + 8], np.uint64)
            parts["dirty"] = (pair, _WORD)
        return parts

    def read(self) -> Counters:
        """Read everything in one system call, or one for each 1,024 words."""
        words = self._memory.words_at(self._words) & self._masks
        found = {name: words[part] for name, part in self._slices.items()}
        total = dict(zip(self._slices, sums(words, self._ends), strict=True))
        dirty = self._dirty(found.get("dirty"))
        return Counters(
            context_switches=total["switches"],
            reductions=total["reductions"],
            run_queues=found["lengths"].astype(np.int32),
            schedulers=tuple(len(self._schedulers[kind]) for kind in KINDS),
            online=tuple(sums(found["sleep_flags"] & _SUSPENDED == 0, self._kinds)),
            collections=total["collections"] + (dirty[0] if dirty else 0),
            reclaimed_words=total["reclaimed"] + (dirty[1] if dirty else 0),
            dirty_collections=dirty[0] if dirty else None,
            bytes_in=total["bytes_in"],
            bytes_out=total["bytes_out"],
            ets_tables=total["ets_tables"],
            spawned=total["spawned"],
            processes=total["processes"],
            ports=total["ports"],
            atoms=total["atoms"],
            working=tuple(sums(found["sleep_flags"] & _NOT_WORKING == 0, self._kinds)),
        )

    def _dirty(self, words: NDArray[np.uint64] | None) -> tuple[int, int] | None:
        """Collections on dirty schedulers and the words that they reclaimed; None where unknown."""
        if words is None:
            return None
        first = self._layout.offset("ErtsSchedulerData", "gc_info.reclaimed")
        step = self._layout.offset("ErtsSchedulerData", "gc_info.garbage_cols") - first
        reclaimed, collections = words.tolist() if step > 0 else reversed(words.tolist())
        return collections, reclaimed

    def limits(self) -> Limits:
        """Read the sizes of the VM's tables."""
        return Limits(
            processes=self._table("erts_proc", "r.o.max"),
            ports=self._table("erts_port", "r.o.max"),
            atoms=self._memory.u32(self._atoms + self._layout.offset("IndexTable", "limit")),
        )

    def addresses(self) -> dict[str, NDArray[np.uint64]]:
        """
        Addresses of the words whose sum is a counter of the normal schedulers, by its name.

        Equally spaced. Only the lower 32 bits of the words of *spawned* and of ports *opened*
        count, and of those of *processes* and *ports*, which are there. *dirty* are collections on
        dirty schedulers, where their counter is found.
        """
        queue, data = "ErtsRunQueue", "ErtsSchedulerData"
        schedulers = self._schedulers["normal"]
        queues = self._queues[: len(schedulers)]
        present = self._layout.offset("ErtsPTab", "vola.tile.count")
        found = {}
        if self._dirty_gc is not None:
            first = self._layout.offset("ErtsSchedulerData", "gc_info.reclaimed")
            second = self._layout.offset("ErtsSchedulerData", "gc_info.garbage_cols")
            step = 8 if second > first else 0
            found["dirty"] = np.array([self._dirty_gc + step], np.uint64)
        return found | {
            "processes": np.array([self._tables["erts_proc"] + present], np.uint64),
            "ports": np.array([self._tables["erts_port"] + present], np.uint64),
            "context_switches": queues + self._at(queue, "procs.context_switches"),
            "reductions": queues + self._at(queue, "procs.reductions"),
            "collections": schedulers + self._at(data, "gc_info.garbage_cols"),
            "spawned": np.array([self._tables["erts_proc"] + self._taken], np.uint64),
            "opened": np.array([self._tables["erts_port"] + self._taken], np.uint64),
        }

    def _at(self, struct: str, field: str) -> np.uint64:
        return np.uint64(self._layout.offset(struct, field))

    def _table(self, name: str, field: str) -> int:
        return self._memory.u32(self._tables[name] + self._layout.offset("ErtsPTab", field))


def sums(words: NDArray[Any], ends: NDArray[np.int64]) -> list[int]:
    """
    Sum up parts of *words*, each of which ends at one of *ends*; modulo 2^64.

    >>> sums(np.array([1, 2, 3, 4], np.uint64), np.array([1, 1, 4]))
    [1, 0, 9]
    """
    # One sum for all: runs read this 25 times a second.
    before = np.zeros(len(words) + 1, np.uint64)
    np.cumsum(words, dtype=np.uint64, out=before[1:])
    upto = before[ends]
    upto[1:] -= upto[:-1].copy()
    found: list[int] = upto.tolist()
    return found
