# SPDX-License-Identifier: Apache-2.0
"""The check of the VM that ``top`` shows: made again and again, in steps between its turns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scope_ebpf.errors import NoSuchProcessError, ScopeError
from scope_ebpf.runs.check import steps
from scope_ebpf.screen.layout import Span
from scope_ebpf.sinks import check as sink

if TYPE_CHECKING:
    from collections.abc import Generator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.check import Check

#: Seconds of one check.
SECONDS = 3.0
#: Seconds between two checks, and how many times the CPU time of the last one they are at least.
_PAUSE, _TIMES = 10.0, 40
#: Processes of a VM up to which it is checked: a step must not hold up the keys.
MOST = 50_000


class Checks:
    """Checks *target* while :meth:`step` is called; raises NoSuchProcessError if it ends."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._looks: Generator[float, None, Check] | None = None
        #: When the next step is due, monotonic seconds.
        self.due = time.monotonic()
        #: The last check; None before the first, and where there can be none.
        self.found: Check | None = None
        self._why = "the first takes a few seconds"

    def step(self) -> None:
        """Take the next step, if it is due."""
        if time.monotonic() < self.due:
            return
        if self._looks is None:
            self._looks = steps(self._target, SECONDS, MOST)
        try:
            self.due = next(self._looks)
        except StopIteration as end:
            self.found = end.value
            self._rest(end.value.cpu_seconds)
        except NoSuchProcessError:
            raise
        except ScopeError as error:
            self.found, self._why = None, str(error)
            self._rest(0.0)

    def _rest(self, cpu: float) -> None:
        self._looks = None
        self.due = time.monotonic() + max(_PAUSE, _TIMES * cpu)

    def span(self) -> Span:
        """The verdict in one text."""
        if self.found is None:
            return Span(f"check: {self._why}", "dim")
        return Span(f"check: {self.found.verdict()}", "alarm" if self.found.findings else "dim")

    def lines(self) -> list[str]:
        """All findings, as ``scope-trace check`` prints them."""
        if self.found is None:
            return [f"check: {self._why}"]
        return list(sink.lines(self.found.as_json()))
