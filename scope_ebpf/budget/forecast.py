# SPDX-License-Identifier: Apache-2.0
"""What it will cost a target to count everything, told before it is done."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from scope_ebpf.budget.brake import share_of
from scope_ebpf.budget.reference_counters import TOLD_BY, Measures, Rates, cpu_clock
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scope_ebpf.attach.plan import Plan
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.cost import HitCost

#: Seconds of the target's CPU in which hits are counted, and of time at most.
_WINDOW, _LONGEST = 0.025, 0.04
#: Seconds of one wait in it.
_STEP = 0.01
#: Hits that tell a rate.
_ENOUGH = 50


class _Counting(Protocol):
    def hits(self) -> Mapping[str, int]:
        """How often each program ran."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """
    *share* of the CPU that the target uses, 0 to 1; *hits* are those of a second.

    *cpus* are those that the target uses.
    """

    share: float
    hits: float
    cpus: float = 1.0

    def __str__(self) -> str:
        """Say it as a person needs it."""
        hits = rounded(self.hits)
        return f"about {self.share:.0%} of the target's CPU: {hits:,} hits a second"


@dataclass(frozen=True, slots=True)
class Span:
    """
    Some *seconds* of time, in which the target *used* so many of its CPU.

    *told* is what its own counters tell of the cost of hits, *cost* what all hits took, seconds
    each; *told_hits* and *hits* are their numbers.
    """

    seconds: float
    used: float
    told: float
    told_hits: int
    cost: float = 0.0
    hits: int = 0


def expected(alone: Span, hooked: Span) -> Forecast:
    """
    What hooks will cost, by a span *alone*, before they were in, and a short *hooked* one.

    Alone the counters tell hits that would have come; they would have slowed the target down. How
    much more all hits are than those, the other span tells. It tells the share by itself as well,
    but it is short, so the mean of both is taken. A program that rests in just that span would look
    cheap, so without enough hits there it is at least what the counters tell.
    """
    wanted = alone.told / max(alone.used, 1e-6)
    cpus = max(alone.used / max(alone.seconds, 1e-6), hooked.used / max(hooked.seconds, 1e-6))
    seen = share_of(hooked.cost, max(hooked.used, 1e-6))
    pace = hooked.hits / max(hooked.seconds, 1e-6)
    if min(alone.told_hits, hooked.told_hits) < _ENOUGH or not hooked.told:
        told = wanted / (1 + wanted)
        if seen >= told:
            return Forecast(seen, pace, cpus)
        return Forecast(told, alone.told_hits / max(alone.seconds, 1e-6) / (1 + wanted), cpus)
    wanted *= hooked.cost / hooked.told
    return Forecast((seen + wanted / (1 + wanted)) / 2, pace, cpus)


class Forecaster:
    """Looks at *target* from now on; :meth:`attaching` says when hooks come in."""

    def __init__(self, target: Target) -> None:
        self._pid = target.pid
        self._measures = Measures(target)
        self._before = self._alone = self._look()

    def _look(self) -> Rates:
        return Rates(time.monotonic(), cpu_clock(self._pid), self._measures.now())

    def attaching(self) -> None:
        """Until now there were no hooks. An error of the target is left to :meth:`forecast`."""
        with suppress(ReadRefusedError, OSError):
            self._alone = self._look()

    def forecast(
        self,
        session: _Counting,
        plan: Plan,
        price: Callable[[], HitCost],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Forecast:
        """
        What the hooks of *plan* will cost, which are in. Raises ReadRefusedError, OSError.

        *meanwhile* is done while hits are counted, and the *price* asked for when they are.
        """
        first, before = self._look(), session.hits()
        meanwhile()
        last = self._look()
        while (
            last.cpu_seconds - first.cpu_seconds < _WINDOW
            and (passed := last.at - first.at) < _LONGEST
        ):
            time.sleep(min(_STEP, _LONGEST - passed))
            last = self._look()
        news = {name: count - before[name] for name, count in session.hits().items()}
        cost = price()
        hooked = self._span(first, last, plan, cost)
        hooked = replace(hooked, cost=cost.total(news), hits=sum(news.values()))
        return expected(self._span(self._before, self._alone, plan, cost), hooked)

    def _span(self, first: Rates, last: Rates, plan: Plan, price: HitCost) -> Span:
        """What the VM's own counters tell from *first* to *last*."""
        hits: dict[str, int] = {}
        for item in plan.items:
            name = TOLD_BY.get(item.event, "")
            if name in first.measures:
                events = (last.measures[name] - first.measures[name]) % 2**32
                hits |= {attachment.program: events for attachment in item.attachments}
        seconds, used = last.at - first.at, last.cpu_seconds - first.cpu_seconds
        return Span(seconds, used, price.total(hits), sum(hits.values()))


def rounded(number: float) -> int:
    """Two digits of a number that is no more certain than that."""
    if number < 1:
        return 0
    scale: int = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return round(number / scale) * scale
