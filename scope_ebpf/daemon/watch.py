# SPDX-License-Identifier: Apache-2.0
"""
One target under observation: its process, its threads, its hooks, and the last reading of all.

Driven by the daemon's loop: :meth:`Watch.tick` at :attr:`Watch.next_tick`,
:meth:`Watch.run_windows` at :meth:`Watch.next_window`, and :meth:`Watch.on_exhausted` when
:meth:`Watch.fileno` is readable.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.budget.governor import DAEMON_POLICY
from scope_ebpf.cgroups import Throttling, container_and_pod, memory_limit
from scope_ebpf.daemon.looks.owners import ROOT, Owner
from scope_ebpf.daemon.readings.groups import Groups
from scope_ebpf.daemon.readings.process import cgroup_of, read_process, user_of
from scope_ebpf.daemon.readings.snapshots import SnapshotResults
from scope_ebpf.daemon.telemetry_slot import TelemetrySlot
from scope_ebpf.metrics.findings import FindingsReading
from scope_ebpf.metrics.marks import MarksReading
from scope_ebpf.metrics.reading import Reading
from scope_ebpf.metrics.servers import ServersReading
from scope_ebpf.metrics.telemetry import TelemetryReading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.attach.plan import Plan
    from scope_ebpf.beam.vm.counters import Counters
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.hooks import TargetHooks
    from scope_ebpf.daemon.readings.threads import WatchedThreads
    from scope_ebpf.daemon.telemetry import Crop, Offer, Specified
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.kernel.bpf.stats import ProgramStats
    from scope_ebpf.metrics.reading import ProcessReading

#: Seconds between two readings of the memory limit: the kernel adds up all CPUs for each.
_LIMIT_INTERVAL = 10.0
#: Weight of the newest tick in the moving average of its CPU.
_SMOOTHING = 0.3


@dataclass(slots=True)
class _Published:
    """What other threads have found of a target, each whole; shown with the next reading."""

    results: SnapshotResults = field(default_factory=SnapshotResults)
    findings: FindingsReading = field(default_factory=FindingsReading)
    servers: ServersReading = field(default_factory=ServersReading)
    telemetry: TelemetryReading = field(default_factory=TelemetryReading)
    marks: MarksReading = field(default_factory=MarksReading)
    #: Seconds of the target's CPU that the hooks of marks took so far.
    marks_spent: float = 0.0
    error: ScopeError | None = None


class Watch:
    """
    Observes *target* under the label *node*, with *hooks* that it opens, and *threads*.

    Raises NothingToAttachError, HostError and NoSuchProcessError; *hooks* are closed then.

    Attributes:
        target: the VM.
        node: its label.
        owner: whose process it is.
        hooks: its hooks.
        reading: what a scrape shows; replaced as a whole, and read by any thread.
        next_tick: when :meth:`tick` is due, monotonic seconds.
        ticked: when it was last called.
    """

    def __init__(
        self,
        target: Target,
        node: str,
        hooks: TargetHooks,
        *,
        threads: WatchedThreads | None = None,
        owner: Owner = ROOT,
    ) -> None:
        self.target, self.node, self.owner, self.hooks = target, node, owner, hooks
        target.identity.check()
        self._threads = threads
        self._throttling = Throttling(target.pid)
        self._limit, self._next_limit = memory_limit(target.pid), time.monotonic() + _LIMIT_INTERVAL
        self._info = _info(target)
        self._published = _Published()
        self._groups = Groups(target, hooks.session)
        self._telemetry = TelemetrySlot(target, hooks, threads)
        self.next_tick = self.ticked = 0.0
        #: Recent CPU of the observer for one tick, in seconds.
        self._tick_cpu = 0.0
        try:
            hooks.open()
            process = read_process(target.pid, self._throttling)
            self.reading = self._read(hooks.counters.read(), process, 0.0)
            target.identity.check()
        except BaseException:
            hooks.close()  # a target may end at any moment
            raise

    @property
    def plan(self) -> Plan:
        """What is attached for each event."""
        return self.hooks.plan

    @property
    def failed(self) -> dict[str, str]:
        """Events whose hooks the kernel refused, with the reason."""
        return self.hooks.failed

    @property
    def program_stats(self) -> dict[str, ProgramStats]:
        """Runs of each program, at the last reading."""
        return self.hooks.program_stats

    def fileno(self) -> int:
        """Readable when a quota was exhausted: then call :meth:`on_exhausted`."""
        return self.hooks.session.fileno()

    def tick(self) -> None:
        """
        Read counts, account for costs, renew quotas, replace :attr:`reading`.

        NoSuchProcessError if the target has ended or has changed; then the reading stays. Raises
        the error that was published, too.
        """
        if error := self._published.results.error or self._published.error:
            raise error
        now, began = time.monotonic(), cpu_seconds()
        self.hooks.detach_exhausted(now)
        counters = self.hooks.counters.read()
        process = read_process(self.target.pid, self._throttling)
        others = {}
        if self._threads:
            self._threads.tick()
            others["threads"] = self._threads.spent()
        others["telemetry"] = self._telemetry.tick()
        others["marks"] = self._published.marks_spent
        spent = self.hooks.tick(now, process.cpu_seconds, others)
        self.target.identity.check()
        self.reading = self._read(counters, process, spent)
        took = cpu_seconds() - began
        self._tick_cpu += (took - self._tick_cpu) * (_SMOOTHING if self._tick_cpu else 1.0)
        self.ticked, self.next_tick = now, now + self.hooks.pause(self._tick_cpu)

    def run_windows(self) -> None:
        """Close the window that is over, and open the one that is due; so of telemetry."""
        now = time.monotonic()
        if (due := self.hooks.next_window()) is not None and now >= due:
            self.hooks.run_windows()
        if (due := self._telemetry.next_due) is not None and now >= due:
            self._telemetry.run()

    def next_window(self) -> float | None:
        """When :meth:`run_windows` is due, monotonic seconds; None if no event has windows."""
        dues = (self.hooks.next_window(), self._telemetry.next_due)
        return min((due for due in dues if due is not None), default=None)

    def on_exhausted(self) -> None:
        """A quota was exhausted: detach its hooks, and tick soon."""
        self.next_tick = min(self.next_tick, time.monotonic() + DAEMON_POLICY.min_tick)
        self.hooks.on_exhausted()

    def publish(self, results: SnapshotResults) -> None:
        """Show *results* with the next reading; called by the thread that takes snapshots."""
        self._published.results = results

    def publish_findings(self, found: FindingsReading) -> None:
        """Show *found* with the next reading; called by the thread that checks."""
        self._published.findings = found

    def publish_servers(self, found: ServersReading) -> None:
        """Show *found* with the next reading; called by the thread that looks at servers."""
        self._published.servers = found

    def offer_telemetry(self, offer: Offer | None) -> None:
        """Count telemetry as *offer* says, from the next tick on; None to count none."""
        self._telemetry.offer(offer)

    def move_telemetry(self, addresses: Sequence[int]) -> None:
        """Set breakpoints at *addresses* instead; called by the thread that reads telemetry."""
        self._telemetry.move(addresses)

    def specify_telemetry(self, specified: Sequence[Specified]) -> None:
        """Count telemetry as these specifications say, too; called by the thread that reads it."""
        self._telemetry.specify(specified)

    def take_telemetry(self) -> Crop | None:
        """Take what was counted; raises the error, of any kind, for which hooks were taken out."""
        return self._telemetry.take()

    def publish_telemetry(self, found: TelemetryReading) -> None:
        """Show *found* with the next reading; called by the thread that reads telemetry."""
        self._published.telemetry = found

    def publish_marks(self, found: MarksReading, spent: float) -> None:
        """Show *found* with the next reading, which took *spent* since; called by its thread."""
        self._published.marks = found
        self._published.marks_spent += spent

    def fail(self, error: ScopeError) -> None:
        """Raise *error* at the next :meth:`tick`, so that the target is dropped; for any thread."""
        self._published.error = error

    @property
    def income(self) -> float:
        """Seconds of CPU a second that observing the target may cost."""
        return self.hooks.income

    def rename(self, node: str) -> None:
        """Export this target's series under the label *node* from now on."""
        self.node, self.reading = node, replace(self.reading, node=node)

    def debt(self) -> tuple[float, float]:
        """Seconds by which tracepoints exceed their share of the budget, and that share of 1 s."""
        return self.hooks.debt()

    def resumed(self) -> None:
        """The scheduler's tracepoints were attached again."""
        if self._threads:
            self._threads.resumed()

    def unwatch_threads(self, why: str) -> None:
        """Go on without the scheduler's tracepoints, for the reason *why*."""
        if self._threads:
            self._threads.go_without(why)

    def close(self) -> None:
        """Detach everything from the target."""
        self._telemetry.close()
        self.hooks.close()
        if self._threads:
            self._threads.close()

    def _read(self, counters: Counters | None, process: ProcessReading, spent: float) -> Reading:
        target, threads, results = self.target, self._threads, self._published.results
        if (now := time.monotonic()) >= self._next_limit:
            self._limit, self._next_limit = memory_limit(target.pid), now + _LIMIT_INTERVAL
        events = self.hooks.events()
        groups = self._groups.read(events)
        return Reading(
            node=self.node,
            info=self._info,
            schedulers=target.schedulers,
            process=process,
            events=events,
            counters=counters,
            limits=self.hooks.counters.limits,
            hooks=self.hooks.reading(spent),
            failed_reads=target.memory.failures,
            threads=threads.totals if threads else None,
            accounting=threads.accounting if threads else None,
            memory=results.memory,
            snapshot=results.snapshot,
            memory_limit=self._limit,
            findings=self._published.findings,
            servers=self._published.servers,
            crashes=groups.crashes,
            downs=groups.downs,
            telemetry=self._published.telemetry,
            marks=self._published.marks,
        )


def _info(target: Target) -> dict[str, str]:
    """
    The labels of ``beam_target_info``.

    Owner and cgroup are read once: a process that moves a VM among its own cgroups must not make
    series without end.
    """
    cgroup = cgroup_of(target.pid)
    container, pod = container_and_pod(cgroup)
    return {
        "pid": str(target.pid),
        "otp_release": target.otp_release,
        "erts_version": target.erts_version,
        "flavor": target.flavor,
        "hooks": "usdt" if target.usdt else "symbol",
        "exe": target.exe,
        "uid": user_of(target.pid),
        "cgroup": cgroup,
        "container_id": container,
        "pod_uid": pod,
    }
