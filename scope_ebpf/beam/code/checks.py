# SPDX-License-Identifier: Apache-2.0
"""
Whether headers and line tables of loaded modules lie as the layout has them.

A module's functions all name the same module, one of them is module_info/0 and the next one
module_info/1, its attributes are a term in external format, and its line table ends where the names
of its files begin. The JIT begins each function with the same jump. Sources: OTP-25.2.3
lib/compiler/src/v3_core.erl (the last functions of a source), erts/emulator/beam: beam_code.h
(struct beam_code_header), jit/asm_load.c and emu/emu_load.c (finish_line_table),
beam_bif_load.c (attributes_for_module), jit/beam_asm.h (erts_asm_bp_set_flag). Seen on stock OTP
25, 27 and 29, with USDT probes, and in the interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import ATOM_MASK, ATOM_TAG
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.layouts import Layout
    from scope_ebpf.beam.memory.process_memory import Memory

_WORD = 8
#: The first byte of a term in external format.
_EXTERNAL = b"\x83"
#: The most files of a module, and the bytes of a line's location.
_FILES, _LOCATIONS = 255, (2, 4)
#: A function begins with a jump over a call, whose instruction is its fourth byte.
_CALL, _CALL_AT = 0xE8, 3


def failed(
    memory: Memory, layout: Layout, header: bytes, functions: NDArray[np.uint64]
) -> str | None:
    """
    Name the check that a loaded module does not pass, or None.

    *header* and *functions* are those of the module, as they were read.
    """
    try:
        if not _is_one_module(memory, layout, functions):
            return "functions of a module name that module"
        if not _has_module_info(memory, layout, functions[:-1]):
            return "a module has module_info/0 and module_info/1"
        if not _has_attributes(memory, layout, header):
            return "attributes of a module are a term"
        if not _has_lines(memory, layout, header, len(functions) - 1):
            return "lines of a module lie between its functions and its files"
    except ReadRefusedError:
        return "a module leads to its attributes and lines"
    return None


def _is_one_module(memory: Memory, layout: Layout, functions: NDArray[np.uint64]) -> bool:
    """Whether the first and the last function have the same module, and names."""
    first = layout.offset("ErtsCodeInfo", "mfa.module")
    raw, read = memory.gather(functions[[0, -2]] + np.uint64(first), 3 * _WORD)
    module, name, arity = (column(raw, _WORD * index, np.uint64) for index in range(3))
    atoms = np.concatenate([module, name]) & np.uint64(ATOM_MASK)
    # Since OTP 26 the words around it may use the upper half of the arity's word.
    small = arity & np.uint64(0xFFFFFFFF) < 256
    return bool(read.all() and module[0] == module[1] and (atoms == ATOM_TAG).all() and small.all())


def _has_module_info(memory: Memory, layout: Layout, functions: NDArray[np.uint64]) -> bool:
    """Whether two functions in a row have one name, and arities 0 and 1."""
    first, name, arity = (
        layout.offset("ErtsCodeInfo", f"mfa.{field}") for field in ("module", "function", "arity")
    )
    raw, read = memory.gather(functions + np.uint64(first), arity - first + _WORD)
    names = column(raw, name - first, np.uint64)
    arities = column(raw, arity - first, np.uint32)
    pairs = (names[1:] == names[:-1]) & (arities[:-1] == 0) & (arities[1:] == 1)
    return bool((pairs & read[1:] & read[:-1]).any())


def begin(code: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of these are the first bytes of a function of the JIT, rows of four or more."""
    found: NDArray[np.bool_] = code[:, _CALL_AT] == _CALL
    return found


def _has_attributes(memory: Memory, layout: Layout, header: bytes) -> bool:
    """Whether its attributes begin as an external term does, if it has any."""
    address, size = (_word(header, layout, name) for name in ("attr_ptr", "attr_size"))
    if not address or not size:
        return address == size == 0
    return memory.read(address, 1) == _EXTERNAL


def _has_lines(memory: Memory, layout: Layout, header: bytes, functions: int) -> bool:
    """Whether the parts of its line table follow each other, if it has one."""
    table = _word(header, layout, "line_table")
    if not table:
        return True
    names, size, lines, first = (
        table + layout.offset("BeamCodeLineTab", name)
        for name in ("fname_ptr", "loc_size", "loc_tab", "func_tab")
    )
    ends = memory.words(first, functions + 1)
    files, locations = memory.u64(names), memory.u64(lines)
    count = (locations - files) // _WORD
    return (
        int(ends[0]) == first + _WORD * len(ends)
        and not (ends[1:] < ends[:-1]).any()
        and files == int(ends[-1]) + _WORD
        and layout.facts.own_file_names <= count <= _FILES
        and memory.u32(size) in _LOCATIONS
    )


def _word(header: bytes, layout: Layout, field: str) -> int:
    start = layout.offset("BeamCodeHeader", field)
    return int.from_bytes(header[start : start + _WORD], "little")
