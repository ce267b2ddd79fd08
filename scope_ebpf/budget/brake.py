# SPDX-License-Identifier: Apache-2.0
"""Ends a run that costs its target more than allowed. Pure: the caller keeps the clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds over which the cost is averaged.
SPAN = 1.0
#: CPUs that a target is assumed to use at least: any hit is a large share of an idle one's CPU.
MIN_CPUS = 0.2


def share_of(cost: float, used: float) -> float:
    """
    The share of *cost* in the *used* seconds of a target's CPU: 0 to 1.

    Hits run on the CPU of the target, so they cannot take more than all of it. Where they seem to,
    the assumed cost of a hit, which is measured on the observer, is too high.
    """
    return min(1.0, cost / used) if used > 0 else 0.0


@dataclass(slots=True)
class Brake:
    """
    Reports that observing took more than *most* of a target's CPU for :data:`SPAN` seconds.

    Attributes:
        most: maximum share of the CPU, 0 to 1; None means no limit.
        share: share of the CPU that was taken in the last span.
    """

    most: float | None
    share: float = 0.0
    _samples: deque[tuple[float, Callable[[], float], float]] = field(default_factory=deque)

    def add(self, now: float, cost: Callable[[], float], cpu_seconds: float) -> bool:
        """
        Add a sample at *now* (seconds); True if the run must end.

        *cost* gives the part of the target's *cpu_seconds* that hits took until *now*; both grow
        from one sample to the next. It is asked again a second later: hits that were priced by a
        guess then get the cost that was measured meanwhile, like those that they are compared with.
        """
        samples = self._samples
        samples.append((now, cost, cpu_seconds))
        while len(samples) > 2 and now - samples[1][0] >= SPAN:
            samples.popleft()
        began, cost_before, cpu_before = samples[0]
        passed = now - began
        if passed < SPAN:
            return False
        taken, used = cost() - cost_before(), cpu_seconds - cpu_before
        self.share = share_of(taken, used)
        return self.exceeds(taken, used, passed)

    def exceeds(self, cost: float, used: float, seconds: float) -> bool:
        """True if *cost* of the *used* seconds of CPU, in *seconds* of time, exceeds the limit."""
        used = max(used, MIN_CPUS * seconds)
        return self.most is not None and share_of(cost, used) > self.most
