# SPDX-License-Identifier: Apache-2.0
"""Tells a VM that stalls from one that has had nothing to do. Pure."""

from __future__ import annotations

#: Looks in the time that makes a stall: work that is there for a moment is not there each time.
_LOOKS = 10


class Stall:
    """
    Work has waited for *seconds* and nothing was scheduled meanwhile.

    A look tells what waits now, not since when: a VM that wakes after a quiet hour has work, too.
    So the time counts from the first look that saw some, and each one since must have.
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
        Whether it stalls: work *waits*, looked at after *now*; *scheduled* is when some went last.
        """
        if not waits:
            self._since = None
        elif self._since is None or scheduled >= self._since:
            self._since = now
        return self._since is not None and now - self._since >= self._ns
