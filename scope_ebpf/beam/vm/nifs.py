# SPDX-License-Identifier: Apache-2.0
"""
Which native function (NIF) a scheduler is in: Erlang's name, and the library's.

A module's library describes itself in an ErlNifEntry (erl_nif.h, the published
interface): its pointers lead into the library, and its name is the module's.
"""

from __future__ import annotations

import bisect
import struct
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.errors import ReadRefusedError, RefusedFileError, ScopeError
from scope_ebpf.sandbox.proc import read_bounded, rows

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target

_WORD = 8
#: struct erl_module_nif holds the entry after locks and bookkeeping; it is looked for here.
_SEARCH = 512
#: ErlNifFunc: name, arity, function, flags.
_FUNCTION = struct.Struct("<QIxxxxQIxxxx")
_MAX_FUNCTIONS = 4096


class NativeFunction(NamedTuple):
    """A native function that runs."""

    #: Path as the VM sees it.
    library: str
    #: Its Erlang name, ``m:f/a``.
    function: str
    #: The library's own name of it; None where it has none.
    symbol: str | None


class _Mapping(NamedTuple):
    start: int
    end: int
    offset: int
    path: str


def native_function(
    target: Target, environment: int, function: str | None
) -> NativeFunction | None:
    """
    Name the native function that runs in *environment* (an ErlNifEnv), or None.

    *function* is the process's current function, which the VM sets before the call.
    """
    if not environment or not function:
        return None
    try:
        module = target.memory.u64(environment)
        words = target.memory.words(module, _SEARCH // _WORD).tolist()
    except ReadRefusedError:
        return None
    mappings = _libraries(target.pid)
    name = function.partition(":")[0].encode() + b"\0"
    for index, word in enumerate(words[:-2]):
        mapping = _find(mappings, word)
        if mapping is None:
            continue
        try:
            if target.memory.read(word, len(name)) == name:
                symbol = _symbol(target, mapping, mappings, words[index + 1 : index + 3], function)
                return NativeFunction(mapping.path, function, symbol)
        except ReadRefusedError:
            continue
    return NativeFunction("?", function, None)


def _libraries(pid: int) -> list[_Mapping]:
    """Read which files are mapped where."""
    found = []
    try:
        text = read_bounded(f"/proc/{pid}/maps")
    except (OSError, RefusedFileError):
        return []
    for line in rows(text):
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            start, _, end = fields[0].partition("-")
            found.append(_Mapping(int(start, 16), int(end, 16), int(fields[2], 16), fields[5]))
    return found


def _find(mappings: list[_Mapping], address: int) -> _Mapping | None:
    """*mappings* are in order of address."""
    index = bisect.bisect_right(mappings, address, key=lambda one: one.start) - 1
    return mappings[index] if index >= 0 and address < mappings[index].end else None


def _symbol(
    target: Target, library: _Mapping, mappings: list[_Mapping], entry: list[int], function: str
) -> str | None:
    """Find the C function behind *function* in the library's own list, and its symbol."""
    count, table = entry[0] & 0xFFFFFFFF, entry[1]
    if not 0 < count <= _MAX_FUNCTIONS:
        return None
    name, _, arity = function.partition(":")[2].rpartition("/")
    try:
        for at in range(count):
            pointer, has, address, _ = _FUNCTION.unpack(
                target.memory.read(table + at * _FUNCTION.size, _FUNCTION.size)
            )
            wanted = name.encode() + b"\0"
            if has == int(arity) and target.memory.read(pointer, len(wanted)) == wanted:
                return _symbol_at(target.pid, library, mappings, address)
    except (ScopeError, OSError, ValueError):
        pass
    return None


def _symbol_at(pid: int, library: _Mapping, mappings: list[_Mapping], address: int) -> str | None:
    mapping = _find(mappings, address)
    if mapping is None or mapping.path != library.path:
        return None
    base = min(m.start - m.offset for m in mappings if m.path == library.path)
    binary = Binary.below_root(pid, library.path)
    try:
        symbol = binary.function_at(address - base)
    finally:
        binary.close()
    return symbol.name if symbol else None
