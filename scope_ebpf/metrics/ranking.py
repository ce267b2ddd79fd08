# SPDX-License-Identifier: Apache-2.0
"""
Which of the names that a VM chooses itself become labels.

Pure. Names are bounded at any time and over time: each new one is a new series.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: Names that become labels of one VM within so many seconds.
NEW, _PERIOD = 20, 3600.0
#: Weight of the newest look in what a name is worth, and how much more a known one is worth.
_SMOOTHING, _KNOWN = 0.2, 2.0
#: Seconds for which an invented name that is seen no more keeps its place.
_STAYS = 600.0
#: Names whose worth is remembered; those below _WORTHLESS are forgotten.
_REMEMBERED, _WORTHLESS = 4096, 1e-3

_Key = TypeVar("_Key")


@dataclass(slots=True)
class Ranking(Generic[_Key]):
    """
    Which keys are worth a name.

    *most* have one at a time, and *new* ones become labels within an hour. With *keeps* those that
    are seen no more keep their name until another needs it.

    Some may be *invented* by the VM's clients, any number in a moment: such a one gets a name when
    it was seen in two looks, takes no other's place, and half of the new ones at most are such.
    """

    most: int
    new: int = NEW
    keeps: bool = False
    invented: Callable[[_Key], bool] = lambda _: False
    _worth: dict[_Key, float] = field(default_factory=dict)
    _named: set[_Key] = field(default_factory=set)
    #: When each became a label.
    _told: dict[_Key, float] = field(default_factory=dict)
    #: When each invented one was seen first and last; the one that was not seen for longest first.
    _looks: dict[_Key, tuple[float, float]] = field(default_factory=dict)

    def update(self, seen: Mapping[_Key, float], now: float) -> set[_Key]:
        """Take what each key is worth in a look at *now*; those that have a name."""
        for key in seen.keys() | self._worth.keys():
            before = self._worth.get(key, 0.0)
            self._worth[key] = before + _SMOOTHING * (seen.get(key, 0.0) - before)
        self._note_invented(seen, now)
        ranked = sorted(
            self._worth,
            key=lambda key: (self._place(key, now), -self._value(key), str(key)),
        )
        self._worth = {
            key: self._worth[key]
            for key in ranked[:_REMEMBERED]
            if key in seen or self._worth[key] > _WORTHLESS or (self.keeps and key in self._named)
        }
        self._told = {key: at for key, at in self._told.items() if now - at < _PERIOD}
        best = [key for key in ranked[: self.most] if key in self._worth]
        self._named = {key for key in best if self._may_be_told(key, now)}
        return self._named

    def known(self, seen: Iterable[_Key]) -> int:
        """The number of keys that are remembered, and of those among *seen* that are not."""
        return len(self._worth.keys() | set(seen))

    def _note_invented(self, seen: Iterable[_Key], now: float) -> None:
        for key in seen:
            if self.invented(key):
                first, _ = self._looks.pop(key, (now, now))
                self._looks[key] = first, now
        for key in list(self._looks)[: max(0, len(self._looks) - _REMEMBERED)]:
            del self._looks[key]

    def _place(self, key: _Key, now: float) -> int:
        """Last are those that were invented a moment ago, before them those without a name."""
        if not self.invented(key):
            return 0
        first, last = self._looks.get(key, (now, now))
        if key in self._named and now - last <= _STAYS:
            return 0
        return 1 if last > first else 2

    def _value(self, key: _Key) -> float:
        return self._worth[key] * (_KNOWN if key in self._named else 1.0)

    def _may_be_told(self, key: _Key, now: float) -> bool:
        if key in self._named or key in self._told:
            return True
        if len(self._told) >= self.new or (self.invented(key) and not self._may_be_invented(key)):
            return False
        self._told[key] = now
        return True

    def _may_be_invented(self, key: _Key) -> bool:
        first, last = self._looks.get(key, (0.0, 0.0))
        return last > first and sum(map(self.invented, self._told)) < self.new // 2
