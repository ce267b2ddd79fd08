# SPDX-License-Identifier: Apache-2.0
"""What it will cost a target to count everything, told before it is done."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from scope_ebpf.budget.measures import TOLD_BY, Measures, cpu_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scope_ebpf.beam.target import Target
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.plan import Plan

#: Seconds of the target's CPU in which hits are counted, and of time at most.
_WINDOW, _LONGEST = 0.01, 0.05


class _Counting(Protocol):
    def hits(self) -> Mapping[str, int]:
        """How often each program ran."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """*share* of the CPU that the target uses; *hits* are those of a second."""

    share: float
    hits: float

    def __str__(self) -> str:
        """Say it as a person needs it."""
        share, hits = min(self.share, 1.0), rounded(self.hits)
        return f"about {share:.0%} of the target's CPU: {hits:,} hits a second"


class Forecaster:
    """Looks at *target* from now on, at first without hooks."""

    def __init__(self, target: Target) -> None:
        self._pid = target.pid
        self._measures = Measures(target)
        self._before = self._look()

    def _look(self) -> tuple[float, float, dict[str, int]]:
        return time.monotonic(), cpu_clock(self._pid), self._measures.now()

    def forecast(
        self,
        session: _Counting,
        plan: Plan,
        price: Callable[[], HitCost],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Forecast:
        """
        What the hooks of *plan* will cost, which are in.

        *meanwhile* is done while hits are counted, and the *price* asked for when they are. A
        program that rests in just this moment would look cheap, so it is at least what the
        VM's own counters tell of the time before.
        """
        quiet = self._look()
        began, cpu, hits = time.monotonic(), cpu_clock(self._pid), session.hits()
        meanwhile()
        used, passed = cpu_clock(self._pid) - cpu, time.monotonic() - began
        while used < _WINDOW and passed < _LONGEST:
            time.sleep(_WINDOW)
            used, passed = cpu_clock(self._pid) - cpu, time.monotonic() - began
        news = {name: count - hits[name] for name, count in session.hits().items()}
        cost = price()
        seen = Forecast(cost.total(news) / max(used, 1e-6), sum(news.values()) / passed)
        return max(self._told(plan, cost, quiet), seen, key=lambda forecast: forecast.share)

    def _told(
        self, plan: Plan, price: HitCost, until: tuple[float, float, dict[str, int]]
    ) -> Forecast:
        """What the counters tell: hooks slow a busy target down, so not all of its pace is left."""
        (began, cpu, before), (now, cpu_now, found) = self._before, until
        used, passed = max(cpu_now - cpu, 1e-6), max(now - began, 1e-6)
        hits: dict[str, int] = {}
        for item in plan.items:
            name = TOLD_BY.get(item.event, "")
            if name in found:
                events = (found[name] - before[name]) % 2**32
                hits |= {attachment.program: events for attachment in item.attachments}
        # So much CPU would be wanted for what was done with *used*.
        wanted = price.total(hits) / used
        return Forecast(wanted / (1 + wanted), sum(hits.values()) / passed / (1 + wanted))


def rounded(number: float) -> int:
    """Two digits of a number that is no more certain than that."""
    if number < 1:
        return 0
    scale: int = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return round(number / scale) * scale
