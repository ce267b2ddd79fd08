# SPDX-License-Identifier: Apache-2.0
"""What the VM counts itself, read each second, and which of it goes along with which event."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from scope_ebpf.beam.counters import CounterReader
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.counters import Counters, Limits
    from scope_ebpf.beam.discover import Target

#: Which of the VM's counters goes along with an event; the others go along with reductions, because
#: how many messages a program sends for each of its calls does not change when hooks slow it down.
_MEASURES = {
    "spawn": "spawned",
    "exit": "spawned",
    "gc": "collections",
    "schedule": "context_switches",
}


class Measures:
    """
    The counters of *target*, where they can be read; *refused* says why they cannot.

    Without them time is the measure of everything.
    """

    def __init__(self, target: Target) -> None:
        self.refused = ""
        self.limits: Limits | None = None
        self._reader: CounterReader | None = None
        self._spawned = self._last = 0
        try:
            self._reader = CounterReader(target)
        except ReadRefusedError as error:
            self.refused = str(error)
            return
        self._spawned = self._last = self._reader.read().spawned
        self.limits = self._reader.limits()

    def read(self) -> Counters | None:
        """All counters now, *spawned* without its wrapping at 2^32; None where they are refused."""
        if self._reader is None:
            return None
        try:
            counters = self._reader.read()
        except ReadRefusedError:
            return None
        self._spawned += (counters.spawned - self._last) % 2**32
        self._last = counters.spawned
        return replace(counters, spawned=self._spawned)

    @staticmethod
    def of(event: str, counters: Counters | None) -> float:
        """What goes along with *event*, as *counters* have it; seconds where there are none."""
        if counters is None:
            return time.monotonic()
        return float(getattr(counters, _MEASURES.get(event, "reductions")))
