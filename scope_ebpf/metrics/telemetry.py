# SPDX-License-Identifier: Apache-2.0
"""
Telemetry events of one VM as series: requests, LiveView callbacks, queries, jobs, and all by name.

Pure. Counts of spans of time go in, which may be estimates, and sums come out, under a bounded
number of series. Labels are text of the VM and of its clients.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.metrics.catalogue import catalogue
from scope_ebpf.metrics.page import label_value
from scope_ebpf.metrics.ranking import NEW, Ranking

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from scope_ebpf.metrics.page import Page

    Labels = tuple[str, ...]
    Values = NDArray[np.float64]

OTHER = "other"
#: What has an error of its own.
KINDS = ("http", "live_view", "database", "jobs", "events")
#: The status of requests that ended in an exception.
_RAISED = "exception"
#: Seconds over which errors are computed.
_RECENT = 60.0
#: Slots of a histogram for each power of two, and powers of two.
_QUARTERS, _POWERS = 4, events.TELEMETRY_SLOTS // 4
#: Reasons for which events are not decoded, or not in full: names of ``events.TELEMETRY_COUNTS``.
REFUSED = ("large_map", "overflow", "name", "no_frame", "measure", "label", "unreadable")
#: Standard errors that an error with 95 % confidence has.
_Z = 1.96
#: What the rest keeps of how something ended, by label; all else is OTHER there.
_OUTCOMES = {
    "status": frozenset({"2xx", "3xx", "4xx", "5xx", _RAISED}),
    "result": frozenset({"ok", "error"}),
    "state": frozenset({"success", "failure", "discard"}),
    "kind": frozenset({"http", "live_view", "jobs", "outside"}),
}
#: Methods that have a name; a client may send any text (RFC 9110, section 9; RFC 5789).
_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
)


class Family(NamedTuple):
    """One family of series, or two with the same labels."""

    #: A histogram, or one counter, or counters of seconds and of events that had the measurement.
    names: tuple[str, ...]
    #: How much of the series it may have beside others.
    weight: int
    #: The label whose values clients of the VM may invent.
    invented: str = ""

    @property
    def labels(self) -> Labels:
        """The names of its labels, but ``node``."""
        return catalogue()[self.names[0]].labels[1:]

    @property
    def is_histogram(self) -> bool:
        """Whether it is one of durations."""
        return catalogue()[self.names[0]].type == "histogram"

    @property
    def cost(self) -> int:
        """Series for each combination of labels."""
        bounds = catalogue()[self.names[0]].exponents
        return len(bounds) + 3 if self.is_histogram else len(self.names)

    def is_invented(self, labels: Labels) -> bool:
        """Whether a client may have invented one of these labels."""
        if not self.invented:
            return False
        pairs = zip(self.labels, labels, strict=True)
        return any(name == self.invented and value not in ("", OTHER) for name, value in pairs)

    def wider(self, labels: Labels) -> Labels:
        """These labels without what a client may have invented."""
        if not self.is_invented(labels):
            return labels
        pairs = zip(self.labels, labels, strict=True)
        return tuple(OTHER if name == self.invented else value for name, value in pairs)

    def rest(self, labels: Labels) -> Labels:
        """The labels of what has these, but no name: only how it ended is kept."""
        pairs = zip(self.labels, labels, strict=True)
        return tuple(value if value in _OUTCOMES.get(name, ()) else OTHER for name, value in pairs)


REQUESTS = Family(("beam_http_request_duration_seconds",), 5)
RESPONSES = Family(("beam_http_responses_total",), 1)
RAISED = Family(("beam_http_exceptions_total",), 1)
VIEWS = Family(("beam_live_view_duration_seconds",), 4, invented="event")
VIEWS_RAISED = Family(("beam_live_view_exceptions_total",), 1)
QUERIES = Family(("beam_db_query_duration_seconds",), 4)
POOL = Family(("beam_db_queue_seconds_total", "beam_db_queue_waits_total"), 1)
JOBS = Family(("beam_job_duration_seconds",), 4)
QUEUES = Family(("beam_job_queue_seconds_total", "beam_job_queue_waits_total"), 1)
WORK = Family(("beam_route_cpu_seconds_total",), 2)
EVENTS = Family(("beam_telemetry_events_total",), 1)
FAMILIES = (
    *(REQUESTS, RESPONSES, RAISED, VIEWS, VIEWS_RAISED, QUERIES, POOL, JOBS, QUEUES),
    *(WORK, EVENTS),
)
#: Series that are there whatever happens: errors by kind, reasons, the part of the time.
_FIXED = len(KINDS) + len(REFUSED) + 1
#: The fewest series: with a name for some, beside the rests of every family.
LEAST_SERIES = 200


class _Use(NamedTuple):
    """One family that an event counts for: its *fixed* labels, and which measurement it takes."""

    family: Family
    fixed: Mapping[str, str]
    measure: int = 0


def _view(callback: str, *, stop: bool) -> tuple[_Use, ...]:
    fixed = {"callback": callback}
    return (_Use(VIEWS, fixed),) if stop else (_Use(VIEWS_RAISED, fixed),)


_ROUTED = (_Use(REQUESTS, {}),)
_FAILED = (_Use(REQUESTS, {"status": _RAISED}), _Use(RAISED, {}))
_JOB = (_Use(JOBS, {}), _Use(QUEUES, {}, 1))
#: In the place of an event: CPU time of what processes work on.
_WORKED = "(work)"
#: By the name of the event: its kind, and what it counts for beside its name.
_USES: dict[str, tuple[str, tuple[_Use, ...]]] = {
    "phoenix.router_dispatch.stop": ("http", _ROUTED),
    "plug.router_dispatch.stop": ("http", _ROUTED),
    "phoenix.router_dispatch.exception": ("http", _FAILED),
    "plug.router_dispatch.exception": ("http", _FAILED),
    "phoenix.endpoint.stop": ("http", (_Use(RESPONSES, {"server": "phoenix"}),)),
    "bandit.request.stop": ("http", (_Use(RESPONSES, {"server": "bandit"}),)),
    "cowboy.request.stop": ("http", (_Use(RESPONSES, {"server": "cowboy"}),)),
    "*.query": ("database", (_Use(QUERIES, {}), _Use(POOL, {}, 1))),
    "oban.job.stop": ("jobs", _JOB),
    "oban.job.exception": ("jobs", _JOB),
    _WORKED: ("", (_Use(WORK, {}),)),
    **{
        f"phoenix.{event}.{end}": ("live_view", _view(callback, stop=end == "stop"))
        for event, callback in (
            *((f"live_view.{name}", name) for name in ("mount", "handle_params", "handle_event")),
            ("live_view.render", "render"),
            ("live_component.handle_event", "component.handle_event"),
        )
        for end in ("stop", "exception")
    },
}


def kind_of(event: str) -> str:
    """The kind of an event, one of KINDS."""
    return _USES.get(event, ("events", ()))[0]


class Counted(NamedTuple):
    """
    Events with one name and the same labels within a span of time.

    ``labels`` are None for events without a row of their own. ``number`` may be an estimate;
    ``measured`` and ``sums`` (ns) are by measurement, shape ``(TELEMETRY_MEASURES,)``, ``slots`` is
    the histogram of the first, shape ``(TELEMETRY_SLOTS,)``: of the events that were counted, times
    the same factor.
    """

    event: str
    labels: Mapping[str, str | None] | None
    number: float
    measured: Values
    sums: Values
    slots: Values


def worked(event: str, name: str, seconds: float, *, other: bool = False) -> Counted:
    """
    CPU time of the work that *event* ends, whose first label is *name*; without an event of none.

    *other*: its labels are not known.
    """
    kind, uses = _USES.get(event, ("outside", ()))
    callback = uses[0].fixed.get("callback", "") if uses else ""
    labels = {"kind": kind, "route": OTHER if other else name, "callback": callback}
    if other and not uses:
        labels |= {"kind": OTHER}
    nothing = np.zeros(events.TELEMETRY_MEASURES)
    slots = np.zeros(events.TELEMETRY_SLOTS)
    return Counted(_WORKED, labels, seconds, nothing, nothing, slots)


class Span(NamedTuple):
    """What is known of a span of time as a whole."""

    seconds: float
    #: The part of it in which events were counted.
    ratio: float
    #: Events and their standard error as a part of them, by kind.
    errors: Mapping[str, tuple[float, float]]
    #: Events that were not decoded, since hooks were attached, by the names of REFUSED.
    refused: Mapping[str, int]


class Series(NamedTuple):
    """The figures of one combination of labels of a family."""

    family: Family
    labels: Labels
    #: Events, those that had the measurement, its sum in ns.
    number: float
    measured: float
    total_ns: float
    #: By power of two of ns; empty for a family of counters.
    slots: Values


@dataclass(frozen=True, slots=True)
class TelemetryReading:
    """The figures of the telemetry events of one VM."""

    series: tuple[Series, ...] = ()
    #: Spans of time that were added up.
    spans: int = 0
    #: The part of the last minute in which events were counted, and errors with 95 % confidence.
    ratio: float = 0.0
    errors: Mapping[str, float] = field(default_factory=dict)
    undecoded: Mapping[str, int] = field(default_factory=dict)
    #: Why it cannot be read; "" if it can, or if the VM has none.
    refused: str = ""


@dataclass(slots=True)
class _Sum:
    """Sums of one combination of labels; they only grow."""

    count: float = 0.0
    measured: float = 0.0
    total_ns: float = 0.0
    slots: Values = field(default_factory=lambda: np.zeros(_POWERS))

    def add(self, counted: Counted, measure: int) -> None:
        # A VM may state durations below zero: the sum of a counter never falls.
        self.count += counted.number
        self.measured += float(counted.measured[measure])
        self.total_ns += max(0.0, float(counted.sums[measure]))
        if not measure:
            self.slots += counted.slots.reshape(_POWERS, _QUARTERS).sum(axis=1)

    def merge(self, other: _Sum) -> None:
        self.count += other.count
        self.measured += other.measured
        self.total_ns += other.total_ns
        self.slots += other.slots


class Demand(NamedTuple):
    """Series that a family needs: for what has no name, and for all that it knows."""

    rests: int
    all: int


class _Sums:
    """The sums of one family, which may have *series* series at most."""

    def __init__(self, family: Family, series: int) -> None:
        self.family = family
        self._ranking: Ranking[Labels] = Ranking(
            0, max(NEW, series // family.cost), keeps=True, invented=family.is_invented
        )
        #: What has no name, by how it ended: those that have been.
        self._rests: set[Labels] = set()
        self._sums: dict[Labels, _Sum] = {}

    def demand(self, news: Mapping[Labels, _Sum]) -> Demand:
        """Series for all rests, and for all combinations of labels that are known, too."""
        self._rests |= {self.family.rest(key) for key in news}
        known = self._ranking.known(self._worths(news, 1.0))
        rests = len(self._rests)
        return Demand(self.family.cost * rests, self.family.cost * (rests + known))

    def add(self, news: Mapping[Labels, _Sum], series: int, seconds: float, now: float) -> None:
        """Add what came in so many seconds, and have so many *series* from now on."""
        self._ranking.most = max(0, series // self.family.cost - len(self._rests))
        named = self._ranking.update(self._worths(news, seconds), now)
        sums = {
            key: self._sums.get(key) or _Sum() for key in (*sorted(named), *sorted(self._rests))
        }
        for key, one in news.items():
            homes = key, self.family.wider(key), self.family.rest(key)
            sums[next(home for home in homes if home in sums)].merge(one)
        self._sums = sums

    def _worths(self, news: Mapping[Labels, _Sum], seconds: float) -> dict[Labels, float]:
        """
        What each combination of labels is worth: as much as all that differ in how they end.

        So failures of a route have a name beside its successes, though they are fewer. What a
        client may have invented is also worth a name without that.
        """
        names = self.family.labels
        together: defaultdict[Labels, float] = defaultdict(float)
        alike = {
            key: tuple(v for name, v in zip(names, key, strict=True) if name not in _OUTCOMES)
            for key in news
        }
        for key, one in news.items():
            together[alike[key]] += one.count / seconds
        worths: defaultdict[Labels, float] = defaultdict(float)
        for key in news:
            worths[key] += together[alike[key]]
            if (wider := self.family.wider(key)) != key:
                worths[wider] += together[alike[key]]
        return {key: worth for key, worth in worths.items() if key not in self._rests}

    def series(self) -> Iterator[Series]:
        """The sums of this moment."""
        for key, one in self._sums.items():
            slots = one.slots.copy() if self.family.is_histogram else np.zeros(0)
            yield Series(self.family, key, one.count, one.measured, one.total_ns, slots)


class TelemetrySums:
    """Adds up what was counted, for at most *series* series."""

    def __init__(self, series: int) -> None:
        self._left = series - _FIXED
        self._sums = [_Sums(family, self._left) for family in FAMILIES]
        self._recent: deque[tuple[float, Span]] = deque()
        self._kinds: set[str] = set()
        self._before: Mapping[str, int] = {}
        self._undecoded = dict.fromkeys(REFUSED, 0)
        self._spans = 0

    def add(self, counted: Iterable[Counted], span: Span, now: float) -> TelemetryReading:
        """Add what was *counted* in a *span* that ended at *now*, monotonic seconds."""
        news: dict[Family, dict[Labels, _Sum]] = {family: {} for family in FAMILIES}
        for one in counted:
            by_name = () if one.event == _WORKED else (_Use(EVENTS, {"event": one.event}),)
            for use in (*_uses(one.event), *by_name):
                news[use.family].setdefault(_labels(use, one), _Sum()).add(one, use.measure)
        demands = {sums.family: sums.demand(news[sums.family]) for sums in self._sums}
        shares = shared_out(demands, self._left)
        for sums in self._sums:
            sums.add(news[sums.family], shares[sums.family], span.seconds, now)
        self._note(span, now)
        return TelemetryReading(
            tuple(one for sums in self._sums for one in sums.series()),
            self._spans,
            self._ratio(),
            {kind: self._error(kind) for kind in KINDS if kind in self._kinds},
            dict(self._undecoded),
        )

    def _note(self, span: Span, now: float) -> None:
        self._spans += 1
        self._kinds |= {kind for kind, (number, _) in span.errors.items() if number}
        for name in REFUSED:
            # Hooks that are attached anew begin with 0.
            total, before = span.refused.get(name, 0), self._before.get(name, 0)
            self._undecoded[name] += total - before if total >= before else total
        self._before = dict(span.refused)
        self._recent.append((now, span))
        while now - self._recent[0][0] > _RECENT and len(self._recent) > 1:
            self._recent.popleft()

    def _ratio(self) -> float:
        seconds = sum(span.seconds for _, span in self._recent)
        return sum(span.ratio * span.seconds for _, span in self._recent) / seconds

    def _error(self, kind: str) -> float:
        """The error of the count of the last minute; 1 where windows have seen nothing of it."""
        found = [span.errors.get(kind, (0.0, 0.0)) for _, span in self._recent]
        number = sum(count for count, _ in found)
        if not number:
            return float(self._ratio() < 1)
        variance = sum((count * error) ** 2 for count, error in found)
        return float(min(1.0, _Z * variance**0.5 / number))


def shared_out(demands: Mapping[Family, Demand], series: int) -> dict[Family, int]:
    """
    How many of the *series* each family may have.

    Each has its rests; what is left is shared by weight, and a family that needs less than its
    share leaves it to the others.
    """
    given = {family: demand.rests for family, demand in demands.items()}
    left = float(series - sum(given.values()))
    wanting = {family for family, demand in demands.items() if demand.all > given[family]}
    while wanting:
        part = left / sum(family.weight for family in wanting)
        content = {f for f in wanting if demands[f].all - given[f] <= part * f.weight}
        for family in content or wanting:
            more = min(demands[family].all - given[family], int(part * family.weight))
            given[family] += more
            left -= more
        wanting = wanting - content if content else set()
    return given


def _uses(event: str) -> tuple[_Use, ...]:
    return _USES.get(event, ("", ()))[1]


def _labels(use: _Use, counted: Counted) -> Labels:
    """
    The labels of a series as label values; a text that is called as the rest belongs to it.

    Of events without a row of their own only what their name says is known.
    """
    names = use.family.labels
    if counted.labels is None and use.family is not EVENTS:
        return use.family.rest(tuple(use.fixed.get(name, OTHER) for name in names))
    found = {**(counted.labels or {}), **use.fixed}
    return tuple(_value(name, found.get(name) or "") for name in names)


def _value(name: str, text: str) -> str:
    return OTHER if name == "method" and text and text not in _METHODS else label_value(text)


def expose_telemetry(page: Page, node: str, found: TelemetryReading) -> None:
    """Add every series; none before anything was counted."""
    if not found.spans:
        return
    for one in found.series:
        labels = {"node": node, **dict(zip(one.family.labels, one.labels, strict=True))}
        first, *others = one.family.names
        if one.family.is_histogram:
            page.histogram(first, one.slots, one.total_ns, **labels)
        elif others:
            page.add(first, one.total_ns / 1e9, **labels)
            page.add(others[0], one.measured, **labels)
        else:
            page.add(first, one.number, **labels)
    for kind, error in found.errors.items():
        page.add("scope_ebpf_telemetry_error_ratio", error, node=node, kind=kind)
    page.add("scope_ebpf_telemetry_sampling_ratio", found.ratio, node=node)
    for reason, number in found.undecoded.items():
        page.add("scope_ebpf_telemetry_undecoded_total", number, node=node, reason=reason)
