# SPDX-License-Identifier: Apache-2.0
"""
The arguments of a USDT site, out of the note's text.

The form is that of ``sys/sdt.h`` on x86_64: ``SIZE@OPERAND``, where a negative
size means a signed value and the operand is AT&T assembly.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from scope_ebpf.sandbox.registers import REGISTERS

_ARGUMENT = re.compile(r"(-?[1248])@(\S+)")
_NUMBER = r"-?(?:0x[0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,19})"
_NAME = r"[A-Za-z_.$][A-Za-z0-9_.$@]*"
_CONSTANT = re.compile(rf"\$({_NUMBER})")
_REGISTER = re.compile(r"%([a-z0-9]+)")
_MEMORY = re.compile(rf"({_NUMBER})?\(%([a-z0-9]+)\)")
_SYMBOL = re.compile(rf"({_NAME})([+-][0-9]{{1,19}})?\(%rip\)|([0-9]{{1,19}})\+({_NAME})\(%rip\)")

Form = Literal["constant", "register", "memory", "symbol"]


class ArgumentError(ValueError):
    """An operand has an unknown form."""


class Argument(NamedTuple):
    """
    One argument of a site.

    *size* in bytes. By *form*: the *value* itself; the *register* that holds it;
    the *register* plus *value* where it lies; the *symbol* plus *value* where it lies.
    """

    form: Form
    size: int
    is_signed: bool
    value: int = 0
    register: str = ""
    symbol: str = ""


def parse(text: str) -> tuple[Argument, ...]:
    """All arguments of a site, in order; raises ArgumentError for an unknown form."""
    return tuple(_argument(word) for word in text.split())


def _argument(word: str) -> Argument:
    match = _ARGUMENT.fullmatch(word)
    if match is None:
        raise ArgumentError(f"no USDT argument: {word!r}")
    size, operand = int(match[1]), match[2]
    return _operand(operand, abs(size), is_signed=size < 0)


def _operand(operand: str, size: int, *, is_signed: bool) -> Argument:
    if match := _CONSTANT.fullmatch(operand):
        return Argument("constant", size, is_signed, value=_number(match[1], operand))
    if match := _REGISTER.fullmatch(operand):
        return Argument("register", size, is_signed, register=_register(match[1], operand))
    if match := _SYMBOL.fullmatch(operand):
        name, moved = match[1] or match[4], match[2] or match[3] or "0"
        return Argument("symbol", size, is_signed, value=_number(moved, operand), symbol=name)
    if match := _MEMORY.fullmatch(operand):
        return Argument(
            "memory",
            size,
            is_signed,
            value=_number(match[1] or "0", operand),
            register=_register(match[2], operand),
        )
    raise ArgumentError(f"unknown USDT operand: {operand!r}")


def _number(text: str, operand: str) -> int:
    """A number of the assembler's, as the signed 64 bits that the BPF programs take."""
    value = int(text, 16 if "x" in text else 10)
    if not -(1 << 63) <= value < 1 << 64:
        raise ArgumentError(f"a number of more than 64 bits in USDT operand: {operand!r}")
    return value - (1 << 64) if value >= 1 << 63 else value


def _register(name: str, operand: str) -> str:
    if name not in REGISTERS:
        raise ArgumentError(f"unknown register in USDT operand: {operand!r}")
    return REGISTERS[name]
