# SPDX-License-Identifier: Apache-2.0
"""
Finds the VMs of a host: start events of the kernel, scans of ``/proc``, looks into processes.

Runs in the daemon's loop; the looks themselves run in the inspector's thread.
"""

from __future__ import annotations

import logging
import os
import selectors
import time
from typing import TYPE_CHECKING

from scope_ebpf.daemon.looks.inspector import Inspector
from scope_ebpf.daemon.looks.owners import owner_of, tenant_of
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.process import cgroup_of
from scope_ebpf.errors import HostError, NoSuchProcessError
from scope_ebpf.kernel.observers.starts import Starts

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.vm.discover import Refusal
    from scope_ebpf.daemon.config import Config
    from scope_ebpf.daemon.looks.discovery import Scanner
    from scope_ebpf.daemon.looks.inspector import Found, Looker
    from scope_ebpf.daemon.looks.owners import Shares
    from scope_ebpf.kernel.bpf.stats import ProgramStats

#: Maximum seconds between two scans where the kernel does not report starts.
_SCAN_WITHOUT_STARTS = 2.0
#: Minimum seconds between two scans, however often start events are lost.
_MIN_SCAN = 2.0
#: Seconds after a start event at which its process is looked at once more: where another VM starts
#: in it within a second of the first, the kernel reports only one of them (starts.bpf.c).
_SECOND_LOOK = 1.1
#: Processes that are handed to the inspector in one pass of the loop.
_PER_PASS = 16
#: Seconds after which the first discovery counts as complete, whatever is still being looked into.
_READY = 10.0


class Discovery:
    """
    Finds VMs; *known* returns whether a pid is observed and still is the same VM.

    Attributes:
        scanner: which processes are to be looked into, and when.
        looker: how they are looked into.
        inspector: the thread that does so.
    """

    def __init__(
        self,
        scanner: Scanner,
        looker: Looker,
        shares: Shares,
        *,
        config: Callable[[], Config],
        known: Callable[[int], bool],
        wake: Callable[[], None],
    ) -> None:
        self.scanner, self.looker = scanner, looker
        self.inspector = Inspector(looker, shares, config, wake)
        self._config, self._known = config, known
        self._starts: Starts | None = None
        #: Start events that were lost.
        self._lost = 0
        #: When each process that started is looked at once more, by pid.
        self._second_looks: dict[int, float] = {}
        self._own_tenant = tenant_of(cgroup_of(os.getpid()))
        self._began = time.monotonic()
        self._next_scan = self._scanned = 0.0

    def start(self, files: selectors.BaseSelector) -> None:
        """Subscribe to start events, which *files* waits for, and start the inspector."""
        try:
            self._starts = Starts()
        except HostError as error:
            say(logging.WARNING, "VMs that start are found by looking only", why=error)
        else:
            files.register(self._starts.fileno(), selectors.EVENT_READ, self._started)
        self.inspector.start()

    def stop(self) -> None:
        """Start no more looks."""
        self.inspector.close()

    def close(self) -> None:
        """Unsubscribe from start events."""
        if self._starts:
            self._starts.close()

    def scan_if_due(self, now: float) -> bool:
        """Scan ``/proc`` for VMs if that is due; True if it was."""
        if now < self._next_scan:
            return False
        self._scanned = time.monotonic()
        self.scanner.scan()
        self.looker.forget_ended()
        pause = self._config().scan_interval
        if self._starts is None:
            pause = min(pause, _SCAN_WITHOUT_STARTS)
        self._next_scan = time.monotonic() + pause
        return True

    def scan_soon(self) -> None:
        """Scan in the next pass of the loop."""
        self._next_scan = 0.0

    def look(self, now: float) -> Found | Refusal | None:
        """Hand processes that are due to the inspector; what one finished look found."""
        due = [pid for pid, when in self._second_looks.items() if when <= now]
        for pid in due:
            del self._second_looks[pid]
            self._look_at(pid, now)
        if due:
            self._scan_for_lost()
        for pid in self.scanner.due(_PER_PASS):
            try:
                self.inspector.ask(pid, owner_of(pid, ours=self._own_tenant))
            except NoSuchProcessError:
                self.scanner.looked(pid, None, None)
        look = self.inspector.take()
        if look is None:
            return None
        self.scanner.looked(look.pid, look.again, look.exe)
        return look.found

    def is_complete(self, now: float) -> bool:
        """True once every VM that ran at the beginning was looked into, or after ten seconds."""
        if now - self._began > _READY:
            return True
        due = self.scanner.next_due()
        return self.inspector.idle and (due is None or due > time.monotonic())

    def next_due(self) -> float:
        """When :meth:`scan_if_due` or :meth:`look` is due, monotonic seconds."""
        if self.inspector.done:
            return 0.0
        second = min(self._second_looks.values(), default=None)
        times = (self._next_scan, self.scanner.next_due(), second)
        return min(when for when in times if when is not None)

    def forget(self) -> None:
        """Forget the results of all looks."""
        self.looker.forget()
        self.scanner.forget()

    def stats(self) -> dict[str, ProgramStats]:
        """Runs of the program that reports starts."""
        return self._starts.stats() if self._starts else {}

    def _started(self) -> None:
        assert self._starts is not None  # noqa: S101 - it is registered by start() only
        min_age = self._config().min_age
        for start in self._starts.take():
            self._look_at(start.pid, start.at + min_age)
            self._second_looks[start.pid] = start.at + max(_SECOND_LOOK, min_age)
        self._scan_for_lost()

    def _scan_for_lost(self) -> None:
        lost = self._starts.missed() if self._starts else self._lost
        if lost != self._lost:
            say(logging.WARNING, "too many VMs started at once; looking for them", missed=lost)
            self._lost = lost
            self._next_scan = min(self._next_scan, self._scanned + _MIN_SCAN)

    def _look_at(self, pid: int, when: float) -> None:
        """Look into *pid*, of which a thread has the name of a scheduler, unless it is known."""
        if not self._known(pid):
            self.scanner.started(pid, when)
