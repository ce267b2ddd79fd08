# SPDX-License-Identifier: Apache-2.0
"""What every run of ``calls`` does, whatever it watches by: it begins, takes turns, and ends."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol, Self

from scope_ebpf.budget.brake import Brake
from scope_ebpf.errors import HostError, NoSuchProcessError, ReadRefusedError
from scope_ebpf.runs.terminal import require_target, stop_signals, target_ended
from scope_ebpf.runs.trace import cpu_seconds, say_braked

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.results.calls import CallSummary
    from scope_ebpf.sinks.calls import CallLines

#: Seconds between two looks at the cost.
_LOOK = 0.1
#: Seconds. New code is looked for in each turn, and runs some ms after it can be seen.
TURN = 0.004


class Watch(Protocol):
    """What is attached to the target while the block lasts."""

    def __enter__(self) -> Self:
        """Load and attach."""

    def __exit__(self, *_: object) -> None:
        """Give everything back."""

    def open(self, *, on: bool) -> None:
        """Let calls count from now on, or no longer."""

    def taken(self) -> int:
        """Calls that were counted so far, of all functions."""

    def detach(self) -> None:
        """Take out what is attached; what was counted can still be read."""


class CallTurns(ABC):
    """One run, for *duration* seconds (None: until Ctrl-C) or *limit* calls, into *summary*."""

    def __init__(
        self,
        target: Target,
        limit: int,
        duration: float | None,
        summary: CallSummary,
        max_cost: float | None,
    ) -> None:
        self._target = target
        self._limit = limit
        self._duration = duration
        self._stop = ""
        self._brake = Brake(max_cost)
        self._next_look = 0.0
        self.summary = summary

    @property
    @abstractmethod
    def _watch(self) -> Watch:
        """What the run is attached by."""

    @abstractmethod
    def _begin(self) -> None:
        """Get ready to count, once attached."""

    @abstractmethod
    def _look(self, lines: CallLines) -> None:
        """Look after what else has changed, in each turn."""

    @abstractmethod
    def _drain(self, lines: CallLines) -> None:
        """Tell what is in the ring."""

    @abstractmethod
    def _cost(self) -> float:
        """Seconds of the VM's CPU that it has taken so far."""

    @abstractmethod
    def _sum_up(self) -> None:
        """Take over what the kernel counted."""

    def run(self, lines: CallLines, started: Callable[[], None]) -> ScopeError | None:
        """Watch until something ends it; the error, if it was one. Calls *started* first."""
        require_target(self._target.identity, "watched")
        error: ScopeError | None = None
        with self._watch as watch, stop_signals(self._ask_to_stop):
            self._begin()
            watch.open(on=True)
            start = time.monotonic()
            started()
            try:
                self._turns(start, lines)
                watch.open(on=False)
                self._look(lines)  # what came after the last look may have been called
            except NoSuchProcessError as gone:
                self._ask_to_stop("target ended")
                error = target_ended(self._target.pid, gone, "watched")
            except (ReadRefusedError, HostError) as refused:
                self._ask_to_stop("refused")
                error = refused
            finally:
                watch.open(on=False)
                self.summary.duration_seconds = time.monotonic() - start
            watch.detach()
            self._drain(lines)
            self._sum_up()
        self.summary.stopped_because = self._stop
        return error

    def _ask_to_stop(self, reason: str) -> None:
        self._stop = self._stop or reason

    def _turns(self, started: float, lines: CallLines) -> None:
        while not self._stop:
            self._target.identity.wait(TURN)
            self._drain(lines)
            self._look(lines)
            self._brake_if_needed()
            if self._watch.taken() >= self._limit:
                self._ask_to_stop(f"the limit of {self._limit:,} calls was reached")
            if self._duration is not None and time.monotonic() - started >= self._duration:
                self._ask_to_stop("duration")

    def _brake_if_needed(self) -> None:
        """Stop where it took more than it may for a second."""
        now, used = time.monotonic(), None
        if now >= self._next_look:
            self._next_look = now + _LOOK
            used = cpu_seconds(self._target.pid)
        if used is not None and self._brake.add(now, self._cost(), used):
            say_braked(self._brake)
            self._ask_to_stop("cost")
