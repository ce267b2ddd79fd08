# SPDX-License-Identifier: Apache-2.0
"""
Finding the VM's tables without symbols.

Each search ends in a check that a wrong address does not pass: a pid that leads
back to its slot, an atom table that carries its name, a scheduler whose run
queue points back to it. No address, or two, is no answer.
"""

from __future__ import annotations

import re
import struct
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from scope_ebpf.arrays import grouped
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import (
    ATOM_MASK,
    ATOM_TAG,
    BOXED,
    PID_TAG,
    POINTER_MASK,
    PORT_TAG,
    PRIMARY_MASK,
    IdCodec,
    Shuffle,
)
from scope_ebpf.beam.vm.allocators import COUNT, FIRST_UTIL, RECORD, instances, numbered
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from scope_ebpf.beam.elf.binary import Binary
    from scope_ebpf.beam.vm.target import Target

#: Sections of the VM's variables; ERTS_LOW_WRITE holds those that hardly change.
_SECTIONS = (".bss", ".data", "ERTS_LOW_WRITE")
_WORD = 8
#: eheap_alloc, and the first word of an allocator that is enabled (ErtsAllocatorInfo_t).
_EHEAP, _ENABLED = 6, 1 | 1 << 32
#: ``lea X(%rip), %rdi``, at a fixed address ``mov $X, %edi``, and ``call Y``; soon after it
#: ``movups %xmmN, X(%rip)`` or ``movq $0, X(%rip)``.
_LOCK_INIT = re.compile(rb"(?:\x48\x8d\x3d(.{4})|\xbf(.{4}))\xe8(.{4})", re.DOTALL)
_STORE_ZERO = re.compile(rb"\x0f\x11[\x05\x0d](.{4})|\x48\xc7\x05(.{4})\0{4}", re.DOTALL)
#: Bytes: of code behind the call, and of data behind the lock.
_NEAR = 64
#: Slots of a table that are checked.
_SAMPLE = 1024
#: Ranges of code that are checked before all of them are.
_FEW = 16
#: Ranges of code that a VM has at most: one for each module, and some.
_MOST_RANGES = 1 << 20
#: Slots that a table of persistent terms begins with, and those that are searched; where they lie
#: in it; the header of a tuple of two.
_FEWEST_SLOTS, _MOST_SLOTS, _PERSISTENT, _PAIR = 8, 1 << 20, 96, 2 << 6
#: Lists of connections, the states of their entries (enum dist_entry_state; one that was connected
#: stays in its list while it is closed), entries that are followed, and readings.
_LISTS = 4
_STATES = ({0}, {1, 3}, {2, 3}, {2, 3})
_MOST_NODES, _TRIES = 4096, 3
#: Variables that were found in another VM of the same program, as the file has their addresses.
_variables: WeakKeyDictionary[Binary, dict[str, int]] = WeakKeyDictionary()


def data(target: Target) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Read the VM's variables: (address, words) of each section that holds some."""
    for name in _SECTIONS:
        section = target.binary.section_address(name)
        if section is None:
            continue
        address, size = section
        start = target.base + address + -address % _WORD
        yield start, target.memory.words(start, max(0, size // _WORD - 1))


def referenced(target: Target, function: str) -> list[int]:
    """Return the addresses of the VM's memory that an exported function names (x86-64)."""
    symbol = target.binary.symbol(function)
    if symbol is None or target.binary.machine != "x64" or symbol.size > 1 << 14:
        return []
    found = target.binary.references(symbol.address, symbol.size)
    return [target.base + address for address in found]


def _only(addresses: list[int]) -> int | None:
    unique = set(addresses)
    return unique.pop() if len(unique) == 1 else None


def _by_function(
    function: str, struct: str, field: str, check: Callable[[Target, int], bool], target: Target
) -> int | None:
    """
    Find a struct by an exported function that reads one field of it.

    GCC names the address of the field, clang that of the struct.
    """
    offset = target.layout.offset(struct, field)
    addresses = [a - back for a in referenced(target, function) for back in (offset, 0)]
    return _only([address for address in addresses if _holds(check, target, address)])


def _holds(check: Callable[[Target, int], bool], target: Target, address: int) -> bool:
    try:
        return check(target, address)
    except ReadRefusedError:
        return False


def _is_table(tag: int, target: Target, address: int) -> bool:
    """True if *address* is of a process or port table: its elements hold their slots."""
    layout, memory = target.layout, target.memory
    slots = memory.u32(address + layout.offset("ErtsPTab", "r.o.max"))
    if not 0 < slots < 1 << 28:
        return False
    table = memory.u64(address + layout.offset("ErtsPTab", "r.o.tab"))
    invalid = memory.u64(address + layout.offset("ErtsPTab", "r.o.invalid_element"))
    elements = memory.words(table, min(slots, _SAMPLE))
    filled = np.flatnonzero((elements != 0) & (elements != invalid) & (elements & 7 == 0))
    ids, read = memory.gather(elements[filled], _WORD)
    raw = column(ids, 0, np.uint64)
    shuffle = Shuffle.read(memory, layout, address) if layout.facts.shuffled_ids else None
    known = IdCodec(28, shuffle).slot(raw) == filled
    good = read & known & (raw & np.uint64(0xF) == tag)
    # Some may have come or gone between the two readings.
    return len(filled) > 0 and int(good.sum()) * 2 > len(filled)


def _is_atom_table(target: Target, address: int) -> bool:
    """True if the table at *address* says that it is the atom table."""
    name = target.memory.u64(address + target.layout.offset("IndexTable", "htable.name"))
    return target.memory.read(name, 9) == b"atom_tab\0"


def _code_ranges(target: Target) -> int | None:
    """
    Find ``struct ranges r[3]`` (OTP-25.2.3 erts/emulator/beam/beam_ranges.c).

    Three times in a row: an array, how much of it is used, how large it is,
    and an address within it.
    """
    layout = target.layout
    stride = layout.size("ranges") // _WORD
    fields = [layout.offset("ranges", f) // _WORD for f in ("modules", "n", "allocated", "mid")]
    found = []
    for address, words in data(target):
        fits = np.ones(max(0, len(words) - 3 * stride), np.bool_)
        for shift in (0, stride, 2 * stride):
            at = [words[shift + field : shift + field + len(fits)] for field in fields]
            fits &= (at[0] != 0) & (at[1] > 0) & (at[1] <= at[2]) & (at[2] < _MOST_RANGES)
            fits &= (at[3] >= at[0]) & (at[3] < at[0] + at[2] * np.uint64(2 * _WORD))
        found += [address + _WORD * int(index) for index in np.flatnonzero(fits)]
    return _only([address for address in found if _holds(_in_order, target, address)])


def _in_order(target: Target, address: int) -> bool:
    """True if three sets of ranges of code, each in rising order, start at *address*."""
    layout = target.layout
    for index in range(3):
        at = address + index * layout.size("ranges")
        modules = target.memory.u64(at + layout.offset("ranges", "modules"))
        count = target.memory.u64(at + layout.offset("ranges", "n"))
        if not 0 < count < _MOST_RANGES:
            return False  # it was neither when the address was found
        # Nearly all wrong ones show within the first few; to read all takes 16 MB at the worst.
        for some in (min(count, _FEW), count):
            bounds = target.memory.words(modules, 2 * some)
            if bounds[0] >= bounds[-1] or (bounds[1:] < bounds[:-1]).any():
                return False
    return True


def _pointing(
    target: Target,
    name: str,
    size: int,
    fits: Callable[[NDArray[np.uint64], NDArray[np.uint8]], NDArray[np.bool_]],
) -> int | None:
    """
    Find the variable *name*, which points to *size* bytes that *fits* accepts.

    Several variables may point to one struct; if they point to two, None. The address in another VM
    of this program is tried first: a search of all variables takes a tenth of a second.
    """
    known = _variables.setdefault(target.binary, {})
    if name in known:
        address = target.base + known[name]
        if _fitting(target, address, target.memory.words(address, 1), size, fits):
            return address
    found: dict[int, int] = {}
    for address, words in data(target):
        found = _fitting(target, address, words, size, fits) | found
    only = _only(list(found.values()))
    if only is not None:
        known[name] = only - target.base
    return only


def _fitting(
    target: Target,
    address: int,
    words: NDArray[np.uint64],
    size: int,
    fits: Callable[[NDArray[np.uint64], NDArray[np.uint8]], NDArray[np.bool_]],
) -> dict[int, int]:
    """Pointers among the *words* at *address* to what fits, each with its first address."""
    found: dict[int, int] = {}
    likely = np.flatnonzero((words & 7 == 0) & (words > 1 << 16) & (words < 1 << 47))
    # Half of the pointers are to what another one before them points to.
    pointers, first, _ = grouped(words[likely])
    mapped = target.memory.mapped(pointers)
    pointers, first = pointers[mapped], first[mapped]
    # A pointer to unmapped memory is no failed reading here.
    failures = target.memory.failures
    structs, read = target.memory.gather(pointers, size)
    target.memory.failures = failures
    for index in likely[first][read & fits(pointers, structs)].tolist():
        found[int(words[index])] = address + _WORD * index
    return found


def _leading(
    target: Target,
    addresses: NDArray[np.uint64],
    words: NDArray[np.uint64],
    good: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """
    Which of *good* have the word in *words* at their address in *addresses*; all of one shape.

    Only those addresses are read: each that is not mapped costs a system call of its own.
    """
    rows = np.flatnonzero(good)
    rows = rows[target.memory.mapped(addresses[rows])]
    failures = target.memory.failures
    found, read = target.memory.gather(addresses[rows], _WORD)
    target.memory.failures = failures
    same = np.zeros(len(good), np.bool_)
    same[rows] = read & (column(found, 0, np.uint64) == words[rows])
    return same


def _this_node(target: Target) -> int | None:
    """Find ``erts_this_node``: the node whose connection bears the same name."""
    layout = target.layout
    name, entry = (layout.offset("ErlNode", field) for field in ("sysname", "dist_entry"))

    def fits(_: NDArray[np.uint64], nodes: NDArray[np.uint8]) -> NDArray[np.bool_]:
        sysname = column(nodes, name, np.uint64)
        offset = np.uint64(layout.offset("DistEntry", "sysname"))
        atom = sysname & np.uint64(ATOM_MASK) == ATOM_TAG
        return _leading(target, column(nodes, entry, np.uint64) + offset, sysname, atom)

    return _pointing(target, "erts_this_node", entry + _WORD, fits)


def _nodes(number: int, target: Target) -> int | None:
    """
    Find the head of a list of connections, 0 to 3: idle, pending, visible, hidden.

    The variables of erl_node_tables.c lie one after the other in builds by GCC (OTP-25.2.3 to
    OTP-29.1.1): this node, its entry, four counts, four heads. That is no rule, so each list must
    be as long as its count says, with states of its kind, and this node in the first.
    """
    base = target.find("erts_this_node")
    if base is None:
        return None
    for _ in range(_TRIES):  # a node may come or go between two readings
        if _holds(_are_nodes, target, base):
            return base + _WORD * (2 + _LISTS + number)
    return None


def _are_nodes(target: Target, base: int) -> bool:
    """True if the lists of connections lie behind ``erts_this_node`` at *base*."""
    words = target.memory.words(base, 2 + 2 * _LISTS).tolist()
    counts, heads = words[2 : 2 + _LISTS], words[2 + _LISTS :]
    lists = [_states(target, head, count) for head, count in zip(heads, counts, strict=True)]
    entry = target.memory.u64(words[0] + target.layout.offset("ErlNode", "dist_entry"))
    return words[1] == entry in lists[0] and all(
        len(found) == count and set(found.values()) <= states
        for found, count, states in zip(lists, counts, _STATES, strict=True)
    )


def _states(target: Target, entry: int, most: int) -> dict[int, int]:
    """States of the connections of a list by their addresses; {} if there are more than *most*."""
    memory, layout = target.memory, target.layout
    names, states, onward = (layout.offset("DistEntry", f) for f in ("sysname", "state", "next"))
    found: dict[int, int] = {}
    while entry and len(found) < min(most, _MOST_NODES):
        if memory.u64(entry + names) & ATOM_MASK != ATOM_TAG:
            return {}
        found[entry] = memory.u32(entry + states)
        entry = memory.u64(entry + onward)
    return {} if entry else found


def _schedulers(kind: int, target: Target) -> int | None:
    """
    Find an array of scheduler data, by its first element.

    The sleep info of a scheduler names its scheduler (OTP-25.2.3 erl_process.h).
    """
    layout = target.layout
    field = {
        name: layout.offset("ErtsSchedulerData", name)
        for name in ("type", "no", "dirty_no", "run_queue", "ssi")
    }
    number = "dirty_no" if kind else "no"

    def fits(addresses: NDArray[np.uint64], structs: NDArray[np.uint8]) -> NDArray[np.bool_]:
        good = column(structs, field["type"], np.uint32) == kind
        good &= column(structs, field[number], np.uint64) == 1
        good &= column(structs, field["dirty_no" if not kind else "no"], np.uint64) == 0
        return _leading(target, column(structs, field["ssi"], np.uint64), addresses, good)

    return _pointing(target, f"schedulers {kind}", max(field.values()) + _WORD, fits)


def _allocators(target: Target) -> int | None:
    """
    Find ``erts_allctrs_info``: records that point to records of the same numbers.

    Nearly every allocator has instances, whose record erts_allctr_thr_spec[N] is
    what the field extra of erts_allctrs_info[N] points to (OTP-25.2.3 erl_alloc.c).
    """
    first, last, words_each = FIRST_UTIL, COUNT - 1, RECORD // _WORD
    found = []
    for address, words in data(target):
        size = len(words) - COUNT * words_each
        if size <= 0:
            continue
        fits = np.ones(size, np.bool_)
        for number in (first, _EHEAP, last):
            at = number * words_each
            fits &= words[at : at + size] == _ENABLED
        step = words[_EHEAP * words_each + 2 :][:size] - words[first * words_each + 2 :][:size]
        fits &= step == (_EHEAP - first) * RECORD
        found += [address + _WORD * int(index) for index in np.flatnonzero(fits)]
    return _only([address for address in found if _holds(_is_allocators, target, address)])


def _is_allocators(target: Target, address: int) -> bool:
    specs = _specs_of(target, address)
    return all(
        numbered(target, instances(target, address, specs, number), number)
        for number in range(FIRST_UTIL, COUNT)
    )


def _specs_of(target: Target, info: int) -> int:
    return target.memory.u64(info + _EHEAP * RECORD + 2 * _WORD) - _EHEAP * RECORD


def _allocator_specs(target: Target) -> int | None:
    """Find ``erts_allctr_thr_spec``, to which ``erts_allctrs_info`` points."""
    info = target.find("erts_allctrs_info")
    return None if info is None else _specs_of(target, info)


def _dirty_gc(target: Target) -> int | None:
    """
    Find what dirty schedulers have collected: ``dirty_gc.info`` (OTP-25.2.3 erl_gc.c), a static.

    ``erts_init_gc`` has the lock before it initialised, and then sets its two words to
    0, with one instruction or with two. x86-64.
    """
    start, lock = (target.binary.symbol(name) for name in ("erts_init_gc", "ethr_mutex_init"))
    if not (start and lock) or target.binary.machine != "x64":
        return None
    code = target.binary.read(start.address, start.size)
    found = []
    for call in _LOCK_INIT.finditer(code):
        if call[1] is not None:
            mutex = start.address + _beyond(call, 1, call.start(3) - 1)
        elif target.binary.relative:
            continue
        else:
            mutex = int.from_bytes(call[2], "little")
        stores = _STORE_ZERO.finditer(code, call.end(), call.end() + _NEAR)
        stored = [start.address + _beyond(store, store.lastindex or 0) for store in stores]
        behind = [address for address in stored if 0 < address - mutex <= _NEAR]
        if behind and start.address + _beyond(call, 3) == lock.address:
            found.append(target.base + min(behind))
    return _only(found)


def _persistent_terms(target: Target) -> int | None:
    """
    Find ``the_hash_table`` (OTP-25.2.3 and OTP-29.1.1 erl_bif_persistent.c), a static.

    One exported function reads nothing else. Where that is hidden: what points to a table of as
    many boxed terms as it says, and those are pairs.
    """
    named = referenced(target, "persistent_term_get_2")
    if named:
        return _only(named)

    def fits(addresses: NDArray[np.uint64], tables: NDArray[np.uint8]) -> NDArray[np.bool_]:
        slots, entries, mask = (column(tables, at, np.uint64) for at in (0, _WORD, 2 * _WORD))
        good: NDArray[np.bool_] = (
            (slots >= _FEWEST_SLOTS) & (slots <= _MOST_SLOTS) & (slots & mask == 0)
        )
        good &= (mask == slots - np.uint64(1)) & (entries > 0) & (entries < slots)
        for index in np.flatnonzero(good).tolist():
            table, size, count = int(addresses[index]), int(slots[index]), int(entries[index])
            good[index] = _holds(partial(_has_pairs, size, count), target, table)
        return good

    return _pointing(target, "the_hash_table", 3 * _WORD, fits)


def _has_pairs(slots: int, entries: int, target: Target, table: int) -> bool:
    """True if the table has *entries* boxed terms in its *slots*, which are pairs."""
    terms = target.memory.words(table + _PERSISTENT, slots)
    boxed = terms[terms & np.uint64(PRIMARY_MASK) == BOXED]
    if len(boxed) != entries:
        return False
    heads, read = target.memory.gather(boxed & np.uint64(POINTER_MASK), _WORD)
    return bool(read.all() and (column(heads, 0, np.uint64) == _PAIR).all())


def _beyond(found: re.Match[bytes], group: int, end: int | None = None) -> int:
    """Value of an operand that is relative to the *end* of its instruction."""
    (distance,) = struct.unpack("<i", found[group])
    return int(distance) + (found.end() if end is None else end)


#: How each table is found without a symbol.
SEARCHES: dict[str, Callable[[Target], int | None]] = {
    "erts_proc": partial(
        _by_function, "enif_is_process_alive", "ErtsPTab", "r.o.tab", partial(_is_table, PID_TAG)
    ),
    "erts_port": partial(
        _by_function, "enif_is_port_alive", "ErtsPTab", "r.o.tab", partial(_is_table, PORT_TAG)
    ),
    "erts_atom_table": partial(
        _by_function, "enif_get_atom", "IndexTable", "seg_table", _is_atom_table
    ),
    "r": _code_ranges,
    "erts_this_node": _this_node,
    "erts_pending_dist_entries": partial(_nodes, 1),
    "erts_visible_dist_entries": partial(_nodes, 2),
    "erts_hidden_dist_entries": partial(_nodes, 3),
    "erts_allctrs_info": _allocators,
    "erts_allctr_thr_spec": _allocator_specs,
    "dirty_gc.info": _dirty_gc,
    "the_hash_table": _persistent_terms,
    "erts_aligned_scheduler_data": partial(_schedulers, 0),
    "erts_aligned_dirty_cpu_scheduler_data": partial(_schedulers, 1),
    "erts_aligned_dirty_io_scheduler_data": partial(_schedulers, 2),
}
