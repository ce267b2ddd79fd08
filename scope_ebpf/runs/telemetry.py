# SPDX-License-Identifier: Apache-2.0
"""One run of ``telemetry``: the hook, the specifications, and what they counted, as rows."""

from __future__ import annotations

import math
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.telemetry.encoding import Decoder, Encoder, other_row
from scope_ebpf.beam.telemetry.library import loaded, settings
from scope_ebpf.budget.brake import share_of
from scope_ebpf.budget.reference_counters import ReferenceCounters
from scope_ebpf.budget.strata import Estimate
from scope_ebpf.errors import (
    HostError,
    NoSuchProcessError,
    NothingToAttachError,
    ReadRefusedError,
)
from scope_ebpf.results.requests import Span
from scope_ebpf.results.telemetry import Happened, Row, Telemetry, folded, judge
from scope_ebpf.runs.loop import Loop, Stop, require_target
from scope_ebpf.runs.target_cost import CostBrake, cpu_seconds
from scope_ebpf.runs.telemetry_windows import Observation, Vm
from scope_ebpf.runs.trace import say_started
from scope_ebpf.telemetry.specs import UNKNOWN, merged, of_config, shipped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.kernel.observers.telemetry_watch import TelemetryWatch
    from scope_ebpf.results.requests import Requests
    from scope_ebpf.results.telemetry import Labels
    from scope_ebpf.runs.telemetry_hooks import Place
    from scope_ebpf.telemetry.specs import Spec

DEFAULT_CONFIG = Path("/etc/scope-ebpf/config.toml")
#: The row of events whose name was not found.
_NAMELESS = "(other events)"
#: Seconds between two looks for new atoms and at the cost; between two looks at names of rows, and
#: the part of the time that those may take.
_INTERVAL, _NAMES_INTERVAL, _NAMES_SHARE = 0.25, 1.0, 0.1
#: The part of the time from which on nothing is said of the rest.
_WHOLE = 0.9995
#: Of a record: it begins something. Others have no duration, but may end something.
_BEGINS = 1
#: An HTTP status, or a text that begins with one.
_STATUS = re.compile(r"([1-5])\d\d(?!\d)")


@dataclass(frozen=True, slots=True)
class TelemetryOptions:
    """How long a run is, and what it counts."""

    #: Seconds; None for no end.
    duration: float | None
    #: Patterns of names, such as ``phoenix.*``; none for every event.
    patterns: tuple[str, ...] = ()
    #: Rows of one event; the others are taken together.
    most_rows: int = 100
    #: The share of the target's CPU above which a run that counts all ends itself; None for none.
    max_cost: float | None = None
    #: The share of the target's CPU that hooks may take; more than 1 to count everything.
    budget: float = math.inf
    #: ``lookups`` or ``breakpoint`` for that hook alone, None for the one that costs less.
    via: str | None = None


def specs_of(config: Path | None) -> list[Spec]:
    """The specifications of *config*, or of the daemon's, and of the package; raises SpecError."""
    if config is None and not DEFAULT_CONFIG.exists():
        return shipped()
    return merged(of_config(config or DEFAULT_CONFIG), shipped())


class TelemetryRun:
    """One run on *target*, with *specs*."""

    def __init__(
        self,
        target: Target,
        specs: Sequence[Spec],
        options: TelemetryOptions,
        requests: Requests | None = None,
        stream: Callable[[Happened], None] | None = None,
    ) -> None:
        self._target, self._options, self._requests = target, options, requests
        self._stream = stream
        self._wanted = [re.compile(translate(pattern)) for pattern in options.patterns]
        self._specs = specs
        self._atoms = Atoms(target)
        self._encoder = Encoder(specs, self._atoms, starts=requests is not None)
        self._decoder = Decoder(self._atoms)
        self._stop = Stop()
        self._counters = ReferenceCounters(target)

    def run(self) -> tuple[Telemetry, ScopeError | None]:
        """
        Count until something ends it; with *requests* also collect spans into it, and with *stream*
        give each event to it.

        Returns what was seen, and the error that ended the run early, if one did.
        NothingToAttachError where the VM has no telemetry, or hides what it calls.
        """
        from scope_ebpf.kernel import cost
        from scope_ebpf.kernel.observers.telemetry_watch import TelemetryWatch
        from scope_ebpf.runs.telemetry_hooks import hooks_of, places_of

        target = self._target
        library = loaded(target, self._atoms)
        if library is None:
            raise NothingToAttachError(
                f"process {target.pid} has no telemetry: the module `telemetry` is not loaded, so "
                "nothing was attached"
            )
        via = self._options.via
        hooks = [] if via == "breakpoint" else hooks_of(target, library)
        require_target(target.identity, "traced")
        entry = cost.measure().entry
        spans = 2 if self._stream else int(self._requests is not None)
        wanted = settings(target, self._atoms, spans)
        watch = TelemetryWatch(target.identity, wanted, hooks)
        places = places_of(target, self._atoms, watch, hooks, via)
        with watch, self._stop.on_signals():
            self._specify(watch)
            observation = self._observation(watch, places, entry)
            observation.begin()
            say_started(target.pid, self._options.duration, quiet=False)
            loop = Loop(target.identity, "traced", self._options.duration, self._stop)
            error = self._watch(watch, loop, observation)
            observation.end()
            watch.stop()
            self._collect(watch)
            found = self._result(watch, observation)
        if error:
            found.notes.append("the VM has ended: an atom of its last second may be shown as ?")
        return found, error

    def _observation(
        self, watch: TelemetryWatch, places: Sequence[Place], entry: float
    ) -> Observation:
        pid, options = self._target.pid, self._options
        vm = Vm(lambda: cpu_seconds(pid), self._reductions)
        return Observation(
            watch,
            places,
            vm,
            entry,
            options.budget,
            span=options.duration,
            closed=lambda: self._cut(watch),
        )

    def _reductions(self) -> int | None:
        with suppress(ReadRefusedError, NoSuchProcessError, OSError):
            return self._counters.now().get("reductions")
        return None

    def _watch(
        self, watch: TelemetryWatch, loop: Loop, observation: Observation
    ) -> ScopeError | None:
        limit = self._options.max_cost if self._options.budget > 1 else None
        brake = CostBrake(self._target.pid, limit, self._stop)
        due = names_due = 0.0

        def turn(now: float) -> ScopeError | None:
            nonlocal due, names_due
            try:
                observation.look()
                if now < due:
                    return None
                due = now + _INTERVAL
                self._specify(watch)
            except (ReadRefusedError, HostError, NothingToAttachError) as refused:
                self._stop.ask("refused")
                return refused
            self._collect(watch)
            if now >= names_due:
                # What is read now is known if the VM ends.
                self._rows(watch, {})
                after = time.monotonic()
                names_due = after + max(_NAMES_INTERVAL, (after - now) / _NAMES_SHARE)
            brake.look(now, lambda: observation.spent)
            return None

        return loop.run(turn, lambda: min(_INTERVAL, observation.pause))

    def _specify(self, watch: TelemetryWatch) -> None:
        for event, spec in self._encoder.update():
            watch.specify(event, spec, other_row(int(spec["number"])))

    def _is_wanted(self, event: str) -> bool:
        return not self._wanted or any(one.fullmatch(event) for one in self._wanted)

    def _happened(self, record: np.void) -> Happened:
        """An event as a line of a stream has it."""
        number, name = int(record["spec"]), None
        spec = self._specs[number - 1] if number else UNKNOWN
        labels = self._decoder.labels(record, len(spec.labels)) if number else ()
        name = spec.name if number else self._decoder.event(record)
        shown = _shown(spec, labels) if labels is not None else (None,) * len(spec.labels)
        return Happened(
            int(record["time_ns"]),
            int(record["pid"]),
            name or _NAMELESS,
            dict(zip(spec.labels, shown, strict=True)),
            None if record["starts"] or not spec.durations else int(record["duration"]) / 1e9,
        )

    def _collect(self, watch: TelemetryWatch) -> None:
        """Add the spans that have come to the requests, or to the stream."""
        if self._stream is not None:
            for record in watch.spans():
                event = self._happened(record)
                if self._is_wanted(event.event):
                    self._stream(event)
            return
        if self._requests is None:
            return
        for record in watch.spans():
            spec = self._specs[int(record["spec"]) - 1]
            pid, time_ns = int(record["pid"]), int(record["time_ns"])
            if record["starts"] == _BEGINS:
                self._requests.start(pid, spec.event[:-1], spec.level, time_ns)
                continue
            if record["starts"] and not spec.start:
                continue  # it lasted for no time, and ends nothing
            labels = self._decoder.labels(record, len(spec.labels))
            values = _shown(spec, labels) if labels is not None else (None,) * len(spec.labels)
            named = dict(zip(spec.labels, values, strict=True))
            start = time_ns - max(0, int(record["duration"]))
            span = Span(spec.name, named, start, time_ns, root=spec.root)
            self._requests.end(pid, span, spec.event[:-1] if spec.start else None)

    def _cut(self, watch: TelemetryWatch) -> None:
        """What is under way will not be seen to its end."""
        self._collect(watch)
        if self._requests is not None:
            self._requests.finish()

    def _rows(self, watch: TelemetryWatch, estimates: Mapping[bytes, Estimate]) -> list[Row]:
        """Every row, with its estimate where there is one."""
        return [
            row_of(self._specs, self._decoder, row, totals, estimates.get(row.tobytes()))
            for row, totals in watch.rows()
        ]

    def _result(self, watch: TelemetryWatch, observation: Observation) -> Telemetry:
        whole_run = self._options.budget > 1
        estimates = {} if whole_run else observation.estimates()
        rows, counts = self._rows(watch, estimates), watch.counts()
        # What has no row of its own, or no name, may be a failure of any event.
        whole = not counts["overflow"] and not any(
            row.count for row in rows if row.event == _NAMELESS
        )
        judge(rows, whole=whole)
        kept = [row for row in rows if self._is_wanted(row.event)]
        shown, via = folded(kept, self._options.most_rows), observation.vias[-1]
        found = Telemetry(self._target.as_json(), via, observation.seconds, shown, counts)
        found.stopped_because = self._stop.reason
        found.cpu_seconds = observation.spent
        if observation.used:
            found.cpu_share = share_of(observation.spent, observation.used)
        if not whole_run:
            found.sampling_ratio = observation.ratio
        found.notes += self._notes(observation)
        return found

    def _notes(self, observation: Observation) -> list[str]:
        notes = []
        if len(observation.vias) > 1:
            first, *others = observation.vias
            notes.append(
                f"{first} was hit too often by other lookups or events: events were then seen at "
                f"{' and '.join(others)}"
            )
        if self._options.budget <= 1 and observation.ratio < _WHOLE:
            what = (
                ("counted", "counts are estimates")
                if self._requests is None
                else ("seen", "requests that were not seen from beginning to end are not there")
            )
            notes.append(
                f"events were {what[0]} in {observation.ratio:.1%} of the time, so that hooks take "
                f"{100 * self._options.budget:g} % of the VM's CPU at most: {what[1]}; "
                "--budget none takes all"
            )
        missed = observation.missed()
        if missed and not observation.windows:
            notes.append(
                f"telemetry was loaded anew: events of {1e3 * missed:.1f} ms at most are not there"
            )
        return notes


def row_of(
    specs: Sequence[Spec],
    decoder: Decoder,
    row: np.void,
    totals: np.void,
    estimate: Estimate | None = None,
) -> Row:
    """
    Make a row from a TELEMETRY_ROW and its TELEMETRY_TOTALS, by the specification's number.

    Without an *estimate* its events are all that there were.
    """
    number = int(row["spec"])
    spec = specs[number - 1] if number else UNKNOWN
    labels = decoder.labels(row, len(spec.labels)) if number else ()
    event = spec.name if number else decoder.event(row)
    if event is None:
        event, labels = _NAMELESS, None
    if labels is not None:
        labels = _shown(spec, labels)
    exception = (*spec.event[:-1], "exception")
    seen = int(totals["count"])
    known = estimate or Estimate(seen, 0.0)
    return Row(
        event,
        tuple(spec.labels),
        labels,
        spec.durations,
        spec.numbers,
        round(known.number),
        totals["measured"].astype(np.uint64),
        totals["sum"].astype(np.int64),
        totals["slots"].astype(np.uint64),
        tells_failures=any(other.event == exception for other in specs),
        seen=seen,
        count_error=known.error,
    )


def _shown(spec: Spec, labels: Labels) -> Labels:
    """The *labels* of an event, with classes where *spec* says so."""
    return tuple(
        _status(value) if name in spec.classes else value
        for name, value in zip(spec.labels, labels, strict=True)
    )


def _status(value: str | None) -> str | None:
    """The class of an HTTP status: 4xx of 404, or of "404 Not Found"."""
    found = _STATUS.match(value or "")
    return f"{found[1]}xx" if found else value
