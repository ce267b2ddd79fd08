# SPDX-License-Identifier: Apache-2.0
"""
The BIFs that are markers, and the ids of functions (scope_mark/README.md, version 2).

A BIF is found in the VM's own table, which every build has. Where the build has symbols, too,
both must name one address.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_ebpf.beam.elf.entry import ARGUMENTS, START
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.code.functions import Function
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: Module, function, arity and symbol of the BIF of each class.
BIFS = {
    "callback": ("ets", "is_compiled_ms", 1, "ets_is_compiled_ms_1"),
    "function": ("erts_internal", "cmp_term", 2, "erts_internal_cmp_term_2"),
}
#: Sections that may hold ``bif_table``.
_SECTIONS = (".data", ".data.rel.ro", ".bss")
#: Bytes of a section that are searched; those of emulators are a tenth of it.
_MOST = 32 << 20
#: Bytes of a function that are searched for a cheap entry, where its size is hidden.
_LOOK = 64
#: Module, name, arity, address (BifEntry, OTP-25.2.3 erts/emulator/beam/bif.h).
_ENTRY = struct.Struct("<QQiiQ")


#: How erts_internal:cmp_term/2 begins in Debian's OTP 29.1, up to the jump where a breakpoint is
#: cheap. The first argument is in rdi there: mov rax, rsi; ...; mov rdi, [rax].
_FIRST_IN_RDI = bytes.fromhex("f30f1efa4889f04883ec18488b7608488b384889f883e03f4883f80b4889f074")


@dataclass(frozen=True, slots=True)
class Marker:
    """The BIF of one class of marks: its ELF address and size, and its name."""

    name: str
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where a marker is seen: *shift* bytes from its start.

    With *in_register* the id itself is in rdi there; without it, process and arguments are in the
    registers of the first two arguments.
    """

    shift: int
    in_register: bool = False


def place_of(target: Target, marker: Marker) -> Place:
    """The cheapest place of *marker* where the id can be read."""
    entry = target.binary.cheap_entry(marker.address, marker.size)
    if entry.registers[:2] == ARGUMENTS[:2]:
        return Place(entry.shift)
    code = target.memory.read(marker.address + target.base, len(_FIRST_IN_RDI))
    if entry.shift == len(_FIRST_IN_RDI) - 1 and code == _FIRST_IN_RDI:
        return Place(entry.shift, in_register=True)
    return Place(START.shift)


def find_marker(target: Target, atoms: Atoms, kind: str) -> Marker:
    """Find the BIF of the class *kind*, one of BIFS; ReadRefusedError if it is not certain."""
    module, function, arity, symbol_name = BIFS[kind]
    name = f"{module}:{function}/{arity}"
    terms = atoms.term(module), atoms.term(function)
    if None in terms:
        raise ReadRefusedError(f"this VM has no {name}, by which marked code is seen")
    found = _addresses(target, struct.pack("<QQi", *terms, arity))
    if len(found) != 1:
        raise ReadRefusedError(f"{name} has {len(found)} places in the VM's table of BIFs, not one")
    address = found.pop() - target.base
    symbol = target.binary.symbol(symbol_name)
    if symbol is not None and symbol.address != address:
        raise ReadRefusedError(
            f"the VM's table of BIFs has {name} at {address:#x}, its symbols at "
            f"{symbol.address:#x}; neither is used"
        )
    target.binary.file_offset(address)
    return Marker(symbol_name, address, symbol.size if symbol else _LOOK)


def _addresses(target: Target, key: bytes) -> set[int]:
    """Addresses in the emulator's code that entries of BIFs beginning with *key* have."""
    found = set()
    text, size = target.binary.section_address(".text") or (0, 0)
    code = range(text + target.base, text + target.base + size)
    for section in _SECTIONS:
        place = target.binary.section_address(section)
        if place is None or not 0 < place[1] <= _MOST:
            continue
        data = target.memory.read(place[0] + target.base, place[1])
        at = data.find(key)
        while at >= 0:
            if at % 8 == 0 and at + _ENTRY.size <= len(data):
                function = _ENTRY.unpack_from(data, at)[4]
                if function in code:
                    found.add(function)
            at = data.find(key, at + 1)
    return found


def id_of(function: Function) -> int:
    """The 52 bits by which a marker names *function*."""
    name = f"{function.module}:{function.function}/{function.arity}"
    digest = hashlib.md5(name.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big") >> 12
