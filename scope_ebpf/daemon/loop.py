# SPDX-License-Identifier: Apache-2.0
"""
The daemon's one loop: looks for VMs, ticks each watch, opens and closes windows in time.

Everything that touches the kernel side happens in this thread; a scrape reads the
readings that it leaves behind.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from scope_ebpf.beam.discover import Refusal, Target, inspect
from scope_ebpf.daemon.config import Config, ConfigError
from scope_ebpf.daemon.discovery import NAMELESS, Scanner
from scope_ebpf.daemon.notify import notify, say
from scope_ebpf.daemon.snapshots import Snapshots
from scope_ebpf.daemon.threads import WatchedThreads
from scope_ebpf.daemon.watch import Watch
from scope_ebpf.errors import NoSuchProcessError, NothingToAttachError, ScopeError
from scope_ebpf.kernel.governed import make_workers
from scope_ebpf.kernel.tracepoints import ThreadWatch, attach_or_reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.kernel.stats import ProgramStats

#: Seconds between two stocktakings of a target.
TICK = 1.0
#: Seconds between two looks at the names of nodes that had none.
_RENAME = 10.0
#: The nice value of the loop.
_PRIORITY = -10
#: A loop that has not come round for this long is stuck.
STUCK = 10.0


class Daemon:
    """Observes every VM that *config* wants; *reload* reads it anew, or raises ConfigError."""

    def __init__(self, config: Config, cost: HitCost, reload: Callable[[], Config]) -> None:
        self.config = config
        self.cost = cost
        self._reload = reload
        self.scanner = Scanner()
        self.watches: dict[int, Watch] = {}
        self.refused: dict[int, str] = {}
        self.errors: Counter[str] = Counter()
        self.reloads: Counter[str] = Counter(ok=0, refused=0)
        self.seen = 0
        self.ready = False
        self.turned = time.monotonic()
        self.thread_watch: ThreadWatch | None = None
        self.thread_trouble = ""
        self.thread_stats: dict[str, ProgramStats] = {}
        self._workers = make_workers()
        self._poll = select.epoll()
        self._files: dict[int, Callable[[], None]] = {}
        self._ticks: dict[int, float] = {}
        self._pidfds: dict[int, int] = {}
        self._asked: set[signal.Signals] = set()
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._register(self._wake, self._woken)

    def ask(self, number: signal.Signals) -> None:
        """Do what a signal asks for, soon: SIGTERM and SIGINT end, SIGHUP reads the config."""
        self._asked.add(number)
        os.write(self._waker, b"\0")

    def run(self) -> None:
        """Observe until asked to end; then everything is detached."""
        _hurry()
        snapshots = Snapshots(lambda: list(self.watches.values()), lambda: self.config)
        snapshots.start()
        try:
            next_scan = next_rename = 0.0
            while not self._asked & {signal.SIGTERM, signal.SIGINT}:
                now = self.turned = time.monotonic()
                if signal.SIGHUP in self._asked:
                    self._asked.discard(signal.SIGHUP)
                    self._read_config()
                    next_scan = now
                if now >= next_scan:
                    self._scan()
                    if now >= next_rename:
                        self._rename()
                        next_rename = now + _RENAME
                    next_scan = time.monotonic() + self.config.scan_interval
                    notify("WATCHDOG=1")
                self._take_turns()
                self._wait(next_scan)
        finally:
            notify("STOPPING=1")
            snapshots.close()
            self.close()

    def close(self) -> None:
        """Detach from everything."""
        for watch in self.watches.values():
            for event in list(watch.session.attached):
                watch.session.release(event)
        self._workers.shutdown(wait=True)
        for pid in list(self.watches):
            self._drop(pid, "the daemon ends")
        if self.thread_watch:
            self.thread_watch.close()

    # Targets ---------------------------------------------------------------------------------

    def _scan(self) -> None:
        for found in self.scanner.scan(self.config):
            if isinstance(found, Refusal):
                self._refuse(found.pid, found.reason)
            elif found.pid not in self.watches:
                self._observe(found)
        self.refused = {p: r for p, r in self.refused.items() if os.path.exists(f"/proc/{p}")}  # noqa: PTH110
        if self.thread_watch:
            self.thread_stats = self.thread_watch.stats()
        if not self.ready:
            self.ready = True
            notify("READY=1")

    def _observe(self, target: Target) -> None:
        threads = self._watch_threads(target.pid)
        try:
            watch = Watch(
                target,
                self._label(target),
                self.config.budget,
                self.cost,
                self._workers,
                threads=threads,
            )
        except ScopeError as error:
            if threads:
                threads.close()
            if not isinstance(error, NoSuchProcessError):
                self._refuse(target.pid, error)
            return
        try:
            pidfd = os.pidfd_open(target.pid)
        except ProcessLookupError:
            watch.close()
            return
        self.watches[target.pid] = watch
        self.refused.pop(target.pid, None)
        self.seen += 1
        self._pidfds[target.pid] = pidfd
        self._ticks[target.pid] = 0.0
        self._register(pidfd, lambda: self._drop(target.pid, "it has ended"))
        self._register(watch.session.fileno(), watch.rang)
        say(logging.INFO, "observing", pid=target.pid, node=watch.node, otp=target.otp_release)
        off = [item for item in watch.plan.items if not item.attachments]
        for item in off:
            say(logging.WARNING, "hook off", pid=target.pid, hook=item.event, why=item.reason)
        if off and self.config.strict:
            raise NothingToAttachError(
                f"--strict, and process {target.pid} has no hook for {off[0].event}: "
                f"{off[0].reason}"
            )

    def _watch_threads(self, pid: int) -> WatchedThreads | None:
        """The target's threads, where the kernel lets us watch them and there is room."""
        if self.thread_watch is None and not self.thread_trouble:
            self.thread_watch, self.thread_trouble = attach_or_reason()
            if self.thread_trouble:
                say(logging.WARNING, "threads are not watched", why=self.thread_trouble)
        place = self.thread_watch.add() if self.thread_watch else None
        if self.thread_watch is None or place is None:
            return None
        return WatchedThreads(self.thread_watch, pid, place)

    def _rename(self) -> None:
        """Nodes that had no name when they were found may have one now."""
        for pid, watch in self.watches.items():
            if not watch.node.startswith(NAMELESS):
                continue
            try:
                target = inspect(pid)
            except ScopeError:
                continue  # it ends; its tick will say so
            if (target.node or NAMELESS) != NAMELESS:
                watch.node = self._label(target)
                say(logging.INFO, "renamed", pid=pid, node=watch.node)

    def _label(self, target: Target) -> str:
        """The node's name, and the pid where another has the same."""
        name = target.node or NAMELESS
        taken = {watch.node for watch in self.watches.values()}
        return f"{name}#{target.pid}" if name in taken else name

    def _refuse(self, pid: int, error: ScopeError) -> None:
        self.refused[pid] = str(error)
        say(logging.WARNING, "refused", pid=pid, why=error)
        if self.config.strict:
            raise error

    def _drop(self, pid: int, why: str) -> None:
        watch = self.watches.pop(pid, None)
        if watch is None:
            return
        for fd in (self._pidfds.pop(pid), watch.session.fileno()):
            self._poll.unregister(fd)
            del self._files[fd]
            if fd != watch.session.fileno():
                os.close(fd)
        del self._ticks[pid]
        watch.close()
        self.scanner.forget(pid)
        say(logging.INFO, "no longer observing", pid=pid, node=watch.node, why=why)

    # Time ------------------------------------------------------------------------------------

    def _take_turns(self) -> None:
        for pid, watch in list(self.watches.items()):
            now = time.monotonic()
            try:
                if now >= self._ticks[pid]:
                    self._ticks[pid] = now + TICK
                    watch.tick()
                due = watch.next_turn()
                if due is not None and now >= due:
                    watch.turn()
            except NoSuchProcessError:
                self._drop(pid, "it has ended")
            except ScopeError as error:
                self.errors["watch"] += 1
                self._drop(pid, str(error))
                self.refused[pid] = str(error)

    def _wait(self, until: float) -> None:
        for pid, watch in self.watches.items():
            due = watch.next_turn()
            until = min(until, self._ticks[pid], until if due is None else due)
        for fd, _ in self._poll.poll(max(0.0, until - time.monotonic())):
            if fd in self._files:  # what came before may have dropped it
                self._files[fd]()

    def _register(self, fd: int, heard: Callable[[], None]) -> None:
        self._files[fd] = heard
        self._poll.register(fd, select.EPOLLIN)

    def _woken(self) -> None:
        os.read(self._wake, 4096)

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
        for pid, watch in list(self.watches.items()):
            target = watch.target
            if config.budget != self.config.budget or not config.wants(
                target.node or "", target.exe, ""
            ):
                self._drop(pid, "the config has changed")
        self.config = config
        self.scanner.forget()
        self.refused.clear()
        say(logging.INFO, "config read")


def _hurry() -> None:
    """
    Let this thread run before what it observes.

    Hooks that have spent their allowance cost the target until they are out.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PRIORITY)
    except OSError as error:
        say(logging.WARNING, "runs at a common priority", why=error)
