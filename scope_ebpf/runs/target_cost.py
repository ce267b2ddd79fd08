# SPDX-License-Identifier: Apache-2.0
"""What a run costs its target, and when it costs too much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.budget.brake import Brake, share_of
from scope_ebpf.budget.reference_counters import cpu_clock
from scope_ebpf.kernel.cost import GUESS
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.kernel.cost import CostMeasurement, HitCost
    from scope_ebpf.kernel.observers.session import Session
    from scope_ebpf.runs.loop import Stop

#: Seconds between two looks at the cost of a run.
INTERVAL = 0.1


def cpu_seconds(pid: int) -> float | None:
    """User and system seconds of a process, None if it has ended."""
    try:
        return cpu_clock(pid)
    except OSError:
        return None


class CpuUse:
    """
    The CPU that a process uses in a run.

    Attributes:
        seconds: seconds of CPU from :meth:`begin` to the last :meth:`update`.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._before = pid, 0.0
        self.seconds = 0.0

    def begin(self) -> None:
        """The run begins."""
        self._before = cpu_seconds(self._pid) or 0.0

    def update(self) -> None:
        """Bring ``seconds`` up to now; they stay as they are once the process has ended."""
        now = cpu_seconds(self._pid)
        if now is not None:
            self.seconds = now - self._before


def say_braked(brake: Brake) -> None:
    """Print that the run ended itself because of --max-cost."""
    say(
        f"scope-trace: it took {brake.share:.0%} of the target's CPU for a second, and --max-cost "
        f"allows {brake.most:.0%}: stopped; what was seen until now is kept"
    )


class CostBrake:
    """Asks *stop* once a run took more than *max_cost* of the CPU of process *pid* for a second."""

    def __init__(self, pid: int, max_cost: float | None, stop: Stop) -> None:
        self._pid, self._stop = pid, stop
        self._brake = Brake(max_cost)
        self._next_look = 0.0

    def look(self, now: float, cost: Callable[[], float]) -> None:
        """Look at the *cost*, CPU seconds of the target so far, if it is time for that."""
        if now < self._next_look:
            return
        self._next_look = now + INTERVAL
        used = cpu_seconds(self._pid)
        if used is None:
            return
        taken = cost()
        if self._brake.add(now, lambda: taken, used):
            say_braked(self._brake)
            self._stop.ask("cost")


class HitMeter:
    """
    What the hits of a session take of the process *pid*, from :meth:`begin` on.

    *measurement* measures the cost of a hit; until it is known, a guess is taken. *max_cost* is the
    share of the CPU of the process above which *stop* is asked.
    """

    def __init__(
        self, pid: int, measurement: CostMeasurement, max_cost: float | None, stop: Stop
    ) -> None:
        self._pid, self._measurement, self._stop = pid, measurement, stop
        self._cost: HitCost | None = None
        self._brake = Brake(max_cost)
        self._next_look = 0.0
        self._hits_before: dict[str, int] = {}
        self._cpu_before: float | None = None
        #: Hits by program, and CPU seconds of the process, of the same time.
        self._hits: dict[str, int] = {}
        self._used = 0.0

    def cost(self, seconds: float) -> HitCost | None:
        """The cost of a hit; None if it is not known after *seconds*."""
        self._cost = self._cost or self._measurement.cost(seconds)
        return self._cost

    def limit_of(self, share: float, cpus: float) -> float | None:
        """The largest cost if *share* of *cpus* would pass it; else None."""
        return self._brake.most if self._brake.exceeds(share * cpus, cpus, 1.0) else None

    def begin(self, session: Session) -> None:
        """Count hits and CPU from now on."""
        self._hits_before = session.hits()
        self._cpu_before = cpu_seconds(self._pid)

    def look(self, session: Session, now: float) -> None:
        """Look at the cost, if it is time for that."""
        if now < self._next_look:
            return
        self._next_look = now + INTERVAL
        self.account(session)
        self.cost(0.0)
        hits = self._hits
        if self._brake.add(now, lambda: (self._cost or GUESS).total(hits), self._used):
            say_braked(self._brake)
            self._stop.ask("cost")

    def account(self, session: Session) -> None:
        """Note the hits until now, and the CPU that the process has used until the same moment."""
        used = cpu_seconds(self._pid)
        if used is not None and self._cpu_before is not None:
            now = session.hits()
            self._hits = {name: hits - self._hits_before[name] for name, hits in now.items()}
            self._used = used - self._cpu_before

    def share(self) -> float | None:
        """The part that hits took of the CPU of the process, 0 to 1; None if that is not known."""
        if not self._cost or not self._used:
            return None
        return round(share_of(self._cost.total(self._hits), self._used), 6)
