# SPDX-License-Identifier: Apache-2.0
"""
What the VM's allocators hold, and what ``erlang:memory/0`` makes of it.

Each allocator has an instance for each scheduler; an instance keeps its figures
by carriers of single blocks, of many blocks, and those it has given to the pool.
A carrier may hold blocks of another allocator, so blocks are counted by
theirs. Sources: OTP-25.2.3 erts/emulator/beam/erl_alloc_util.h (struct
Allctr_t_), erl_alloc.h (ErtsAllocatorInfo_t, ErtsAllocatorThrSpec_t),
erts/preloaded/src/erlang.erl (memory/0).

The instances are read while they change, and an own lock protects each: sums over
them are of one moment only while the VM is quiet, as those of ``erlang:memory/0`` are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.layouts.checks import again, refused
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.processes.table import checked_table
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.relations import of_allocators, of_use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

#: Numbers of allocators, ERTS_ALC_A_*; the first is not of alloc_util (erl_alloc_types.h).
COUNT = 12
FIRST_UTIL = 2
#: erts_allctrs_info and erts_allctr_thr_spec: 24 bytes for each number from 0.
RECORD = 24
#: Instances of an allocator: one for each of 1024 schedulers, and one for all other threads.
_MAX_INSTANCES = 1025
#: One {number, size} of carriers; that of blocks is followed by the largest, and the largest ever.
_STAT, _BLOCK_STAT = 16, 48
#: Sources of carriers: mseg_alloc and sys_alloc (ERTS_CRR_ALLOC_*), and the {number, size} of them
#: before the largest: a third has nothing.
_CARRIER_SOURCES, _CARRIER_STATS = 2, 3
#: Types of fix_alloc behind links: what drivers and NIFs wait for (OTP-25.2.3 and OTP-29.1.1
#: erl_alloc.types, {DRV,NIF}_SEL_D_STATE).
_BEHIND_LINKS = 2
#: The types of fix_alloc that erlang:memory/0 takes for memory of processes.
_OF_PROCESSES = ("proc", "msg_ref", "ll_ptimer", "hl_ptimer", "bif_timer", "monitor", "link")
#: The allocator of these, ERTS_ALC_A_FIXED_SIZE, and that of heaps, ERTS_ALC_A_EHEAP.
_FIXED_SIZE, _HEAPS = 8, 6
_WORD, _PAGE = 8, 4096
_THEY_ARE = "allocators are"
#: Bytes of a slot of the process table, and what the VM takes for one of its queue of free ones.
_SLOT, _FREE = 8, 4
#: Readings of inconsistent figures before they are refused.
_ATTEMPTS = 4


class Timers(NamedTuple):
    """Timers that are set in a VM, as many as its allocator has blocks for."""

    #: Of processes that wait in ``receive ... after``.
    receive: int
    #: Of ``erlang:send_after`` and ``erlang:start_timer``.
    bif: int


class Allocator(NamedTuple):
    """One allocator, over all its instances."""

    name: str
    #: Bytes of its carriers.
    carriers: int
    #: Bytes of its blocks, in carriers of any allocator.
    blocks: int
    #: By kind of carrier (mbcs, sbcs, mbcs_pool): bytes of its carriers and of the blocks of any
    #: allocator in them, as ``erlang:system_info`` returns them.
    kinds: dict[str, tuple[int, int]]


class MemoryUse(NamedTuple):
    """
    Bytes, in the words of ``erlang:memory/0``; what cannot be had exactly is None.

    *loaded_code* is the code alone, of which memory/0's ``code`` is made by adding tables that
    only the VM can measure.
    """

    total: int | None
    processes: int | None
    processes_used: int | None
    binary: int | None
    ets: int | None
    loaded_code: int | None

    @property
    def system(self) -> int | None:
        """Bytes that are not of processes."""
        if self.total is None or self.processes is None:
            return None
        return self.total - self.processes


class AllocatorReading(NamedTuple):
    """
    All allocators at one moment, in the order of the VM.

    *memory* is None where the VM itself does not support ``erlang:memory/0``, for the reason *why*.
    """

    allocators: tuple[Allocator, ...]
    memory: MemoryUse | None
    why: str = ""
    #: None where the lists of blocks are not known.
    timers: Timers | None = None


class _Fixed(NamedTuple):
    """Bytes of processes in blocks of one size, allocated and used, and the timers among them."""

    allocated: int
    used: int
    timers: Timers


class AllocatorReader:
    """Reads the allocators of one VM. ReadRefusedError where they are hidden or do not fit."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._memory, self._layout = target.memory, target.layout
        self._instances: list[NDArray[np.uint64]] = []
        self._numbers: list[int] = []
        self._off: list[int] = []
        info = target.address("erts_allctrs_info")
        specs = target.address("erts_allctr_thr_spec")
        for number in range(FIRST_UTIL, COUNT):
            found = instances(target, info, specs, number)
            if not len(found):
                self._off.append(number)
            else:
                self._numbers.append(number)
                self._instances.append(found)
        if not self._numbers:
            raise ReadRefusedError(f"process {target.pid} runs without the VM's allocators")
        self._names = {n: self._name(found[0]) for n, found in self._pairs()}
        self._check()

    def _pairs(self) -> zip[tuple[int, NDArray[np.uint64]]]:
        return zip(self._numbers, self._instances, strict=True)

    def read(self) -> AllocatorReading:
        """
        Read them all. Raises ReadRefusedError.

        A block that is made or freed meanwhile may be in one figure and not in the other yet:
        inconsistent figures are read again.
        """
        for _ in range(_ATTEMPTS - 1):
            reading = self._read()
            use = reading.memory
            if not of_allocators(reading.allocators) and not (use and of_use(use)):
                return reading
        return self._read()

    def _read(self) -> AllocatorReading:
        layout, size = self._layout, self._layout.size("Allctr_t")
        every = np.concatenate(self._instances)
        raw, good = self._memory.gather(every, size)
        if not good.all():
            raise ReadRefusedError(f"{int((~good).sum())} allocators could not be read")
        owners = np.repeat(self._numbers, [len(found) for found in self._instances])
        carriers, blocks = self._carriers(raw), self._blocks(raw)
        found = []
        for number in self._numbers:
            own = owners == number
            kinds = {
                kind: (int(carriers[kind][own].sum()), int(blocks[kind][own].sum()))
                for kind in carriers
            }
            anywhere = sum(int(kind[:, number - 1].sum()) for kind in blocks.values())
            total = sum(size for size, _ in kinds.values())
            found.append(Allocator(self._names[number], total, anywhere, kinds))
        if self._off:  # as erts_memory has it (erl_alloc.c)
            why = f"the VM runs with {len(self._off)} of its allocators off, and knows it no more"
            return AllocatorReading(tuple(found), None, why)
        lists = column(raw, layout.offset("Allctr_t", "fix"), np.uint64)
        pooled = column(raw, layout.offset("Allctr_t", "cpool.util_limit"), np.uint64) != 0
        fixed = self._fixed(lists[lists != 0], pooled[lists != 0])
        use = self._use({a.name: a.blocks for a in found}, fixed)
        timers = None if fixed is None else fixed.timers
        return AllocatorReading(tuple(found), use, timers=timers)

    def _carriers(self, raw: NDArray[np.uint8]) -> dict[str, NDArray[np.int64]]:
        """Bytes of the carriers of each instance, by kind."""
        pool = self._layout.offset("Allctr_t", "cpool.stat.carriers_size")
        found = {"mbcs_pool": column(raw, pool, np.int64)}
        for kind in ("sbcs", "mbcs"):
            first = self._layout.offset("Allctr_t", f"{kind}.carriers") + 8
            counts = [column(raw, first + i * _STAT, np.int64) for i in range(_CARRIER_SOURCES)]
            found[kind] = np.sum(counts, axis=0)
        return found

    def _blocks(self, raw: NDArray[np.uint8]) -> dict[str, NDArray[np.int64]]:
        """Bytes of blocks in each instance by kind of carrier; columns: allocators they are of."""
        firsts = {
            kind: (self._layout.offset("Allctr_t", f"{kind}.blocks") + 8, _BLOCK_STAT)
            for kind in ("sbcs", "mbcs")
        }
        firsts["mbcs_pool"] = (self._layout.offset("Allctr_t", "cpool.stat.blocks_size"), 8)
        return {
            kind: np.stack([column(raw, first + n * step, np.int64) for n in range(COUNT)], axis=1)
            for kind, (first, step) in firsts.items()
        }

    def _fixed(self, lists: NDArray[np.uint64], pooled: NDArray[np.bool_]) -> _Fixed | None:
        """
        What of processes is in fix_alloc. None where its lists are not known.

        A list keeps its figures elsewhere where its instance gives no carriers to the *pool*: the
        one of all threads that are no schedulers never does, and others by ``+MFacul 0``.
        """
        layout = self._layout
        if not layout.has("ErtsAlcFixList_t", "proc"):
            return None
        stride = layout.size("ErtsAlcFixList_t")
        offsets = [layout.offset("ErtsAlcFixList_t", name) for name in _OF_PROCESSES]
        raw, good = self._memory.gather(lists, stride * (max(offsets) + 1))
        if not good.all() or not len(raw):
            return None

        def figures(field: str) -> NDArray[np.int64]:
            at = layout.offset("ErtsAlcFixList_t", field)
            return np.array([column(raw, offset * stride + at, np.int64) for offset in offsets])

        sizes, types = figures("type_size"), figures("type")
        steps = np.array(offsets)[:, None] - offsets[0]
        if not (types - types[0] == steps * (types[1] - types[0]) // steps[1]).all():
            raise refused(self._target, "lists of blocks are in the order of types", _THEY_ARE)
        allocated, used = (
            np.where(pooled, figures(f"cpool.{name}"), figures(f"nocpool.{name}"))
            for name in ("allocated", "used")
        )
        if not (sizes[0] == layout.size("Process")).all():
            raise refused(self._target, "the first list of blocks is of processes", _THEY_ARE)
        counts = dict(zip(_OF_PROCESSES, used.sum(axis=1).tolist(), strict=True))
        receive = counts["ll_ptimer"] + counts["hl_ptimer"]
        timers = Timers(receive, counts["bif_timer"])
        return _Fixed(int((sizes * allocated).sum()), int((sizes * used).sum()), timers)

    def _use(self, blocks: dict[str, int], fixed: _Fixed | None) -> MemoryUse:
        code, misc = self._word("erts_total_code_size"), self._word("erts_ets_misc_mem_size")
        table = self._table_bytes()
        heaps = blocks.get("eheap", 0)
        # Without its own allocators for code, the interpreter's is in the sum already.
        outside = code if self._target.flavor == "jit" else 0
        return MemoryUse(
            total=None if outside is None else sum(blocks.values()) + outside,
            processes=None if fixed is None else heaps + fixed.allocated + table,
            processes_used=None if fixed is None else heaps + fixed.used + table,
            binary=blocks.get("binary", 0),
            ets=None if misc is None else blocks.get("ets", 0) + misc,
            loaded_code=code,
        )

    def _table_bytes(self) -> int:
        """Bytes of the process table, as erts_ptab_mem_size computes them (erl_ptab.c)."""
        table, layout = checked_table(self._target), self._layout
        slots = self._memory.u32(table + layout.offset("ErtsPTab", "r.o.max"))
        queue = self._memory.u64(table + layout.offset("ErtsPTab", "r.o.free_id_data"))
        return slots * (_SLOT + (_FREE if queue else 0))

    def _word(self, name: str) -> int | None:
        address = self._target.find(name)
        return None if address is None else self._memory.u64(address)

    def _name(self, instance: np.uint64) -> str:
        """Its own name, without the underscore that it is written with: ``eheap``, ``binary``."""
        prefix = self._memory.u64(int(instance) + self._layout.offset("Allctr_t", "name_prefix"))
        name, end, _ = self._memory.read(prefix, 16).partition(b"\0")
        if not end or not name.endswith(b"_") or not name[:-1].isalpha():
            raise ReadRefusedError(f"an allocator calls itself {name!r}: not the struct we know")
        return name[:-1].decode()

    def _check(self) -> None:
        for number, found in self._pairs():
            if not numbered(self._target, found, number):
                raise refused(self._target, "each allocator holds its number", _THEY_ARE)
        again(self._check_figures)
        if _FIXED_SIZE in self._numbers and self._layout.has("ErtsAlcFixList_t", "link"):
            self._check_fixed()

    def _check_fixed(self) -> None:
        """
        The lists of blocks of one size have made as many as there are.

        In a VM that allocates all the time nearly as many; each instance of one that stands still
        may do so while it makes one.
        """
        readings = []
        for _ in range(_ATTEMPTS):
            made, there = self._fixed_blocks()
            if made == there:
                return
            readings.append((made, there))
        most = sum(map(len, self._instances)) if len(set(readings)) == 1 else there // 4
        if abs(made - there) > most:
            raise refused(
                self._target, "lists of blocks count the blocks that they made", _THEY_ARE
            )

    def _fixed_blocks(self) -> tuple[int, int]:
        """How many blocks the lists of fixed_size have made, and how many there are of it."""
        layout, every = self._layout, np.concatenate(self._instances)
        raw, good = self._memory.gather(every, layout.size("Allctr_t"))
        lists = column(raw, layout.offset("Allctr_t", "fix"), np.uint64)
        pooled = column(raw, layout.offset("Allctr_t", "cpool.util_limit"), np.uint64) != 0
        lists, pooled = lists[lists != 0], pooled[lists != 0]
        stride = layout.size("ErtsAlcFixList_t")
        count = layout.offset("ErtsAlcFixList_t", "link") + _BEHIND_LINKS + 1
        rows, read = self._memory.gather(lists, stride * count)
        if not good.all() or not read.all():
            raise ReadRefusedError("an allocator could not be read")
        made = 0
        for name, own in (("cpool", pooled), ("nocpool", ~pooled)):
            first = layout.offset("ErtsAlcFixList_t", f"{name}.allocated")
            figures = [column(rows, first + stride * n, np.int64)[own] for n in range(count)]
            made += int(np.sum(figures))
        pool = layout.offset("Allctr_t", "cpool.stat.blocks_size") + COUNT * _WORD
        there = int(column(raw, pool + (_FIXED_SIZE - 1) * _WORD, np.int64).sum())
        for kind in ("sbcs", "mbcs"):
            first = layout.offset("Allctr_t", f"{kind}.blocks") + (_FIXED_SIZE - 1) * _BLOCK_STAT
            there += int(column(raw, first, np.int64).sum())
        return made, there

    def _check_figures(self) -> None:
        """One allocator has lists of blocks of one size; one without carriers has no bytes."""
        every = np.concatenate(self._instances)
        raw, good = self._memory.gather(every, self._layout.size("Allctr_t"))
        if not good.all():
            raise ReadRefusedError(f"{int((~good).sum())} allocators could not be read")
        owners = np.repeat(self._numbers, [len(found) for found in self._instances])
        lists = column(raw, self._layout.offset("Allctr_t", "fix"), np.uint64)
        if not ((lists != 0) == (owners == _FIXED_SIZE)).all():
            raise refused(self._target, "fixed_size alone has lists of blocks", _THEY_ARE)
        for offset, least in self._pairs_of_figures():
            number, size = (column(raw, offset + at, np.uint64) for at in (0, _WORD))
            low = size // np.uint64(least) < number
            if (low | ((number == 0) & (size != 0))).any():
                raise refused(self._target, "carriers and blocks have bytes", _THEY_ARE)
        self._check_largest(raw)
        self._check_heaps(raw, owners)

    def _check_largest(self, raw: NDArray[np.uint8]) -> None:
        """What there is of carriers and blocks is no more than the largest there was."""
        for kind in ("sbcs", "mbcs"):
            first = self._layout.offset("Allctr_t", f"{kind}.blocks")
            starts = [([first + n * _BLOCK_STAT], _STAT) for n in range(COUNT)]
            first = self._layout.offset("Allctr_t", f"{kind}.carriers")
            sources = [first + i * _STAT for i in range(_CARRIER_SOURCES)]
            starts.append((sources, _CARRIER_STATS * _STAT))
            for parts, largest in starts:
                for at in (0, _WORD):
                    now = np.sum([column(raw, part + at, np.uint64) for part in parts], axis=0)
                    if (now > column(raw, parts[0] + largest + at, np.uint64)).any():
                        raise refused(self._target, "carriers and blocks have a largest", _THEY_ARE)

    def _check_heaps(self, raw: NDArray[np.uint8], owners: NDArray[np.int64]) -> None:
        """A VM has processes, and so heaps; each carrier of a single block has that one block."""
        heaps = owners == _HEAPS
        held = {kind: blocks[:, _HEAPS - 1].sum() for kind, blocks in self._blocks(raw).items()}
        carriers = {kind: sizes[heaps].sum() for kind, sizes in self._carriers(raw).items()}
        if heaps.any() and not (sum(held.values()) and sum(carriers.values())):
            raise refused(self._target, "the heaps of processes are in carriers", _THEY_ARE)
        first = self._layout.offset("Allctr_t", "sbcs.carriers")
        single = [column(raw, first + i * _STAT, np.int64) for i in range(_CARRIER_SOURCES)]
        first = self._layout.offset("Allctr_t", "sbcs.blocks")
        inside = [column(raw, first + n * _BLOCK_STAT, np.int64) for n in range(COUNT)]
        if (np.sum(single, axis=0) != np.sum(inside, axis=0)).any():
            raise refused(self._target, "a carrier of a single block has one block", _THEY_ARE)

    def _pairs_of_figures(self) -> Iterator[tuple[int, int]]:
        """Offsets of number and bytes of carriers and blocks, and the least bytes that one has."""
        for kind in ("sbcs", "mbcs"):
            first = self._layout.offset("Allctr_t", f"{kind}.carriers")
            yield from ((first + i * _STAT, _PAGE) for i in range(_CARRIER_SOURCES))
            first = self._layout.offset("Allctr_t", f"{kind}.blocks")
            yield from ((first + number * _BLOCK_STAT, _WORD) for number in range(COUNT))


def fixed_sizes(target: Target) -> dict[str, int]:
    """
    Bytes of a block of each type that fix_alloc keeps lists of, by the name of the type.

    Raises ReadRefusedError where the lists are not found or do not fit.
    """
    layout = target.layout
    info, specs = target.address("erts_allctrs_info"), target.address("erts_allctr_thr_spec")
    found = instances(target, info, specs, _FIXED_SIZE)
    if not len(found) or not numbered(target, found[:1], _FIXED_SIZE):
        raise ReadRefusedError(f"process {target.pid} has no lists of blocks that fit {layout}")
    lists = target.memory.u64(int(found[0]) + layout.offset("Allctr_t", "fix"))
    stride = layout.size("ErtsAlcFixList_t")
    at = lists + layout.offset("ErtsAlcFixList_t", "type_size")
    return {
        name: target.memory.u64(at + stride * layout.offset("ErtsAlcFixList_t", name))
        for name in _OF_PROCESSES
    }


def instances(target: Target, info: int, specs: int, number: int) -> NDArray[np.uint64]:
    """Where the instances of allocator *number* lie; none where it is not enabled."""
    util, enabled, specific = np.frombuffer(
        target.memory.read(info + number * RECORD, 12), np.int32
    ).tolist()
    if not util or not enabled:
        return np.empty(0, np.uint64)
    if not specific:
        return target.memory.words(info + number * RECORD + 16, 1)
    spec = target.memory.read(specs + number * RECORD, RECORD)
    count = int.from_bytes(spec[12:16], "little")
    if not 0 < count <= _MAX_INSTANCES:
        raise ReadRefusedError(f"an allocator claims {count} instances: not the table we know")
    found = target.memory.words(int.from_bytes(spec[16:24], "little"), count)
    there: NDArray[np.uint64] = found[found != 0]
    return there


def numbered(target: Target, found: NDArray[np.uint64], number: int) -> bool:
    """True if each of these instances says that it is one of allocator *number*."""
    first = target.layout.offset("Allctr_t", "alloc_no")
    raw, good = target.memory.gather(found + np.uint64(first), 4)
    return bool(good.all()) and bool((column(raw, 0, np.uint32) == number).all())
