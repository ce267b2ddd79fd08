# SPDX-License-Identifier: Apache-2.0
"""
What a confined parser may answer: types and ranges, checked here only.

A hostile file may have taken the parser over. Each check returns its argument as the type that
its name says, or raises ValueError.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from scope_ebpf.sandbox import limits
from scope_ebpf.sandbox.registers import REGISTERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

ADDRESS = 1 << 64
#: Nothing of a stack frame is further from anything else, bytes.
_FAR = 1 << 31
#: Registers that frame descriptions number.
_NUMBERS = 17
_HEX = re.compile(r"(?:[0-9a-f]{2})*")


def integer(found: Any, most: int = ADDRESS, least: int = 0) -> int:
    """An int of *least* up to below *most*."""
    if type(found) is not int or not least <= found < most:
        raise ValueError("no such number")
    return found


def flag(found: Any) -> bool:
    """True or false."""
    if type(found) is not bool:
        raise ValueError("neither true nor false")
    return found


def text(found: Any, most: int = limits.NAME) -> str:
    """A text of at most *most* characters that UTF-8 can write."""
    if type(found) is not str or len(found) > most:
        raise ValueError("no such text")
    found.encode()  # a lone surrogate is a ValueError
    return found


def many(found: Any, each: Callable[[Any], T], most: int) -> list[T]:
    """A list of at most *most*."""
    if type(found) is not list or len(found) > most:
        raise ValueError("no such list")
    return [each(item) for item in found]


def as_many(found: Any, each: Callable[[Any], T], count: int) -> list[T]:
    """A list of exactly *count*: one for each that was asked for."""
    if type(found) is not list or len(found) != count:
        raise ValueError("no such list")
    return [each(item) for item in found]


def row(found: Any, *each: Callable[[Any], Any]) -> tuple[Any, ...]:
    """A list of exactly these."""
    if type(found) is not list or len(found) != len(each):
        raise ValueError("no such row")
    return tuple(check(item) for check, item in zip(each, found, strict=True))


def table(found: Any, each: Callable[[Any], T], most: int) -> dict[str, T]:
    """An object of at most *most* names."""
    if type(found) is not dict or len(found) > most:
        raise ValueError("no such table")
    return {text(name): each(item) for name, item in found.items()}


def optional(each: Callable[[Any], T]) -> Callable[[Any], T | None]:
    """A check for *each* or null."""
    return lambda found: None if found is None else each(found)


def content(found: Any, most: int = limits.CONTENT) -> bytes:
    """Bytes, of hex."""
    if type(found) is not str or len(found) > 2 * most or not _HEX.fullmatch(found):
        raise ValueError("no bytes")
    return bytes.fromhex(found)


def symbol(found: Any) -> tuple[str, int, int, bool]:
    """Name, address, size, whether it is a function."""
    name, address, size, function = row(found, text, integer, integer, flag)
    return name, address, size, function


def site(found: Any) -> tuple[str, str, int, int, str]:
    """Provider, name, address, semaphore, arguments."""
    provider, name, address, semaphore, arguments = row(
        found, _note_text, _note_text, integer, integer, _note_text
    )
    return provider, name, address, semaphore, arguments


def entry(found: Any) -> tuple[int, tuple[str | None, ...]]:
    """Offset from a function's start, and the registers of its six arguments there."""
    shift, registers = row(
        found, lambda n: integer(n, 1 << 8), lambda r: many(r, optional(register), 6)
    )
    if len(registers) != 6:
        raise ValueError("no six registers")
    return shift, tuple(registers)


def register(found: Any) -> str:
    """The name of a 64-bit register."""
    if type(found) is not str or REGISTERS.get(found) != found:
        raise ValueError("no such register")
    return found


def rule(found: Any) -> tuple[int, int, dict[int, int], bool]:
    """Base register, offset, offsets of saved registers, whether there is no caller."""
    base, offset, saved, outermost = row(found, _number, _distance, _saved, flag)
    return base, offset, saved, outermost


def function(found: Any) -> tuple[int, int, list[tuple[Any, ...]]]:
    """Start, end, and rows of a frame description: where each begins and its rule or null."""
    start, end, rows = row(
        found,
        integer,
        integer,
        lambda r: many(r, lambda one: row(one, integer, optional(rule)), limits.ROWS),
    )
    return start, end, rows


def _note_text(found: Any) -> str:
    return text(found, limits.NOTE_TEXT)


def _number(found: Any) -> int:
    return integer(found, 1 << 16)


def _distance(found: Any) -> int:
    return integer(found, _FAR, -_FAR)


def _saved(found: Any) -> dict[int, int]:
    kept = table(found, _distance, _NUMBERS)
    return {integer(int(name[:4]), _NUMBERS): where for name, where in kept.items()}
