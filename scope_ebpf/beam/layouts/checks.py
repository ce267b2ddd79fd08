# SPDX-License-Identifier: Apache-2.0
"""
Whether structs lie in a VM's memory as its layout has them.

Each check compares a struct with what the VM itself keeps of it: pointers that lead back, ascending
numbers, tables that are counted elsewhere. Between them lie the fields that figures come from: an
additional field of another version of ERTS moves all fields behind it.

Sources: OTP-25.2.3 erts/emulator/beam/erl_process.c (init_scheduler_data, init_aux_work_data),
erl_db.c (save_sched_table), erl_alloc_util.c (the word before a block), erl_binary.h (ErtsBinary).
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import PID_TAG
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.counted import check_rows
from scope_ebpf.beam.processes.table import CHUNK, IDENTITY, SIZES, ProcessTable
from scope_ebpf.beam.vm.threads import threads
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.layouts import Layout
    from scope_ebpf.beam.memory.process_memory import Memory
    from scope_ebpf.beam.vm.target import Target

#: OTP allows 1024 schedulers of each of the three kinds.
_MAX_SCHEDULERS = 1024
#: Each kind of scheduler: the array of their data, and how many there are.
_KINDS = {
    "normal": ("erts_aligned_scheduler_data", "erts_no_schedulers"),
    "dirty_cpu": ("erts_aligned_dirty_cpu_scheduler_data", "erts_no_dirty_cpu_schedulers"),
    "dirty_io": ("erts_aligned_dirty_io_scheduler_data", "erts_no_dirty_io_schedulers"),
}
KINDS = tuple(_KINDS)
#: Readings of data that changes while it is read.
_ATTEMPTS = 20
#: Entries that may join or leave a scheduler's ETS tables while they are read.
_MEANWHILE = 16
#: ETS tables of one scheduler that are checked, and more than any has.
_MOST_TABLES, _NO_TABLES = 256, 1 << 24
#: Seconds that a VM may live without an ETS table, and a name that is registered by then. In
#: embedded mode it loads all modules first, which takes long where it has little CPU.
_YOUNG, _BEGUN = 300.0, "kernel_sup"
#: ErtsRunQueueInfo: how many wait in a queue of one priority comes first of its 12 bytes.
_QUEUE_INFO, _PRIORITIES = 12, 4
#: The word before a block: its size, with that word, and three flags (MBC_BLK_SZ_MASK).
_BLOCK_SIZE, _BLOCK_HEAD = (1 << 40) - 8, 8
#: A connection lies in a binary of the VM's: where the binary's size stands before it, and what
#: that counts besides.
_BINARY_SIZE, _BINARY_HEAD = 32, 24
#: Slots of the table of ports that are looked into, and ports that are checked.
_MOST_PORTS, _SEEN_PORTS = 1024, 16
#: A slot that is being taken has flags; those of a port (ERTS_PORT_SFLG_*, OTP-25.2.3 erl_port.h).
_FLAGS, _OPEN_PORT, _FREE_PORT, _OTHER_STATES = 7, 1 << 0, 1 << 8, 1 << 14
#: Bytes of a name that are looked at, and a character that none has.
_TEXT, _DELETE = 16, 0x7F


#: What was found of a VM, and with which layout: schedulers are made once, when a VM starts.
_found: WeakKeyDictionary[Memory, tuple[Layout, dict[str, NDArray[np.uint64]]]] = (
    WeakKeyDictionary()
)
#: With which layout the tables of a VM counted what is in them.
_counted: WeakKeyDictionary[Memory, Layout] = WeakKeyDictionary()


def schedulers(target: Target) -> dict[str, NDArray[np.uint64]]:
    """
    Give the addresses of the data of all schedulers, by kind, each checked.

    Checked once for each VM and layout, unless it had no ETS table yet. Raises ReadRefusedError by
    the name of the check that failed.
    """
    layout, found = _found.get(target.memory, (None, None))
    if found is None or layout is not target.layout:
        found = {kind: _array(target, kind, count) for kind, count in _counts(target).items()}
        _check_numbers(target, found)
        _check_back_pointers(target, found)
        _check_thread_numbers(target, found)
        _check_run_queues(target, found)
        if _check_tables(target, found["normal"]):
            _found[target.memory] = target.layout, found
    return dict(found)


def fields(
    target: Target,
    addresses: NDArray[np.uint64],
    struct: str,
    *wanted: tuple[str, type[np.generic]],
) -> list[NDArray[Any]]:
    """One column for each field of the structs at *addresses*. Raises ReadRefusedError."""
    offsets = [target.layout.offset(struct, name) for name, _ in wanted]
    first = min(offsets)
    raw, good = target.memory.gather(addresses + np.uint64(first), max(offsets) + 8 - first)
    if not good.all():
        raise ReadRefusedError(f"{int((~good).sum())} structs {struct} could not be read")
    return [
        column(raw, offset - first, kind) for offset, (_, kind) in zip(offsets, wanted, strict=True)
    ]


def refused(target: Target, check: str, what: str) -> ReadRefusedError:
    """The error that names a *check*, and *what* is not read for it."""
    return ReadRefusedError(
        f"process {target.pid} (ERTS {target.erts_version}): the check that {check} does not hold, "
        f"so {target.layout} does not fit and {what} not read"
    )


_SCHEDULERS = "its schedulers are"
_Result = TypeVar("_Result")


def again(check: Callable[[], _Result]) -> _Result:
    """Let a *check* of what changes meanwhile fail only if it fails every time."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return check()
        except ReadRefusedError:
            time.sleep(0.001 * attempt)
    return check()


def _counts(target: Target) -> dict[str, int]:
    """How many schedulers of each kind there are: what the VM says, or else its threads."""
    found: dict[str, int] = {}
    roles: list[str] | None = None
    for kind, (_, name) in _KINDS.items():
        address = target.find(name)
        if address is None:
            roles = [thread.role for thread in threads(target.pid)] if roles is None else roles
            found[kind] = roles.count(kind)
        else:
            found[kind] = target.memory.u32(address)
    return found


def _array(target: Target, kind: str, count: int) -> NDArray[np.uint64]:
    if not 0 < count <= _MAX_SCHEDULERS:
        raise ReadRefusedError(
            f"process {target.pid} claims {count} schedulers of the kind {kind}, so "
            f"{_SCHEDULERS} not read"
        )
    start = target.memory.u64(target.address(_KINDS[kind][0]))
    stride = np.uint64(target.layout.size("ErtsAlignedSchedulerData"))
    return np.uint64(start) + np.arange(count, dtype=np.uint64) * stride


def _check_numbers(target: Target, found: dict[str, NDArray[np.uint64]]) -> None:
    for kind, addresses in found.items():
        field = "no" if kind == "normal" else "dirty_no"
        numbers = fields(target, addresses, "ErtsSchedulerData", (field, np.uint32))[0]
        if not (numbers == np.arange(1, len(addresses) + 1)).all():
            raise refused(target, "each scheduler's data holds its number", _SCHEDULERS)


def _check_back_pointers(target: Target, found: dict[str, NDArray[np.uint64]]) -> None:
    """A scheduler's sleep info leads back to it, and so does its auxiliary work if it is normal."""
    held = "what belongs to a scheduler leads back to it"
    addresses = np.concatenate(list(found.values()))
    ssi = fields(target, addresses, "ErtsSchedulerData", ("ssi", np.uint64))[0]
    sleepers, read = target.memory.gather(ssi, 8)
    if not read.all() or not (column(sleepers, 0, np.uint64) == addresses).all():
        raise refused(target, held, _SCHEDULERS)
    work = ("aux_work_data.esdp", np.uint64)
    if not (fields(target, found["normal"], "ErtsSchedulerData", work)[0] == found["normal"]).all():
        raise refused(target, held, _SCHEDULERS)


def _check_thread_numbers(target: Target, found: dict[str, NDArray[np.uint64]]) -> None:
    """Threads are numbered through all kinds; a dirty one by its own number until it has begun."""
    before = 0
    for addresses in found.values():
        numbers = fields(target, addresses, "ErtsSchedulerData", ("thr_id", np.uint32))[0]
        own = np.arange(1, len(addresses) + 1)
        if not ((numbers == own) | (numbers == own + before)).all():
            raise refused(target, "each scheduler's thread has its number", _SCHEDULERS)
        before += len(addresses)


def queues(target: Target, found: dict[str, NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """
    Give the addresses of the run queues of the schedulers that were *found*.

    Each normal scheduler has its own, and a kind of dirty schedulers shares one: first those of
    normal schedulers, then dirty CPU, then dirty IO.
    """
    of = {
        kind: fields(target, addresses, "ErtsSchedulerData", ("run_queue", np.uint64))[0]
        for kind, addresses in found.items()
    }
    return np.concatenate([of["normal"], of["dirty_cpu"][:1], of["dirty_io"][:1]])


def _check_run_queues(target: Target, found: dict[str, NDArray[np.uint64]]) -> None:
    """Run queues are adjacent and hold their index; those of normal schedulers their owner."""
    addresses, normal = queues(target, found), found["normal"]
    indexes, owners = fields(
        target, addresses, "ErtsRunQueue", ("ix", np.int32), ("scheduler", np.uint64)
    )
    stride = np.uint64(target.layout.size("ErtsAlignedRunQueue"))
    in_a_row = (addresses[1:] - addresses[:-1] == stride).all()
    if not in_a_row or not (indexes == np.arange(len(addresses))).all():
        raise refused(target, "each run queue holds its number", "its run queues are")
    if not (owners[: len(normal)] == normal).all():
        raise refused(target, "each run queue leads back to its scheduler", "its run queues are")
    held = np.zeros(len(addresses), np.bool_)
    again(lambda: _try_lengths(target, addresses, held))


def _try_lengths(target: Target, addresses: NDArray[np.uint64], held: NDArray[np.bool_]) -> None:
    """
    A run queue is as long as its parts together, and has a flag for each that is not empty.

    Each must have been seen so once: *held* are those that were. All three change under its lock,
    one after the other (erts_add_runq_len, OTP-25.2.3 and OTP-29.1.1 erl_process.h).
    """
    layout = target.layout
    first = layout.offset("ErtsRunQueue", "procs.prio_info")
    raw, good = target.memory.gather(addresses, layout.size("ErtsRunQueue"))
    if not good.all():
        raise ReadRefusedError("a run queue could not be read")
    at = [first + _QUEUE_INFO * number for number in range(_PRIORITIES)]
    at.append(layout.offset("ErtsRunQueue", "ports.info.len"))
    parts = np.stack([column(raw, part, np.int32).astype(np.int64) for part in at], axis=1)
    length = column(raw, layout.offset("ErtsRunQueue", "len"), np.int32)
    flags = column(raw, layout.offset("ErtsRunQueue", "flags"), np.uint32)
    full = np.uint32(1) << np.arange(len(at), dtype=np.uint32)
    same = (flags[:, None] & full != 0) == (parts != 0)
    held |= (parts >= 0).all(axis=1) & (parts.sum(axis=1) == length) & same.all(axis=1)
    if not held.all():
        raise refused(target, "a run queue is as long as its parts", "its run queues are")


def _check_tables(target: Target, normal: NDArray[np.uint64]) -> int:
    """
    The ETS tables that a scheduler made are a ring, and it counts them; return how many have some.

    Each ring is tried again by itself, since tables come and go, and most rings decide. A VM that
    just begins has none, and is accepted by its version alone.
    """
    # Tables that were seen of each scheduler, -1 while its ring did not hold.
    seen = np.full(len(normal), -1)
    return again(lambda: _try_rings(target, normal, seen))


def _try_rings(target: Target, normal: NDArray[np.uint64], seen: NDArray[np.int64]) -> int:
    """Follow the rings that were not *seen* yet. Raises ReadRefusedError if too few hold."""
    counts, firsts = fields(
        target,
        normal,
        "ErtsSchedulerData",
        ("ets_tables.count", np.uint64),
        ("ets_tables.clist", np.uint64),
    )
    for index in np.flatnonzero(seen <= 0).tolist():
        with suppress(ReadRefusedError):
            seen[index] = _ring(target, int(firsts[index]), int(counts[index]))
    wrong, full = int((seen < 0).sum()), int((seen > 0).sum())
    if wrong and wrong >= full:
        raise refused(target, _RINGS, _SCHEDULERS)
    if not full and not _begins(target):
        raise refused(target, "there are ETS tables", _SCHEDULERS)
    return full


_RINGS = "the ETS tables of a scheduler are a ring of as many as it counts"


def _ring(target: Target, first: int, count: int) -> int:
    """
    Follow one ring for a while; return the number of tables seen.

    A scheduler counts a table before it links it (save_sched_table), so a count may be ahead.
    """
    table, seen = first, 0
    onward, back = _neighbours(target, table) if table else (0, 0)
    while table and seen < _MOST_TABLES:
        following, leads_to = _neighbours(target, onward)
        if leads_to != table or not back:
            raise refused(target, _RINGS, _SCHEDULERS)
        seen += 1
        if onward == first:
            break
        table, onward, back = onward, following, leads_to
    most = _NO_TABLES if seen == _MOST_TABLES and onward != first else seen + _MEANWHILE
    if not seen - _MEANWHILE <= count <= most:
        raise refused(target, _RINGS, _SCHEDULERS)
    return seen


def _neighbours(target: Target, table: int) -> tuple[int, int]:
    """The tables behind and before one in its ring."""
    onward, back = (target.layout.offset("DbTableCommon", f"all.{w}") for w in ("next", "prev"))
    return target.memory.u64(table + onward), target.memory.u64(table + back)


def _begins(target: Target) -> bool:
    """Whether the VM only begins: it is young, and its applications are not there yet."""
    if time.clock_gettime(time.CLOCK_BOOTTIME) - target.started > _YOUNG:
        return False
    entries = ProcessTable(target, IDENTITY).snapshot().rows["registered"]
    name_offset = np.uint64(target.layout.offset("RegProc", "name"))
    raw, read = target.memory.gather(entries[entries != 0] + name_offset, 8)
    atoms = column(raw, 0, np.uint64)[read] >> np.uint64(6)
    return _BEGUN not in Atoms(target).texts(atoms.tolist()).values()


def check_entry(target: Target) -> None:
    """The connection of this node is as large as the binary that it lies in."""
    node = target.memory.u64(target.address("erts_this_node"))
    entry = target.memory.u64(node + target.layout.offset("ErlNode", "dist_entry"))
    size = target.memory.u64(entry - _BINARY_SIZE) - _BINARY_HEAD
    if size != target.layout.size("DistEntry"):
        raise refused(target, "a connection has the size of its block", "connections are")


def check_rare_data(target: Target) -> None:
    """
    What few processes have (ErtsPSD) has the size of its blocks, of which some are larger.

    A block that was freed meanwhile may be smaller, so more must be of that size than smaller.
    """
    table = ProcessTable(target, SIZES)
    again(lambda: _check_rare_blocks(target, table))


def _check_rare_blocks(target: Target, table: ProcessTable) -> None:
    every = max(1, table.slots // CHUNK)
    blocks = table.snapshot(0, every).rows["psd"]
    heads, read = target.memory.gather(blocks[blocks != 0] - np.uint64(8), 8)
    sizes = (column(heads, 0, np.uint64) & np.uint64(_BLOCK_SIZE))[read]
    expected = target.layout.size("ErtsPSD") + _BLOCK_HEAD
    same, smaller = int((sizes == expected).sum()), int((sizes < expected).sum())
    if len(sizes) and (same <= smaller or 2 * smaller >= len(sizes)):
        raise refused(target, "rare data of a process has the size of its block", "memory is")


def check_ports(target: Target) -> None:
    """Ports are open and belong to a process, and they and their drivers have names."""
    memory, layout = target.memory, target.layout
    words = port_addresses(target, _MOST_PORTS)[:_SEEN_PORTS]
    ports, read = memory.gather(words, layout.size("Port"))
    owners, names, drivers = (
        column(ports, layout.offset("Port", field), np.uint64)
        for field in ("connected", "name", "drv_ptr")
    )
    states = column(ports, layout.offset("Port", "state"), np.uint32)
    called, there = memory.gather(drivers + np.uint64(layout.offset("erts_driver_t", "name")), 8)
    good = read & there & (owners & np.uint64(0xF) == PID_TAG)
    good &= (states & np.uint32(_OPEN_PORT) != 0) & (states < _OTHER_STATES)
    good &= states & np.uint32(_FREE_PORT) == 0
    good &= _are_texts(memory, names) & _are_texts(memory, column(called, 0, np.uint64))
    if 2 * int(good.sum()) < len(good):
        raise refused(target, "ports have an owner and a name", "ports are")


def _are_texts(memory: Memory, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether text lies at each address: a character at least, up to a zero or the last one."""
    raw, read = memory.gather(addresses, _TEXT)
    ended = np.cumsum(raw == 0, axis=1) > 0
    plain = (raw >= ord(" ")) & (raw != _DELETE)
    found: NDArray[np.bool_] = read & (plain | ended).all(axis=1) & ~ended[:, 0]
    return found


def port_addresses(target: Target, most: int) -> NDArray[np.uint64]:
    """Give the addresses of the ports in the first *most* slots of the table."""
    memory, layout = target.memory, target.layout
    table = target.address("erts_port")
    slots = memory.u32(table + layout.offset("ErtsPTab", "r.o.max"))
    first = memory.u64(table + layout.offset("ErtsPTab", "r.o.tab"))
    invalid = memory.u64(table + layout.offset("ErtsPTab", "r.o.invalid_element"))
    words = memory.words(first, min(slots, most))
    found: NDArray[np.uint64] = words[
        (words != 0) & (words != invalid) & (words & np.uint64(_FLAGS) == 0)
    ]
    return found


def check_counts(target: Target) -> None:
    """
    The last atom that is counted is one, and the table of processes counts those that are in it.

    Passed once for each VM and layout, as :func:`schedulers`.
    """
    if _counted.get(target.memory) is target.layout:
        return
    atoms = Atoms(target)
    try:
        atoms.text_at(len(atoms) - 1)
    except ReadRefusedError:
        raise refused(target, "the last of its atoms is one", "its tables are") from None
    check_rows(target)
    _counted[target.memory] = target.layout
