# SPDX-License-Identifier: Apache-2.0
"""Collapsed stacks: a line for each stack, its frames and how many microseconds it took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.results.profile import Frame, Profile

#: How other tools distinguish kinds of frames in this format.
_ENDINGS = {"kernel": "_[k]"}


def folded(profile: Profile) -> bytes:
    """
    Give ``who;outer;inner 1234`` for each stack, the numbers in microseconds.

    A function stands with the line it was in, as ``m:f/a (file.erl:12)``. What separates
    frames or lines cannot be in a name: it becomes a question mark.
    """
    lines = [
        f"{folded_stack(stack)} {round(weight / 1000)}"
        for stack, weight in profile.stacks().items()
    ]
    return "".join(f"{line}\n" for line in sorted(lines)).encode()


def folded_stack(stack: Iterable[Frame]) -> str:
    """``who;outer;inner`` of a stack."""
    return ";".join(_text(frame) for frame in stack)


def _text(frame: Frame) -> str:
    location = f" ({frame.file}:{frame.line})" if frame.file and frame.line is not None else ""
    return plain(frame.name + _ENDINGS.get(frame.kind, "") + location).replace(";", "?")
