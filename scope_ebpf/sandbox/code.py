# SPDX-License-Identifier: Apache-2.0
"""
What the instructions of a function tell (x86-64). Runs confined.

The kernel emulates some instructions under a breakpoint; any other it copies
aside and steps over in single-step mode, which takes a second and dearer trap.
So a breakpoint on a function that begins otherwise is put on its first
instruction that is emulated, as long as no branch comes before it and the
arguments are still in registers. Linux: arch/x86/kernel/uprobes.c,
branch_setup_xol_ops and push_setup_xol_ops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scope_ebpf.sandbox.registers import ARGUMENTS, REGISTERS

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes from the start of a function, and the register of each argument there, or None.
Entry = tuple[int, tuple[str | None, ...]]

START: Entry = (0, ARGUMENTS)
#: A prologue is shorter than this, bytes.
_PROLOGUE = 64
_ENDBR64 = "endbr64"
#: capstone's X86_OP_REG, X86_OP_IMM and X86_OP_MEM.
_REGISTER, _IMMEDIATE, _MEMORY = 1, 2, 3


def cheap_entry(code: bytes) -> Entry:
    """The cheapest place to see a call of the function *code*; its start if there is no better."""
    if is_emulated(code):
        return START
    where: dict[int, set[str]] = {n: {name} for n, name in enumerate(ARGUMENTS)}
    only_endbr = True
    for instruction in _disassemble(code[:_PROLOGUE]):
        if is_emulated(bytes(instruction.bytes)):
            place: int = instruction.address
            if not only_endbr and place in _targets(code):
                return START
            return place, tuple(_register(n, where[n]) for n in range(len(ARGUMENTS)))
        if _leaves(instruction):
            return START
        _follow(instruction, where)
        only_endbr = only_endbr and instruction.mnemonic == _ENDBR64
    return START


def calls(code: bytes, start: int) -> list[tuple[int, int]]:
    """
    Where the function *code*, which begins at *start*, calls which address, in its order.

    The kernel emulates a call, and a jump that stands for one, under a breakpoint. Jumps within
    the function are left out.
    """
    return [
        (start + instruction.address, start + target)
        for instruction in _disassemble(code)
        if instruction.mnemonic in ("call", "jmp") and instruction.operands[0].type == _IMMEDIATE
        for target in (instruction.operands[0].imm,)
        if instruction.mnemonic == "call" or not 0 <= target < len(code)
    ]


def references(code: bytes, start: int) -> list[int]:
    """The addresses that the function *code*, which begins at *start*, names relative to itself."""
    found = [
        start + instruction.address + instruction.size + operand.mem.disp
        for instruction in _disassemble(code)
        for operand in instruction.operands
        if operand.type == _MEMORY
        and operand.mem.base
        and instruction.reg_name(operand.mem.base) == "rip"
    ]
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


def _disassemble(code: bytes) -> Iterator[Any]:
    import capstone  # noqa: PLC0415 - 100 ms, and who plans nothing needs none

    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.detail = True
    instructions: Iterator[Any] = engine.disasm(code, 0)
    return instructions


def _targets(code: bytes) -> set[int]:
    """Where the direct branches of a function lead, as offsets into it."""
    return {
        instruction.operands[0].imm
        for instruction in _disassemble(code)
        if instruction.mnemonic.startswith("j") and instruction.operands[0].type == _IMMEDIATE
    }


def _leaves(instruction: Any) -> bool:
    """Whether the function may end or go elsewhere here."""
    name: str = instruction.mnemonic
    return name.startswith(("j", "ret", "call", "syscall", "int", "ud", "hlt", "loop"))


def _follow(instruction: Any, where: dict[int, set[str]]) -> None:
    """Keep track of the registers that hold an argument."""
    _, written = instruction.regs_access()
    names = {_wide(instruction.reg_name(register)) for register in written}
    copies: set[int] = set()
    if instruction.mnemonic == "mov" and len(instruction.operands) == 2:
        source = instruction.operands[1]
        if source.type == _REGISTER and source.size == 8:
            name = instruction.reg_name(source.reg)
            copies = {number for number, registers in where.items() if name in registers}
    for number, registers in where.items():
        registers.difference_update(names)
        if number in copies:
            registers.update(names)


def _wide(name: str) -> str:
    """The 64-bit register that *name* is a part of."""
    return REGISTERS.get(name, name)
