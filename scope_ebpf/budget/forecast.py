# SPDX-License-Identifier: Apache-2.0
"""Forecast of the cost of counting every event, made before it is done."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scope_ebpf.budget.brake import share_of
from scope_ebpf.budget.reference_counters import (
    RATE_COUNTERS,
    CounterSnapshot,
    ReferenceCounters,
    cpu_clock,
)
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scope_ebpf.attach.plan import Plan
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.cost import HitCost

#: Seconds of the target's CPU for which hits are counted, and maximum seconds of time.
_CPU_SECONDS, _MAX_SECONDS = 0.025, 0.04
#: Seconds of one sleep meanwhile.
_STEP = 0.01
#: Minimum number of hits from which a rate is computed.
_MIN_HITS = 50


class _Counting(Protocol):
    def hits(self) -> Mapping[str, int]:
        """Number of runs of each program."""


class Forecast(NamedTuple):
    """
    The forecast cost of observing one target.

    Attributes:
        share: share of the target's CPU, 0 to 1.
        hits: hits per second.
        cpus: CPUs that the target uses.
    """

    share: float
    hits: float
    cpus: float = 1.0

    def __str__(self) -> str:
        """One phrase for a person."""
        hits = rounded(self.hits)
        return f"about {self.share:.0%} of the target's CPU: {hits:,} hits a second"


class Span(NamedTuple):
    """
    A span of time of one target.

    Attributes:
        seconds: its length.
        used: seconds of CPU that the target used.
        counted_cost: cost in seconds of the hits that the VM's own counters account for.
        counted_hits: number of these hits.
        cost: cost of all hits in seconds; 0 without hooks.
        hits: number of all hits.
    """

    seconds: float
    used: float
    counted_cost: float
    counted_hits: int
    cost: float = 0.0
    hits: int = 0


def expected(alone: Span, hooked: Span) -> Forecast:
    """
    Forecast from a span *alone*, before hooks were attached, and a short *hooked* one.

    For the span alone the VM's counters give the hits that would have come; these would have slowed
    the target down. The hooked span gives the ratio of all hits to those, and a share of its own;
    since it is short, the mean of both shares is the forecast. A program that rests in just that
    span would look cheap, so without enough hits there the counters give the minimum.
    """
    wanted = alone.counted_cost / max(alone.used, 1e-6)
    cpus = max(alone.used / max(alone.seconds, 1e-6), hooked.used / max(hooked.seconds, 1e-6))
    seen = share_of(hooked.cost, max(hooked.used, 1e-6))
    rate = hooked.hits / max(hooked.seconds, 1e-6)
    if min(alone.counted_hits, hooked.counted_hits) < _MIN_HITS or not hooked.counted_cost:
        counted = wanted / (1 + wanted)
        if seen >= counted:
            return Forecast(seen, rate, cpus)
        return Forecast(counted, alone.counted_hits / max(alone.seconds, 1e-6) / (1 + wanted), cpus)
    wanted *= hooked.cost / hooked.counted_cost
    return Forecast((seen + wanted / (1 + wanted)) / 2, rate, cpus)


class Forecaster:
    """Reads the counters of *target*; call :meth:`attaching` just before hooks are attached."""

    def __init__(self, target: Target) -> None:
        self._pid = target.pid
        self._counters = ReferenceCounters(target)
        self._before = self._alone = self._snapshot()

    def _snapshot(self) -> CounterSnapshot:
        return CounterSnapshot(time.monotonic(), cpu_clock(self._pid), self._counters.now())

    def attaching(self) -> None:
        """End the span without hooks. :meth:`forecast` raises the errors of the target."""
        with suppress(ReadRefusedError, OSError):
            self._alone = self._snapshot()

    def forecast(
        self,
        session: _Counting,
        plan: Plan,
        hit_cost: Callable[[], HitCost],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Forecast:
        """
        Forecast of the cost of *plan*, whose hooks are attached. Raises ReadRefusedError, OSError.

        *meanwhile* is called while hits are counted, and *hit_cost* afterwards.
        """
        first, before = self._snapshot(), session.hits()
        meanwhile()
        last = self._snapshot()
        while (
            last.cpu_seconds - first.cpu_seconds < _CPU_SECONDS
            and (passed := last.at - first.at) < _MAX_SECONDS
        ):
            time.sleep(min(_STEP, _MAX_SECONDS - passed))
            last = self._snapshot()
        news = {name: count - before[name] for name, count in session.hits().items()}
        cost = hit_cost()
        hooked = self._span(first, last, plan, cost)
        hooked = hooked._replace(cost=cost.total(news), hits=sum(news.values()))
        return expected(self._span(self._before, self._alone, plan, cost), hooked)

    def _span(
        self, first: CounterSnapshot, last: CounterSnapshot, plan: Plan, cost: HitCost
    ) -> Span:
        """The span from *first* to *last*, with the hits that the VM's counters account for."""
        hits: dict[str, int] = {}
        for item in plan.items:
            name = RATE_COUNTERS.get(item.event, "")
            if name in first.counters:
                events = (last.counters[name] - first.counters[name]) % 2**32
                hits |= {attachment.program: events for attachment in item.attachments}
        seconds, used = last.at - first.at, last.cpu_seconds - first.cpu_seconds
        return Span(seconds, used, cost.total(hits), sum(hits.values()))


def rounded(number: float) -> int:
    """*number* rounded to two significant digits."""
    if number < 1:
        return 0
    scale: int = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return round(number / scale) * scale
