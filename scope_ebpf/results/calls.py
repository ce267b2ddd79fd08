# SPDX-License-Identifier: Apache-2.0
"""What a run of ``calls`` has seen, folded into plain data: the end table and the JSON contract."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scope_ebpf.results.call_gaps import Missing

#: Rows of a table by process or by caller.
TOP = 10
_PERCENTILES = (50, 99, 100)


@dataclass(frozen=True, slots=True)
class Call:
    """One call. *caller* is where it returns to; *shapes* are those of the first arguments."""

    time_ns: int
    pid: str
    who: str | None
    function: str
    version: int
    shapes: tuple[str, ...]
    caller: str
    line: str
    tid: int


@dataclass(frozen=True, slots=True)
class Return:
    """The return of a call that was waited for."""

    time_ns: int
    pid: str
    who: str | None
    function: str
    version: int
    duration_ns: int


@dataclass(frozen=True, slots=True)
class Upgrade:
    """
    Other code of a function was seen.

    *gap_ns* is how long it may have run unwatched: 0 for not at all, None for code that is not
    current, or where the VM does not tell which is.
    """

    time_ns: int
    function: str
    version: int
    gap_ns: int | None


@dataclass(slots=True)
class Totals:
    """
    One function in one version.

    *calls* has the *lost* ones, which were counted but not told; *refused* is how many could not
    be read, *beyond* whether it was called beyond the limit. *missing* are calls that were not
    counted, since the code ran before it was watched.
    """

    function: str
    version: int
    calls: int = 0
    lost: int = 0
    refused: int = 0
    beyond: bool = False
    missing: Missing = field(default_factory=Missing)
    durations_ns: list[int] = field(default_factory=list)

    def percentiles(self) -> list[float] | None:
        """p50, p99 and maximum of the measured durations, seconds; None if none was measured."""
        if not self.durations_ns:
            return None
        values = np.percentile(self.durations_ns, _PERCENTILES, method="higher") / 1e9
        return [float(value) for value in values]


@dataclass(slots=True)
class CallSummary:
    """Everything that a run has seen."""

    target: dict[str, str | int | None]
    durations: bool
    stopped_because: str = ""
    duration_seconds: float = 0.0
    functions: dict[tuple[str, int], Totals] = field(default_factory=dict)
    processes: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    callers: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def of(self, function: str, version: int) -> Totals:
        """The totals of a function's version."""
        return self.functions.setdefault((function, version), Totals(function, version))

    def add(self, seen: Call | Return) -> None:
        """Take in one event."""
        totals = self.of(seen.function, seen.version)
        if isinstance(seen, Return):
            totals.durations_ns.append(seen.duration_ns)
            return
        totals.calls += 1
        self.processes[seen.pid, seen.who] += 1
        self.callers[seen.caller] += 1

    @property
    def calls(self) -> int:
        """Calls of all functions."""
        return sum(totals.calls for totals in self.functions.values())

    @property
    def missing(self) -> Missing:
        """Those that were not counted, of all functions."""
        parts = [totals.missing for totals in self.functions.values()]
        return Missing(sum(part.calls for part in parts), sum(part.error for part in parts))

    def as_json(self) -> dict[str, Any]:
        """The same as one document; durations in seconds, those of calls that were measured."""
        seconds = self.duration_seconds
        functions = [
            {
                "function": t.function,
                "version": t.version,
                "calls": t.calls,
                "calls_per_second": round(t.calls / seconds, 3) if seconds else None,
                "lost": t.lost,
                "refused": t.refused,
                "limit_reached": t.beyond,
                "missing": {"calls": t.missing.calls, "error": t.missing.error},
                "measured": len(t.durations_ns),
                "duration_seconds": dict(
                    zip(("p50", "p99", "max"), t.percentiles() or (None,) * 3, strict=True)
                ),
            }
            for _, t in sorted(self.functions.items())
        ]
        processes = [
            {"pid": pid, "who": who, "calls": count}
            for (pid, who), count in self.processes.most_common(TOP)
        ]
        callers = [{"caller": c, "calls": count} for c, count in self.callers.most_common(TOP)]
        return {
            "event": "summary",
            "target": self.target,
            "stopped_because": self.stopped_because,
            "duration": round(seconds, 6),
            "calls": self.calls,
            "functions": functions,
            "processes": processes,
            "callers": callers,
            "notes": self.notes,
        }
