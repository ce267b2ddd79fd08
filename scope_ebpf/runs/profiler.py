# SPDX-License-Identifier: Apache-2.0
"""One profile of one target, from the first sample to the last."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

from scope_ebpf.beam.stacks.sampling import sample_settings, scheduler_threads
from scope_ebpf.errors import NoSuchProcessError, TargetChangedError
from scope_ebpf.kernel.observers.sampler import Sampler
from scope_ebpf.results.profile import Profile
from scope_ebpf.runs.symbolizer import Reader
from scope_ebpf.runs.terminal import progress_bar, require_target, stop_signals, target_ended
from scope_ebpf.runs.trace import cpu_seconds, say_braked
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.budget.brake import Brake
    from scope_ebpf.errors import ScopeError

#: Samples are read so often, seconds: soon enough to name a process that is about to end.
_INTERVAL = 0.1
#: Code may be loaded at any time; its tables are looked at so often, seconds.
_REFRESH = 1.0


def on_cpu(
    target: Target, hz: int, duration: float | None, by: str
) -> tuple[Profile, ScopeError | None]:
    """
    Sample what runs, *hz* times a second on each CPU, for *duration* seconds (None: until asked).

    Returns the profile and the error that ended it early, if it was one: what was seen until
    then is in the profile.
    """
    profile = Profile("cpu", target.as_json(), hz, time.time())
    reader = Reader(target, profile, by)
    with Sampler(target.identity, sample_settings(target), hz) as sampler:
        sampler.know(scheduler_threads(target))
        run = Run(target, profile, sampler, reader)
        return profile, run.go(duration)


class Source(Protocol):
    """Where samples come from."""

    def start(self) -> None:
        """Let it begin."""

    def stop(self) -> None:
        """Let it end; what there is can still be read."""

    def records(self) -> Iterator[bytes]:
        """Give what came since the last call."""

    def counts(self) -> dict[str, int]:
        """Tell how many were lost."""


class Run:
    """
    One run of a *sampler*, from start to stop.

    *brake* ends it where *cost*, seconds of the target's CPU so far, is too much.
    """

    def __init__(
        self,
        target: Target,
        profile: Profile,
        sampler: Source,
        reader: Reader,
        *,
        brake: Brake | None = None,
        cost: Callable[[], float] = float,
    ) -> None:
        self._target = target
        self._brake, self._cost = brake, cost
        self._profile = profile
        self._sampler = sampler
        self._reader = reader

    def go(self, duration: float | None) -> ScopeError | None:
        """Sample until something ends it."""
        profile, target = self._profile, self._target
        require_target(target.identity, "profiled")
        error: ScopeError | None = None
        with stop_signals(self._ask_to_stop):
            before = cpu_seconds(target.pid)
            self._sampler.start()
            started = time.monotonic()
            _say_started(target.pid, duration)
            error = self._watch(started, duration, before)
            self._sampler.stop()
            # Up to the last sample: what is told is a share of it.
            self._used(before)
            profile.seconds = time.monotonic() - started
            error = self._take() or error
        profile.quality.lost = self._sampler.counts()["lost"]
        if self._reader.undecoded:
            profile.quality.lost += self._reader.undecoded
            profile.notes.append(
                f"{self._reader.undecoded} samples of the target's last moments had no names any "
                "more; they are among the lost"
            )
        return error

    def _ask_to_stop(self, reason: str) -> None:
        self._profile.stopped_because = self._profile.stopped_because or reason

    def _watch(
        self, started: float, duration: float | None, before: float | None
    ) -> ScopeError | None:
        refreshed = started
        with progress_bar(duration, visible=True) as advance:
            while not self._profile.stopped_because:
                now = time.monotonic()
                self._used(before)
                self._brake_if_needed(now)
                left = _INTERVAL if duration is None else started + duration - now
                if left <= 0:
                    self._ask_to_stop("duration")
                    return None
                advance(now - started)
                try:
                    self._target.identity.wait(min(_INTERVAL, left))
                except NoSuchProcessError as gone:
                    return self._ended(gone)
                error = self._take()
                if error:
                    return error
                if now - refreshed >= _REFRESH:
                    refreshed = now
                    self._reader.refresh()
        return None

    def _used(self, before: float | None) -> None:
        """Note the CPU time that the target used since *before*; of one that has ended the last."""
        used = cpu_seconds(self._target.pid)
        if used is not None and before is not None:
            self._profile.cpu_seconds = used - before

    def _brake_if_needed(self, now: float) -> None:
        used = self._profile.cpu_seconds
        if self._brake and used is not None and self._brake.add(now, self._cost(), used):
            say_braked(self._brake)
            self._ask_to_stop("cost")

    def _take(self) -> ScopeError | None:
        records = list(self._sampler.records())
        try:
            self._target.identity.check()
        except TargetChangedError as gone:
            # Some may be of the other program: they are not even looked at.
            self._reader.undecoded += len(records)
            return self._ended(gone)
        except NoSuchProcessError:
            pass  # they are of its last moments
        try:
            self._reader.take(records)
        except NoSuchProcessError as gone:
            return self._ended(gone)
        return None

    def _ended(self, error: NoSuchProcessError) -> ScopeError:
        self._ask_to_stop("target ended")
        return target_ended(self._target.pid, error, "profiled")


def _say_started(pid: int, duration: float | None) -> None:
    if sys.stderr.isatty():
        return
    length = "" if duration is None else f" for {duration:g} s"
    say(f"scope-trace: profiling process {pid}{length}; Ctrl-C ends it")
