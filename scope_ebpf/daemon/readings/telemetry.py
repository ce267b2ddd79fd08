# SPDX-License-Identifier: Apache-2.0
"""
Finds the telemetry of each target, and reads what its events are called, in a thread of its own.

Hooks are the loop's (``daemon/telemetry.py``). All memory that names are read from is read here,
so that a VM whose memory does not come keeps nobody from detaching hooks.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.memory.look_limits import LookLimits, limited
from scope_ebpf.beam.memory.process_memory import Memory, cpu_seconds
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.telemetry.encoding import Decoder, Encoder
from scope_ebpf.beam.telemetry.library import MODULE, TABLE, Everywhere, loaded, settings
from scope_ebpf.daemon.looks.owners import in_turns, queue_of
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.thread import Observed, ReadingThread, reason
from scope_ebpf.daemon.telemetry import Offer
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError, ReadRefusedError
from scope_ebpf.metrics.telemetry import OTHER, Counted, TelemetryReading, TelemetrySums, worked
from scope_ebpf.runs.telemetry import row_of
from scope_ebpf.runs.telemetry_hooks import hooks_of
from scope_ebpf.telemetry.specs import of_series

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from scope_ebpf.beam.telemetry.library import Library
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.budget.strata import Estimate
    from scope_ebpf.daemon.config import Config
    from scope_ebpf.daemon.telemetry import Crop, Specified
    from scope_ebpf.telemetry.specs import Spec

#: The part of a target's budget that looks may take of the daemon's CPU.
SHARE = 0.1
#: Seconds between two looks for a target whose events are counted; for one without the library; at
#: whether the library has become another one.
_INTERVAL, _SEARCH, _AGAIN = 1.0, 30.0, 60.0
#: Limits of one look: bytes of memory, system calls, seconds of CPU, seconds of time.
_DATA, _CALLS, _CPU, _WALL = 256 << 20, 200_000, 2.0, 30.0
#: Failures one after the other from which on telemetry is refused; seconds until the next try.
_FAILURES, _RETRY = 5, 60.0
#: Seconds of CPU after which the other targets of an owner wait for the next pass.
_OWNER_CPU = 1.0
#: Seconds between two looks for a target that is due, and while telemetry is not read.
_PASS, _OFF = 0.25, 2.0


class Subject(Observed, Protocol):
    """A target whose telemetry is read: a ``watch.Watch``."""

    def offer_telemetry(self, offer: Offer | None) -> None:
        """Count events as *offer* says from the next tick on; None to count none."""

    def move_telemetry(self, addresses: Sequence[int]) -> None:
        """Set breakpoints at these addresses instead, from the next tick on."""

    def specify_telemetry(self, specified: Sequence[Specified]) -> None:
        """Count events as these specifications say, too."""

    def take_telemetry(self) -> Crop | None:
        """Take what was counted; raises the error, of any kind, for which hooks were taken out."""

    def publish_telemetry(self, found: TelemetryReading) -> None:
        """Show these figures with the next reading."""


class Sight:
    """The telemetry of *target*: which library it is, and what its events are called."""

    def __init__(self, target: Target, specs: Sequence[Spec]) -> None:
        # A separate Memory: searching for tables tries addresses, which are not failed reads.
        self.target = replace(target, memory=Memory(target.pid, target.identity.process))
        self._specs = specs
        self._atoms = Atoms(self.target)
        self._decoder = Decoder(self._atoms, strict=True)
        self._encoder = Encoder(specs, self._atoms, work=True)
        self._missing, self._searched = {MODULE, TABLE}, 0
        self._library: Library | None = None
        #: The function that every event passes, where breakpoints are set on it; their addresses.
        self._execute: Everywhere | None = None
        self._addresses: list[int] = []

    def look(self) -> Offer | None:
        """
        Look for the library: what hooks are made of if it is there and was not before.

        ReadRefusedError where its events cannot be seen.
        """
        total = len(self._atoms)
        if self._missing and total > self._searched:
            self._missing -= self._atoms.indices(self._missing, self._searched).keys()
            self._searched = total
        library = None if self._missing else loaded(self.target, self._atoms)
        before, self._library = self._library, library
        if library is None or library == before:
            return None
        hooks = hooks_of(self.target, library)
        try:
            self._execute, self._addresses = None, []
            if not hooks:
                self._execute = Everywhere(self.target, self._atoms)
                self._addresses = self._execute.addresses()
        except ReadRefusedError:
            self._library = None
            raise
        self._encoder = Encoder(self._specs, self._atoms, work=True)
        known = settings(self.target, self._atoms)
        return Offer(known, hooks, self._specs, self.specified(), self._addresses)

    def moved(self) -> list[int] | None:
        """Where breakpoints must be from now on, once that is elsewhere: code was loaded anew."""
        if self._execute is None or (addresses := self._execute.addresses()) == self._addresses:
            return None
        self._addresses = addresses
        return addresses

    @property
    def is_there(self) -> bool:
        """Whether the library was there at the last look."""
        return self._library is not None

    def specified(self) -> list[Specified]:
        """Specifications that have changed, because atoms have come."""
        return list(self._encoder.update())

    def counted(self, crop: Crop) -> Iterator[Counted]:
        """
        The events of *crop* by name and labels; those whose names cannot be read have none.

        Raises NoSuchProcessError and TooMuchError.
        """
        for row, growth, estimate in zip(crop.rows, crop.growth, crop.estimates, strict=True):
            event, labels = self._named(row, growth, estimate)
            factor = estimate.number / int(growth["count"])
            yield Counted(
                event,
                labels,
                estimate.number,
                factor * growth["measured"].astype(np.float64),
                factor * growth["sum"].astype(np.int64).astype(np.float64),
                factor * growth["slots"].astype(np.float64),
            )

        yield from self._worked(crop)

    def _worked(self, crop: Crop) -> Iterator[Counted]:
        """Seconds of CPU by what was worked on."""
        for row, seconds in crop.work:
            if isinstance(row, int):
                yield worked("", "", seconds, other=row != events.WORK_OUTSIDE)
                continue
            spec = self._specs[int(row["spec"]) - 1]
            try:
                labels = self._decoder.labels(row, len(spec.work))
            except ReadRefusedError:  # for this moment
                labels = None
            name = labels[0] if labels else None
            yield worked(spec.name, name or "", seconds, other=labels is None)

    def _named(
        self, row: np.void, growth: np.void, estimate: Estimate
    ) -> tuple[str, Mapping[str, str | None] | None]:
        """The name of an event, and its labels: None where it has no row of its own."""
        number = int(row["spec"])
        try:
            found = row_of(self._specs, self._decoder, row, growth, estimate)
        except ReadRefusedError:  # for this moment; a label would stay
            return self._specs[number - 1].name if number else OTHER, None
        if found.labels is None:
            return found.event if number else OTHER, None
        return found.event, found.named


@dataclass(slots=True)
class _State:
    """What is known of one target's telemetry, for *series* series at most."""

    sight: Sight | None = None
    series: int = 0
    #: They outlast what looks: a VM could have it made anew, and so any number of new series.
    sums: TelemetrySums = field(default_factory=lambda: TelemetrySums(0))
    #: When the next look is due, and the next one for the library, in seconds of the clock.
    due: float = 0.0
    search: float = 0.0
    #: Seconds of CPU that the search in this look took.
    searched: float = 0.0
    failures: int = 0
    refused: str = ""


@dataclass(slots=True)
class TelemetryLooks(ReadingThread):
    """
    Reads the telemetry of *subjects*, which returns the targets of this moment, until closed.

    Unexpected errors are counted in *errors* under ``snapshot``.
    """

    NAME = "telemetry"
    subjects: Callable[[], Sequence[Subject]]
    config: Callable[[], Config]
    errors: Counter[str]
    clock: Callable[[], float] = time.monotonic
    make: Callable[[Target, Sequence[Spec]], Sight] = Sight
    _specs: Sequence[Spec] = field(default_factory=of_series)
    _states: dict[Subject, _State] = field(default_factory=dict)

    def look(self) -> None:
        """Look at the targets that are due; without series at none."""
        series = self.config().telemetry.series
        if not series:
            for subject in self._states:
                subject.offer_telemetry(None)
                subject.publish_telemetry(TelemetryReading())
            self._states = {}
            return
        self._states = {s: self._states.get(s) or _State() for s in self.subjects()}
        taken: defaultdict[str, float] = defaultdict(float)
        for subject in in_turns(self._states, lambda subject: subject.owner):
            state, owner = self._states[subject], queue_of(subject.owner)
            due = self.clock() >= state.due and taken[owner] < _OWNER_CPU
            if due and not self._ended.is_set():
                taken[owner] += self._look_at(subject, state, series)

    def _run(self) -> None:
        while not self._ended.wait(_PASS if self.config().telemetry.series else _OFF):
            self.look()

    def _look_at(self, subject: Subject, state: _State, series: int) -> float:
        """Look at one target; the seconds of CPU that it took."""
        what, began = f"reading telemetry of process {subject.target.pid}", cpu_seconds()
        state.searched = 0.0
        limits = LookLimits(what, data=_DATA, calls=_CALLS, cpu=_CPU, wall=_WALL)
        pause = _RETRY
        if state.series != series:
            state.sums, state.series = TelemetrySums(series), series
        try:
            with limited(limits):
                pause = self._read(subject, state)
            subject.target.identity.check()
        except NoSuchProcessError:
            pass  # the loop drops it
        except NoAnswerError as error:
            subject.fail(error)
        except Exception as error:  # noqa: BLE001 - one target must not take the others along
            if not self._ended.is_set():
                pause = self._failed(subject, state, error)
        else:
            state.failures, state.refused = 0, ""
        spent = cpu_seconds() - began
        # What a search took is paid before the next search: figures must not wait for it.
        owed = (spent - state.searched) / (SHARE / 2 * subject.income)
        state.due = self.clock() + max(pause, owed)
        return spent

    def _read(self, subject: Subject, state: _State) -> float:
        """Read what there is; seconds until the next look."""
        began, searches = cpu_seconds(), self.clock() >= state.search
        sight = state.sight = state.sight or self.make(subject.target, self._specs)
        if searches:
            if offer := sight.look():
                subject.offer_telemetry(offer)
            elif not sight.is_there:
                subject.offer_telemetry(None)
        elif addresses := sight.moved():
            subject.move_telemetry(addresses)
        if sight.is_there and (specified := sight.specified()):
            subject.specify_telemetry(specified)
        if searches:
            state.searched = cpu_seconds() - began
            owed = state.searched / (SHARE / 2 * subject.income)
            state.search = self.clock() + max(_AGAIN if sight.is_there else _SEARCH, owed)
        if not sight.is_there:
            subject.publish_telemetry(TelemetryReading())  # and so nothing is refused any more
            return _SEARCH
        try:
            crop = subject.take_telemetry()
        except Exception:
            state.failures = _FAILURES  # nothing is attached any more
            raise
        if crop:
            found = state.sums.add(sight.counted(crop), crop.span, self.clock())
            subject.publish_telemetry(found)
        return _INTERVAL

    def _failed(self, subject: Subject, state: _State, error: Exception) -> float:
        """
        Note a failure, and count no events after several; seconds until the next try.

        Code that is loaded meanwhile makes a look fail now and then.
        """
        why = reason(error, self.errors)
        state.failures += 1
        if state.sight and state.sight.is_there and state.failures < _FAILURES:
            return _INTERVAL
        if not state.refused:
            say(logging.WARNING, "telemetry not read", pid=subject.target.pid, why=why)
        state.refused, state.sight, state.search = why, None, 0.0
        subject.offer_telemetry(None)
        subject.publish_telemetry(TelemetryReading(refused=why))
        return _RETRY
