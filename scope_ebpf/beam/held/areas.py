# SPDX-License-Identifier: Apache-2.0
"""
Memory of tables that no allocator counts by itself: atoms, code, persistent terms.

Variables of the VM that no symbol names are found by the exported functions that read them. What a
build hides, and what does not pass its check, is refused.

Sources: OTP-25.2.3 and OTP-27.3.4.1 erts/emulator/beam/erl_alloc.c (erts_allocated_areas), atom.c
(atom_table_sz, erts_atom_get_text_space_sizes), index.c, hash.c, export.c, module.c, erl_fun.c,
beam_ranges.c, erl_bif_persistent.c (HashTable, persistent_term_info_trap), global.h
(ErtsLiteralArea); the struct of persistent terms is the same in OTP-29.1.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.search import referenced
from scope_ebpf.beam.memory.terms import BOXED, POINTER_MASK, PRIMARY_MASK
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target

_WORD = 8
#: Struct Hash is the beginning of an IndexTable; behind its name is by how many bits a hash is
#: shifted to the right, of 64.
_SHIFT, _HASH_BITS, _MOST_SLOTS = _WORD, 64, 1 << 32
#: sizeof(Hash): where the type of an IndexTable follows, before its size.
_TYPE = 4
#: Tables of exports, one for each generation of code, and bytes of a Range.
_GENERATIONS, _RANGE = 3, 16
#: HashTable of persistent terms: where its slots begin, the whole with one slot.
_TERMS, _HASH_TABLE = 96, 104
#: Slots of it that are read; a VM with more of them is refused.
_MOST_TERMS = 1 << 20
#: Atoms whose lengths are summed up, where the VM hides their sum.
_MOST_ATOMS = 1 << 18
#: ErtsLiteralArea: its end, its first word, the whole with one word.
_END, _START, _AREA = 8, 16, 24
#: A tuple of key and value, and words that no literal area exceeds.
_PAIR, _MOST_WORDS = 2 << 6, 1 << 36


class Area(NamedTuple):
    """A persistent term: its key and its value, and the bytes of both."""

    key: int
    value: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PersistentTerms:
    """What ``persistent_term:info/0`` returns, and the largest."""

    count: int
    bytes: int
    #: The largest first.
    largest: tuple[Area, ...]


def atom_bytes(target: Target) -> tuple[int, int]:
    """
    Bytes that ``erlang:memory/0`` gives as atom and atom_used. Raises ReadRefusedError.

    Since OTP 28 texts are literals, and the lengths of all of them are added to the table's bytes.
    """
    table = _index_bytes(target, target.address("erts_atom_table"), b"atom_tab")
    if target.layout.has("Atom", "u.bin"):
        texts = Atoms(target).text_bytes(_MOST_ATOMS)
        return table + texts, table + texts
    what = "the memory of its atoms"
    # Both functions read a key and lock the table, and one of them only that.
    others = {*_named(target, "atom_table_sz", what)}
    sums = _named(target, "erts_atom_get_text_space_sizes", what)
    words = [target.memory.u64(address) for address in sums if address not in others]
    if len(words) != 2 or not 0 < min(words) <= max(words) < _MOST_SLOTS:
        raise _hidden(target, what)
    return table + max(words), table + min(words)


def code_bytes(target: Target) -> int:
    """Bytes that ``erlang:memory/0`` gives as code. Raises ReadRefusedError."""
    what = "the memory of its code"
    if target.binary.symbol("erts_fun_entries_sz"):
        # Since OTP 28 these tables are staged, and their sums are in no variable.
        raise _hidden(target, what)
    memory = target.memory
    modules, entries, ranges = (
        memory.u64(_one(target, name, what))
        for name in ("module_table_sz", "export_entries_sz", "erts_ranges_sz")
    )
    exports = _tables(target, "export_table_sz", b"export_list", what)
    funs = _tables(target, "erts_fun_table_sz", b"fun_table", what)
    if len(exports) != _GENERATIONS or len(funs) != 1:
        raise _hidden(target, what)
    total = memory.u64(target.address("erts_total_code_size"))
    tables = sum(_index_bytes(target, table, b"export_list") for table in exports)
    return total + modules + entries + _RANGE * ranges + tables + _hash_bytes(target, funs[0])


def persistent_terms(target: Target, most: int) -> PersistentTerms:
    """
    Read all persistent terms, of which the *most* largest are kept. Raises ReadRefusedError.

    A table that is replaced meanwhile is read again.
    """
    what = "its persistent terms"
    variable = target.address("the_hash_table")
    for _ in range(4):
        table = target.memory.u64(variable)
        found = _persistent(target, table, most)
        if found is not None and target.memory.u64(variable) == table:
            return found
    raise ReadRefusedError(f"process {target.pid}: {what} changed each time they were read")


def _persistent(target: Target, table: int, most: int) -> PersistentTerms | None:
    slots, entries, mask = target.memory.words(table, 3).tolist()
    if not 0 < slots <= _MOST_TERMS or slots & mask or mask != slots - 1 or entries > slots:
        raise _hidden(target, "its persistent terms")
    terms = target.memory.words(table + _TERMS, slots)
    terms = terms[terms & np.uint64(PRIMARY_MASK) == BOXED]
    tuples = terms & np.uint64(POINTER_MASK)
    raw, read = target.memory.gather(tuples - np.uint64(_START), _START + 3 * _WORD)
    words = (column(raw, _END, np.uint64) - tuples) // np.uint64(_WORD)
    whole = read & (column(raw, _START, np.uint64) == _PAIR) & (words < _MOST_WORDS)
    if len(terms) != entries or not whole.all():
        return None
    sizes = _AREA + _WORD * (words.astype(np.int64) - 1)
    order = np.argsort(-sizes, kind="stable")[:most]
    keys, values = (column(raw, _START + _WORD * at, np.uint64)[order] for at in (1, 2))
    largest = map(Area, keys.tolist(), values.tolist(), sizes[order].tolist())
    total = int(sizes.sum()) + _HASH_TABLE + _WORD * (slots - 1)
    return PersistentTerms(entries, total, tuple(largest))


def _index_bytes(target: Target, table: int, name: bytes) -> int:
    """Bytes of an index table, as index_table_sz computes them; its *name* must be that."""
    layout = target.layout
    size = target.memory.u32(table + layout.offset("IndexTable", "size"))
    if _name(target, table) != name:
        raise _hidden(target, f"its table {name.decode()}")
    besides = layout.size("IndexTable") - _hash_size(target)
    return besides + _WORD * size + _hash_bytes(target, table)


def _hash_bytes(target: Target, table: int) -> int:
    """Bytes of a hash table, as hash_table_sz computes them."""
    at = table + target.layout.offset("IndexTable", "htable.name")
    shift = target.memory.u32(at + _SHIFT)
    if not _HASH_BITS // 2 <= shift < _HASH_BITS:
        raise _hidden(target, "the sizes of its tables")
    slots = 1 << (_HASH_BITS - shift)
    return _hash_size(target) + _WORD * slots + len(_name(target, table)) + 1


def _hash_size(target: Target) -> int:
    return target.layout.offset("IndexTable", "size") - _TYPE


def _name(target: Target, table: int) -> bytes:
    """What a table calls itself; b"" for what is none."""
    try:
        name = target.memory.u64(table + target.layout.offset("IndexTable", "htable.name"))
        text, end, _ = target.memory.read(name, 16).partition(b"\0")
    except ReadRefusedError:
        return b""
    return text if end else b""


def _tables(target: Target, function: str, name: bytes, what: str) -> list[int]:
    """The tables called *name* that an exported function names."""
    return [at for at in _named(target, function, what) if _name(target, at) == name]


def _one(target: Target, function: str, what: str) -> int:
    """The one variable that an exported function reads."""
    found = _named(target, function, what)
    if len(found) != 1:
        raise _hidden(target, what)
    return found[0]


def _named(target: Target, function: str, what: str) -> list[int]:
    """The variables that an exported function names, each once, in order."""
    found = list(dict.fromkeys(referenced(target, function)))
    if not found:
        raise _hidden(target, what)
    return found


def _hidden(target: Target, what: str) -> ReadRefusedError:
    return ReadRefusedError(
        f"process {target.pid} hides {what}: its emulator (OTP {target.otp_release}) does not "
        "export the functions that read it, or they read other variables than are known"
    )
