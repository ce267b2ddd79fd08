# SPDX-License-Identifier: Apache-2.0
"""What ends a run that costs its target more than it may. Pure: the caller keeps the clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

#: Seconds over which the cost is looked at.
SPAN = 1.0
#: The CPUs that a target counts as using at least: of an idle one any hit is a large part.
FLOOR = 0.2


def share_of(cost: float, used: float) -> float:
    """
    The part that *cost* seconds are of the *used* seconds of a target's CPU: 0 to 1.

    Hits take the CPU of the target, so all of it is the most that they can have taken. Where they
    seem to have taken more, the price of a hit, which is measured on ourselves, is too high.
    """
    return min(1.0, cost / used) if used > 0 else 0.0


@dataclass(slots=True)
class Brake:
    """
    Says when observing took more than *most* of a target's CPU for :data:`SPAN` seconds.

    *most* is a part of 1; None means that any cost is right.
    """

    most: float | None
    #: What was taken in the last span, as a part of the CPU that the target used.
    share: float = 0.0
    _looks: deque[tuple[float, float, float]] = field(default_factory=deque)

    def look(self, now: float, cost: float, cpu_seconds: float) -> bool:
        """
        Whether it must end: *cost* are seconds of the *cpu_seconds* that the target has used.

        Both since they began to be counted; *now* is in seconds.
        """
        looks = self._looks
        looks.append((now, cost, cpu_seconds))
        while len(looks) > 2 and now - looks[1][0] >= SPAN:
            looks.popleft()
        began, cost_before, cpu_before = looks[0]
        passed = now - began
        if passed < SPAN:
            return False
        taken, used = cost - cost_before, cpu_seconds - cpu_before
        self.share = share_of(taken, used)
        return self.passes(taken, used, passed)

    def passes(self, cost: float, used: float, seconds: float) -> bool:
        """Whether *cost* seconds of the *used* ones are too much, in so many *seconds* of time."""
        return self.most is not None and share_of(cost, max(used, FLOOR * seconds)) > self.most
