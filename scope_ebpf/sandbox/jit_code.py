# SPDX-License-Identifier: Apache-2.0
"""
What instructions of the JIT show of a stack (x86-64). Runs confined.

The code is from the memory of a process, which may put anything there.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from scope_ebpf.sandbox.decoder import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.sandbox.decoder import Instruction

#: Bytes that are decoded at once, and that one instruction has at most.
_CHUNK, _LONGEST = 256, 15
#: Instructions that are followed for one frame.
_MAX_STEPS = 3000
#: Instructions that are followed to the call of erts_schedule, and behind it.
_MAX_SCHEDULING = 100
#: Sizes of one frame that are considered.
MAX_SIZES = 8
_MOVES = {"add": 1, "sub": -1}
_PUSHES = {"push": -8, "pop": 8}


def leave(code: bytes) -> bool:
    """Whether the first instruction that sets the stack pointer takes it from ``rbp``."""
    for _, _, name, operands, _ in decode(code):
        if name == "mov" and operands.startswith("rsp, "):
            return bool(operands == "rsp, rbp")
    return False


def resumes(code: bytes, start: int, address: int, schedule: int, field: int) -> bool:
    """
    Whether code at *address* schedules, and the process knows already where it goes on.

    *schedule* is the address behind the call of erts_schedule. Before it the JIT stores where the
    process goes on, *field* bytes into the process, to which ``r13`` points: false up to there.
    """
    behind = _straight(code, start, schedule)
    if any(found.address == address for found in behind):
        return True
    stored = f"qword ptr [r13 + {field:#x}], "
    for found in _straight(code, start, address):
        if found.operands.startswith(stored):
            return False
        if found.address + len(found.code) == schedule:
            return True
    return False


def _straight(code: bytes, start: int, address: int) -> Iterator[Instruction]:
    """The instructions from *address* on, with jumps that are always taken, to one that is last."""
    at: int | None = address
    for _ in range(_MAX_SCHEDULING):
        if at is None or not start <= at < start + len(code):
            return
        found = next(decode(code[at - start :][:_LONGEST], at), None)
        if found is None:
            return
        yield found
        at = at + len(found.code)
        if found.mnemonic in ("jmp", "ret"):
            at = _target(found.operands)


def sizes(code: bytes, start: int, address: int) -> list[int]:
    """Follow every path from *address*, the shortest first, to a return or out of the code."""
    waiting = deque([(address, 0)])
    seen, steps = {address}, 0
    returns: list[int] = []
    leaves: list[int] = []
    while waiting and steps < _MAX_STEPS and len(returns) < MAX_SIZES:
        at, size = waiting.popleft()
        chunk = code[at - start : at - start + _CHUNK]
        for where, read, name, operands, _ in decode(chunk, at):
            length = len(read)
            steps += 1
            if name == "ret":
                returns.append(size)
                break
            size += _moved(name, operands)
            next_steps = [where + length]
            if name.startswith("j"):
                target = _target(operands)
                if target is None or not start <= target < start + len(code):
                    leaves.append(size)
                else:
                    next_steps.append(target)
                next_steps = next_steps[name == "jmp" :]
            elif where + length + _LONGEST < at + len(chunk):
                continue
            # All paths in turn, so that the shortest ends first.
            waiting.extend((step, size) for step in next_steps if step not in seen)
            seen.update(next_steps)
            break
    return list(dict.fromkeys(size for size in (*returns, *leaves) if size >= 0))


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
