# SPDX-License-Identifier: Apache-2.0
"""``profile --off-cpu``: where Erlang processes wait, and for what."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.hidden.resolve import hidden_of
from scope_ebpf.beam.processes.table import IDENTITY, RUNNING, ProcessTable
from scope_ebpf.beam.stacks.sampling import sample_settings
from scope_ebpf.beam.vm.threads import ROLES, threads
from scope_ebpf.budget.brake import Brake, share_of
from scope_ebpf.budget.reference_counters import ReferenceCounters
from scope_ebpf.errors import NothingToAttachError, ScopeError
from scope_ebpf.kernel.cost import GUESS, CostMeasurement
from scope_ebpf.kernel.observers.off_cpu import OffCpuSampler
from scope_ebpf.kernel.observers.thread_watch import attach_or_reason
from scope_ebpf.results.profile import Frame, Profile, Sample
from scope_ebpf.runs.profiler import ProfileRun, works_by
from scope_ebpf.runs.symbolizer import Symbolizer, wait_frame
from scope_ebpf.runs.waited import waited
from scope_ebpf.sessions import plan_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.beam.vm.threads import Thread
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.runs.profiler import ProfileOptions
    from scope_ebpf.runs.work import Works

#: Samples a second that can be named, if every process of the target waits all the time and is
#: woken once for each.
_MAX_SAMPLES = 20_000
_LONGEST_PERIOD_NS = 4_000_000_000
#: Processes that wait already when the profile begins; beyond these a first wait is not counted.
_MAX_KNOWN = 50_000
#: Seconds to wait for the cost of a hit when the profile is over.
_COST_SECONDS = 2.0


def off_cpu(target: Target, options: ProfileOptions) -> tuple[Profile, ScopeError | None]:
    """
    Sample processes from when they leave their schedulers until they come back.

    One sample stands for a *hz*-th of a second of one process's waiting, or more if there are
    many processes. The samples of each address in the code are weighted so that they sum up to
    all waiting there, which is counted exactly. Returns as :func:`on_cpu` does.
    """
    profile = Profile("off-cpu", target.as_json(), options.hz, time.time())
    with works_by(target, options.by, profile) as works:
        return profile, _profile(target, options, profile, works)


def _profile(
    target: Target, options: ProfileOptions, profile: Profile, works: Works | None
) -> ScopeError | None:
    hooks = _hooks(target)
    symbolizer = Symbolizer(target, profile, options.by, works.name if works else None)
    table = ProcessTable(target, IDENTITY)
    settings = sample_settings(target)
    period = max(10**9 // options.hz, table.count() * 10**9 // _MAX_SAMPLES)
    settings["period_ns"] = min(period, _LONGEST_PERIOD_NS)
    with (
        closing(CostMeasurement()) as measurement,
        OffCpuSampler(target.identity, settings, hooks, works.fd if works else None) as waits,
        _threads(target, profile),
    ):
        rows = table.snapshot().rows
        rows = rows[rows["state"] & np.uint32(RUNNING) == 0][:_MAX_KNOWN]
        waits.add_waiting(rows["pointer"], rows["pc"], time.monotonic_ns())
        brake, cost = Brake(options.max_cost), _HookCost(target, waits, measurement)
        run = ProfileRun(
            *(target, profile, waits, symbolizer),
            brake=brake,
            cost=cost.seconds,
            follow=works.look if works else lambda: None,
        )
        error = run.go(options.duration)
        sites = Counter({site: ns for site, (ns, _) in waits.sites().items()})
        times = sum(count for _, count in waits.sites().values())
        if error is None:
            _add_pending(target, waits, symbolizer, profile, sites)
        hit_cost = measurement.cost(_COST_SECONDS) or GUESS
    _weigh(profile, symbolizer, sites)
    _note_cost(profile, times, hit_cost)
    return error


@contextlib.contextmanager
def _threads(target: Target, profile: Profile) -> Iterator[None]:
    """Note how the kernel scheduled the threads of each role while the block ran."""
    watch, reason = attach_or_reason()
    slot = watch.add() if watch else None
    if watch is None or slot is None:
        profile.notes.append(f"what the threads did is not known: {reason}")
        yield
        return
    try:
        watch.watch(slot, {thread.tid: _watched(thread) for thread in threads(target.pid)})
        yield
        for role, row in zip(ROLES, watch.totals(slot), strict=True):
            on = row["on_ns"] / 1e9
            off = dict(zip(events.OFF_REASONS, row["off_ns"] / 1e9, strict=True))
            if on >= 0.001:
                ready = off["preempted"] + off["queued"]
                profile.notes.append(
                    f"{role.replace('_', ' ')} threads: {on:.3f} s on a CPU, {off['idle']:.3f} s "
                    f"asleep for want of work or a lock, {off['blocked']:.3f} s asleep elsewhere, "
                    f"{ready:.3f} s ready without a CPU"
                )
    finally:
        watch.close()


def _watched(thread: Thread) -> NDArray[np.void]:
    value = np.zeros(1, events.THREAD)
    value["row"] = ROLES.index(thread.role)
    return value


def _hooks(target: Target) -> Sequence[Attachment]:
    plan = plan_target(target, ("schedule",), "symbol").plan
    if not plan.attachments:
        raise NothingToAttachError(
            f"waiting cannot be seen in process {target.pid}: {plan.items[0].reason}. "
            "`scope-trace profile` without --off-cpu needs no hooks"
        )
    found = any(a.source for a in plan.attachments)
    if found and "schedule" not in hidden_of(target.binary).proven:
        raise NothingToAttachError(
            f"waiting cannot be seen in process {target.pid}: its program hides where processes "
            "are scheduled, and nothing has shown yet that what was found is right. `scope-trace "
            f"--pid {target.pid} --events schedule --exact` compares it with the VM's counters"
        )
    return plan.attachments


def _add_pending(
    target: Target,
    waits: OffCpuSampler,
    symbolizer: Symbolizer,
    profile: Profile,
    sites: Counter[tuple[int, int]],
) -> None:
    """Add the processes that still wait, as they are in memory; those that never ran apart."""
    now, records = time.monotonic_ns(), []
    still: list[tuple[int, int]] = []
    for process, waiting in waits.pending():
        if not waiting["seen"]:
            still.append((process, int(waiting["i"])))
            continue
        try:
            record = _pending_sample(target, process, waiting, now)
        except ScopeError:
            continue  # it has ended meanwhile
        if record is not None:
            records.append(record)
            sites[int(waiting["i"]), int(waiting["reason"])] += now - int(waiting["since_ns"])
    try:
        symbolizer.take(records)
    except ScopeError:
        profile.notes.append("the target ended while its waiting processes were read")
    try:
        profile.waited, profile.idle = waited(target, still)
    except ScopeError as error:
        profile.notes.append(
            f"{len(still):,} processes waited all the time; where is not known: {error}"
        )


def _pending_sample(target: Target, process: int, waiting: np.void, now: int) -> bytes | None:
    """A sample of a process that waits, as the kernel would take it; None if it has moved on."""
    layout, memory = target.layout, target.memory
    sample = np.zeros(1, events.SAMPLE)
    sample["pid"] = memory.u64(process)
    sample["process"], sample["time_ns"] = process, now
    sample["weight_ns"], sample["reason"] = now - int(waiting["since_ns"]), waiting["reason"]
    for name in ("heap", "stop", "hend", "i", "current"):
        sample[name] = memory.u64(process + layout.offset("Process", name))
    if layout.has("Process", "frame_pointer"):
        offset = layout.offset("Process", "frame_pointer")
        sample["frame_pointer"] = memory.u64(process + offset)
    stop, end = int(sample["stop"][0]), int(sample["hend"][0])
    if sample["i"] != waiting["i"] or not stop < end:
        return None
    words = memory.read(stop, min(end - stop, events.OFF_CPU_STACK_BYTES))
    sample["bottom"] = memory.u64(end - 8)
    sample["erlang_from"], sample["erlang_bytes"] = stop, len(words)
    return sample.tobytes() + words


def _weigh(profile: Profile, symbolizer: Symbolizer, sites: Counter[tuple[int, int]]) -> None:
    """
    Weight the samples of each site so that they sum up to all waiting there.

    *sites* is ns of waiting by address in Erlang code and wait reason.
    """
    sampled: Counter[tuple[int, int]] = Counter()
    for site, sample in zip(symbolizer.sites, profile.samples, strict=True):
        sampled[site] += sample.weight_ns
    profile.samples = [
        sample._replace(weight_ns=round(sample.weight_ns * sites[site] / sampled[site]))
        for site, sample in zip(symbolizer.sites, profile.samples, strict=True)
    ]
    for (address, reason), total in sites.items():
        if not sampled[address, reason] and total:
            stack = (Frame("(not sampled)", "process"), symbolizer.code_frame(address))
            whole = (*stack, wait_frame(reason))
            profile.samples.append(Sample(time.monotonic_ns(), "waiting", whole, total))


class _HookCost:
    """What the hooks take of the target: two hits each time that a process waits."""

    def __init__(self, target: Target, waits: OffCpuSampler, measurement: CostMeasurement) -> None:
        self._waits, self._measurement = waits, measurement
        self._counters = ReferenceCounters(target)
        self._before = self._switches()

    def _switches(self) -> int:
        found = self._counters.now().get("context_switches")
        if found is None:
            found = sum(count for _, count in self._waits.sites().values())
        return found

    def seconds(self) -> Callable[[], float]:
        """What gives the seconds of the target's CPU until now."""
        times = 0
        with contextlib.suppress(ScopeError):  # it has ended, which the run finds out
            times = self._switches() - self._before
        return lambda: (self._measurement.cost() or GUESS).entry * 2 * times


def _note_cost(profile: Profile, times: int, cost: HitCost) -> None:
    """Note what the hooks cost; *times* is how often a process waited."""
    seconds = cost.entry * 2 * times
    used = profile.cpu_seconds
    share = f", {share_of(seconds, used):.1%} of its CPU time" if used else ""
    profile.notes.append(
        f"{times:,} waits were seen; the hooks cost the target about {seconds:.3f} s{share}"
    )
