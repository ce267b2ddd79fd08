# SPDX-License-Identifier: Apache-2.0
"""
The VMs under observation: each is taken in, ticked, called by its name, and let go.

All of this runs in the daemon's loop; a scrape reads the readings that it leaves behind.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import select
import selectors
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_ebpf import events
from scope_ebpf.beam.memory.look_limits import LookLimits, limited
from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.beam.vm.discover import Refusal
from scope_ebpf.beam.vm.node import NodeName
from scope_ebpf.budget.governor import OFTEN
from scope_ebpf.daemon import heap
from scope_ebpf.daemon.looks.hangs import Hangs
from scope_ebpf.daemon.looks.owners import Room
from scope_ebpf.daemon.looks.programs import MOST, Refused
from scope_ebpf.daemon.names import NodeLabels
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.process import cgroup_of
from scope_ebpf.daemon.readings.threads import WatchedThreads
from scope_ebpf.daemon.watch import Watch
from scope_ebpf.errors import (
    HostError,
    NoAnswerError,
    NoSuchProcessError,
    NothingToAttachError,
    ScopeError,
    TargetChangedError,
    TooMuchError,
)
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.kernel.observers.program_pool import Spares
from scope_ebpf.kernel.observers.tracepoints import ThreadWatch, attach_or_reason

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping

    from scope_ebpf.daemon.config import Config
    from scope_ebpf.daemon.looks.discovery import Scanner
    from scope_ebpf.daemon.looks.inspector import Found
    from scope_ebpf.daemon.looks.owners import Owner, Shares
    from scope_ebpf.daemon.looks.programs import Program
    from scope_ebpf.kernel.bpf.stats import ProgramStats
    from scope_ebpf.kernel.cost import HitCost

#: File descriptors that a target takes, and that must be left with room for scrapes and readings.
_FILES, _LEFT = 128, 256
#: Loaded programs that wait for the next target, at most, each a hundred files, and for how long.
_SPARES, _SPARE_SECONDS = 8, 10.0
#: Targets of which stock is taken for one scrape, some milliseconds each.
_HASTENED = 4
#: What is read of a target's memory within one turn of the loop. To take stock of 1,024
#: schedulers takes a hundredth of it; what was not found before is searched for with some 30,000
#: calls. Of time only CPU counts: the loop waits for others in between.
_DATA, _CALLS, _CPU = 64 << 20, 100_000, 2.0


class NoRoomError(HostError):
    """There is no room for one more target, until another ends."""


@dataclass(slots=True)
class _Observed:
    watch: Watch
    #: What tells that it has ended, or executes another program.
    ends: tuple[int, ...]
    name: NodeName
    program: Program | None = None
    #: What its node said last that it is called.
    called: str | None = None


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
        *,
        errors: Counter[str],
        shares: Shares,
        programs: Refused | None = None,
        hangs: Hangs | None = None,
    ) -> None:
        self.config = config
        self.refused: dict[int, str] = {}
        self.labels = NodeLabels()
        #: What could not be observed although it is a VM, by pid.
        self._failed = Refused()
        #: Programs that are not looked at, and whose processes have memory that does not come.
        self._programs, self._hangs = programs or Refused(), hangs or Hangs()
        #: Who has targets, and who has places for their threads.
        self._room, self._places = Room(), Room()
        #: Who was refused for want of room, by pid.
        self._waiting: dict[int, Owner] = {}
        self._shares = shares
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

    def take(self, found: Found | Refusal) -> None:
        """Begin to observe what a look has found, or say why not."""
        if isinstance(found, Refusal):
            self._say_refused(found.pid, found.reason)
            return
        pid, identity = found.target.pid, found.target.identity
        if pid in self._observed:
            identity.close()
            return
        began = cpu_seconds()
        try:
            self._require_room(found.owner)
            with limited(_limits(pid)):
                watch = self._watch(found)
        except NoSuchProcessError:
            identity.close()
            self._scanner.ended(pid)
        except Exception as error:  # noqa: BLE001 - one target must not take the others along
            identity.close()
            self._refuse(pid, error, found.owner, found.program)
        else:
            self._keep(found, watch)
        self._shares.charge(found.owner, cpu_seconds() - began)

    def _watch(self, found: Found) -> Watch:
        pid, threads = found.target.pid, None
        label = self.labels.give(pid, found.target.node, found.owner)
        try:
            threads = self._watch_threads(found)
            return Watch(
                found.target,
                label,
                self.config.budget,
                self._cost,
                self.attacher,
                spares=self._spares,
                threads=threads,
                prepared=found.prepared,
                owner=found.owner,
            )
        except BaseException:
            if threads:
                threads.close()
            self._give_back(pid)
            raise

    def is_same(self, pid: int) -> bool:
        """Whether *pid* is observed and is what it was; if it is another by now, it is let go."""
        observed = self._observed.get(pid)
        if observed:
            self._guarded(observed, _check_identity)
        return pid in self._observed

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
        for pid, observed in list(self._observed.items()):
            if self._observed.get(pid) is observed:  # one may take others of its owner along
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
        self._waiting.clear()
        self._failed.forget()
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
        self._give_back(pid)
        self._scanner.ended(pid)
        owner = observed.watch.owner
        node = observed.watch.node
        say(logging.INFO, "no longer observing", pid=pid, node=node, why=why, owner=owner)
        self._let_in()

    def _give_back(self, pid: int) -> None:
        """Let others have the room and the name that *pid* had."""
        self.labels.drop(pid)
        self._room.leave(pid)
        self._places.leave(pid)

    def _let_in(self) -> None:
        """There is room: whoever waits for it and has least is looked at again."""
        for pid in sorted(self._waiting, key=lambda pid: self._room.held(self._waiting[pid])):
            if not self._room.refusal(self._waiting[pid], _most()):
                del self._waiting[pid]
                self._scanner.again(pid, 0.0)
                return

    def tidy(self) -> None:
        """Let go of programs that nobody needs, of refusals of what has ended, and of memory."""
        self._spares.tidy()
        heap.give_back()
        for pid in list(self.refused):
            if not os.path.exists(f"/proc/{pid}"):  # noqa: PTH110 - fast
                self.refused.pop(pid, None)
                self._waiting.pop(pid, None)
                self._failed.clear(pid)

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

    def _keep(self, found: Found, watch: Watch) -> None:
        target, pid, identity = found.target, found.target.pid, found.target.identity
        ends = tuple(fd for fd in (identity.pidfd, identity.execs) if fd is not None)
        observed = _Observed(watch, ends, NodeName(target), found.program)
        self._observed[pid] = observed
        self._room.enter(pid, found.owner)
        self.refused.pop(pid, None)
        self._failed.clear(pid)
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
            owner=found.owner,
        )
        off = [item for item in watch.plan.items if not item.attachments]
        for item in off:
            why, owner = item.reason, found.owner
            say(logging.WARNING, "hook off", pid=pid, hook=item.event, why=why, owner=owner)
        if off and self.config.strict:
            raise NothingToAttachError(
                f"--strict, and process {pid} has no hook for {off[0].event}: {off[0].reason}"
            )

    def _guarded(self, observed: _Observed, work: Callable[[_Observed], None]) -> None:
        """Do *work* on a target, which may end meanwhile; what fails is let go of."""
        pid = observed.watch.target.pid
        try:
            with limited(_limits(pid)):
                work(observed)
        except TargetChangedError as error:
            self.drop(pid, f"it {error.what}")
        except NoSuchProcessError:
            self.drop(pid, "it has ended")
        except Exception as error:  # noqa: BLE001 - one target must not take the others along
            self._errors["watch"] += 1
            self.drop(pid, "it cannot be observed any more")
            self._refuse(pid, error, observed.watch.owner, observed.program)

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
        pid, before = watch.target.pid, watch.node
        if name is None:
            return
        label = self.labels.follow(pid, name)
        if label != before:
            watch.rename(label)
            say(logging.INFO, "renamed", pid=pid, node=label, before=before, owner=watch.owner)
        called, observed.called = observed.called, name
        if name != called and not self._wants(observed):
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

    def _watch_threads(self, found: Found) -> WatchedThreads:
        """The target's threads, where the kernel lets us watch them and there is room."""
        target, owner = found.target, found.owner
        if self.thread_watch is None and not self._thread_trouble:
            self.thread_watch, self._thread_trouble = attach_or_reason()
            what, why = "threads are not watched", self._thread_trouble
            if self.thread_watch:
                what, why = "busy waiting and native code are not told", self.thread_watch.unsampled
            if why:
                say(logging.WARNING, what, why=why)
            if why and self.config.strict:
                raise HostError(f"--strict, and {what}: {why}")
        place = None
        if self.thread_watch and not self._places.refusal(owner, events.MAX_TARGETS):
            place = self.thread_watch.add()
        if place is not None:
            self._places.enter(target.pid, owner)
        return WatchedThreads(self.thread_watch, target, place)

    def _require_room(self, owner: Owner) -> None:
        """A target that could not be observed whole must not take what the others need."""
        limit, most = _limit(), _most()
        why = self._room.refusal(owner, most)
        if why:
            raise NoRoomError(why)
        used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - fast
        if used + _LEFT > limit:
            raise NoRoomError(
                f"{used} of {limit} files that the daemon may have open are open; raise "
                "LimitNOFILE in its unit (or ulimit -n) to observe more VMs"
            )

    def _refuse(
        self, pid: int, error: Exception, owner: Owner, program: Program | None = None
    ) -> None:
        """Try it again later, and ever more rarely: what is missing may come back."""
        if isinstance(error, NoRoomError):
            self._waiting[pid] = owner
        bad = self._failed.add(pid, error)
        if isinstance(error, NoAnswerError):
            if program:
                bad = self._programs.add(program, error, MOST)
            self._hangs.add(owner)
            self._drop_hanging()
        self._scanner.again(pid, bad.pause)
        self._say_refused(pid, error, owner)

    def _drop_hanging(self) -> None:
        """Let go of all of an owner, once too many of its processes have had such memory."""
        for pid, observed in list(self._observed.items()):
            owner = observed.watch.owner
            why = self._hangs.refusal(owner)
            if why:
                self.drop(pid, "others of its owner do not answer")
                self._refuse(pid, TooMuchError(why), owner)

    def _say_refused(self, pid: int, error: Exception, owner: Owner | None = None) -> None:
        """Say it once."""
        reason = str(error) if isinstance(error, ScopeError) else repr(error)
        if self.refused.get(pid) != reason:
            self.refused[pid] = reason
            say(logging.WARNING, "refused", pid=pid, why=reason, owner=owner)
        if self.config.strict and isinstance(error, ScopeError):
            raise error


def _limits(pid: int) -> LookLimits:
    what = f"what is read of process {pid} at once"
    return LookLimits(what, data=_DATA, calls=_CALLS, cpu=_CPU, wall=math.inf)


def _limit() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit


def _most() -> int:
    """How many targets there is room for."""
    return max(1, (_limit() - _LEFT) // _FILES)


def _check_identity(observed: _Observed) -> None:
    observed.watch.target.identity.check()


def _rang(observed: _Observed) -> None:
    observed.watch.rang()


def _add(totals: dict[str, ProgramStats], more: Mapping[str, ProgramStats]) -> None:
    for program, stats in more.items():
        totals[program] = stats.and_of(totals[program]) if program in totals else stats
