# SPDX-License-Identifier: Apache-2.0
"""What every run of ``calls`` does, whatever it observes by: it begins, takes turns, and ends."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from scope_ebpf.errors import HostError, NoSuchProcessError, ReadRefusedError
from scope_ebpf.runs.loop import Loop, Stop, require_target
from scope_ebpf.runs.target_cost import CostBrake

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.results.calls import CallSummary
    from scope_ebpf.sinks.calls import CallLines

#: Seconds of one turn. Each looks for new code, which runs some ms after it can be seen.
TURN = 0.004


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How long calls are observed, and what is measured of them."""

    #: Calls after which the run ends, of all functions.
    limit: int
    #: Seconds; None for no end.
    duration: float | None
    #: Whether to measure how long calls take.
    durations: bool = False
    #: The share of the target's CPU above which the run ends itself; None for no bound.
    max_cost: float | None = None


class Observer(Protocol):
    """What observes calls in the target while the block lasts."""

    def __enter__(self) -> Self:
        """Load and attach."""

    def __exit__(self, *_: object) -> None:
        """Detach and give everything back."""

    def open(self, *, on: bool) -> None:
        """Let calls count from now on, or no longer."""

    def taken(self) -> int:
        """Calls that were counted so far, of all functions."""

    def detach(self) -> None:
        """Take the hooks out; what was counted can still be read."""


class CallRun(ABC):
    """One run on *target* with *options*, into *summary*."""

    def __init__(self, target: Target, options: CallOptions, summary: CallSummary) -> None:
        self._target = target
        self._options = options
        self._stop = Stop()
        self._brake = CostBrake(target.pid, options.max_cost, self._stop)
        self.summary = summary

    @property
    @abstractmethod
    def _observer(self) -> Observer:
        """What the run observes by."""

    @abstractmethod
    def _begin(self) -> None:
        """Get ready to count, once attached."""

    @abstractmethod
    def _follow_changes(self, lines: CallLines) -> None:
        """Follow what else has changed in the target, in each turn."""

    @abstractmethod
    def _drain(self, lines: CallLines) -> None:
        """Write what is in the ring."""

    @abstractmethod
    def _cost(self) -> float:
        """Seconds of the VM's CPU that hooks have taken so far."""

    @abstractmethod
    def _sum_up(self) -> None:
        """Add what the kernel counted to the summary."""

    def run(self, lines: CallLines, started: Callable[[], None]) -> ScopeError | None:
        """Observe until something ends it; the error, if it was one. Calls *started* first."""
        require_target(self._target.identity, "watched")
        error: ScopeError | None = None
        with self._observer as observer, self._stop.on_signals():
            self._begin()
            observer.open(on=True)
            loop = Loop(self._target.identity, "watched", self._options.duration, self._stop)
            started()
            try:
                error = loop.run(lambda now: self._turn(now, lines), lambda: TURN)
                observer.open(on=False)
                if error is None:
                    self._follow_changes(lines)  # code that came after the last turn may have run
            except NoSuchProcessError as gone:
                error = loop.ended(gone)
            except (ReadRefusedError, HostError) as refused:
                self._stop.ask("refused")
                error = refused
            finally:
                observer.open(on=False)
                self.summary.duration_seconds = time.monotonic() - loop.started
            observer.detach()
            self._drain(lines)
            self._sum_up()
        self.summary.stopped_because = self._stop.reason
        return error

    def _turn(self, now: float, lines: CallLines) -> None:
        self._drain(lines)
        self._follow_changes(lines)
        self._brake.look(now, self._cost)
        limit = self._options.limit
        if self._observer.taken() >= limit:
            self._stop.ask(f"the limit of {limit:,} calls was reached")
