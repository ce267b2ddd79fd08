# SPDX-License-Identifier: Apache-2.0
"""
Owners whose processes have memory that hangs when it is read.

Each such reading costs a wait, and some of them cost a reader process that never returns.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.daemon.looks.owners import Owner

#: Readings of one owner that may hang in a period of seconds, and abandoned readers in all.
MOST, PERIOD = 3, 3600.0


class Hangs:
    """
    Counts readings that hung, by owner; for any thread.

    *left* returns the number of abandoned readers that have not ended.
    """

    def __init__(
        self, left: Callable[[], int] = lambda: 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._left, self._clock = left, clock
        self._times: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def add(self, owner: Owner) -> None:
        """Count a reading of a process of *owner* that was given up."""
        now = self._clock()
        with self._lock:
            times = {key: self._recent(key, now) for key in self._times}
            self._times = {key: recent for key, recent in times.items() if recent}
            for key in owner.keys:
                self._times.setdefault(key, []).append(now)

    def refusal(self, owner: Owner) -> str:
        """Why no process of *owner* is looked at; "" if its processes are."""
        now = self._clock()
        with self._lock:
            counts = {key: len(self._recent(key, now)) for key in owner.keys}
        key = max(counts, key=counts.__getitem__, default="")
        count = counts.get(key, 0)
        if count and (count >= MOST or self._left() >= MOST):
            return (
                f"{count} processes of {key} had memory that could not be read within seconds, so "
                "none of its processes is looked at for an hour"
            )
        return ""

    def _recent(self, key: str, now: float) -> list[float]:
        return [at for at in self._times.get(key, ()) if now - at < PERIOD]
