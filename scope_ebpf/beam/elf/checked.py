# SPDX-License-Identifier: Apache-2.0
"""
What the confined process answers about an executable, checked: each raises ValueError or TypeError
for an answer of another form.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from scope_ebpf.beam.elf.contents import Segment, Symbol
from scope_ebpf.beam.elf.entry import Entry
from scope_ebpf.sandbox import answers, limits


class Facts(NamedTuple):
    """Basic facts of the file, from the child's answer."""

    machine: str
    entry: int
    relative: bool
    build_id: str | None
    segments: tuple[Segment, ...]
    sections: dict[str, tuple[int, int]]
    own: bool
    link: tuple[str, int]


def facts(found: Any) -> Facts:
    """Basic facts."""
    known = answers.table(found, lambda value: value, 16)
    segments = answers.many(known["segments"], _segment, limits.SEGMENTS)
    sections = answers.table(known["sections"], _two, limits.SECTIONS)
    name, crc = answers.row(known["link"], answers.text, partial(answers.integer, most=1 << 32))
    build_id = answers.optional(answers.content)(known["build_id"])
    return Facts(
        answers.text(known["machine"], 64),
        answers.integer(known["entry"]),
        answers.flag(known["relative"]),
        build_id.hex() if build_id else None,
        tuple(segments),
        sections,
        answers.flag(known["own"]),
        (name, crc),
    )


def _two(found: Any) -> tuple[int, int]:
    address, size = answers.row(found, answers.integer, answers.integer)
    return address, size


def _segment(found: Any) -> Segment:
    integer = answers.integer
    return Segment(*answers.row(found, integer, integer, integer, answers.flag, answers.flag))


def symbol(found: Any) -> Symbol:
    """One symbol."""
    return Symbol(*answers.symbol(found))


def symbols_or_none(found: Any) -> list[Symbol | None]:
    """One symbol, or None, in a list."""
    return answers.as_many(found, answers.optional(symbol), 1)


def matches(found: Any, count: int) -> list[list[Symbol]]:
    """For each of *count* patterns its symbols."""
    return answers.as_many(found, lambda one: answers.many(one, symbol, limits.MATCHES), count)


def entries(found: Any, count: int) -> list[Entry | None]:
    """For each of *count* functions the cheapest breakpoint, or None."""

    def entry(one: Any) -> Entry:
        return Entry(*answers.entry(one))

    return answers.as_many(found, answers.optional(entry), count)


def heads(found: Any, count: int) -> list[bytes | None]:
    """For each of *count* addresses the first bytes there, or None."""

    def head(one: Any) -> bytes:
        return answers.content(one, limits.HEAD)

    return answers.as_many(found, answers.optional(head), count)


def calls(found: Any) -> list[tuple[int, int, bool]]:
    """Calls of a function: address, target, and whether that is known."""

    def call(one: Any) -> tuple[int, int, bool]:
        address, target, named = answers.row(one, answers.integer, answers.integer, answers.flag)
        return address, target, named

    return answers.many(found, call, limits.INSTRUCTIONS)
