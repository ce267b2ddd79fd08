# SPDX-License-Identifier: Apache-2.0
"""When to look again for what was not found, where a search is expensive."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

#: Looks between two searches for the same key, at most.
MOST = 64


class Retries:
    """Searches for each key in the next look, then after 2, 4 and at most MOST looks."""

    def __init__(self) -> None:
        self._look = 0
        #: By key: searches so far, and the look of the next one.
        self._next: dict[int, tuple[int, int]] = {}

    def due(self, missing: Collection[int]) -> set[int]:
        """Of what is *missing* in this look, the keys to search for; others are forgotten."""
        self._look += 1
        self._next = {key: self._next.get(key, (0, self._look)) for key in missing}
        due = {key for key, (_, look) in self._next.items() if look <= self._look}
        for key in due:
            searches = self._next[key][0]
            self._next[key] = searches + 1, self._look + min(1 << searches, MOST)
        return due
