# SPDX-License-Identifier: Apache-2.0
"""The general registers of x86-64, by every name that an instruction may use."""

from __future__ import annotations

_WIDE = {r: r for r in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")}
_LEGACY = {
    alias: wide
    for wide in ("rax", "rbx", "rcx", "rdx")
    for alias in (f"e{wide[1:]}", wide[1:], f"{wide[1]}l")
}
_POINTERS = {
    alias: wide
    for wide in ("rsi", "rdi", "rbp", "rsp")
    for alias in (f"e{wide[1:]}", wide[1:], f"{wide[1:]}l")
}
_NUMBERED = {f"r{n}{suffix}": f"r{n}" for n in range(8, 16) for suffix in ("", "d", "w", "b")}
#: Each name, and the 64-bit register that it is a part of.
REGISTERS = {**_WIDE, **_LEGACY, **_POINTERS, **_NUMBERED}
#: Integer arguments of the System V ABI, in order.
ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
