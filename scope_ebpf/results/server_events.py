# SPDX-License-Identifier: Apache-2.0
"""
What hooks saw of the messages of servers: rates, durations, failures.

Pure. Histograms have sixteen buckets to an octave, shape ``(SERVER_BUCKETS,)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from scope_ebpf import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scope_ebpf.results.documents.servers import (
        MessageRate,
        ServerCost,
        ServerFailures,
        ServerTimes,
    )


#: How far figures of windows may be from the truth, as a part of it, in so many standard errors.
_PRECISION, _SURE = 0.15, 3.0
#: Seconds below which a hook lengthens a duration too much (bench/genservers.py).
_SHORTEST = 2.5e-4
#: The part of durations that may be longer than all that was seen, where a mean is given.
_REST = 1e-9


class Seen(TypedDict):
    """The fields of a module that hooks fill."""

    calls: MessageRate | None
    casts: MessageRate | None
    infos: MessageRate | None
    queue_seconds: ServerTimes | None
    service_seconds: ServerTimes | None
    call_seconds: ServerTimes | None
    failures: ServerFailures | None
    abandoned: int | None


#: Those of a module of which hooks saw nothing.
UNSEEN: Seen = {
    "calls": None,
    "casts": None,
    "infos": None,
    "queue_seconds": None,
    "service_seconds": None,
    "call_seconds": None,
    "failures": None,
    "abandoned": None,
}


@cache
def bounds() -> NDArray[np.floating[Any]]:
    """Where buckets begin and the last one ends, seconds, shape ``(SERVER_BUCKETS + 1,)``."""
    number = np.arange(events.SERVER_BUCKETS + 1)
    octave, part = number // 16 + events.SERVER_FIRST_OCTAVE, number % 16
    found: NDArray[np.floating[Any]] = (1 + part / 16) * 2.0**octave / 1e9
    found[0] = 0.0
    return found


def buckets_of(seconds: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """The buckets of durations, as server.bpf.c takes them; shape as *seconds*."""
    found = np.searchsorted(bounds(), seconds, side="right") - 1
    return np.clip(found, 0, events.SERVER_BUCKETS - 1).astype(np.int64)


def bucket_of(seconds: float) -> int:
    """The bucket of one duration."""
    return int(buckets_of(np.array([seconds]))[0])


@dataclass(frozen=True, slots=True)
class Times:
    """
    Durations of one kind: those that *ended*, and those that were *cut* off by the end of a window.

    ``total`` is the sum of what ended, seconds; ``reach`` the longest that a window measures, None
    where everything was counted; ``shortest`` what hooks lengthen too much below it. ``doubt`` is
    the error of how many there were, as a part of it, ``bursts`` that of how many ended in windows:
    what comes at once is not independent. ``tail`` are the same durations as looks saw
    them, which reach further.
    """

    ended: NDArray[np.int64]
    total: float
    cut: NDArray[np.int64] | None = None
    reach: float | None = None
    shortest: float = _SHORTEST
    doubt: float = 0.0
    bursts: float = 0.0
    tail: Times | None = None

    def quantile(self, part: float) -> float | None:
        """
        Seconds which *part* of the durations do not exceed.

        None if that is not known: it is longer than windows reach, so short that the hooks
        themselves are a part of it, or too little was seen to know it to 15 %.
        """
        found = self._known(part)
        return self.tail.quantile(part) if found is None and self.tail else found

    def _known(self, part: float) -> float | None:
        """The same, without the tail."""
        found = self._at(part)
        if found is None or self.reach is None:
            return found
        chance = part * (1 - part) / max(1.0, self._independent)
        error = _SURE * (chance + ((1 - part) * self.doubt) ** 2) ** 0.5
        low, high = self._at(max(0.0, part - error)), self._at(part + error)
        if low is None or high is None or not self.shortest <= found <= self.reach:
            return None
        return (
            found if (1 - _PRECISION) * found <= low <= high <= (1 + _PRECISION) * found else None
        )

    @property
    def _independent(self) -> float:
        """As how many durations of independent calls those that ended count."""
        return min(float(self.ended.sum()), 1 / self.bursts**2 if self.bursts else math.inf)

    def plus(self, other: Times) -> Times:
        """Both together."""
        cut = [one.cut for one in (self, other) if one.cut is not None]
        reaches = [one.reach for one in (self, other) if one.reach is not None]
        return Times(
            self.ended + other.ended,
            self.total + other.total,
            sum(cut[1:], cut[0]) if cut else None,
            min(reaches, default=None),
            bursts=max(self.bursts, other.bursts),
        )

    def unknown(self) -> Times:
        """The same, of which nothing is known."""
        return replace(self, reach=0.0)

    def _at(self, part: float) -> float | None:
        """The same, however little was seen; None where too many were cut off before."""
        left = self._survival()
        below = np.flatnonzero(left <= 1 - part + 1e-12)
        if part >= 1 or not len(below):
            return None
        bucket = int(below[0])
        before = left[bucket - 1] if bucket else 1.0
        inside = (before - (1 - part)) / max(before - left[bucket], 1e-12)
        start, end = bounds()[bucket : bucket + 2]
        return float(start + (end - start) * inside)

    def _survival(self) -> NDArray[np.floating[Any]]:
        """
        The part that is longer than each bucket, by Kaplan and Meier.

        Those that were cut off within a bucket count as half there.
        """
        cut = np.zeros(len(self.ended)) if self.cut is None else self.cut
        gone = np.cumsum(self.ended + cut)
        at_risk = gone[-1] - gone + self.ended + cut / 2
        stays = np.ones(len(self.ended))
        some = self.ended > 0
        stays[some] = 1 - self.ended[some] / np.maximum(at_risk[some], self.ended[some])
        found: NDArray[np.floating[Any]] = np.cumprod(stays)
        return found

    def mean(self) -> float | None:
        """Seconds; None where :meth:`quantile` is for the longest, or for the same reasons."""
        count = int(self.ended.sum())
        if not count:
            return None
        if self.reach is None:
            return self.total / count
        if not self.reach:
            return None
        left = self._survival()
        # What is longer than half a window is seen to its end less than half of the time.
        if left[bucket_of(self.reach / 2)] > _REST:
            return None
        parts, middle = -np.diff(left, prepend=1.0), (bounds()[:-1] + bounds()[1:]) / 2
        mean = float((middle * parts).sum())
        spread = float(((middle - mean) ** 2 * parts).sum()) ** 0.5
        sure = (
            mean >= self.shortest and _SURE * spread / self._independent**0.5 <= _PRECISION * mean
        )
        return mean if sure else None

    def as_json(self) -> ServerTimes | None:
        """The fields of these durations; None if there were none."""
        if not self.ended.any() and (self.cut is None or not self.cut.any()):
            return None
        return {
            "mean": _rounded(self.mean()),
            "p50": _rounded(self.quantile(0.5)),
            "p90": _rounded(self.quantile(0.9)),
            "p99": _rounded(self.quantile(0.99)),
            "reach": _rounded(self.reach) if self.reach else None,
        }


@dataclass(frozen=True, slots=True)
class Messages:
    """
    Messages of the servers of one module, in *seconds*.

    Counts are those of *seconds*, also where only a part of them was *observed*, seconds; of
    *infos* None if they are not known. *errors*
    are the standard errors of calls, casts and infos as parts of them.
    """

    seconds: float
    calls: int
    casts: int
    infos: int | None
    queue: Times
    service: Times
    call: Times
    timeouts: int | None
    down: int | None
    abandoned: int | None
    errors: tuple[float, float, float] = (0.0, 0.0, 0.0)
    #: Calls with an end that is looked for: not those of callers on other nodes. None for all.
    followed: int | None = None

    @classmethod
    def none(cls, seconds: float) -> Messages:
        """No message in *seconds*."""
        empty = Times(np.zeros(events.SERVER_BUCKETS, np.int64), 0.0)
        return cls(seconds, 0, 0, 0, empty, empty, empty, 0, 0, 0)

    def plus(self, other: Messages) -> Messages:
        """Both together, of the same seconds."""
        failed = [
            None if one is None or two is None else one + two
            for one, two in (
                (self.timeouts, other.timeouts),
                (self.down, other.down),
                (self.abandoned, other.abandoned),
            )
        ]
        errors = [
            error_of_both(count or 0, of_other or 0, *errors)
            for count, of_other, *errors in zip(
                self._counts, other._counts, self.errors, other.errors, strict=True
            )
        ]
        return Messages(
            self.seconds,
            self.calls + other.calls,
            self.casts + other.casts,
            None if self.infos is None or other.infos is None else self.infos + other.infos,
            self.queue.plus(other.queue),
            self.service.plus(other.service),
            self.call.plus(other.call),
            failed[0],
            failed[1],
            failed[2],
            (errors[0], errors[1], errors[2]),
            self.own_calls + other.own_calls,
        )

    @property
    def own_calls(self) -> int:
        """Calls whose durations are those of ``call``."""
        return self.calls if self.followed is None else self.followed

    @property
    def _counts(self) -> tuple[int, int, int | None]:
        return self.calls, self.casts, self.infos

    @property
    def any(self) -> bool:
        """Whether there was a message."""
        return bool(self.calls or self.casts or self.infos)

    @property
    def rates(self) -> tuple[float, float, float | None]:
        """Calls, casts and infos a second."""
        seconds = max(self.seconds, 1e-9)
        infos = None if self.infos is None else self.infos / seconds
        return self.calls / seconds, self.casts / seconds, infos

    @property
    def served(self) -> float | None:
        """Seconds of service; None if they are not known."""
        if self.service.reach is None:
            return self.service.total
        mean = self.service.mean()
        # Windows time no other messages than calls.
        if mean is None or self.casts or self.infos != 0:
            return None
        return mean * self.calls

    @property
    def failures(self) -> int | None:
        """Calls without a reply; None if that is not known."""
        if self.timeouts is None or self.down is None:
            return None
        return self.timeouts + self.down

    def as_json(self) -> Seen:
        """The fields that hooks fill."""
        calls, casts, infos = (
            _rate(*of) for of in zip(self._counts, self.rates, self.errors, strict=True)
        )
        failures: ServerFailures | None = None
        if self.timeouts is not None and self.down is not None:
            failures = {"timeout": self.timeouts, "down": self.down}
        return {
            "calls": calls,
            "casts": casts,
            "infos": infos,
            "queue_seconds": self.queue.as_json(),
            "service_seconds": self.service.as_json(),
            "call_seconds": self.call.as_json(),
            "failures": failures,
            "abandoned": self.abandoned,
        }


@dataclass(frozen=True, slots=True)
class Cost:
    """What hooks cost the VM; ``seconds`` of its CPU and their ``share`` are None if unknown."""

    hooks: int = 0
    hits: int = 0
    seconds: float | None = 0.0
    share: float | None = 0.0

    def as_json(self, own_seconds: float) -> ServerCost:
        """The fields of the cost, of which *own_seconds* are this program's."""
        return {
            "own_cpu_seconds": round(own_seconds, 3),
            "hooks": self.hooks,
            "hits": self.hits,
            "target_cpu_seconds": _rounded(self.seconds),
            "share": _rounded(self.share),
        }


@dataclass(slots=True)
class EdgeCount:
    """Calls along one edge, and seconds that callers waited for them; None if not known."""

    calls: float = 0.0
    blocked: float | None = None

    def add(self, calls: float, blocked: float) -> None:
        """Add calls, and seconds of waiting."""
        self.calls += calls
        self.blocked = (self.blocked or 0.0) + blocked


@dataclass(slots=True)
class ServerEvents:
    """What hooks saw, by module, and by calling and called module."""

    modules: dict[str, Messages] = field(default_factory=dict)
    edges: dict[tuple[str, str], EdgeCount] = field(default_factory=dict)
    #: The same, of a module and a tag of requests to it; the tag is None for all other messages.
    tags: dict[tuple[str, str | None], Messages] = field(default_factory=dict)
    #: What is known of a module that is not among them; None where nothing is.
    others: Messages | None = None
    lost: int = 0
    cost: Cost = field(default_factory=Cost)
    notes: list[str] = field(default_factory=list)

    def renamed(self, names: Mapping[str, str]) -> ServerEvents:
        """The same, where modules have other *names*; those of one name are put together."""
        found = replace(self, modules={}, edges={}, tags={})
        for module, messages in self.modules.items():
            name = names.get(module, module)
            same = found.modules.get(name)
            found.modules[name] = messages if same is None else same.plus(messages)
        for (module, tag), messages in self.tags.items():
            key = names.get(module, module), tag
            same = found.tags.get(key)
            found.tags[key] = messages if same is None else same.plus(messages)
        for (caller, callee), count in self.edges.items():
            edge = names.get(caller, caller), names.get(callee, callee)
            total = found.edges.setdefault(edge, EdgeCount())
            total.calls += count.calls
            if count.blocked is not None:
                total.blocked = (total.blocked or 0.0) + count.blocked
        return found


def error_of_both(count: int, other: int, error: float, of_other: float) -> float:
    """The error of a sum as a part of it, at most: those of both counts, by their sizes."""
    total = count + other
    return (count * error + other * of_other) / total if total else max(error, of_other)


def _rate(count: int | None, rate: float | None, error: float) -> MessageRate | None:
    if count is None or rate is None:
        return None
    return {"count": count, "rate": round(rate, 3), "error_ratio": round(error, 4)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 9)
