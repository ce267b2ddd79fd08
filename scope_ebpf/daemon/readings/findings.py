# SPDX-License-Identifier: Apache-2.0
"""
What is wrong with each target: checks, one after the other, in a thread of their own.

A check is the one of ``scope-trace check``. It looks for some seconds and mostly waits. It is
repeated when its CPU is a small share of the target's budget, so a large table is checked rarely.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from scope_ebpf.beam.memory.look_limits import LookLimits, limited
from scope_ebpf.beam.memory.process_memory import Memory, cpu_seconds
from scope_ebpf.daemon.looks.owners import queue_of
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.thread import Observed, ReadingThread, reason
from scope_ebpf.errors import (
    NoAnswerError,
    NoSuchProcessError,
    TargetEndedError,
    TooMuchError,
)
from scope_ebpf.metrics.findings import KINDS, MOST_KINDS, SEVERITIES, FindingsReading, FoundKind
from scope_ebpf.runs.check import check

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.config import Config
    from scope_ebpf.metrics.reading import Reading
    from scope_ebpf.results.check import Check
    from scope_ebpf.results.documents.checks import CheckDocument

#: The part of a target's budget that checks of it may take of the daemon's CPU.
SHARE = 0.1
#: Seconds that a check looks, and from the beginning of observation to the first one.
SECONDS, FIRST = 3.0, 15.0
#: Processes of a VM above which it is not checked: their rows are in memory at once.
MOST_PROCESSES = 1 << 18
#: Limits of one check: bytes of memory, system calls, seconds of CPU, seconds of time. A check of
#: so many processes reads 0.22 GB, one of 19,000 in a table of 8,388,608 slots 0.41 GB: a table of
#: few processes is read several times.
_DATA, _CALLS, _CPU, _WALL = 512 << 20, 1_000_000, 5.0, 60.0
#: Seconds until a check that failed is repeated, if it took little: at first, and at most; doubled
#: by each failure, and halved by each success.
_MIN_RETRY, _MAX_RETRY = 60.0, 3600.0
#: Seconds between two looks for a target that is due.
_PASS = 2.0
#: Characters of a text and elements of a list that are kept of a check.
_TEXT, _LIST = 512, 5


class Subject(Observed, Protocol):
    """A target that is checked: a ``watch.Watch``."""

    @property
    def reading(self) -> Reading:
        """Its last figures."""

    def publish_findings(self, found: FindingsReading) -> None:
        """Take the latest findings."""


@dataclass(slots=True)
class _State:
    """When one target is checked next, in seconds of the clock, and the pause after a failure."""

    due: float
    pause: float = _MIN_RETRY
    refused: str = ""


def _bounded(target: Target, seconds: float, wait: Callable[[float], object]) -> Check:
    """Check a VM; the number of processes that it counts need not be true."""
    return check(target, seconds, wait, MOST_PROCESSES)


class _EndedError(Exception):
    """The daemon ends."""


@dataclass(slots=True)
class Findings(ReadingThread):
    """
    Checks *subjects*, which returns the targets of this moment, until closed.

    Unexpected errors are counted in *errors* under ``snapshot``. *look* checks a target.
    """

    NAME = "findings"
    subjects: Callable[[], Sequence[Subject]]
    config: Callable[[], Config]
    errors: Counter[str]
    clock: Callable[[], float] = time.monotonic
    look: Callable[[Target, float, Callable[[float], object]], Check] = _bounded
    #: By target, not by pid: another VM may run in the same process.
    _states: dict[Subject, _State] = field(default_factory=dict)
    #: When a VM of each owner was last checked.
    _served: dict[str, float] = field(default_factory=dict)

    def check_one(self) -> bool:
        """Check the target that is due for longest, of owners in turn; False if none is due."""
        interval = self.config().findings_interval
        first = self.clock() + min(FIRST, interval)
        self._states = {s: self._states.get(s) or _State(first) for s in self.subjects()}
        if not interval:
            for subject in self._states:
                subject.publish_findings(FindingsReading())
            return False
        due = [s for s, state in self._states.items() if self.clock() >= state.due]
        if not due:
            return False
        owners = {queue_of(subject.owner) for subject in self._states}
        self._served = {key: at for key, at in self._served.items() if key in owners}
        subject = min(
            due,
            key=lambda s: (self._served.get(queue_of(s.owner), 0.0), self._states[s].due),
        )
        self._check(subject, self._states[subject], interval)
        self._served[queue_of(subject.owner)] = self.clock()
        return True

    def _run(self) -> None:
        while not self._ended.wait(_PASS):
            self.check_one()

    def _check(self, subject: Subject, state: _State, interval: float) -> None:
        taken, began, pid = time.time(), cpu_seconds(), subject.target.pid
        limits = LookLimits(
            f"checking process {pid}", data=_DATA, calls=_CALLS, cpu=_CPU, wall=_WALL
        )
        pause = _MAX_RETRY
        try:
            with limited(limits):
                found = self._looked_at(subject)
            subject.target.identity.check()
        except (NoSuchProcessError, TargetEndedError, _EndedError):
            pass  # the loop drops it
        except NoAnswerError as error:
            subject.publish_findings(FindingsReading(refused=str(error)))
            subject.fail(error)
        except Exception as error:  # noqa: BLE001 - one target must not take the others along
            pause, state.pause = state.pause, min(2 * state.pause, _MAX_RETRY)
            if not self._ended.is_set():
                self._failed(subject, state, error)
        else:
            state.refused, state.pause = "", max(state.pause / 2, _MIN_RETRY)
            subject.publish_findings(reading_of(found, taken))
            pause = interval
        spent = cpu_seconds() - began
        state.due = self.clock() + max(pause, spent / (SHARE * subject.income))

    def _looked_at(self, subject: Subject) -> Check:
        counters, target = subject.reading.counters, subject.target
        if counters is None:
            raise TooMuchError("it is not known how many processes there are")
        if counters.processes > MOST_PROCESSES:
            raise TooMuchError(f"VMs of more than {MOST_PROCESSES:,} processes are not checked")
        # A separate Memory: searching for tables tries addresses, which are not failed reads.
        target = replace(target, memory=Memory(target.pid, target.identity.process))

        def wait(seconds: float) -> None:
            if self._ended.wait(seconds):
                raise _EndedError
            target.identity.check()

        return self.look(target, SECONDS, wait)

    def _failed(self, subject: Subject, state: _State, error: Exception) -> None:
        """Show no findings until the target can be checked again; log once why."""
        why = reason(error, self.errors)
        if not state.refused:
            say(logging.WARNING, "not checked", pid=subject.target.pid, why=why)
        state.refused = why
        subject.publish_findings(FindingsReading(refused=why))


def reading_of(found: Check, taken: float) -> FindingsReading:
    """The reading of a check that was begun at *taken*, seconds since 1970."""
    worst: dict[str, FoundKind] = {}
    for one in found.sorted():  # the most severe first
        worst.setdefault(one.kind, FoundKind(one.kind, one.severity))
    kinds = sorted(
        worst.values(),
        key=lambda one: (SEVERITIES.index(one.severity), KINDS.index(one.kind)),
    )
    document = cast("CheckDocument", shortened(found.as_json()))
    return FindingsReading(tuple(kinds[:MOST_KINDS]), document, taken=taken)


def shortened(value: Any) -> Any:
    """*value* of a document with no text and no list of evidence that a VM can make long."""
    if isinstance(value, str):
        return value if len(value) <= _TEXT else value[: _TEXT - 3] + "..."
    if isinstance(value, dict):
        return {key: _part(key, one) for key, one in value.items()}
    return [shortened(one) for one in value] if isinstance(value, list) else value


def _part(key: str, value: Any) -> Any:
    """A field of a document; of the lists of a finding's evidence a part is kept."""
    if key == "evidence":
        value = {name: one[:_LIST] if isinstance(one, list) else one for name, one in value.items()}
    return shortened(value)
