# SPDX-License-Identifier: Apache-2.0
"""
An estimate of the calls that are missing because new code ran before it was watched.

Neither the VM nor a breakpoint counts these calls. Known are the longest time that the code may
have run unwatched, and the rate of calls just before, just after, and in the busiest span.
Pure: the caller keeps the clock, which is that of the calls.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field, replace

#: Nanoseconds before and after a gap in which calls are counted; at least as long as the gap.
SPAN = 100_000_000
#: The shortest burst of calls, nanoseconds.
_BURST = 10_000_000
#: Standard deviations of a count that an estimate's error covers.
_DEVIATIONS = 2


@dataclass(frozen=True, slots=True)
class Missing:
    """An estimate of missing calls."""

    calls: int = 0
    #: By how many calls the estimate may be off, either way.
    error: int = 0


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which a version of a function ran unwatched."""

    function: str
    version: int
    #: When the version was watched, ns.
    end_ns: int
    #: The longest time that it may have run before, ns.
    most_ns: int

    @property
    def span_ns(self) -> int:
        """Nanoseconds before and after the gap in which calls are counted."""
        return max(SPAN, self.most_ns)


@dataclass(slots=True)
class Gaps:
    """The gaps of one run, each with the rate of calls before it."""

    _calls: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _open: list[tuple[Gap, float]] = field(default_factory=list)
    #: End of the last gap of each function, ns.
    _ended: dict[str, int] = field(default_factory=dict)

    def called(self, function: str, time_ns: int) -> None:
        """Note a call of *function*; old calls are dropped."""
        calls = self._calls[function]
        if len(calls) >= 1024 and calls[len(calls) // 2] < time_ns - 4 * SPAN and not self._open:
            del calls[: len(calls) // 2]
        calls.append(time_ns)

    def add(self, gap: Gap) -> None:
        """
        Note a gap that has ended; all calls before it must be known, and gaps come in order.

        Time that it shares with an earlier gap of the function is left to that one.
        """
        since = max(gap.end_ns - gap.most_ns, self._ended.get(gap.function, 0))
        if since >= gap.end_ns:
            return
        gap = replace(gap, most_ns=gap.end_ns - since)
        self._ended[gap.function] = gap.end_ns
        self._open.append((gap, self._rate(gap.function, since - gap.span_ns, since)))

    def close(self, now_ns: int, *, last: bool = False) -> list[tuple[Gap, Missing]]:
        """
        The gaps after which calls are known for long enough, each with its estimate.

        All calls until *now_ns* are known. With *last* all gaps are closed.
        """
        ready = [o for o in self._open if last or now_ns >= o[0].end_ns + o[0].span_ns]
        self._open = [o for o in self._open if o not in ready]
        return [(gap, self._missing(gap, before, now_ns)) for gap, before in ready]

    def _missing(self, gap: Gap, before: float, now_ns: int) -> Missing:
        until = min(now_ns, gap.end_ns + gap.span_ns)
        after = self._rate(gap.function, gap.end_ns, until)
        busiest = self._busiest(gap.function, max(gap.most_ns, _BURST))
        return estimate(gap.most_ns / 1e9, max(before, after, busiest))

    def _busiest(self, function: str, span_ns: int) -> float:
        """Calls per second in the busiest span of this length: a burst may fall into a gap."""
        calls = sorted(self._calls[function])
        counts = (
            index + 1 - bisect_left(calls, now - span_ns + 1) for index, now in enumerate(calls)
        )
        return max(counts, default=0) * 1e9 / max(span_ns, 1)

    def _rate(self, function: str, since_ns: int, until_ns: int) -> float:
        """Calls per second in a span of time."""
        calls = sorted(self._calls[function])
        count = bisect_left(calls, until_ns) - bisect_left(calls, since_ns)
        return count * 1e9 / max(until_ns - since_ns, 1)


def estimate(most: float, rate: float) -> Missing:
    """
    The calls in a gap of up to *most* seconds, at *rate* calls per second.

    One call may have come even if the rate is 0.

    >>> estimate(0.004, 1000.0)
    Missing(calls=4, error=4)
    """
    high = most * rate
    high += _DEVIATIONS * math.sqrt(high)
    return Missing(round(high / 2), max(1, math.ceil(high / 2)))
