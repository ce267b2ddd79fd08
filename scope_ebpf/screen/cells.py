# SPDX-License-Identifier: Apache-2.0
"""The width of a text on a terminal, in cells."""

from __future__ import annotations

import unicodedata

#: What stands for the part of a text that was cut off.
CUT = "\u2026"


def width(text: str) -> int:
    """Cells that *text* takes: two for a wide character, none for a combining one."""
    return len(text) if text.isascii() else sum(map(_width, text))


def cut(text: str, cells: int) -> str:
    """*text* in at most *cells*; one that is cut ends with :data:`CUT`."""
    if width(text) <= cells:
        return text
    left, kept = cells - 1, ""
    for character in text:
        left -= _width(character)
        if left < 0:
            break
        kept += character
    return kept + CUT if cells > 0 else ""


def padded(text: str, cells: int, *, right: bool = False) -> str:
    """*text* in exactly *cells*, at their *right* end or at the left one."""
    text = cut(text, cells)
    space = " " * (cells - width(text))
    return space + text if right else text + space


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
