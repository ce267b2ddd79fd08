# SPDX-License-Identifier: Apache-2.0
"""The calls that a run of ``calls`` has seen, as plain data: its end table and JSON contract."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.results.call_gaps import Missing

if TYPE_CHECKING:
    from scope_ebpf.results.documents import vms
    from scope_ebpf.results.documents.calls import (
        Caller,
        CallingProcess,
        CallSummaryLine,
        FunctionTotals,
        Percentiles,
    )

#: Rows of a table by process or by caller.
TOP = 10
_PERCENTILES = (50, 99, 100)


@dataclass(frozen=True, slots=True)
class Call:
    """One call."""

    #: CLOCK_MONOTONIC, ns.
    time_ns: int
    #: The calling process as text, and its name, None if it is not known.
    pid: str
    who: str | None
    #: The called function, M:F/A, and the number of its version, from 1.
    function: str
    version: int
    #: The shape of each argument; "..." for those that were not captured.
    shapes: tuple[str, ...]
    #: The function that the call returns to, and its file and line.
    caller: str
    line: str
    #: The scheduler thread.
    tid: int


@dataclass(frozen=True, slots=True)
class Return:
    """The return of a call whose duration is known; fields as in :class:`Call`."""

    time_ns: int
    pid: str
    who: str | None
    function: str
    version: int
    duration_ns: int


@dataclass(frozen=True, slots=True)
class Upgrade:
    """
    Other code of a function was seen; fields as in :class:`Call`.
    """

    time_ns: int
    function: str
    version: int
    #: The longest time that it may have run unwatched, ns; None for code that is not current, and
    #: if the VM does not show which code is.
    gap_ns: int | None


@dataclass(slots=True)
class Totals:
    """
    The calls of one function in one version.
    """

    function: str
    version: int
    #: Calls that were counted, the lost ones among them.
    calls: int = 0
    #: Calls without room in the ring: counted, but not written.
    lost: int = 0
    #: Calls whose arguments could not be read.
    refused: int = 0
    #: Whether it was called after the limit of the run.
    beyond: bool = False
    #: Calls that were not counted because the code ran before it was watched.
    missing: Missing = field(default_factory=Missing)
    #: Measured durations.
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

    #: The VM, as JSON.
    target: vms.Target
    #: Whether durations were measured.
    durations: bool
    #: Why the run ended.
    stopped_because: str = ""
    duration_seconds: float = 0.0
    #: Totals by function and version.
    functions: dict[tuple[str, int], Totals] = field(default_factory=dict)
    #: Calls by pid and name of the calling process.
    processes: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    #: Calls by the function that they return to.
    callers: Counter[str] = field(default_factory=Counter)
    #: What a reader of the figures should know.
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

    def as_json(self) -> CallSummaryLine:
        """The same as one document; durations in seconds, those of calls that were measured."""
        seconds = self.duration_seconds
        functions: list[FunctionTotals] = [
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
                "duration_seconds": _percentiles(t),
            }
            for _, t in sorted(self.functions.items())
        ]
        processes: list[CallingProcess] = [
            {"pid": pid, "who": who, "calls": count}
            for (pid, who), count in self.processes.most_common(TOP)
        ]
        callers: list[Caller] = [
            {"caller": c, "calls": count} for c, count in self.callers.most_common(TOP)
        ]
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


def _percentiles(totals: Totals) -> Percentiles:
    p50, p99, most = totals.percentiles() or (None, None, None)
    return {"p50": p50, "p99": p99, "max": most}
