# SPDX-License-Identifier: Apache-2.0
"""The library that decodes instructions, with its own package as the witness."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import capstone
import pytest

from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.sandbox import code, decoder

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def functions() -> Iterator[list[tuple[int, bytes]]]:
    """Address and code of some functions of this interpreter or its library."""
    binary = Binary.open(_python())
    names = ("PyList_Append", "PyObject_Call", "PyLong_AsLong", "Py_BytesMain", "PyType_Ready")
    found = [symbol for name in names if (symbol := binary.symbol(name))]
    yield [(s.address, binary.read(s.address, s.size)) for s in found]
    binary.close()


def _python() -> Path:
    """The file with the interpreter's functions."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    shared = [Path(line.split()[-1]) for line in maps if "libpython3" in line]
    return shared[0] if shared else Path(sys.executable).resolve()


def test_the_library_says_what_its_package_says(functions: list[tuple[int, bytes]]):
    """
    Instructions and the registers that they write are those of the package, one by one.
    """
    library, package = decoder.load(), decoder._Package()
    assert isinstance(library, decoder._Library)
    assert len(functions) == 5
    for address, body in functions:
        ours, theirs = (
            list(decoder.decode(body, address, registers=True)) for decoder in (library, package)
        )
        assert ours == theirs
        assert len(ours) > 5


def test_addresses_that_code_names_are_those_of_its_operands(functions: list[tuple[int, bytes]]):
    """
    Calls and references, which are read as text here, are those of the package's operands.
    """
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.detail = True
    rip = capstone.x86_const.X86_REG_RIP
    calls, references = 0, 0
    for address, body in functions:
        found = list(engine.disasm(body, 0))
        named = [
            address + one.address + one.size + operand.mem.disp
            for one in found
            for operand in one.operands
            if operand.type == capstone.x86_const.X86_OP_MEM and operand.mem.base == rip
        ]
        called = [
            (address + one.address, address + one.operands[0].imm)
            for one in found
            if one.mnemonic == "call" and one.operands[0].type == capstone.x86_const.X86_OP_IMM
        ]
        assert list(dict.fromkeys(named)) == code.references(body, address)
        assert called == [c for c in code.calls(body, address) if body[c[0] - address] == 0xE8]
        calls, references = calls + len(called), references + len(named)
    assert calls > 0
    assert references > 0


def test_direct_branches_to_a_function_are_found_in_all_code():
    """
    A call, a jump and a conditional jump, also one whose bytes stand in another instruction.
    """
    base, function = 0x400000, 0x400100
    rows = [b"\xe8", b"\xe9", b"\x0f\x84", b"\xb8\xe8", b"\xb8"]  # the last: mov eax, number
    text, expected = b"", []
    for number, row in enumerate(rows):
        text = text.ljust(23 * number, b"\x90")
        away = function - (base + len(text) + len(row) + 4)
        if number < 4:
            expected.append(base + len(text) + row.startswith(b"\xb8"))
        text += row + away.to_bytes(4, "little", signed=True)
    assert {function: expected, 1: []} == code.callers(text, base, [function, 1])
    cut = code.callers(text[:3], base, [function])
    assert {function: []} == cut


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"\xbf\x40\xb3\x87\x00", [0x87B340]),  # mov edi, 0x87b340
        (b"\x48\x89\x0c\xf5\x80\xb3\x87\x00", [0x87B380]),  # mov [rsi * 8 + 0x87b380], rcx
        (b"\x48\xc7\x05\x10\0\0\0\x40\xb3\x87\x00", [0x40101B, 0x87B340]),  # mov [rip + 0x10], it
        (b"\xbf\x00\x00\x77\x00", []),  # mov edi, 0x770000: a text
        (b"\xe8\x3b\xb3\x87\x00", []),  # a call as far away as the variables lie
    ],
)
def test_code_at_a_fixed_address_names_variables_by_their_own(body: bytes, expected: list[int]):
    """
    Constants and distances count that lie among the variables; elsewhere no constant does.
    """
    variables = [range(0x840000, 0x890000)]
    assert expected == code.references(body, 0x401000, variables)
    assert [at for at in expected if at < 0x840000] == code.references(body, 0x401000)
