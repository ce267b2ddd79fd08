# SPDX-License-Identifier: Apache-2.0
"""One profile of one target, from the first sample to the last."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from scope_ebpf.beam.stacks.sampling import sample_settings, scheduler_threads
from scope_ebpf.budget.brake import Brake
from scope_ebpf.errors import (
    HostError,
    NoSuchProcessError,
    NothingToAttachError,
    ReadRefusedError,
    TargetChangedError,
)
from scope_ebpf.kernel.observers.sampler import Sampler
from scope_ebpf.results.profile import Profile
from scope_ebpf.runs.loop import Loop, Stop, require_target
from scope_ebpf.runs.symbolizer import Symbolizer
from scope_ebpf.runs.target_cost import cpu_seconds, say_braked
from scope_ebpf.runs.terminal import progress_bar
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.runs.work import Works

#: Seconds between two reads of samples: processes are named before most of them end.
_INTERVAL = 0.1
#: Seconds between two looks at the VM's code tables: code may be loaded at any time.
_REFRESH = 1.0


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """What is sampled, for how long, and how samples are shown."""

    #: Samples a second on each CPU; off the CPU, one for so much waiting of one process.
    hz: int
    #: Seconds; None for no end.
    duration: float | None
    #: The outermost frame, one of ``symbolizer.OWNERS``.
    by: str = "name"
    #: The share of the target's CPU above which hooks end the profile; None for no bound.
    max_cost: float | None = None


def on_cpu(target: Target, options: ProfileOptions) -> tuple[Profile, ScopeError | None]:
    """
    Sample what runs on the CPUs.

    Returns the profile and the error that ended it early, if it was one: what was seen until
    then is in the profile.
    """
    profile = Profile("cpu", target.as_json(), options.hz, time.time())
    with works_by(target, options.by, profile) as works:
        symbolizer = Symbolizer(target, profile, options.by, works.name if works else None)
        fd = works.fd if works else None
        with Sampler(target.identity, sample_settings(target), options.hz, fd) as sampler:
            sampler.add_schedulers(scheduler_threads(target))
            run = ProfileRun(target, profile, sampler, symbolizer)
            if works:
                brake = Brake(options.max_cost)
                run = ProfileRun(
                    *(target, profile, sampler, symbolizer),
                    brake=brake,
                    cost=works.cost,
                    follow=works.look,
                )
            return profile, run.go(options.duration)


@contextmanager
def works_by(target: Target, by: str, profile: Profile) -> Iterator[Works | None]:
    """What processes of *target* work on while the block runs; None if stacks are not *by* that."""
    if by != "route":
        yield None
        return
    from scope_ebpf.runs.work import NOTE, noted

    profile.notes.append(NOTE)
    with noted(target) as works:
        yield works


class Source(Protocol):
    """Where samples come from."""

    def start(self) -> None:
        """Begin to sample."""

    def stop(self) -> None:
        """End sampling; what was sampled can still be read."""

    def records(self) -> Iterator[bytes]:
        """Samples since the last call, each an ``events.SAMPLE`` and its words."""

    def counts(self) -> dict[str, int]:
        """How many samples were ``lost``."""


class ProfileRun:
    """
    One run of a *sampler*, from start to stop, into *profile*.

    *brake* ends it where it costs the target too much; *cost* looks, and gives what ``Brake.add``
    takes. *follow* is called at each turn; what it raises ends the run.
    """

    def __init__(
        self,
        target: Target,
        profile: Profile,
        sampler: Source,
        symbolizer: Symbolizer,
        *,
        brake: Brake | None = None,
        cost: Callable[[], Callable[[], float]] = lambda: float,
        follow: Callable[[], None] = lambda: None,
    ) -> None:
        self._target = target
        self._brake, self._cost, self._follow = brake, cost, follow
        self._profile = profile
        self._sampler = sampler
        self._symbolizer = symbolizer
        self._stop = Stop()

    def go(self, duration: float | None) -> ScopeError | None:
        """Sample until something ends it; *duration* as in :class:`ProfileOptions`."""
        profile, target = self._profile, self._target
        require_target(target.identity, "profiled")
        with self._stop.on_signals():
            before = cpu_seconds(target.pid)
            self._sampler.start()
            loop = Loop(target.identity, "profiled", duration, self._stop)
            _say_started(target.pid, duration)
            error = self._watch(loop, duration, before)
            self._sampler.stop()
            # Up to the last sample: the time that samples stand for is shown as a share of it.
            self._note_cpu(before)
            profile.seconds = time.monotonic() - loop.started
            error = self._take(loop) or error
        profile.stopped_because = self._stop.reason
        profile.quality.lost = self._sampler.counts()["lost"]
        if self._symbolizer.undecoded:
            profile.quality.lost += self._symbolizer.undecoded
            profile.notes.append(
                f"{self._symbolizer.undecoded} samples of the target's last moments had no names "
                "any more; they are among the lost"
            )
        return error

    def _watch(self, loop: Loop, duration: float | None, before: float | None) -> ScopeError | None:
        refreshed = loop.started

        def turn(now: float) -> ScopeError | None:
            nonlocal refreshed
            self._note_cpu(before)
            try:
                self._follow()
            except (ReadRefusedError, HostError, NothingToAttachError) as refused:
                self._stop.ask("refused")
                return refused
            self._brake_if_needed(now)
            advance(now - loop.started)
            if error := self._take(loop):
                return error
            if now - refreshed >= _REFRESH:
                refreshed = now
                self._symbolizer.refresh()
            return None

        with progress_bar(duration, visible=True) as advance:
            return loop.run(turn, lambda: _INTERVAL)

    def _note_cpu(self, before: float | None) -> None:
        """Note the CPU time that the target used since *before*; of one that has ended the last."""
        used = cpu_seconds(self._target.pid)
        if used is not None and before is not None:
            self._profile.cpu_seconds = used - before

    def _brake_if_needed(self, now: float) -> None:
        used = self._profile.cpu_seconds
        if self._brake and used is not None and self._brake.add(now, self._cost(), used):
            say_braked(self._brake)
            self._stop.ask("cost")

    def _take(self, loop: Loop) -> ScopeError | None:
        """Add the samples that have come to the profile."""
        records = list(self._sampler.records())
        try:
            self._target.identity.check()
        except TargetChangedError as gone:
            # Some may be of the other program: they are not even looked at.
            self._symbolizer.undecoded += len(records)
            return loop.ended(gone)
        except NoSuchProcessError:
            pass  # they are of its last moments
        try:
            self._symbolizer.take(records)
        except NoSuchProcessError as gone:
            return loop.ended(gone)
        return None


def _say_started(pid: int, duration: float | None) -> None:
    if sys.stderr.isatty():
        return
    length = "" if duration is None else f" for {duration:g} s"
    say(f"scope-trace: profiling process {pid}{length}; Ctrl-C ends it")
