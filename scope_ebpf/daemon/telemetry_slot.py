# SPDX-License-Identifier: Apache-2.0
"""
The place of a target's telemetry hooks between the loop, which has them, and the thread that says
what they are to count.

Hooks that the kernel refuses are no reason to drop the target: it goes on without them. Nor is an
unexpected error.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from scope_ebpf.daemon.telemetry import TelemetryHooks
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.hooks import TargetHooks
    from scope_ebpf.daemon.readings.threads import WatchedThreads
    from scope_ebpf.daemon.telemetry import Crop, Offer, Specified


class TelemetrySlot:
    """
    The telemetry hooks of *target*, none until they are offered; *hooks* are its others, *threads*
    its threads.

    :meth:`offer`, :meth:`move`, :meth:`specify` and :meth:`take` are for another thread, all else
    is for the loop, and raises NoSuchProcessError and NoAnswerError.

    Attributes:
        next_due: when :meth:`run` is due, monotonic seconds; None while there are no hooks.
    """

    def __init__(
        self, target: Target, hooks: TargetHooks, threads: WatchedThreads | None = None
    ) -> None:
        self._target, self._others, self._threads = target, hooks, threads
        self._hooks: TelemetryHooks | None = None
        self._offers: deque[Offer | None] = deque(maxlen=1)
        self._specified: deque[Sequence[Specified]] = deque()
        self._moves: deque[Sequence[int]] = deque(maxlen=1)
        self._error: Exception | None = None
        #: Seconds of CPU that hooks took which are out.
        self._spent = 0.0

    @property
    def next_due(self) -> float | None:
        """See the class."""
        return self._hooks.next_due if self._hooks else None

    def offer(self, offer: Offer | None) -> None:
        """Attach hooks as *offer* says at the next tick; None to take them out."""
        self._specified.clear()
        self._moves.clear()
        self._error = None
        self._offers.append(offer)

    def move(self, addresses: Sequence[int]) -> None:
        """Set breakpoints at these addresses instead, from the next tick on."""
        self._moves.append(addresses)

    def specify(self, specified: Sequence[Specified]) -> None:
        """Count events as these specifications say, too, from the next tick on."""
        self._specified.append(specified)

    def take(self) -> Crop | None:
        """Take what was counted; raises the error, of any kind, for which hooks were taken out."""
        if self._error:
            raise self._error
        hooks = self._hooks
        if hooks is None or hooks.crop is None:
            return None
        crop, hooks.crop = hooks.crop, None
        return crop

    def tick(self) -> float:
        """Do what was asked for; seconds of the target's CPU that hooks took so far."""
        self._guarded(self._follow)
        return self._spent + (self._hooks.spent if self._hooks else 0.0)

    def run(self) -> None:
        """Attach and detach what is due."""
        if self._hooks:
            self._guarded(self._hooks.run)

    def _follow(self) -> None:
        if self._offers:
            offer = self._offers.popleft()
            self.close()
            if offer:
                shared = self._others.resources
                self._hooks = TelemetryHooks(
                    self._target,
                    offer,
                    self._others.counters,
                    attacher=shared.attacher,
                    entry=shared.cost.entry,
                    budget=self._others.budget,
                    clock=self._threads.work_clock() if self._threads else None,
                )
        while self._hooks and self._moves:
            self._hooks.move(self._moves.popleft())
        while self._hooks and self._specified:
            self._hooks.specify(self._specified.popleft())

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (NoSuchProcessError, NoAnswerError):
            raise
        except Exception as error:  # noqa: BLE001 - the thread that asks for counts gets it
            self._error = error
            self.close()

    def close(self) -> None:
        """Detach the hooks, if there are any."""
        hooks, self._hooks = self._hooks, None
        if hooks:
            self._spent += hooks.spent
            hooks.close()
