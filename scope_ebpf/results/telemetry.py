# SPDX-License-Identifier: Apache-2.0
"""
Telemetry events by name and labels.

Pure. The JSON of :meth:`Telemetry.as_json` is a contract; fields are added, never renamed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.results.documents.telemetry import (
        EventDuration,
        EventMeasurement,
        TelemetryDocument,
        TelemetryEvent,
        TelemetryLine,
    )
    from scope_ebpf.results.documents.vms import Target

#: Labels with other values than those that are shown.
Labels = tuple[str | None, ...]
_FAILED_RESULT, _FAILED_CLASS = "error", "5"
#: Labels that say it of each event.
_TELLING = {"result", "status"}
_NS = 1e9
#: Counts that are no refusals.
_NOT_REFUSED = ("events", "starts", "own", "hits", "lost")


@dataclass(frozen=True, slots=True)
class Happened:
    """One event, at *time_ns* of the monotonic clock, of the process *pid*, a term."""

    time_ns: int
    pid: int
    event: str
    labels: dict[str, str | None]
    #: Seconds; None where it has no duration.
    duration: float | None

    def as_json(self, pid: str, wall_offset_ns: int) -> TelemetryLine:
        """The line of ``telemetry --stream --format jsonl``; *pid* is its text."""
        return {
            "time": (self.time_ns + wall_offset_ns) / _NS,
            "process": pid,
            "event": self.event,
            "labels": self.labels,
            "duration_seconds": self.duration,
        }


@dataclass(slots=True)
class Row:
    """
    Events with one name and the same labels.

    *label_names* belong to *labels*, which is None for those of all rows that are not shown.
    *count* are those of the whole run, of which *seen* were counted; *count_error* is its standard
    error, as a part of it. *durations* and *numbers* are names of measurements, of which *measured*
    and *sums* have the number of events that were counted and the sum (ns for a duration),
    durations first. *slots* is the histogram of the first duration (``events.TELEMETRY_SLOTS``).
    """

    event: str
    label_names: tuple[str, ...]
    labels: Labels | None
    durations: tuple[str, ...]
    numbers: tuple[str, ...]
    count: int
    measured: NDArray[np.uint64]
    sums: NDArray[np.int64]
    slots: NDArray[np.uint64]
    #: Whether the library has an event for failures beside this one.
    tells_failures: bool = False
    seen: int = 0
    count_error: float = 0.0
    #: The part of the events that failed, None where that is not known: see :func:`judge`.
    error_ratio: float | None = None

    def add(self, other: Row) -> None:
        """Count the events of *other*, of the same name, here as well."""
        errors = self.count * self.count_error, other.count * other.count_error
        self.count += other.count
        self.count_error = math.hypot(*errors) / self.count if self.count else 0.0
        self.seen += other.seen
        self.measured = self.measured + other.measured
        self.sums = self.sums + other.sums
        self.slots = self.slots + other.slots

    @property
    def factor(self) -> float:
        """Events of the whole run for each that was counted."""
        return self.count / self.seen if self.seen else 1.0

    @property
    def named(self) -> dict[str, str | None]:
        """Each label by its name."""
        values = self.labels or (None,) * len(self.label_names)
        return dict(zip(self.label_names, values, strict=True))

    def percentile(self, share: float) -> float | None:
        """Seconds that *share* of the durations take at most, within 12 %; None without any."""
        total = int(self.slots.sum())
        if not self.durations or not total:
            return None
        slot = int(np.searchsorted(np.cumsum(self.slots), math.ceil(share * total)))
        power, quarter = divmod(slot, 4)
        return float(2**power * (1 + (quarter + 0.5) / 4)) / _NS

    def duration(self) -> EventDuration | None:
        """The first duration; None if no event had it."""
        count = int(self.measured[0]) if self.durations else 0
        p50, p99 = self.percentile(0.5), self.percentile(0.99)
        if not count or p50 is None or p99 is None:
            return None
        mean, count = int(self.sums[0]) / _NS / count, round(count * self.factor)
        return {"count": count, "sum": mean * count, "mean": mean, "p50": p50, "p99": p99}

    def measurements(self) -> dict[str, EventMeasurement]:
        """All measurements but the first duration, as far as any event had them."""
        found: dict[str, EventMeasurement] = {}
        for n, name in enumerate(self.durations + self.numbers):
            count, is_time = int(self.measured[n]), n < len(self.durations)
            if count and (n or not is_time):
                mean = int(self.sums[n]) / count / (_NS if is_time else 1)
                label = f"{name}_seconds" if is_time else name
                count = round(count * self.factor)
                found[label] = {"count": count, "sum": mean * count, "mean": mean}
        return found


def folded(rows: Iterable[Row], most: int) -> list[Row]:
    """
    *rows* of the same name and labels added up, sorted by name, then by count.

    Of each name *most* rows remain; the events of all others are in one row whose labels are None.
    """
    same: dict[tuple[str, Labels | None], Row] = {}
    for row in rows:
        if not row.count:
            continue
        key = row.event, row.labels
        if key in same:
            same[key].add(row)
        else:
            same[key] = row
    by_event: dict[str, list[Row]] = defaultdict(list)
    for row in same.values():
        by_event[row.event].append(row)
    found: list[Row] = []
    for _, group in sorted(by_event.items()):
        group.sort(key=lambda row: (row.labels is not None, row.count), reverse=True)
        shown = [row for row in group[:most] if row.labels is not None]
        found += shown
        if rest := group[len(shown) :]:
            first, *others = rest
            for other in others:
                first.add(other)
            if any(other.error_ratio != first.error_ratio for other in others):
                first.error_ratio = None
            first.labels = None
            found.append(first)
    return found


def judge(rows: Sequence[Row], *, whole: bool) -> None:
    """
    Set the error ratio of each row; *rows* are all of a run, before any is left out or folded.

    If they are not the *whole*, a failed event may be missing: then what ends in ``stop`` has none.
    """
    unlabelled = {row.event for row in rows if row.labels is None and row.count}
    for row, ratio in zip(rows, error_ratios(rows), strict=True):
        by_exceptions = row.event.endswith(".stop") and not row.named.keys() & _TELLING
        failure = f"{row.event.removesuffix('.stop')}.exception"
        hidden = not whole or failure in unlabelled
        row.error_ratio = None if by_exceptions and hidden else ratio


def error_ratios(rows: Sequence[Row]) -> list[float | None]:
    """
    The part of each row's events that failed, None where events do not say.

    Events that end in ``exception`` have failed, and so has a ``result`` that is ``error`` and a
    status of 500 or more. Of what ends in ``stop``, those with the same labels that end in
    ``exception`` are the failed ones; without any, none failed if the library reports failures.
    """
    failed: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        stem, _, last = row.event.rpartition(".")
        if last == "exception" and row.labels is not None:
            failed[stem].append(row)
    stops: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.labels is not None:
            stops[row.event].append(row)
    return [_error_ratio(row, failed, stops) for row in rows]


def _error_ratio(
    row: Row, failed: dict[str, list[Row]], stops: dict[str, list[Row]]
) -> float | None:
    stem, _, last = row.event.rpartition(".")
    if last == "exception":
        return 1.0
    labels = row.named
    result, status = labels.get("result"), labels.get("status")
    if result is not None:
        return float(result == _FAILED_RESULT)
    if status is not None:
        return float(status.startswith(_FAILED_CLASS))
    exceptions = failed.get(stem, [])
    # Labels of the first events may not have been read yet.
    known = len({one.label_names for one in exceptions}) < 2
    if last != "stop" or row.labels is None or not known:
        return None
    if not exceptions:
        return 0.0 if row.tells_failures else None
    shared = [name for name in labels if name in exceptions[0].label_names]
    key = [labels[name] for name in shared]
    bad, good = (
        sum(r.count for r in group if [r.named[name] for name in shared] == key)
        for group in (exceptions, stops[row.event])
    )
    return bad / (bad + good)


@dataclass(slots=True)
class Telemetry:
    """What one run has seen."""

    target: Target
    via: str
    seconds: float
    rows: list[Row]
    #: Hits by ``events.TELEMETRY_COUNTS``.
    counts: dict[str, int]
    stopped_because: str = ""
    cpu_seconds: float | None = None
    cpu_share: float | None = None
    #: The part of the time in which events were counted.
    sampling_ratio: float = 1.0
    notes: list[str] = field(default_factory=list)

    @property
    def refused(self) -> dict[str, int]:
        """Events that were not decoded, or not in full, by why."""
        return {n: c for n, c in self.counts.items() if n not in _NOT_REFUSED}

    @property
    def hits(self) -> int:
        """Hits of the hook."""
        return self.counts["hits"]

    @property
    def foreign(self) -> int:
        """Hits that are no events: other lookups of the VM."""
        return self.counts["hits"] - self.counts["own"]

    def as_json(self) -> TelemetryDocument:
        """The document of ``telemetry --format json``."""
        refused = self.refused
        return {
            "schema": 1,
            "target": self.target,
            "duration_seconds": round(self.seconds, 3),
            "stopped_because": self.stopped_because,
            "via": self.via,
            "sampling_ratio": round(self.sampling_ratio, 6),
            "events": [self._event(row) for row in self.rows],
            "lost": self.counts["lost"],
            "refused": {
                "large_map": refused["large_map"],
                "overflow": refused["overflow"],
                "name": refused["name"],
                "no_frame": refused["no_frame"],
                "measure": refused["measure"],
                "label": refused["label"],
                "unreadable": refused["unreadable"],
            },
            "cost": {
                "hits": self.hits,
                "foreign": self.foreign,
                "cpu_seconds": self.cpu_seconds and round(self.cpu_seconds, 6),
                "cpu_share": self.cpu_share and round(self.cpu_share, 6),
            },
            "notes": self.notes,
        }

    def _event(self, row: Row) -> TelemetryEvent:
        return {
            "event": row.event,
            "labels": row.named,
            "other": row.labels is None,
            "count": row.count,
            "seen": row.seen,
            "count_error": round(row.count_error, 4),
            "rate": round(row.count / self.seconds, 3) if self.seconds else 0.0,
            "error_ratio": row.error_ratio,
            "duration_seconds": row.duration(),
            "measurements": row.measurements(),
        }
