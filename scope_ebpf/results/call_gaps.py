# SPDX-License-Identifier: Apache-2.0
"""
How many calls are missing, because new code ran before it was watched.

Nobody counts these calls: the VM does not, and nothing of ours was there. What is known is for how
long it was at most, and how often the function was called just before, just after, and when it was
called most.
Pure: the caller keeps the clock, which is the one of the calls.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field, replace

#: Nanoseconds before and after a gap in which calls are counted; as long as the gap at least.
SPAN = 100_000_000
#: Nanoseconds that a burst of calls lasts at least.
_BURST = 10_000_000
#: Standard deviations of a count by which what is told may be off.
_SURE = 2


@dataclass(frozen=True, slots=True)
class Missing:
    """About so many *calls*, and at most *error* more or less."""

    calls: int = 0
    error: int = 0


@dataclass(frozen=True, slots=True)
class Gap:
    """A *version* of *function* ran unwatched until *end_ns*, for *most_ns* at most."""

    function: str
    version: int
    end_ns: int
    most_ns: int

    @property
    def span_ns(self) -> int:
        """How long before and after it calls are counted."""
        return max(SPAN, self.most_ns)


@dataclass(slots=True)
class Gaps:
    """The gaps of one run, each with what is known of the calls beside it."""

    _calls: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _open: list[tuple[Gap, float]] = field(default_factory=list)
    #: When the last gap of a function ended.
    _ended: dict[str, int] = field(default_factory=dict)

    def called(self, function: str, time_ns: int) -> None:
        """*function* was called; of calls long ago nothing is kept."""
        calls = self._calls[function]
        if len(calls) >= 1024 and calls[len(calls) // 2] < time_ns - 4 * SPAN and not self._open:
            del calls[: len(calls) // 2]
        calls.append(time_ns)

    def add(self, gap: Gap) -> None:
        """
        A gap has ended, and all calls before it are known; in the order in which gaps began.

        What it shares with an earlier gap of the function counts once, there.
        """
        since = max(gap.end_ns - gap.most_ns, self._ended.get(gap.function, 0))
        if since >= gap.end_ns:
            return
        gap = replace(gap, most_ns=gap.end_ns - since)
        self._ended[gap.function] = gap.end_ns
        self._open.append((gap, self._rate(gap.function, since - gap.span_ns, since)))

    def close(self, now_ns: int, *, last: bool = False) -> list[tuple[Gap, Missing]]:
        """Gaps of which enough is known: all calls until *now_ns* are. At the *last*, all gaps."""
        ready = [o for o in self._open if last or now_ns >= o[0].end_ns + o[0].span_ns]
        self._open = [o for o in self._open if o not in ready]
        return [(gap, self._missing(gap, before, now_ns)) for gap, before in ready]

    def _missing(self, gap: Gap, before: float, now_ns: int) -> Missing:
        until = min(now_ns, gap.end_ns + gap.span_ns)
        after = self._rate(gap.function, gap.end_ns, until)
        busiest = self._busiest(gap.function, max(gap.most_ns, _BURST))
        return estimate(gap.most_ns / 1e9, max(before, after, busiest))

    def _busiest(self, function: str, span_ns: int) -> float:
        """Calls in each second of the busiest span of this length; a burst may fall into a gap."""
        calls = sorted(self._calls[function])
        counts = (
            place + 1 - bisect_left(calls, now - span_ns + 1) for place, now in enumerate(calls)
        )
        return max(counts, default=0) * 1e9 / max(span_ns, 1)

    def _rate(self, function: str, since_ns: int, until_ns: int) -> float:
        """Calls in each second of a span of time."""
        calls = sorted(self._calls[function])
        count = bisect_left(calls, until_ns) - bisect_left(calls, since_ns)
        return count * 1e9 / max(until_ns - since_ns, 1)


def estimate(most: float, rate: float) -> Missing:
    """
    How many calls came in up to *most* seconds, with *rate* in each second beside them.

    One may have come also where none is seen beside them.

    >>> estimate(0.004, 1000.0)
    Missing(calls=4, error=4)
    """
    high = most * rate
    high += _SURE * math.sqrt(high)
    return Missing(round(high / 2), max(1, math.ceil(high / 2)))
