# SPDX-License-Identifier: Apache-2.0
"""
Label values that a VM chooses itself, at a bounded rate: each new value is a new series.

Pure.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Maximum number of new values in a period of seconds; further ones are exported as ``other``.
MAX_VALUES, PERIOD = 100, 3600.0
OTHER = "other"


class Values:
    """
    The label values of one VM: values in use stay, and *most* new ones are admitted in *seconds*.

    Attributes:
        held: number of values that were replaced by ``other``.
    """

    def __init__(
        self,
        most: int = MAX_VALUES,
        seconds: float = PERIOD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        #: When each was last used, the longest unused first.
        self._used: dict[str, float] = {}
        self._new: deque[float] = deque()
        self.held = 0

    def admit(self, value: str) -> str:
        """*value*, or :data:`OTHER` if there were too many new ones in the last period."""
        now = self._clock()
        if self._used.pop(value, None) is None and not self._admit_new(now):
            self.held += 1
            return OTHER
        self._used[value] = now
        while now - next(iter(self._used.values())) >= self._seconds:
            del self._used[next(iter(self._used))]
        return value

    def _admit_new(self, now: float) -> bool:
        while self._new and now - self._new[0] >= self._seconds:
            self._new.popleft()
        if len(self._new) >= self._most:
            return False
        self._new.append(now)
        return True
