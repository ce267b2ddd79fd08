# SPDX-License-Identifier: Apache-2.0
"""
The VMs under observation: their beginning, their ticks, their names, their end.

All of this runs in the daemon's loop; a scrape reads the readings that it leaves behind.
"""

from __future__ import annotations

import logging
import math
import select
import selectors
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_ebpf.beam.memory.look_limits import LookLimits, limited
from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.beam.vm.discover import Refusal
from scope_ebpf.beam.vm.node import NodeName
from scope_ebpf.budget.governor import DAEMON_POLICY
from scope_ebpf.daemon import heap
from scope_ebpf.daemon.admission import Admission
from scope_ebpf.daemon.hooks import HookResources, TargetHooks
from scope_ebpf.daemon.looks.hangs import Hangs
from scope_ebpf.daemon.looks.programs import Refused
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.shared_tracepoints import SharedTracepoints
from scope_ebpf.daemon.watch import Watch
from scope_ebpf.errors import (
    HostError,
    NoAnswerError,
    NoSuchProcessError,
    TargetChangedError,
    TooMuchError,
)
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.kernel.observers.program_pool import ProgramPool

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

#: Loaded programs that are kept for the next target, at most, and for how many seconds. Each set
#: has a hundred files.
_POOL_SIZE, _POOL_SECONDS = 8, 10.0
#: Targets that are refreshed for one scrape; a tick takes some milliseconds.
_REFRESHED = 4
#: What may be read of a target's memory in one pass of the loop: bytes, system calls, seconds of
#: CPU. A tick for 1,024 schedulers takes a hundredth of it; a search for an address that was not
#: found before takes some 30,000 calls. Time is not limited: the loop waits for others in between.
_DATA, _CALLS, _CPU = 64 << 20, 100_000, 2.0


@dataclass(slots=True)
class Observed:
    """One VM under observation."""

    watch: Watch
    #: Descriptors that are readable when it has ended, or executes another program.
    ends: tuple[int, ...]
    name: NodeName
    program: Program | None = None
    #: The last name that was read.
    last_name: str | None = None


class Targets:
    """
    Observes the VMs that are given to :meth:`start_observing`; the loop waits for *files*.

    Unexpected errors are counted in *errors*; the VM is then tried again later.

    Attributes:
        admission: limits, labels, and the VMs that are refused.
        tracepoints: the scheduler's tracepoints, shared by all targets.
        attacher: the process that holds the breakpoints.
        seen: number of VMs that were observed so far.
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
        self.admission = Admission(config, scanner, programs or Refused(), hangs or Hangs())
        self.tracepoints = SharedTracepoints()
        self.attacher = Attacher(fork=False)
        self.seen = 0
        self._shares, self._scanner, self._errors = shares, scanner, errors
        self._files = files
        self._pool = ProgramPool(_POOL_SIZE, _POOL_SECONDS, self._detach_exhausted)
        self._resources = HookResources(self.attacher, self._pool, cost)
        self._observed: dict[int, Observed] = {}
        #: Runs of programs for targets that are no longer observed; also read by scrapes.
        self._ended: dict[str, ProgramStats] = {}
        self._lock = threading.Lock()
        files.register(self.attacher.fileno(), selectors.EVENT_READ, self._attacher_ended)

    @property
    def watches(self) -> list[Watch]:
        """The targets of this moment, for any thread."""
        return [observed.watch for observed in list(self._observed.values())]

    def program_stats(self) -> dict[str, ProgramStats]:
        """Runs of each program for all targets, those that have ended too; for any thread."""
        with self._lock:
            totals = dict(self._ended)
            for watch in self.watches:
                _add(totals, watch.program_stats)
        return totals

    # Beginning and end -----------------------------------------------------------------------

    def start_observing(self, found: Found | Refusal) -> None:
        """Begin to observe a VM that was found, or log why not."""
        if isinstance(found, Refusal):
            self.admission.report(found.pid, found.reason)
            return
        pid, identity = found.target.pid, found.target.identity
        if pid in self._observed:
            identity.close()
            return
        began = cpu_seconds()
        try:
            with limited(_limits(pid)):
                watch = self._watch(found)
        except NoSuchProcessError:
            identity.close()
            self._scanner.ended(pid)
        except Exception as error:  # noqa: BLE001 - one target must not take the others along
            identity.close()
            self._refuse(pid, error, found.owner, found.program)
        else:
            self._register(found, watch)
        self._shares.charge(found.owner, cpu_seconds() - began)

    def _watch(self, found: Found) -> Watch:
        target, owner, config = found.target, found.owner, self.admission.config
        label, threads = self.admission.admit(target.pid, target.node, owner), None
        try:
            threads = self.tracepoints.watch(target, owner, strict=config.strict)
            hooks = TargetHooks(target, found.prepared, self._resources, config.budget)
            return Watch(target, label, hooks, threads=threads, owner=owner)
        except BaseException:
            if threads:
                threads.close()
            self._release(target.pid)
            raise

    def _register(self, found: Found, watch: Watch) -> None:
        """Wait for the target's events from now on."""
        target, pid, identity = found.target, found.target.pid, found.target.identity
        ends = tuple(fd for fd in (identity.pidfd, identity.execs) if fd is not None)
        observed = Observed(watch, ends, NodeName(target), found.program)
        self._observed[pid] = observed
        self.admission.accept(pid, found.owner)
        self.seen += 1
        for fd in ends:
            self._files.register(
                fd, selectors.EVENT_READ, lambda: self._guarded(observed, _check_identity)
            )
        self._files.register(
            watch.fileno(), selectors.EVENT_READ, lambda: self._guarded(observed, _on_exhausted)
        )
        self._log_beginning(found, watch)
        off = {item.event: item.reason for item in watch.plan.items if not item.attachments}
        for event, why in off.items():
            say(logging.WARNING, "hook off", pid=pid, hook=event, why=why, owner=found.owner)
        self.admission.require_hooks(pid, off)

    def _log_beginning(self, found: Found, watch: Watch) -> None:
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - found.target.started
        say(
            logging.INFO,
            "observing",
            pid=found.target.pid,
            node=watch.node,
            otp=found.target.otp_release,
            age_seconds=f"{age:.2f}",
            owner=found.owner,
        )

    def drop(self, pid: int, why: str) -> None:
        """Stop observing *pid*, if it is observed."""
        with self._lock:
            observed = self._observed.pop(pid, None)
            if observed is None:
                return
            _add(self._ended, observed.watch.program_stats)
        watch = observed.watch
        for fd in (*observed.ends, watch.fileno()):
            self._files.unregister(fd)
        watch.close()
        watch.target.identity.close()
        self._release(pid)
        self._scanner.ended(pid)
        owner = watch.owner
        say(logging.INFO, "no longer observing", pid=pid, node=watch.node, why=why, owner=owner)
        self.admission.retry_waiting()

    def _release(self, pid: int) -> None:
        self.admission.release(pid)
        self.tracepoints.release(pid)

    def _refuse(
        self, pid: int, error: Exception, owner: Owner, program: Program | None = None
    ) -> None:
        self.admission.refuse(pid, error, owner, program)
        if isinstance(error, NoAnswerError):
            self._drop_hanging()

    def _drop_hanging(self) -> None:
        """Drop all targets of owners of which too many processes have memory that hangs."""
        for pid, observed in list(self._observed.items()):
            owner = observed.watch.owner
            why = self.admission.hang_refusal(owner)
            if why:
                self.drop(pid, "others of its owner do not answer")
                self.admission.refuse(pid, TooMuchError(why), owner)

    def close(self) -> None:
        """Drop all targets; their hooks go all at once, since each waits for the kernel."""
        self._files.unregister(self.attacher.fileno())
        self.attacher.close()
        for pid in list(self._observed):
            self.drop(pid, "the daemon ends")
        self._pool.expire(everything=True)
        self.tracepoints.close()

    # Called by the loop ----------------------------------------------------------------------

    def is_same(self, pid: int) -> bool:
        """True if *pid* is observed and still the same VM; drops it if it is another by now."""
        observed = self._observed.get(pid)
        if observed:
            self._guarded(observed, _check_identity)
        return pid in self._observed

    def next_due(self) -> float | None:
        """When :meth:`run_once` is due, monotonic seconds; None without targets."""
        times = [watch.next_tick for watch in self.watches]
        times += [due for watch in self.watches if (due := watch.next_window()) is not None]
        return min(times, default=None)

    def run_once(self) -> None:
        """Do what is due: ticks, windows, the duty cycle of the tracepoints."""
        self._for_each(self._run_one)
        debts = [watch.debt() for watch in self.watches]
        strict = self.admission.config.strict
        self.tracepoints.balance(debts, self._for_each_watch, strict=strict)

    def refresh_stale(self) -> None:
        """
        Let the next :meth:`run_once` tick the targets whose readings are old, for a scrape.

        At most four, those whose readings are oldest, so that the scrape need not wait for long.
        """
        now = time.monotonic()
        stale = [watch for watch in self.watches if now - watch.ticked >= DAEMON_POLICY.min_tick]
        for watch in sorted(stale, key=lambda watch: watch.ticked)[:_REFRESHED]:
            watch.next_tick = now

    def apply_config(self, config: Config) -> None:
        """Apply *config*; targets that it does not want, or wants otherwise, are dropped."""
        changed = config.budget != self.admission.config.budget
        self.admission.apply_config(config)
        for pid, observed in list(self._observed.items()):
            if changed or not self._is_wanted(observed):
                self.drop(pid, "the config has changed")

    def collect_garbage(self) -> None:
        """Free programs that were not reused, refusals of ended VMs, and memory."""
        self._pool.expire()
        heap.trim()
        self.admission.forget_ended()

    def _attacher_ended(self) -> None:
        raise HostError(
            "the process that holds the breakpoints has ended, and they with it; "
            "the daemon ends, too, so that it is started anew"
        )

    def _detach_exhausted(self) -> None:
        """Detach hooks whose quota is exhausted, while loading programs keeps the loop waiting."""
        poll = select.poll()
        rings = {one.watch.fileno(): one for one in self._observed.values()}
        for ring in rings:
            poll.register(ring, select.POLLIN)
        for ring, _ in poll.poll(0):
            self._guarded(rings[ring], _on_exhausted)

    # One of them -----------------------------------------------------------------------------

    def _for_each(self, work: Callable[[Observed], None]) -> None:
        for pid, observed in list(self._observed.items()):
            if self._observed.get(pid) is observed:  # one may take others of its owner along
                self._guarded(observed, work)

    def _for_each_watch(self, work: Callable[[Watch], None]) -> None:
        self._for_each(lambda observed: work(observed.watch))

    def _guarded(self, observed: Observed, work: Callable[[Observed], None]) -> None:
        """Do *work* on a target, and drop the target if that fails."""
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

    def _run_one(self, observed: Observed) -> None:
        now, watch = time.monotonic(), observed.watch
        if now >= watch.next_tick:
            watch.tick()
            self.admission.require_hooks(watch.target.pid, watch.failed)
            self._follow_name(observed)
        due = watch.next_window()
        if due is not None and now >= due and watch.target.pid in self._observed:
            watch.run_windows()

    def _follow_name(self, observed: Observed) -> None:
        """A node gets its name when its distribution starts, and may change it later."""
        watch, name = observed.watch, observed.name.read()
        pid, before = watch.target.pid, watch.node
        if name is None:
            return
        label = self.admission.labels.follow(pid, name)
        if label != before:
            watch.rename(label)
            say(logging.INFO, "renamed", pid=pid, node=label, before=before, owner=watch.owner)
        last_name, observed.last_name = observed.last_name, name
        if name != last_name and not self._is_wanted(observed):
            self.drop(pid, "its new name is not wanted")
            self._scanner.again(pid, DAEMON_POLICY.min_tick)

    def _is_wanted(self, observed: Observed) -> bool:
        target = observed.watch.target
        return self.admission.wants(target, observed.name.read() or target.node or "")


def _limits(pid: int) -> LookLimits:
    what = f"what is read of process {pid} at once"
    return LookLimits(what, data=_DATA, calls=_CALLS, cpu=_CPU, wall=math.inf)


def _check_identity(observed: Observed) -> None:
    observed.watch.target.identity.check()


def _on_exhausted(observed: Observed) -> None:
    observed.watch.on_exhausted()


def _add(totals: dict[str, ProgramStats], more: Mapping[str, ProgramStats]) -> None:
    for program, stats in more.items():
        totals[program] = stats.and_of(totals[program]) if program in totals else stats
