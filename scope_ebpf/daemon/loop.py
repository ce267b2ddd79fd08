# SPDX-License-Identifier: Apache-2.0
"""
The daemon's one loop: finds VMs, ticks targets, opens and closes windows in time.

Everything that touches the kernel side happens in this thread. A scrape requests fresh readings
and reads those that the loop leaves behind.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.beam.memory.process_memory import read_by
from scope_ebpf.beam.memory.reader import Readers
from scope_ebpf.daemon.blackbox import BlackBox
from scope_ebpf.daemon.config import Config, ConfigError
from scope_ebpf.daemon.discovery import Discovery
from scope_ebpf.daemon.looks.discovery import Scanner
from scope_ebpf.daemon.looks.hangs import Hangs
from scope_ebpf.daemon.looks.inspector import Looker
from scope_ebpf.daemon.looks.owners import Shares
from scope_ebpf.daemon.notify import notify, say
from scope_ebpf.daemon.readings.findings import Findings
from scope_ebpf.daemon.readings.marks import MarkWindows
from scope_ebpf.daemon.readings.servers import ServerLooks
from scope_ebpf.daemon.readings.snapshots import Snapshots
from scope_ebpf.daemon.readings.telemetry import TelemetryLooks
from scope_ebpf.daemon.requests import Requests
from scope_ebpf.daemon.targets import Targets

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.kernel.attach.uprobes import Attacher
    from scope_ebpf.kernel.bpf.stats import ProgramStats
    from scope_ebpf.kernel.cost import HitCost

#: Seconds between two keep-alives to the service manager.
_KEEP_ALIVE = 5.0
#: Maximum seconds for which a scrape waits for fresh readings.
_REFRESH = 0.012
#: The nice value of the loop.
_PRIORITY = -10
#: Seconds until the loop gives up reading a target's memory, for which all others wait.
_PATIENCE = 1.0
#: Seconds without a pass after which the loop is stuck.
STUCK = 10.0
_END = (signal.SIGTERM, signal.SIGINT)


class Threads(NamedTuple):
    """
    The threads that read what a loop must not wait for.

    Attributes:
        snapshots: reads process tables and memory.
        findings: checks targets.
        servers: looks at their servers.
        blackbox: keeps what VMs hold that are near the limit of their memory.
        telemetry: reads what their telemetry events are called.
        marks: counts calls of their marked callbacks.
    """

    snapshots: Snapshots
    findings: Findings
    servers: ServerLooks
    blackbox: BlackBox
    telemetry: TelemetryLooks
    marks: MarkWindows


class Daemon:
    """
    Observes every VM that *config* wants.

    *cost* is the cost of a hit; *reload* reads the config again, or raises ConfigError.

    Attributes:
        config: the config of this moment.
        cost: seconds of CPU that one hit costs.
        listeners: called with a config that was read again.
        errors: unexpected errors by part: ``watch``, ``snapshot``, ``http``.
        reloads: times that the config was read again, by result: ``ok``, ``refused``.
        ready: True once all VMs that ran at the beginning were looked into.
        turned: when the loop began its last pass, monotonic seconds.
        host_stats: runs of the programs that are shared by all targets.
        readers: processes that read memory which may not respond.
        discovery: finds VMs.
        targets: the VMs under observation.
        threads: what is read of targets beside the loop.
    """

    def __init__(self, config: Config, cost: HitCost, reload: Callable[[], Config]) -> None:
        self.config = config
        self.cost = cost
        self._reload = reload
        self.listeners: list[Callable[[Config], None]] = []
        self.errors: Counter[str] = Counter()
        self.reloads: Counter[str] = Counter(ok=0, refused=0)
        self.ready = False
        self.turned = time.monotonic()
        self.host_stats: dict[str, ProgramStats] = {}
        self._files = selectors.EpollSelector()
        self._requests = Requests()
        self._files.register(self._requests.fileno(), selectors.EVENT_READ, self._requests.drain)
        self.readers = Readers()
        scanner, shares = Scanner(), Shares()
        looker = Looker(shares, hangs=Hangs(self.readers.left))
        self.targets = Targets(
            config,
            cost,
            self._files,
            scanner,
            errors=self.errors,
            shares=shares,
            programs=looker.refused,
            hangs=looker.hangs,
        )
        self.discovery = Discovery(
            scanner,
            looker,
            shares,
            config=lambda: self.config,
            known=self.targets.is_same,
            wake=self._requests.wake,
        )
        given = (lambda: self.targets.watches, lambda: self.config, self.errors)
        self.threads = Threads(
            snapshots=Snapshots(*given),
            findings=Findings(*given),
            servers=ServerLooks(*given),
            blackbox=BlackBox(*given),
            telemetry=TelemetryLooks(*given),
            marks=MarkWindows(*given),
        )
        self._next_keep_alive = 0.0

    def ask(self, number: signal.Signals) -> None:
        """Request what a signal stands for: SIGTERM and SIGINT end, SIGHUP reads the config."""
        self._requests.add_signal(number)

    def refresh(self) -> None:
        """Request fresh readings, and wait for them for a moment."""
        self._requests.refresh(_REFRESH)

    def run(self) -> None:
        """Observe until asked to end; then everything is detached."""
        _raise_priority(self.targets.attacher)
        read_by(self.readers)
        self.readers.begin(_PATIENCE)
        self.discovery.start(self._files)
        for each in self.threads:
            each.start()
        try:
            while not self._requests.pending(_END):
                self._run_once()
                self._wait()
        finally:
            self._end()

    def _end(self) -> None:
        """
        Detach from all targets and end all threads.

        A thread may wait for memory for as long as its target likes, until the readers are closed.
        """
        notify("STOPPING=1")
        for each in (self.discovery, *self.threads):
            each.stop()
        self.targets.close()
        self.readers.close()
        for each in (*self.threads, self.discovery):
            each.close()

    def _run_once(self) -> None:
        now = self.turned = time.monotonic()
        if self._requests.take_signal(signal.SIGHUP):
            self._read_config()
            self.discovery.scan_soon()
        if self.discovery.scan_if_due(now):
            self.targets.collect_garbage()
            self.host_stats = self.targets.tracepoints.stats() | self.discovery.stats()
        if now >= self._next_keep_alive:
            notify("WATCHDOG=1")
            self.discovery.inspector.abandon_hanging()
            self._next_keep_alive = now + _KEEP_ALIVE
        stale = self._requests.take_refresh()
        if stale:
            self.targets.refresh_stale()
        self.targets.run_once()
        if stale:
            self._requests.refreshed()
        # One VM per pass: to begin with one takes tens of milliseconds, in which those that are
        # observed already have to wait.
        found = self.discovery.look(now)
        if found:
            self.targets.start_observing(found)
        if not self.ready and self.discovery.is_complete(now):
            self.ready = True
            notify("READY=1")

    def _wait(self) -> None:
        times = (self._next_keep_alive, self.discovery.next_due(), self.targets.next_due())
        until = min(when for when in times if when is not None)
        for key, _ in self._files.select(max(0.0, until - time.monotonic())):
            # A handler before this one may have unregistered it.
            if self._files.get_map().get(key.fd) == key:
                key.data()

    def _read_config(self) -> None:
        try:
            config = self._reload()
        except ConfigError as error:
            self.reloads["refused"] += 1
            say(logging.ERROR, "config refused, the old one stays", why=error)
            return
        self.reloads["ok"] += 1
        if config.listen != self.config.listen:
            say(logging.WARNING, "listen changes with the next start only")
        self.config = config
        for listener in self.listeners:
            listener(config)
        self.targets.apply_config(config)
        self.discovery.forget()
        say(logging.INFO, "config read")


def _raise_priority(attacher: Attacher) -> None:
    """
    Let this thread and *attacher* run before the targets.

    Hooks whose quota is exhausted cost the target CPU until they are detached.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PRIORITY)
        attacher.set_priority(_PRIORITY)
    except OSError as error:
        say(logging.WARNING, "runs at a common priority", why=error)
