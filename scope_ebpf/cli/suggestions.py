# SPDX-License-Identifier: Apache-2.0
"""Names that are much like a misspelt one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Names that are suggested, and the length of a word that is compared: both are bounded because
#: a word of any length is compared with names of any number.
_MOST, _LENGTH = 3, 255
#: Characters at least of a beginning that is compared: of shorter ones too many are alike.
_BEGINNING = 4


def close(word: str, names: Iterable[str]) -> list[str]:
    """
    At most three of *names* that are like *word*, or begin like it, the likest first.

    Case does not count.
    """
    from difflib import get_close_matches  # nobody needs it who spells well

    wanted = word[:_LENGTH].lower()
    lower: dict[str, list[str]] = {}
    for name in names:
        for key in dict.fromkeys((name.lower(), name.lower()[: max(_BEGINNING, len(wanted))])):
            lower.setdefault(key, []).append(name)
    found = [name for key in get_close_matches(wanted, lower, _MOST) for name in lower[key]]
    return list(dict.fromkeys(found))[:_MOST]


def did_you_mean(names: Iterable[str]) -> str:
    """The end of an error that suggests *names*; empty without any."""
    found = list(names)
    return f"; did you mean {' or '.join(found)}?" if found else ""
