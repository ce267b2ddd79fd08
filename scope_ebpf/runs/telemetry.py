# SPDX-License-Identifier: Apache-2.0
"""One run of ``telemetry``: the hook, the specifications, and what they counted, as rows."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.telemetry.encoding import Decoder, Encoder, other_row
from scope_ebpf.beam.telemetry.library import loaded, settings
from scope_ebpf.budget.brake import share_of
from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.events import Hook, Variant
from scope_ebpf.planning.planner import symbol_attachments
from scope_ebpf.results.requests import Span
from scope_ebpf.results.telemetry import Row, Telemetry, folded, judge
from scope_ebpf.runs.loop import Loop, Stop, require_target
from scope_ebpf.runs.target_cost import CostBrake, cpu_seconds
from scope_ebpf.runs.trace import say_started
from scope_ebpf.telemetry.specs import UNKNOWN, merged, of_config, shipped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.beam.telemetry.library import Library
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.kernel.observers.telemetry_watch import TelemetryWatch
    from scope_ebpf.results.requests import Requests
    from scope_ebpf.results.telemetry import Labels
    from scope_ebpf.telemetry.specs import Spec

DEFAULT_CONFIG = Path("/etc/scope-ebpf/config.toml")
#: Seconds between two looks for new atoms and at the cost; between two looks at names of rows, and
#: The row of events whose name was not found.
_NAMELESS = "(other events)"
#: the part of the time that those may take.
_INTERVAL, _NAMES_INTERVAL, _NAMES_SHARE = 0.25, 1.0, 0.1
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
    #: The share of the target's CPU above which the run ends itself; None for no bound.
    max_cost: float | None = None


def specs_of(config: Path | None) -> list[Spec]:
    """The specifications of *config*, or of the daemon's, and of the package; raises SpecError."""
    if config is None and not DEFAULT_CONFIG.exists():
        return shipped()
    return merged(of_config(config or DEFAULT_CONFIG), shipped())


def hooks_of(target: Target, library: Library) -> list[Attachment]:
    """
    Find where the program of *library* is attached in *target*.

    NothingToAttachError where the VM's program hides these functions.
    """
    found: list[Attachment] = []
    for name in library.functions:
        hook = Hook(library.program, name)
        variant = Variant("telemetry", "symbol", "telemetry", (hook,))
        found += symbol_attachments(target.binary, variant, hook)
    if not found:
        raise NothingToAttachError(
            f"telemetry cannot be seen in process {target.pid}: its program does not show the "
            f"function {library.functions[0]} (OTP {target.otp_release} hides its functions); "
            "with the debug symbols of this build installed it can"
        )
    return found


class TelemetryRun:
    """One run on *target*, with *specs*."""

    def __init__(
        self,
        target: Target,
        specs: Sequence[Spec],
        options: TelemetryOptions,
        requests: Requests | None = None,
    ) -> None:
        self._target, self._options, self._requests = target, options, requests
        self._specs = specs
        self._atoms = Atoms(target)
        self._encoder = Encoder(specs, self._atoms, starts=requests is not None)
        self._decoder = Decoder(self._atoms)
        self._stop = Stop()

    def run(self) -> tuple[Telemetry, ScopeError | None]:
        """
        Count until something ends it; with *requests* also collect spans into it.

        Returns what was seen, and the error that ended the run early, if one did.
        NothingToAttachError where the VM has no telemetry, or hides what it calls.
        """
        from scope_ebpf.kernel import cost
        from scope_ebpf.kernel.bpf import stats
        from scope_ebpf.kernel.observers.telemetry_watch import TelemetryWatch

        target = self._target
        library = loaded(target, self._atoms)
        if library is None:
            raise NothingToAttachError(
                f"process {target.pid} has no telemetry: the module `telemetry` is not loaded, so "
                "nothing was attached"
            )
        hooks = hooks_of(target, library)
        require_target(target.identity, "traced")
        hit_cost = cost.measure()
        wanted = settings(target, self._atoms, spans=self._requests is not None)
        watch = TelemetryWatch(target.identity, wanted, hooks)
        with stats.measuring() as measured, watch, self._stop.on_signals():
            self._specify(watch)
            before = cpu_seconds(target.pid)
            watch.start()
            say_started(target.pid, self._options.duration, quiet=False)
            loop = Loop(target.identity, "traced", self._options.duration, self._stop)
            error = self._watch(watch, loop, hit_cost, measured=measured)
            seconds = time.monotonic() - loop.started
            after = cpu_seconds(target.pid)
            watch.stop()
            self._collect(watch)
            found = self._result(watch, hooks, seconds)
            found.cpu_seconds = _taken(watch, hit_cost, measured=measured)
        if before is not None and after is not None and after > before:
            found.cpu_share = share_of(found.cpu_seconds, after - before)
        found.stopped_because = self._stop.reason
        if error:
            found.notes.append("the VM has ended: an atom of its last second may be shown as ?")
        return found, error

    def _watch(
        self, watch: TelemetryWatch, loop: Loop, cost: HitCost, *, measured: bool
    ) -> ScopeError | None:
        brake = CostBrake(self._target.pid, self._options.max_cost, self._stop)
        names_due = 0.0

        def turn(now: float) -> None:
            nonlocal names_due
            self._specify(watch)
            self._collect(watch)
            if now >= names_due:
                # What is read now is known if the VM ends.
                self._rows(watch)
                after = time.monotonic()
                names_due = after + max(_NAMES_INTERVAL, (after - now) / _NAMES_SHARE)
            brake.look(now, lambda: _taken(watch, cost, measured=measured))

        return loop.run(turn, lambda: _INTERVAL)

    def _specify(self, watch: TelemetryWatch) -> None:
        for event, spec in self._encoder.update():
            watch.specify(event, spec, other_row(int(spec["number"])))

    def _collect(self, watch: TelemetryWatch) -> None:
        """Add the spans that have come to the requests."""
        if self._requests is None:
            return
        for record in watch.spans():
            spec = self._specs[int(record["spec"]) - 1]
            pid, time_ns = int(record["pid"]), int(record["time_ns"])
            if record["starts"]:
                self._requests.start(pid, spec.event[:-1], spec.level, time_ns)
                continue
            labels = self._decoder.labels(record, len(spec.labels))
            values = _shown(spec, labels) if labels is not None else (None,) * len(spec.labels)
            named = dict(zip(spec.labels, values, strict=True))
            start = time_ns - max(0, int(record["duration"]))
            span = Span(spec.name, named, start, time_ns, root=spec.root)
            self._requests.end(pid, span, spec.event[:-1] if spec.start else None)

    def _rows(self, watch: TelemetryWatch) -> list[Row]:
        rows = watch.rows()
        return [row_of(self._specs, self._decoder, row, totals) for row, totals in rows]

    def _result(
        self, watch: TelemetryWatch, hooks: Sequence[Attachment], seconds: float
    ) -> Telemetry:
        rows, counts = self._rows(watch), watch.counts()
        # What has no row of its own, or no name, may be a failure of any event.
        whole = not counts["overflow"] and not any(
            row.count for row in rows if row.event == _NAMELESS
        )
        judge(rows, whole=whole)
        wanted = [re.compile(translate(pattern)) for pattern in self._options.patterns]
        kept = [r for r in rows if not wanted or any(p.fullmatch(r.event) for p in wanted)]
        via = " + ".join(hook.name for hook in hooks)
        shown = folded(kept, self._options.most_rows)
        return Telemetry(self._target.as_json(), via, seconds, shown, counts)


def row_of(specs: Sequence[Spec], decoder: Decoder, row: np.void, totals: np.void) -> Row:
    """Make a row from a TELEMETRY_ROW and its TELEMETRY_TOTALS, by the specification's number."""
    number = int(row["spec"])
    spec = specs[number - 1] if number else UNKNOWN
    labels = decoder.labels(row, len(spec.labels)) if number else ()
    event = spec.name if number else decoder.event(row)
    if event is None:
        event, labels = _NAMELESS, None
    if labels is not None:
        labels = _shown(spec, labels)
    exception = (*spec.event[:-1], "exception")
    return Row(
        event,
        tuple(spec.labels),
        labels,
        spec.durations,
        spec.numbers,
        int(totals["count"]),
        totals["measured"].astype(np.uint64),
        totals["sum"].astype(np.int64),
        totals["slots"].astype(np.uint64),
        tells_failures=any(other.event == exception for other in specs),
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


def _taken(watch: TelemetryWatch, cost: HitCost, *, measured: bool) -> float:
    """Seconds of the target's CPU that hits took until now."""
    hits = sum(watch.counts()[n] for n in ("events", "foreign", "no_frame", "name"))
    return hits * cost.entry + (watch.stats().seconds if measured else 0.0)
