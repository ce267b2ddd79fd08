# SPDX-License-Identifier: Apache-2.0
"""What signal handlers and other threads request from the daemon's loop, and its wake-up."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable


class Requests:
    """
    Requests to one loop; :meth:`fileno` is readable when there is a new one.

    All methods may be called by any thread, and :meth:`add_signal` by signal handlers.
    """

    def __init__(self) -> None:
        self._signals: set[signal.Signals] = set()
        self._stale, self._fresh = False, threading.Event()
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        """The descriptor that wakes the loop."""
        return self._read

    def wake(self) -> None:
        """Wake the loop."""
        with suppress(BlockingIOError):  # there are many wake-ups already
            os.write(self._write, b"\0")

    def drain(self) -> None:
        """Discard the wake-ups so far."""
        os.read(self._read, 4096)

    def add_signal(self, number: signal.Signals) -> None:
        """Request what a signal stands for."""
        self._signals.add(number)
        os.write(self._write, b"\0")

    def pending(self, numbers: Iterable[signal.Signals]) -> bool:
        """True if one of the signals *numbers* was requested."""
        return not self._signals.isdisjoint(numbers)

    def take_signal(self, number: signal.Signals) -> bool:
        """True if the signal *number* was requested since the last call."""
        if number not in self._signals:
            return False
        self._signals.discard(number)
        return True

    def refresh(self, seconds: float) -> None:
        """Request fresh readings, and wait for them for at most *seconds*."""
        self._fresh.clear()
        self._stale = True
        self.wake()
        self._fresh.wait(seconds)

    def take_refresh(self) -> bool:
        """True if fresh readings were requested since the last call."""
        stale, self._stale = self._stale, False
        return stale

    def refreshed(self) -> None:
        """The readings are fresh: :meth:`refresh` returns."""
        self._fresh.set()
