# SPDX-License-Identifier: Apache-2.0
"""
What the JIT's own instructions tell of a stack (x86-64).

The code has no frame information. But each function takes its frame back before
it returns, so following its instructions to a ``ret`` tells how large the frame
is; and where C code is called, what comes behind the call tells where the Erlang
stack pointer went (emit_leave_runtime, OTP-25.2.3 and 29.0.2
erts/emulator/beam/jit/x86/beam_asm.hpp).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import capstone

from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.memory import Memory

#: Bytes behind a return address in which the JIT goes back to the Erlang stack. The longest way,
#: from erts_schedule to the next process, has some 200.
_LEAVE = 512
#: Bytes that are decoded at once, and that one instruction has at most.
_PIECE, _LONGEST = 256, 15
#: Instructions that are followed for one frame, and bytes of a function that are read.
_MAX_STEPS = 3000
_MAX_FUNCTION = 1 << 18
#: Sizes of one frame that are considered.
_MAX_SIZES = 8
#: Addresses that are kept with what is known of them.
_CACHE = 1 << 16
_MOVES = {"add": 1, "sub": -1}
_PUSHES = {"push": -8, "pop": 8}


class JitFrames:
    """Reads code of one VM; what it knows of an address holds until :meth:`forget`."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._returns: dict[int, bool] = {}
        self._puts: dict[int, str] = {}
        self._sizes: dict[int, tuple[int, ...]] = {}

    def forget(self) -> None:
        """Forget what is known, since code has come or gone."""
        self._returns.clear()
        self._puts.clear()
        self._sizes.clear()

    def is_return(self, address: int) -> bool:
        """Whether the code before an address is a call: only then somebody returns there."""
        if address not in self._returns:
            _bound(self._returns)
            try:
                code = self._memory.read(address - 7, 7)
            except ReadRefusedError:
                return False
            # e8 rel32; ff /2 with a register, or with memory and 0, 1 or 4 bytes of displacement.
            self._returns[address] = code[2] == 0xE8 or any(
                code[place] == 0xFF and code[place + 1] >> 3 & 7 == 2 for place in (0, 1, 3, 4, 5)
            )
        return self._returns[address]

    def put_down(self, address: int) -> str:
        """Tell where the Erlang stack pointer is while C code runs that returns to *address*."""
        if address not in self._puts:
            _bound(self._puts)
            self._puts[address] = self._find_leave(address)
        return self._puts[address]

    def sizes(self, address: int, start: int, end: int) -> tuple[int, ...]:
        """
        Tell how far above the stack pointer the return address may lie, in bytes.

        *address* is about to run, in the function from *start* to *end*. The likeliest first;
        empty where no way to a return was found.
        """
        if address not in self._sizes:
            _bound(self._sizes)
            try:
                code = self._memory.read(start, min(end - start, _MAX_FUNCTION))
                self._sizes[address] = self._follow(code, start, address)
            except ReadRefusedError:
                self._sizes[address] = ()
        return self._sizes[address]

    def _find_leave(self, address: int) -> str:
        try:
            code = self._memory.read(address, _LEAVE)
        except ReadRefusedError:
            return "stop"
        for _, _, name, operands in self._decoder.disasm_lite(code, address):
            if name == "mov" and operands.startswith("rsp, "):
                return "rbp" if operands == "rsp, rbp" else "stop"
        return "stop"

    def _follow(self, code: bytes, start: int, address: int) -> tuple[int, ...]:
        """Follow every way from *address*, the shortest first, to a return or out of the code."""
        waiting = deque([(address, 0)])
        seen, steps = {address}, 0
        returns: list[int] = []
        leaves: list[int] = []
        while waiting and steps < _MAX_STEPS and len(returns) < _MAX_SIZES:
            at, size = waiting.popleft()
            piece = code[at - start : at - start + _PIECE]
            for place, length, name, operands in self._decoder.disasm_lite(piece, at):
                steps += 1
                if name == "ret":
                    returns.append(size)
                    break
                size += _moved(name, operands)
                ways = [place + length]
                if name.startswith("j"):
                    target = _target(operands)
                    if target is None or not start <= target < start + len(code):
                        leaves.append(size)
                    else:
                        ways.append(target)
                    ways = ways[name == "jmp" :]
                elif place + length + _LONGEST < at + len(piece):
                    continue
                # All ways in turns, so that the shortest ends first.
                waiting.extend((way, size) for way in ways if way not in seen)
                seen.update(ways)
                break
        return tuple(dict.fromkeys(size for size in (*returns, *leaves) if size >= 0))


def _moved(name: str, operands: str) -> int:
    """How far an instruction moves the Erlang stack pointer up, in bytes."""
    if name in _PUSHES:
        return _PUSHES[name]
    if name in _MOVES and operands.startswith("rsp, "):
        amount = _target(operands[5:])
        return 0 if amount is None else _MOVES[name] * amount
    if name == "lea" and operands.startswith("rsp, [rsp "):
        sign, _, amount_text = operands[len("rsp, [rsp ") :].rstrip("]").partition(" ")
        return (1 if sign == "+" else -1) * (_target(amount_text) or 0)
    return 0  # to the C stack and back: the Erlang stack stays as it is


def _target(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def _bound(known: dict[int, Any]) -> None:
    if len(known) >= _CACHE:
        known.clear()
