# SPDX-License-Identifier: Apache-2.0
"""
The C frames of a sample, followed from its registers to Erlang code, or to where the thread began.

The stack is a copy. Where the rules of a frame lead out of it, or there are none, the walk goes on
from its top.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.beam.stacks.frames import R12, R13, R14, R15, RBP, RBX, RETURN, RSP

if TYPE_CHECKING:
    import numpy as np

    from scope_ebpf.beam.stacks.native import NativeCode

#: C frames that are followed, from the innermost.
MAX_NATIVE = 128
_WORD = 8
_CALLEE_SAVED = {RBX: "rbx", RBP: "rbp", R12: "r12", R13: "r13", R14: "r14", R15: "r15"}


class NativeStack(NamedTuple):
    """The C frames of one sample."""

    #: Addresses of code, from the innermost frame.
    addresses: list[int]
    #: Registers at the end of the walk, by their numbers.
    registers: dict[int, int]
    #: True if no C frame is missing.
    whole: bool


def follow(native: NativeCode, head: np.void, stack: bytes) -> NativeStack:
    """Follow the C frames of an ``events.SAMPLE`` and its *stack*, from the innermost."""
    registers = {number: int(head[name]) for number, name in _CALLEE_SAVED.items()}
    registers |= {RSP: int(head["sp"]), RETURN: int(head["ip"])}
    bottom = int(head["sp"])
    addresses: list[int] = []
    while not native.jit(registers[RETURN]):
        # A return address may be the first of the next function.
        address = registers[RETURN] - (1 if addresses else 0)
        if len(addresses) >= MAX_NATIVE or not registers[RETURN]:
            return NativeStack(addresses, registers, not registers[RETURN])
        addresses.append(address)
        rules = native.rules(address)
        if rules is None:
            return _from_the_top(
                native, head, stack, NativeStack(addresses, registers, whole=False)
            )
        if rules.outermost:
            return NativeStack(addresses, registers, whole=True)
        frame = registers.get(rules.base, 0) + rules.offset
        after = registers | {RSP: frame}
        for register, offset in rules.saved.items():
            slot = frame + offset - bottom
            if not 0 <= slot <= len(stack) - _WORD:
                return _from_the_top(
                    native, head, stack, NativeStack(addresses, registers, whole=False)
                )
            after[register] = int.from_bytes(stack[slot : slot + _WORD], "little")
        if frame <= registers[RSP] or RETURN not in rules.saved:
            return _from_the_top(
                native, head, stack, NativeStack(addresses, registers, whole=False)
            )
        registers = after
    return NativeStack(addresses, registers, whole=True)


def _from_the_top(
    native: NativeCode, head: np.void, stack: bytes, walk: NativeStack
) -> NativeStack:
    """Go on at the top of the C stack, where the return address into Erlang code lies."""
    slot = int(head["stack_top"]) - int(head["sp"]) - _WORD
    if not head["stack_top"] or not 0 <= slot <= len(stack) - _WORD:
        return walk
    address = int.from_bytes(stack[slot : slot + _WORD], "little")
    if not native.jit(address):
        return walk
    # Which value the saved registers had is not known.
    return NativeStack(walk.addresses, {RSP: int(head["stack_top"]), RETURN: address}, whole=False)
