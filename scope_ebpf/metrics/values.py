# SPDX-License-Identifier: Apache-2.0
"""
Values of labels that a VM chooses itself, bounded over time: each new one is a new series.

Pure.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: New values in so many seconds; what comes beyond it is ``other``.
MOST, PERIOD = 100, 3600.0
OTHER = "other"


class Values:
    """The values of one VM: one that is in use stays, and new ones come at a bounded rate."""

    def __init__(
        self,
        most: int = MOST,
        seconds: float = PERIOD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        #: When each was last used, the longest unused first.
        self._used: dict[str, float] = {}
        self._new: deque[float] = deque()
        #: How often a value was held back.
        self.held = 0

    def admit(self, value: str) -> str:
        """*value*, or :data:`OTHER` where there were too many new ones of late."""
        now = self._clock()
        if self._used.pop(value, None) is None and not self._may_come(now):
            self.held += 1
            return OTHER
        self._used[value] = now
        while now - next(iter(self._used.values())) >= self._seconds:
            del self._used[next(iter(self._used))]
        return value

    def _may_come(self, now: float) -> bool:
        while self._new and now - self._new[0] >= self._seconds:
            self._new.popleft()
        if len(self._new) >= self._most:
            return False
        self._new.append(now)
        return True
