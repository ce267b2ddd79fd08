# SPDX-License-Identifier: Apache-2.0
"""
Calls of marked functions: counts, failures, durations.

Pure. The JSON of :meth:`Marks.as_json` is a contract; fields are added, never renamed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from scope_ebpf.results.server_events import Cost, Times

if TYPE_CHECKING:
    from scope_ebpf.results.documents.marks import MarkDurations, MarkedFunction, MarksDocument
    from scope_ebpf.results.documents.vms import Target

#: The class of a function's markers.
Kind = Literal["callback", "function"]
#: The parts of a mean and of a quantile that hooks may have taken of it, where it is shown without
#: them: a call at a quantile may have been hit more often than the average, or less.
_OF_MEAN, _OF_QUANTILE = 0.5, 0.15


@dataclass(frozen=True, slots=True)
class Durations:
    """
    Durations of the calls of one function, and the seconds that hooks took within one on average.

    These are taken off. A mean is not shown where they are more than half of what was measured, a
    quantile where they are more than 15 %.
    """

    times: Times
    carried: float

    def mean(self) -> float | None:
        """Seconds."""
        return self._without_hooks(self.times.mean(), _OF_MEAN)

    def quantile(self, part: float) -> float | None:
        """Seconds which *part* of the calls do not exceed."""
        return self._without_hooks(self.times.quantile(part), _OF_QUANTILE)

    def _without_hooks(self, measured: float | None, most: float) -> float | None:
        if measured is None or self.carried > most * measured:
            return None
        return measured - self.carried

    def as_json(self) -> MarkDurations | None:
        """The fields of these durations; None if there were none."""
        cut = self.times.cut
        if not self.times.ended.any() and (cut is None or not cut.any()):
            return None
        return {
            "mean": _rounded(self.mean()),
            "p50": _rounded(self.quantile(0.5)),
            "p99": _rounded(self.quantile(0.99)),
            "reach": _rounded(self.times.reach) if self.times.reach else None,
        }


@dataclass(frozen=True, slots=True)
class MarkedCalls:
    """
    The calls of one function in the seconds of the run.

    ``failures`` and ``running`` are None where they cannot be seen, ``tags`` and ``returned`` where
    some found no room; ``error`` is the standard error of ``calls``, as a part of it.
    """

    module: str
    function: str
    arity: int
    kind: Kind
    calls: int
    error: float
    failures: int | None
    running: int | None
    timed: int
    durations: Durations
    tags: dict[str, int] | None = field(default_factory=dict)
    returned: dict[str, int] | None = field(default_factory=dict)

    def as_json(self, seconds: float) -> MarkedFunction:
        """The fields of one function, of a run of *seconds*."""
        return {
            "module": self.module,
            "function": self.function,
            "arity": self.arity,
            "class": self.kind,
            "calls": self.calls,
            "rate": round(self.calls / max(seconds, 1e-9), 3),
            "error_ratio": round(self.error, 4),
            "failures": self.failures,
            "running": self.running,
            "timed": self.timed,
            "duration_seconds": self.durations.as_json(),
            "tags": self.tags,
            "returned": self.returned,
        }


@dataclass(slots=True)
class Marks:
    """What a run has seen. *modules*, *marked* and *profile* are of the code that is loaded."""

    target: Target
    seconds: float
    modules: int
    marked: int
    profile: str
    functions: list[MarkedCalls]
    #: The part of the time in which calls were counted.
    sampling_ratio: float = 1.0
    others: int = 0
    other_hits: int = 0
    collided: list[str] = field(default_factory=list)
    lost: int = 0
    cost: Cost = field(default_factory=Cost)
    own_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> MarksDocument:
        """The document of ``marks --format json``."""
        return {
            "schema": 1,
            "target": self.target,
            "duration_seconds": round(self.seconds, 3),
            "marked": {
                "modules": self.modules,
                "functions": self.marked,
                "profile": self.profile,
            },
            "sampling_ratio": round(self.sampling_ratio, 6),
            "functions": [one.as_json(self.seconds) for one in self.functions],
            "others": self.others,
            "other_hits": self.other_hits,
            "collided": self.collided,
            "lost": self.lost,
            "cost": self.cost.as_json(self.own_seconds),
            "notes": self.notes,
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 9)
