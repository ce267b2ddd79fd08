# SPDX-License-Identifier: Apache-2.0
"""
What the instructions of a function show (x86-64). Runs confined.

The kernel emulates some instructions under a breakpoint; any other it copies
to another page and single-steps, which takes a second, slower trap.
So a breakpoint on a function that begins otherwise is put on its first
instruction that is emulated, as long as no branch comes before it and the
arguments are still in registers. Linux: arch/x86/kernel/uprobes.c,
branch_setup_xol_ops and push_setup_xol_ops.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from scope_ebpf.sandbox.decoder import decode
from scope_ebpf.sandbox.registers import ARGUMENTS, REGISTERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.sandbox.decoder import Instruction

#: Bytes from the start of a function, and the register of each argument there, or None.
Entry = tuple[int, tuple[str | None, ...]]

START: Entry = (0, ARGUMENTS)
#: A prologue is shorter than this, bytes.
_PROLOGUE = 64
_ENDBR64 = "endbr64"
_NUMBER = r"0x[0-9a-f]+|[0-9]+"
_IMMEDIATE = re.compile(_NUMBER)
_ADDRESS = re.compile(r"(?<!- )\b0x[0-9a-f]+")
#: An operand in memory relative to the next instruction.
_RELATIVE = re.compile(rf"\[rip(?: ([+-]) ({_NUMBER}))?\]")
_WORD, _SIGN = 1 << 64, 1 << 63
#: Direct branches out of a function, with the distance from their end.
_BRANCHES = re.compile(rb"(?s)(?=((?:[\xe8\xe9]|\x0f[\x80-\x8f]).{4}))")
_DISTANCE = struct.Struct("<i")


def cheap_entry(code: bytes) -> Entry:
    """The cheapest breakpoint for calls of the function *code*; its start if there is no better."""
    if is_emulated(code):
        return START
    where: dict[int, set[str]] = {n: {name} for n, name in enumerate(ARGUMENTS)}
    only_endbr = True
    for instruction in decode(code[:_PROLOGUE], registers=True):
        if is_emulated(instruction.code):
            offset = instruction.address
            if not only_endbr and offset in _targets(code):
                return START
            return offset, tuple(_register(n, where[n]) for n in range(len(ARGUMENTS)))
        if _leaves(instruction):
            return START
        _follow(instruction, where)
        only_endbr = only_endbr and instruction.mnemonic == _ENDBR64
    return START


def calls(code: bytes, start: int) -> list[tuple[int, int]]:
    """
    Calls of the function *code*, which begins at *start*: (site, called address), in order.

    The kernel emulates a call, and a jump that stands for one, under a breakpoint. Jumps within
    the function are left out.
    """
    return [
        (start + instruction.address, start + target)
        for instruction in decode(code)
        if instruction.mnemonic in ("call", "jmp")
        for target in _immediate(instruction)
        if instruction.mnemonic == "call" or not 0 <= target < len(code)
    ]


def callers(code: bytes, start: int, functions: Sequence[int]) -> dict[int, list[int]]:
    """
    Where all *code* of a file, which begins at *start*, calls or jumps to each of *functions*.

    By the bytes of direct branches: where such bytes stand by chance, there is one too many.
    """
    found: dict[int, list[int]] = {function: [] for function in functions}
    for match in _BRANCHES.finditer(code):
        end = match.end(1)
        target = start + end + _DISTANCE.unpack_from(code, end - _DISTANCE.size)[0]
        if target in found:
            found[target].append(start + match.start())
    return found


def references(code: bytes, start: int, variables: Sequence[range] = ()) -> list[int]:
    """
    The addresses that the function *code*, which begins at *start*, names relative to itself.

    Code at a fixed address names *variables*, of which the ranges are given, by their own as well.
    """
    found = []
    for instruction in decode(code):
        end = instruction.address + len(instruction.code)
        for sign, number in _RELATIVE.findall(instruction.operands):
            away = int(number or "0", 0)
            found.append(start + end + (-away if sign == "-" else away))
        if variables and not instruction.mnemonic.startswith(("j", "call")):
            operands = _RELATIVE.sub("", instruction.operands)
            numbers = (int(number, 0) for number in _ADDRESS.findall(operands))
            found += [n for n in numbers if any(n in part for part in variables)]
    return list(dict.fromkeys(found))


def is_emulated(code: bytes) -> bool:
    """Whether the kernel emulates the first instruction of *code*."""
    first, second = code.ljust(2, b"\0")[:2]
    if first == 0x41:  # push of r8 to r15
        return 0x50 <= second <= 0x57
    if first == 0x0F:  # a conditional jump, far
        return 0x80 <= second <= 0x8F
    # push, nop, call, jmp far and near, a conditional jump
    return 0x50 <= first <= 0x57 or 0x70 <= first <= 0x7F or first in (0x90, 0xE8, 0xE9, 0xEB)


def _register(number: int, registers: set[str]) -> str | None:
    own = ARGUMENTS[number]
    return own if own in registers else min(registers, default=None)


def _immediate(instruction: Instruction) -> list[int]:
    """Where a direct branch leads: one address, or none if this is no such branch."""
    if not _IMMEDIATE.fullmatch(instruction.operands):
        return []
    target = int(instruction.operands, 0)
    return [target - _WORD if target >= _SIGN else target]


def _targets(code: bytes) -> set[int]:
    """Where the direct branches of a function lead, as offsets into it."""
    return {
        target
        for instruction in decode(code)
        if instruction.mnemonic.startswith("j")
        for target in _immediate(instruction)
    }


def _leaves(instruction: Instruction) -> bool:
    """Whether the function may end or go elsewhere here."""
    return instruction.mnemonic.startswith(
        ("j", "ret", "call", "syscall", "int", "ud", "hlt", "loop")
    )


def _follow(instruction: Instruction, where: dict[int, set[str]]) -> None:
    """Keep track of the registers that hold an argument."""
    names = {_wide(name) for name in instruction.written}
    copies: set[int] = set()
    if instruction.mnemonic == "mov":
        _, _, name = instruction.operands.partition(", ")
        # A register of 64 bits.
        if REGISTERS.get(name) == name:
            copies = {number for number, registers in where.items() if name in registers}
    for number, registers in where.items():
        registers.difference_update(names)
        if number in copies:
            registers.update(names)


def _wide(name: str) -> str:
    """The 64-bit register that *name* is a part of."""
    return REGISTERS.get(name, name)
