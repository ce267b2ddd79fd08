# SPDX-License-Identifier: Apache-2.0
"""
The VMs under observation: each is taken in, ticked, called by its name, and let go.

All of this runs in the daemon's loop; a scrape reads the readings that it leaves behind.
"""

from __future__ import annotations

import logging
import os
import resource
import select
import selectors
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_ebpf.beam.discover import Refusal
from scope_ebpf.beam.node import NAMELESS, NodeName
from scope_ebpf.daemon import heap
from scope_ebpf.daemon.discovery import RETRY
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.process import cgroup_of
from scope_ebpf.daemon.threads import WatchedThreads
from scope_ebpf.daemon.watch import Watch
from scope_ebpf.errors import (
    HostError,
    NoSuchProcessError,
    NothingToAttachError,
    ScopeError,
    TargetChangedError,
)
from scope_ebpf.governor import OFTEN
from scope_ebpf.kernel.programs import Spares
from scope_ebpf.kernel.tracepoints import ThreadWatch, attach_or_reason
from scope_ebpf.kernel.uprobes import Attacher

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping

    from scope_ebpf.beam.target import Target
    from scope_ebpf.daemon.config import Config
    from scope_ebpf.daemon.discovery import Scanner
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.kernel.stats import ProgramStats

#: File descriptors that a target takes at most, with room for scrapes and readings.
_FILES = 256
#: Loaded programs that wait for the next target, at most, each a hundred files, and for how long.
_SPARES, _SPARE_SECONDS = 8, 10.0
#: Targets of which stock is taken for one scrape, some milliseconds each.
_HASTENED = 4


@dataclass(slots=True)
class _Observed:
    watch: Watch
    #: What tells that it has ended, or executes another program.
    ends: tuple[int, ...]
    name: NodeName
    since: float


class Targets:
    """
    Observes what it is given by :meth:`take`, through *files*, which the loop waits for.

    What cannot be observed is in :attr:`refused`, by pid, with the reason; what goes
    wrong later is counted in *errors*, and tried again.
    """

    def __init__(
        self,
        config: Config,
        cost: HitCost,
        files: selectors.BaseSelector,
        scanner: Scanner,
        errors: Counter[str],
    ) -> None:
        self.config = config
        self.refused: dict[int, str] = {}
        self.seen = 0
        self.thread_watch: ThreadWatch | None = None
        self._thread_trouble = ""
        self._cost = cost
        self._files = files
        self._scanner = scanner
        self._errors = errors
        self.attacher = Attacher()
        self._spares = Spares(_SPARES, _SPARE_SECONDS, self._listen)
        self._observed: dict[int, _Observed] = {}
        #: What programs ran for targets that are no longer observed; scrapes read it, too.
        self._ended: dict[str, ProgramStats] = {}
        self._lock = threading.Lock()
        files.register(self.attacher.fileno(), selectors.EVENT_READ, self._alone)

    @property
    def watches(self) -> list[Watch]:
        """The watches of this moment, for any thread."""
        return [observed.watch for observed in list(self._observed.values())]

    def program_stats(self) -> dict[str, ProgramStats]:
        """What each program ran for all targets, those that have ended too; for any thread."""
        with self._lock:
            totals = dict(self._ended)
            for watch in self.watches:
                _add(totals, watch.program_stats)
        return totals

    def take(self, found: Target | Refusal) -> None:
        """Begin to observe what discovery has found, or say why not."""
        if isinstance(found, Refusal):
            self._refuse(found.pid, found.reason)
            return
        if found.pid in self._observed:
            return
        threads = None
        try:
            _require_room()
            threads = self._watch_threads(found)
            label = self._label(found.node, found.pid)
            watch = Watch(
                found,
                label,
                self.config.budget,
                self._cost,
                self.attacher,
                spares=self._spares,
                threads=threads,
            )
        except Exception as error:  # noqa: BLE001 - one target must not take the others along
            if threads:
                threads.close()
            found.identity.close()
            if isinstance(error, NoSuchProcessError):
                self._scanner.ended(found.pid)
            else:
                self._refuse(found.pid, error)
            return
        self._keep(found, watch)

    def restarted(self, pid: int, at: float) -> None:
        """Let go of *pid* if it was observed before another VM started in it."""
        observed = self._observed.get(pid)
        if observed and observed.since < at:
            self.drop(pid, "another VM runs in it")

    def next_turn(self) -> float | None:
        """When :meth:`turn` has something to do, monotonic seconds."""
        times = [watch.next_tick for watch in self.watches]
        times += [due for watch in self.watches if (due := watch.next_turn()) is not None]
        return min(times, default=None)

    def turn(self) -> None:
        """Do what is due: take stock, close and open windows."""
        self._tell_all(self._turn_one)
        self._hold_tracepoints()

    def _hold_tracepoints(self) -> None:
        """
        Take them out for as long as threads have taken more than their part of the budgets.

        They are of all targets together, and so is what they may take. Where the kernel refuses
        them later, it goes on without them.
        """
        watch = self.thread_watch
        if watch is None:
            return
        debts = [watch.debt() for watch in self.watches]
        debt, part = (sum(each) for each in zip(*debts, strict=True)) if debts else (0.0, 0.0)
        if debt > part:
            watch.pause()
        if debt > 0:
            return
        try:
            if watch.resume():
                self._tell_all(lambda observed: observed.watch.resumed())
        except HostError as error:
            why = self._thread_trouble = str(error)
            if self.config.strict:
                raise
            self.thread_watch = None
            self._tell_all(lambda observed: observed.watch.unwatch_threads(why))
            watch.close()

    def _tell_all(self, what: Callable[[_Observed], None]) -> None:
        for observed in list(self._observed.values()):
            self._guarded(observed, what)

    def hasten(self) -> None:
        """
        Take stock of those that it was not done of for long, with the next :meth:`turn`.

        So that a scrape sees what is now; of many only those of longest ago, so that it need
        not wait for long.
        """
        now = time.monotonic()
        late = [watch for watch in self.watches if now - watch.ticked >= OFTEN]
        for watch in sorted(late, key=lambda watch: watch.ticked)[:_HASTENED]:
            watch.next_tick = now

    def choose(self, config: Config) -> None:
        """Go by *config* from now on; what it does not want, or wants otherwise, is let go."""
        changed = config.budget != self.config.budget
        self.config = config
        self.refused.clear()
        for pid, observed in list(self._observed.items()):
            if changed or not self._wants(observed):
                self.drop(pid, "the config has changed")

    def drop(self, pid: int, why: str) -> None:
        """Let go of *pid*, if it is observed."""
        with self._lock:
            observed = self._observed.pop(pid, None)
            if observed is None:
                return
            _add(self._ended, observed.watch.program_stats)
        for fd in (*observed.ends, observed.watch.session.fileno()):
            self._files.unregister(fd)
        observed.watch.close()
        observed.watch.target.identity.close()
        self._scanner.ended(pid)
        say(logging.INFO, "no longer observing", pid=pid, node=observed.watch.node, why=why)

    def tidy(self) -> None:
        """Let go of programs that nobody needs, of refusals of what has ended, and of memory."""
        self._spares.tidy()
        heap.give_back()
        for pid in list(self.refused):
            if not os.path.exists(f"/proc/{pid}"):  # noqa: PTH110 - fast
                self.refused.pop(pid, None)

    def close(self) -> None:
        """Let go of all, their hooks all at once: each waits for the kernel."""
        self._files.unregister(self.attacher.fileno())
        self.attacher.close()
        for pid in list(self._observed):
            self.drop(pid, "the daemon ends")
        self._spares.tidy(everything=True)
        if self.thread_watch:
            self.thread_watch.close()

    def _alone(self) -> None:
        raise HostError(
            "the process that holds the breakpoints has ended, and they with it; "
            "the daemon ends, too, so that it is started anew"
        )

    def _listen(self) -> None:
        """Take out what has spent its allowance: while a VM is taken in, others wait for us."""
        poll = select.poll()
        rings = {one.watch.session.fileno(): one for one in self._observed.values()}
        for ring in rings:
            poll.register(ring, select.POLLIN)
        for ring, _ in poll.poll(0):
            self._guarded(rings[ring], _rang)

    # One of them -----------------------------------------------------------------------------

    def _keep(self, target: Target, watch: Watch) -> None:
        pid, identity = target.pid, target.identity
        ends = tuple(fd for fd in (identity.pidfd, identity.execs) if fd is not None)
        observed = _Observed(watch, ends, NodeName(target), time.monotonic())
        self._observed[pid] = observed
        self.refused.pop(pid, None)
        self.seen += 1
        for fd in ends:
            self._files.register(
                fd, selectors.EVENT_READ, lambda: self._guarded(observed, _check_identity)
            )
        self._files.register(
            watch.session.fileno(),
            selectors.EVENT_READ,
            lambda: self._guarded(observed, _rang),
        )
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - target.started
        say(
            logging.INFO,
            "observing",
            pid=pid,
            node=watch.node,
            otp=target.otp_release,
            age_seconds=f"{age:.2f}",
        )
        off = [item for item in watch.plan.items if not item.attachments]
        for item in off:
            say(logging.WARNING, "hook off", pid=pid, hook=item.event, why=item.reason)
        if off and self.config.strict:
            raise NothingToAttachError(
                f"--strict, and process {pid} has no hook for {off[0].event}: {off[0].reason}"
            )

    def _guarded(self, observed: _Observed, work: Callable[[_Observed], None]) -> None:
        """Do *work* on a target, which may end meanwhile; what fails is let go of."""
        pid = observed.watch.target.pid
        try:
            work(observed)
        except TargetChangedError as error:
            self.drop(pid, f"it {error.what}")
        except NoSuchProcessError:
            self.drop(pid, "it has ended")
        except Exception as error:  # noqa: BLE001 - one target must not take the others along
            self._errors["watch"] += 1
            self.drop(pid, "it cannot be observed any more")
            self._refuse(pid, error)

    def _turn_one(self, observed: _Observed) -> None:
        now = time.monotonic()
        if now >= observed.watch.next_tick:
            observed.watch.tick()
            self._require_all(observed.watch)
            self._follow_name(observed)
        due = observed.watch.next_turn()
        if due is not None and now >= due and observed.watch.target.pid in self._observed:
            observed.watch.turn()

    def _follow_name(self, observed: _Observed) -> None:
        """A node gets its name when its distribution starts, and may change it later."""
        watch, name = observed.watch, observed.name.read()
        pid = watch.target.pid
        if name is None or watch.node in (name, f"{name}#{pid}"):
            return
        before = watch.node
        watch.rename(self._label(name, pid))
        say(logging.INFO, "renamed", pid=pid, node=watch.node, before=before)
        if not self._wants(observed):
            self.drop(pid, "its new name is not wanted")
            self._scanner.again(pid, OFTEN)

    def _require_all(self, watch: Watch) -> None:
        """With --strict, that the kernel has refused no hook."""
        for event, why in watch.failed.items():
            if self.config.strict:
                raise NothingToAttachError(
                    f"--strict, and process {watch.target.pid} has no hook for {event}: {why}"
                )

    def _wants(self, observed: _Observed) -> bool:
        target = observed.watch.target
        name = observed.name.read() or target.node or ""
        return self.config.wants(name, target.exe, cgroup_of(target.pid))

    def _label(self, name: str | None, pid: int) -> str:
        """The node's name, and the pid where another that is observed has the same."""
        name = name or NAMELESS
        return f"{name}#{pid}" if name in {watch.node for watch in self.watches} else name

    def _watch_threads(self, target: Target) -> WatchedThreads:
        """The target's threads, where the kernel lets us watch them and there is room."""
        if self.thread_watch is None and not self._thread_trouble:
            self.thread_watch, self._thread_trouble = attach_or_reason()
            what, why = "threads are not watched", self._thread_trouble
            if self.thread_watch:
                what, why = "busy waiting and native code are not told", self.thread_watch.unsampled
            if why:
                say(logging.WARNING, what, why=why)
            if why and self.config.strict:
                raise HostError(f"--strict, and {what}: {why}")
        place = self.thread_watch.add() if self.thread_watch else None
        return WatchedThreads(self.thread_watch, target, place)

    def _refuse(self, pid: int, error: Exception) -> None:
        """Say it once, and try again later: what is missing may come back."""
        self._scanner.again(pid, RETRY)
        reason = str(error) if isinstance(error, ScopeError) else repr(error)
        if self.refused.get(pid) != reason:
            self.refused[pid] = reason
            say(logging.WARNING, "refused", pid=pid, why=reason)
        if self.config.strict and isinstance(error, ScopeError):
            raise error


def _check_identity(observed: _Observed) -> None:
    observed.watch.target.identity.check()


def _rang(observed: _Observed) -> None:
    observed.watch.rang()


def _add(totals: dict[str, ProgramStats], more: Mapping[str, ProgramStats]) -> None:
    for program, stats in more.items():
        totals[program] = stats.and_of(totals[program]) if program in totals else stats


def _require_room() -> None:
    """A target that could not be observed whole must not take what the others need."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - fast
    if used + _FILES > limit:
        raise HostError(
            f"{used} of {limit} files that the daemon may have open are open; raise LimitNOFILE "
            "in its unit (or ulimit -n) to observe more VMs"
        )
