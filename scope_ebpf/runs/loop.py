# SPDX-License-Identifier: Apache-2.0
"""
The loop of every run: wait, do what is due, until there is a reason to stop.

A run stops because its time is over, a signal came, the target ended, or its turn says so.
"""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING

from scope_ebpf import pipes
from scope_ebpf.errors import NoSuchProcessError, TargetEndedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scope_ebpf.beam.vm.identity import Identity
    from scope_ebpf.errors import ScopeError

#: What each stop signal is called in a summary.
_SIGNALS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "hung up",
}


class Stop:
    """
    Why a run stops.

    *reason* is the first that was given, "" while the run goes on.
    """

    def __init__(self) -> None:
        self.reason = ""

    def ask(self, reason: str) -> None:
        """Stop the run for *reason*, unless there is a reason already."""
        self.reason = self.reason or reason

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Let Ctrl-C, SIGTERM and SIGHUP stop the run while the block lasts."""

        def asked(number: int, _frame: object) -> None:
            pipes.set_ending()
            self.ask(_SIGNALS[signal.Signals(number)])

        before = {number: signal.signal(number, asked) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Loop:
    """
    The turns of one run on the process of *identity*.

    *doing* is what is done to the target, such as "traced". *duration* is in seconds, None for no
    end. *stop* may be asked by anybody. *started* is when the run began, monotonic seconds.
    """

    def __init__(self, identity: Identity, doing: str, duration: float | None, stop: Stop) -> None:
        self._identity, self._doing = identity, doing
        self._duration = duration
        self._stop = stop
        self.started = time.monotonic()

    def run(
        self,
        turn: Callable[[float], ScopeError | None],
        pause: Callable[[], float],
        wait: Callable[[float], None] | None = None,
    ) -> ScopeError | None:
        """
        Wait and call *turn* with the time, monotonic seconds, until there is a reason to stop.

        *pause* is how long to wait for the next turn, seconds; *wait* is what waits, if not for the
        target's end alone. Returns the error that ended the run, if one did: that of *turn*, or
        that the target ended.
        """
        wait = wait or self._identity.wait
        try:
            while (left := self._seconds_left()) > 0:
                wait(max(0.0, min(pause(), left)))
                if self._seconds_left() > 0 and (error := turn(time.monotonic())):
                    return error
        except NoSuchProcessError as gone:
            return self.ended(gone)
        return None

    def _seconds_left(self) -> float:
        """Seconds until the end of the run; 0 once there is a reason to stop."""
        if self._stop.reason:
            return 0.0
        if self._duration is None:
            return float("inf")
        left = self.started + self._duration - time.monotonic()
        if left <= 0:
            self._stop.ask("duration")
        return max(0.0, left)

    def ended(self, gone: NoSuchProcessError) -> TargetEndedError:
        """Stop the run because the target has ended, as *gone* says; the error for the user."""
        self._stop.ask("target ended")
        return target_ended(self._identity.pid, gone, self._doing)


def require_target(identity: Identity, doing: str) -> None:
    """TargetEndedError if the target has ended or changed since it was inspected."""
    try:
        identity.check()
    except NoSuchProcessError as error:
        raise TargetEndedError(
            f"process {identity.pid} {error.what} before it could be {doing}"
        ) from None


def target_ended(pid: int, error: NoSuchProcessError, doing: str) -> TargetEndedError:
    """The error of a run whose target ended, as *error* says, while it was *doing* ("traced")."""
    return TargetEndedError(f"process {pid} {error.what} while it was {doing}")
