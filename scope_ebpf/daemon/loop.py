# SPDX-License-Identifier: Apache-2.0
"""
The daemon's one loop: hears of VMs, ticks what it observes, opens and closes windows in time.

Everything that touches the kernel side happens in this thread; a scrape asks it to look once
more, and reads the readings that it leaves behind.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from scope_ebpf.beam.memory.process_memory import read_by
from scope_ebpf.beam.memory.reader import Readers
from scope_ebpf.daemon.config import Config, ConfigError
from scope_ebpf.daemon.looks.discovery import Scanner
from scope_ebpf.daemon.looks.hangs import Hangs
from scope_ebpf.daemon.looks.inspector import Inspector, Looker
from scope_ebpf.daemon.looks.owners import Shares, owner_of, tenant_of
from scope_ebpf.daemon.notify import notify, say
from scope_ebpf.daemon.readings.process import cgroup_of
from scope_ebpf.daemon.readings.snapshots import Snapshots
from scope_ebpf.daemon.targets import Targets
from scope_ebpf.errors import HostError, NoSuchProcessError
from scope_ebpf.kernel.observers.starts import Starts

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.kernel.attach.uprobes import Attacher
    from scope_ebpf.kernel.bpf.stats import ProgramStats
    from scope_ebpf.kernel.cost import HitCost

#: Seconds between two looks at all processes where the kernel does not tell of VMs that start.
_UNTOLD_SCAN = 2.0
#: Seconds between two looks at all processes, at the least, however often starts are missed.
_SCAN = 2.0
#: Seconds after a start at which it is looked at once more: where another VM starts in a process
#: within a second of the first, the kernel tells of one only (starts.bpf.c).
_AGAIN = 1.1
#: Processes that are handed to the inspector in one turn.
_HANDED = 16
#: Seconds after which we are ready, whoever is still being looked into.
_READY = 10.0
#: Seconds between two signs of life to the service manager.
_BEAT = 5.0
#: Seconds for which a scrape waits for the loop at most.
_REFRESH = 0.012
#: The nice value of the loop.
_PRIORITY = -10
#: Seconds until a reading of memory is given up in the loop, for which all others wait.
_PATIENCE = 1.0
#: A loop that has not come round for this long is stuck.
STUCK = 10.0


class Daemon:
    """Observes every VM that *config* wants; *reload* reads it anew, or raises ConfigError."""

    def __init__(self, config: Config, cost: HitCost, reload: Callable[[], Config]) -> None:
        self.config = config
        self.cost = cost
        self._reload = reload
        #: Who else must know a config that was read again.
        self.heeding: list[Callable[[Config], None]] = []
        self.errors: Counter[str] = Counter()
        self.reloads: Counter[str] = Counter(ok=0, refused=0)
        self.ready = False
        self.turned = time.monotonic()
        self.host_stats: dict[str, ProgramStats] = {}
        self._files = selectors.EpollSelector()
        self.scanner = Scanner()
        shares = Shares()
        #: Who reads memory that may not come.
        self.readers = Readers()
        self.looker = Looker(shares, hangs=Hangs(self.readers.left))
        self.targets = Targets(
            config,
            cost,
            self._files,
            self.scanner,
            errors=self.errors,
            shares=shares,
            programs=self.looker.refused,
            hangs=self.looker.hangs,
        )
        self.inspector = Inspector(self.looker, shares, lambda: self.config, self._ring)
        self.snapshots = Snapshots(lambda: self.targets.watches, lambda: self.config, self.errors)
        self._starts: Starts | None = None
        self._missed = 0
        #: When each that started is looked at once more, by pid.
        self._heard: dict[int, float] = {}
        self._ours = tenant_of(cgroup_of(os.getpid()))
        self._began = self.turned
        self._next_scan = self._next_beat = self._scanned = 0.0
        self._asked: set[signal.Signals] = set()
        self._stale, self._fresh = False, threading.Event()
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._files.register(self._wake, selectors.EVENT_READ, lambda: os.read(self._wake, 4096))

    def ask(self, number: signal.Signals) -> None:
        """Do what a signal asks for, soon: SIGTERM and SIGINT end, SIGHUP reads the config."""
        self._asked.add(number)
        os.write(self._waker, b"\0")

    def refresh(self) -> None:
        """Let the readings be of now; a scrape asks for it, and waits for a moment only."""
        self._fresh.clear()
        self._stale = True
        self._ring()
        self._fresh.wait(_REFRESH)

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it has been asked already, often
            os.write(self._waker, b"\0")

    def run(self) -> None:
        """Observe until asked to end; then everything is detached."""
        _hurry(self.targets.attacher)
        read_by(self.readers)
        self.readers.begin(_PATIENCE)
        self._hear_of_starts()
        self.snapshots.start()
        self.inspector.start()
        try:
            while not self._asked & {signal.SIGTERM, signal.SIGINT}:
                self._come_round()
                self._wait()
        finally:
            notify("STOPPING=1")
            self.inspector.close()
            self.targets.close()
            self.snapshots.close()
            self.readers.close()
            if self._starts:
                self._starts.close()

    def _come_round(self) -> None:
        now = self.turned = time.monotonic()
        if signal.SIGHUP in self._asked:
            self._asked.discard(signal.SIGHUP)
            self._read_config()
            self._next_scan = now
        if now >= self._next_scan:
            self._scan()
        if now >= self._next_beat:
            notify("WATCHDOG=1")
            self.inspector.tidy()
            self._next_beat = now + _BEAT
        stale, self._stale = self._stale, False
        if stale:
            self.targets.hasten()
        self.targets.turn()
        if stale:
            self._fresh.set()
        self._look(now)

    def _look(self, now: float) -> None:
        """Hand over who is to be looked into, and take in one VM that was found."""
        heard = [pid for pid, when in self._heard.items() if when <= now]
        for pid in heard:
            del self._heard[pid]
            self._hear(pid, now)
        if heard:
            self._look_for_missed()
        for pid in self.scanner.due(_HANDED):
            try:
                self.inspector.ask(pid, owner_of(pid, ours=self._ours))
            except NoSuchProcessError:
                self.scanner.looked(pid, None, None)
        look = self.inspector.take()
        if look:
            # One at a time: to begin with a VM takes tens of milliseconds, in which those that are
            # observed already have to wait.
            self.scanner.looked(look.pid, look.again, look.exe)
            if look.found:
                self.targets.take(look.found)
        if not self.ready and (self._is_through() or now - self._began > _READY):
            self.ready = True
            notify("READY=1")

    def _is_through(self) -> bool:
        due = self.scanner.next_due()
        return self.inspector.idle and (due is None or due > time.monotonic())

    def _wait(self) -> None:
        times = (
            self._next_scan,
            self._next_beat,
            self.targets.next_turn(),
            self.scanner.next_due(),
            min(self._heard.values(), default=None),
            0.0 if self.inspector.done else None,
        )
        until = min(when for when in times if when is not None)
        for key, _ in self._files.select(max(0.0, until - time.monotonic())):
            # What came before may have let go of it.
            if self._files.get_map().get(key.fd) == key:
                key.data()

    # VMs that start --------------------------------------------------------------------------

    def _hear_of_starts(self) -> None:
        try:
            self._starts = Starts()
        except HostError as error:
            say(logging.WARNING, "VMs that start are found by looking only", why=error)
            return
        self._files.register(self._starts.fileno(), selectors.EVENT_READ, self._started)

    def _started(self) -> None:
        assert self._starts is not None  # noqa: S101 - it is what has rung
        for start in self._starts.take():
            self._hear(start.pid, start.at + self.config.min_age)
            self._heard[start.pid] = start.at + max(_AGAIN, self.config.min_age)
        self._look_for_missed()

    def _look_for_missed(self) -> None:
        missed = self._starts.missed() if self._starts else self._missed
        if missed != self._missed:
            say(logging.WARNING, "too many VMs started at once; looking for them", missed=missed)
            self._missed = missed
            self._next_scan = min(self._next_scan, self._scanned + _SCAN)

    def _hear(self, pid: int, when: float) -> None:
        """A thread of *pid* calls itself a scheduler: look into it, unless we know it."""
        if not self.targets.is_same(pid):
            self.scanner.started(pid, when)

    def _scan(self) -> None:
        self._scanned = time.monotonic()
        self.scanner.scan()
        self.looker.tidy()
        self.targets.tidy()
        stats: dict[str, ProgramStats] = {}
        for watch in (self.targets.thread_watch, self._starts):
            stats |= watch.stats() if watch else {}
        self.host_stats = stats
        pause = self.config.scan_interval
        self._next_scan = time.monotonic() + (pause if self._starts else min(pause, _UNTOLD_SCAN))

    # Config ----------------------------------------------------------------------------------

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
        for heed in self.heeding:
            heed(config)
        self.targets.choose(config)
        self.looker.forget()
        self.scanner.forget()
        say(logging.INFO, "config read")


def _hurry(attacher: Attacher) -> None:
    """
    Let this thread, and *attacher*, run before what they observe.

    Hooks that have spent their allowance cost the target until they are out.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PRIORITY)
        attacher.hurry(_PRIORITY)
    except OSError as error:
        say(logging.WARNING, "runs at a common priority", why=error)
