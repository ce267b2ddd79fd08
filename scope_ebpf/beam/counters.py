# SPDX-License-Identifier: Apache-2.0
"""
What the VM counts anyway, read from its memory: exact, and free for the VM.

Run queues and scheduler data are arrays of structs, whose places are checked
before use: each struct carries its own number. Sources: OTP-25.2.3
erts/emulator/beam/erl_process.h (struct ErtsRunQueue_, struct
ErtsSchedulerData_, ErtsSchedulerSleepInfo), erl_ptab.h (ErtsPTab), index.h
(IndexTable), erl_db.c (erts_ets_table_count), io.c (reply_io_bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf.beam.memory import column, word_places
from scope_ebpf.beam.threads import threads
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.target import Target

#: OTP allows 1024 schedulers of each of the three kinds.
_MAX_SCHEDULERS = 1024
#: Each kind of scheduler: the array of their data, and how many there are.
_KINDS = {
    "normal": ("erts_aligned_scheduler_data", "erts_no_schedulers"),
    "dirty_cpu": ("erts_aligned_dirty_cpu_scheduler_data", "erts_no_dirty_cpu_schedulers"),
    "dirty_io": ("erts_aligned_dirty_io_scheduler_data", "erts_no_dirty_io_schedulers"),
}
KINDS = tuple(_KINDS)
#: The array of each kind alone.
SCHEDULER_DATA = {kind: array for kind, (array, _) in _KINDS.items()}
#: ErtsSchedulerSleepInfo.flags, and the bit of a scheduler that is not online.
SLEEP_FLAGS, SUSPENDED = 24, 1 << 4
#: Those of a scheduler that has nothing to do: it sleeps, or spins until there is something.
_IDLE = 1 << 1 | 1 << 2 | 1 << 3

#: Behind the count of a table: how many places were taken from its queue of free ones
#: (vola.tile.aid_ix, OTP-25.2.3 erts/emulator/beam/erl_ptab.h; 32 bits that wrap).
_TAKEN = 4
#: The bits of a word that are a counter of 64 or of 32 bits.
_WORD, _INT = (1 << 64) - 1, (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Counters:
    """
    One reading.

    *run_queues* has the processes and ports ready to run: one number for each
    normal scheduler, then dirty CPU, then dirty IO. *schedulers* and *online* count
    by the kinds of :data:`KINDS`, and so does *working*, those that are online and neither
    sleep nor spin for want of work. *collections* and
    *reclaimed_words* are as ``erlang:statistics(garbage_collection)`` has them, but
    where *dirty_collections* is None, which counts those on dirty schedulers among
    them: then these are not told, and left out. *bytes_in* and *bytes_out* leave out
    what ports moved outside of normal schedulers. *spawned* grows by
    one for each process that is made, modulo 2^32, from any number.
    """

    context_switches: int
    reductions: int
    run_queues: NDArray[np.int32]
    schedulers: tuple[int, ...]
    online: tuple[int, ...]
    collections: int
    reclaimed_words: int
    dirty_collections: int | None
    bytes_in: int
    bytes_out: int
    ets_tables: int
    spawned: int
    processes: int
    ports: int
    atoms: int
    working: tuple[int, ...] = ()

    @property
    def waiting(self) -> tuple[int, int, int]:
        """What is ready to run, by the kinds of :data:`KINDS`."""
        *normal, cpu, io = self.run_queues.tolist()
        return sum(normal), cpu, io


@dataclass(frozen=True, slots=True)
class Limits:
    """What the tables of a VM can hold."""

    processes: int
    ports: int
    atoms: int


class CounterReader:
    """Reads the counters of one VM. ReadRefusedError where they cannot be found or do not fit."""

    def __init__(self, target: Target) -> None:
        self._memory = target.memory
        self._layout = target.layout
        counts = _counts(target)
        self._schedulers = {kind: self._array(target, kind, counts[kind]) for kind in KINDS}
        self._check(target)
        # A kind of dirty schedulers shares one queue; each normal scheduler has its own.
        queues = {kind: self._pointers(kind, "run_queue") for kind in KINDS}
        self._queues = np.concatenate(
            [queues["normal"], queues["dirty_cpu"][:1], queues["dirty_io"][:1]]
        )
        self._check_queues(target)
        self._sleepers = np.concatenate([self._pointers(kind, "ssi") for kind in KINDS])
        self._tables = {name: target.address(name) for name in ("erts_proc", "erts_port")}
        self._taken = self._layout.offset("ErtsPTab", "vola.tile.count") + _TAKEN
        self._atoms = target.address("erts_atom_table")
        self._dirty_gc = target.find("dirty_gc.info")
        parts = self._parts()
        sizes = [len(places) for places, _ in parts.values()]
        starts = np.cumsum([0, *sizes[:-1]])
        self._slices = {
            name: slice(start, start + size)
            for name, start, size in zip(parts, starts.tolist(), sizes, strict=True)
        }
        self._words = word_places(np.concatenate([places for places, _ in parts.values()]))
        self._masks = np.repeat(np.array([mask for _, mask in parts.values()], np.uint64), sizes)

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
        parts |= {name: (np.array([place], np.uint64), _INT) for name, place in single.items()}
        if self._dirty_gc is not None:
            pair = np.array([self._dirty_gc, self._dirty_gc + 8], np.uint64)
            parts["dirty"] = (pair, _WORD)
        return parts

    def read(self) -> Counters:
        """Read everything in one system call, or one for each 1,024 words."""
        words = self._memory.words_at(self._words) & self._masks
        found = {name: words[part] for name, part in self._slices.items()}
        total = {name: int(part.sum()) for name, part in found.items()}
        dirty = self._dirty(found.get("dirty"))
        return Counters(
            context_switches=total["switches"],
            reductions=total["reductions"],
            run_queues=found["lengths"].astype(np.int32),
            schedulers=tuple(len(self._schedulers[kind]) for kind in KINDS),
            online=self._by_kind(found["sleep_flags"] & np.uint64(SUSPENDED) == 0),
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
            working=self._by_kind(found["sleep_flags"] & np.uint64(SUSPENDED | _IDLE) == 0),
        )

    def _dirty(self, words: NDArray[np.uint64] | None) -> tuple[int, int] | None:
        """Collections on dirty schedulers and the words that they reclaimed, where that is told."""
        if words is None:
            return None
        first = self._layout.offset("ErtsSchedulerData", "gc_info.reclaimed")
        step = self._layout.offset("ErtsSchedulerData", "gc_info.garbage_cols") - first
        reclaimed, collections = words.tolist() if step > 0 else reversed(words.tolist())
        return collections, reclaimed

    def limits(self) -> Limits:
        """What the tables can hold."""
        return Limits(
            processes=self._table("erts_proc", "r.o.max"),
            ports=self._table("erts_port", "r.o.max"),
            atoms=self._memory.u32(self._atoms + self._layout.offset("IndexTable", "limit")),
        )

    def places(self) -> dict[str, NDArray[np.uint64]]:
        """
        Where the words lie whose sum is a counter of the normal schedulers, by its name.

        In a row, with equal spaces. Of the words of *spawned* and of ports that were *opened* the
        lower 32 bits count.
        """
        queue, data = "ErtsRunQueue", "ErtsSchedulerData"
        schedulers = self._schedulers["normal"]
        queues = self._queues[: len(schedulers)]
        return {
            "context_switches": queues + self._at(queue, "procs.context_switches"),
            "reductions": queues + self._at(queue, "procs.reductions"),
            "collections": schedulers + self._at(data, "gc_info.garbage_cols"),
            "spawned": np.array([self._tables["erts_proc"] + self._taken], np.uint64),
            "opened": np.array([self._tables["erts_port"] + self._taken], np.uint64),
        }

    def _at(self, struct: str, field: str) -> np.uint64:
        return np.uint64(self._layout.offset(struct, field))

    def _by_kind(self, which: NDArray[np.bool_]) -> tuple[int, ...]:
        """How many schedulers of each kind are among *which*."""
        ends = np.cumsum([len(self._schedulers[kind]) for kind in KINDS])
        return tuple(int(part.sum()) for part in np.split(which, ends[:-1]))

    def _table(self, name: str, field: str) -> int:
        return self._memory.u32(self._tables[name] + self._layout.offset("ErtsPTab", field))

    def _fields(
        self, places: NDArray[np.uint64], struct: str, *fields: tuple[str, type[np.generic]]
    ) -> list[NDArray[Any]]:
        """One column for each field; the structs are read from the first to the last of them."""
        offsets = [self._layout.offset(struct, name) for name, _ in fields]
        first = min(offsets)
        raw, good = self._memory.gather(places + np.uint64(first), max(offsets) + 8 - first)
        if not good.all():
            raise ReadRefusedError(f"{int((~good).sum())} structs {struct} could not be read")
        return [
            column(raw, offset - first, kind)
            for offset, (_, kind) in zip(offsets, fields, strict=True)
        ]

    def _pointers(self, kind: str, field: str) -> NDArray[np.uint64]:
        found: NDArray[np.uint64] = self._fields(
            self._schedulers[kind], "ErtsSchedulerData", (field, np.uint64)
        )[0]
        return found

    def _array(self, target: Target, kind: str, count: int) -> NDArray[np.uint64]:
        if not 0 < count <= _MAX_SCHEDULERS:
            raise ReadRefusedError(
                f"process {target.pid} claims {count} schedulers of the kind {kind}, so its "
                "counters are not read"
            )
        start = self._memory.u64(target.address(_KINDS[kind][0]))
        stride = np.uint64(self._layout.size("ErtsAlignedSchedulerData"))
        return np.uint64(start) + np.arange(count, dtype=np.uint64) * stride

    def _check(self, target: Target) -> None:
        """Each scheduler's data tells its number."""
        for kind, places in self._schedulers.items():
            field = "no" if kind == "normal" else "dirty_no"
            numbers = self._fields(places, "ErtsSchedulerData", (field, np.uint64))[0]
            if not (numbers & np.uint64(0xFFFFFFFF) == np.arange(1, len(places) + 1)).all():
                raise ReadRefusedError(
                    f"process {target.pid}: its schedulers are not where {self._layout} has them, "
                    "so its counters are not read"
                )

    def _check_queues(self, target: Target) -> None:
        """Each run queue tells its place: those of normal schedulers, then dirty CPU, dirty IO."""
        indexes = self._fields(self._queues, "ErtsRunQueue", ("ix", np.int32))[0]
        if not (indexes == np.arange(len(self._queues))).all():
            raise ReadRefusedError(
                f"process {target.pid}: its run queues are not where {self._layout} has them, "
                "so its counters are not read"
            )


def _counts(target: Target) -> dict[str, int]:
    """How many schedulers of each kind there are: what the VM says, or else its threads."""
    found: dict[str, int] = {}
    roles: list[str] | None = None
    for kind, (_, name) in _KINDS.items():
        place = target.find(name)
        if place is None:
            roles = [thread.role for thread in threads(target.pid)] if roles is None else roles
            found[kind] = roles.count(kind)
        else:
            found[kind] = target.memory.u32(place)
    return found
