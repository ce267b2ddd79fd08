# SPDX-License-Identifier: Apache-2.0
"""Names that are much like a misspelt one."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Names that are suggested, characters of a word and number of names that are compared: all names
#: may be a stranger's.
_MOST, _LENGTH, _COMPARED = 3, 255, 20_000
#: Characters at least of a beginning that is compared: of shorter ones too many are alike.
_BEGINNING = 4


def close(word: str, names: Iterable[str]) -> list[str]:
    """
    At most three of *names* that are like *word*, or begin like it, the likest first.

    Case does not count, nor does the ``Elixir.`` that an alias of Elixir stands for.
    """
    from difflib import get_close_matches  # noqa: PLC0415 - nobody needs it who spells well

    wanted = bare(word)[:_LENGTH].lower()
    lower: dict[str, list[str]] = {}
    for name in islice(names, _COMPARED):
        key = bare(name).lower()
        for one in dict.fromkeys((key, key[: max(_BEGINNING, len(wanted))])):
            lower.setdefault(one, []).append(name)
    found = [name for key in get_close_matches(wanted, lower, _MOST) for name in lower[key]]
    return list(dict.fromkeys(found))[:_MOST]


def bare(name: str) -> str:
    """A module or process as Elixir writes it: ``Shop.Cart`` for ``Elixir.Shop.Cart``."""
    return name.removeprefix("Elixir.")


def did_you_mean(names: Iterable[str]) -> str:
    """The end of an error that suggests *names*; empty without any."""
    found = list(names)
    return f"; did you mean {' or '.join(found)}?" if found else ""
