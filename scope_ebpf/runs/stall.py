# SPDX-License-Identifier: Apache-2.0
"""Distinguishes a VM that stalls from one that has nothing to do. Pure."""

from __future__ import annotations

#: Looks in the time after which a VM stalls: work that waits for a moment is not there each time.
_LOOKS = 10


class Stall:
    """
    A VM stalls if work has waited for *seconds* and nothing was scheduled meanwhile.

    A look shows that work waits now, not since when: a VM that wakes after a quiet hour has work,
    too. So the time counts from the first look that saw waiting work, if every look since then did.
    All times are ns of the monotonic clock.
    """

    def __init__(self, seconds: float) -> None:
        self._ns = int(seconds * 1e9)
        self._due = 0
        self._since: int | None = None

    def is_due(self, now: int) -> bool:
        """Whether it is time for the next look."""
        if now < self._due:
            return False
        self._due = now + self._ns // _LOOKS
        return True

    def lasts(self, now: int, scheduled: int, *, waits: bool) -> bool:
        """
        Whether the VM stalls.

        *waits* is whether work waits, looked at after *now*; *scheduled* is the time of the last
        schedule.
        """
        if not waits:
            self._since = None
        elif self._since is None or scheduled >= self._since:
            self._since = now
        return self._since is not None and now - self._since >= self._ns
