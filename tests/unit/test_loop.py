# SPDX-License-Identifier: Apache-2.0
"""
When a run takes a turn, and why it stops.
"""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from scope_ebpf import pipes
from scope_ebpf.errors import HostError, NoSuchProcessError, TargetEndedError
from scope_ebpf.runs import loop as loops
from scope_ebpf.runs.loop import Loop, Stop, require_target

if TYPE_CHECKING:
    from collections.abc import Callable


class Target:
    """
    A process that ends with its fourth wait; *waits* are the seconds of each.
    """

    pid = 4711

    def __init__(self, clock: SimpleNamespace) -> None:
        self._clock = clock
        self.waits: list[float] = []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._clock.now += seconds
        if len(self.waits) == 4:
            raise NoSuchProcessError("no process 4711")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """
    The time of the loop, in seconds.
    """
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(loops, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def run(
    clock: SimpleNamespace,
    duration: float | None,
    turn: Callable[[float], object] = lambda _now: None,
    stop: Stop | None = None,
) -> tuple[Target, Stop, object]:
    """
    A run with a turn each 4 s: its target, why it stopped, and the error.
    """
    target, stop = Target(clock), stop or Stop()
    loop = Loop(target, "traced", duration, stop)
    return target, stop, loop.run(turn, lambda: 4.0)


def test_a_run_takes_turns_until_its_time_is_over(clock: SimpleNamespace):
    """
    The last wait ends with the time, and no turn comes after it.
    """
    turns: list[float] = []
    target, stop, error = run(clock, 10.0, turns.append)
    assert ([4.0, 4.0, 2.0], [104.0, 108.0]) == (target.waits, turns)
    assert ("duration", None) == (stop.reason, error)


def test_a_run_without_time_takes_no_turn(clock: SimpleNamespace):
    """
    It does not even wait.
    """
    target, stop, error = run(clock, 0.0)
    assert ([], "duration", None) == (target.waits, stop.reason, error)


def test_a_target_that_ends_is_an_error_that_says_what_was_done(clock: SimpleNamespace):
    """
    Turns are taken until then, and what ended the run is in the summary.
    """
    turns: list[float] = []
    _, stop, error = run(clock, None, turns.append)
    assert [104.0, 108.0, 112.0] == turns
    assert isinstance(error, TargetEndedError)
    assert ("target ended", "process 4711 ended while it was traced") == (stop.reason, str(error))


def test_an_error_of_a_turn_ends_the_run(clock: SimpleNamespace):
    """
    It is returned, with the reason that the turn gave.
    """
    stop, broken = Stop(), HostError("broken")

    def turn(_now: float) -> HostError:
        stop.ask("output failed")
        return broken

    target, _, error = run(clock, None, turn, stop)
    assert (1, "output failed", broken) == (len(target.waits), stop.reason, error)


def test_the_first_reason_counts(clock: SimpleNamespace):
    """
    A run that was asked to stop takes no further turn, and what comes later is no reason.
    """
    stop = Stop()
    stop.ask("cost")
    target, _, error = run(clock, 0.0, stop=stop)
    stop.ask("interrupted")
    assert ([], "cost", None) == (target.waits, stop.reason, error)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "terminated"),
        (signal.SIGHUP, "hung up"),
    ],
)
def test_a_signal_is_a_reason_while_the_block_lasts(number: int, reason: str):
    """
    Writes to a pipe wait no longer than they must from then on, and handlers are as before after.
    """
    before, stop = signal.getsignal(number), Stop()
    pipes.set_ending(ending=False)
    try:
        with stop.on_signals():
            signal.raise_signal(number)
        assert (reason, True) == (stop.reason, pipes._command.ending)
    finally:
        pipes.set_ending(ending=False)
    assert before is signal.getsignal(number)


def test_a_target_that_has_ended_before_is_said():
    """
    The message says what could not be done.
    """

    def check() -> None:
        raise NoSuchProcessError("no process 4711")

    with pytest.raises(TargetEndedError) as error:
        require_target(SimpleNamespace(pid=4711, check=check), "profiled")
    assert "process 4711 ended before it could be profiled" == str(error.value)
