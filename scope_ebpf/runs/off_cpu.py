# SPDX-License-Identifier: Apache-2.0
"""``profile --off-cpu``: what Erlang processes wait in."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.processes.table import IDENTITY, RUNNING, ProcessTable
from scope_ebpf.beam.stacks.sampling import sample_settings
from scope_ebpf.beam.vm.constants import kernel_constants, known
from scope_ebpf.beam.vm.threads import ROLES, threads
from scope_ebpf.budget.brake import Brake, share_of
from scope_ebpf.budget.reference_counters import ReferenceCounters
from scope_ebpf.errors import NothingToAttachError, ScopeError
from scope_ebpf.kernel.cost import GUESS, Aside
from scope_ebpf.kernel.observers.off_cpu import Waits
from scope_ebpf.kernel.observers.tracepoints import attach_or_reason
from scope_ebpf.planning.planner import make_plan
from scope_ebpf.results.profile import Frame, Profile, Sample
from scope_ebpf.runs.profiler import Run
from scope_ebpf.runs.symbolizer import Reader, wait_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.beam.vm.threads import Thread
    from scope_ebpf.kernel.cost import HitCost

#: Samples a second that we can name, if every process of the target waits all the time and is
#: woken once for each.
_MOST_SAMPLES = 20_000
_LONGEST_PERIOD_NS = 4_000_000_000
#: Processes that wait already when it begins; beyond these a first wait is not counted.
_MOST_KNOWN = 50_000
#: Seconds for which the price of a hit is waited for at the end.
_PATIENCE = 2.0
#: Of the stack of a process that still waits at the end, bytes.
_MAX_STACK = 8192


def off_cpu(
    target: Target, hz: int, duration: float | None, by: str, max_cost: float | None = None
) -> tuple[Profile, ScopeError | None]:
    """
    Watch processes leave their schedulers and come back, for *duration* seconds.

    One sample stands for a *hz*-th of a second of one process's waiting, or more if there are
    many processes; then the samples of each place in the code are weighted so that they sum up to
    all waiting there, which is counted exactly. It ends by itself where it costs the target more
    than the share *max_cost* of its CPU for a second. Returns as :func:`on_cpu` does.
    """
    profile = Profile("off-cpu", target.as_json(), hz, time.time())
    places = _hooks(target)
    reader = Reader(target, profile, by)
    table = ProcessTable(target, IDENTITY)
    settings = sample_settings(target)
    period = max(10**9 // hz, table.count() * 10**9 // _MOST_SAMPLES)
    settings["period_ns"] = min(period, _LONGEST_PERIOD_NS)
    with (
        closing(Aside()) as aside,
        Waits(target.identity, settings, places) as waits,
        _threads(target, profile),
    ):
        rows = table.snapshot().rows
        rows = rows[rows["state"] & np.uint32(RUNNING) == 0][:_MOST_KNOWN]
        waits.know(rows["pointer"], rows["pc"], time.monotonic_ns())
        spent = _Spent(target, waits, aside)
        run = Run(target, profile, waits, reader, brake=Brake(max_cost), cost=spent.seconds)
        error = run.go(duration)
        sites = Counter({site: ns for site, (ns, _) in waits.sites().items()})
        times = sum(count for _, count in waits.sites().values())
        if error is None:
            _add_pending(target, waits, reader, profile, sites)
        price = aside.cost(_PATIENCE) or GUESS
    _weigh(profile, reader, sites)
    _say_cost(profile, times, price)
    return profile, error


@contextlib.contextmanager
def _threads(target: Target, profile: Profile) -> Iterator[None]:
    """Note what the VM's threads did meanwhile, as the kernel schedules them."""
    watch, reason = attach_or_reason()
    place = watch.add() if watch else None
    if watch is None or place is None:
        profile.notes.append(f"what the threads did is not known: {reason}")
        yield
        return
    try:
        watch.watch(place, {thread.tid: _watched(thread) for thread in threads(target.pid)})
        yield
        for role, row in zip(ROLES, watch.totals(place), strict=True):
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
    settings, _ = kernel_constants(target)
    plan = make_plan(target.binary, target.flavor, ("schedule",), "symbol", known(settings))
    if not plan.attachments:
        raise NothingToAttachError(
            f"waiting cannot be seen in process {target.pid}: {plan.items[0].reason}. "
            "`scope-trace profile` without --off-cpu needs no hooks"
        )
    return plan.attachments


def _add_pending(
    target: Target, waits: Waits, reader: Reader, profile: Profile, sites: Counter[tuple[int, int]]
) -> None:
    """Add the processes that wait yet, as they are in memory; count those that never ran."""
    now, idle, records = time.monotonic_ns(), 0, []
    for process, waiting in waits.pending():
        if not waiting["seen"]:
            idle += 1
            continue
        try:
            record = _pending_sample(target, process, waiting, now)
        except ScopeError:
            continue  # it has ended meanwhile
        if record is not None:
            records.append(record)
            sites[int(waiting["i"]), int(waiting["reason"])] += now - int(waiting["since_ns"])
    try:
        reader.take(records)
    except ScopeError:
        profile.notes.append("the target ended while its waiting processes were read")
    if idle:
        profile.notes.append(f"{idle:,} processes waited all the time, and are left out")


def _pending_sample(target: Target, process: int, waiting: np.void, now: int) -> bytes | None:
    """Make of a process that waits what the kernel would make of it; None if it has moved on."""
    layout, memory = target.layout, target.memory
    sample = np.zeros(1, events.SAMPLE)
    sample["pid"] = memory.u64(process)
    sample["process"], sample["time_ns"] = process, now
    sample["weight_ns"], sample["reason"] = now - int(waiting["since_ns"]), waiting["reason"]
    for name in ("heap", "stop", "hend", "i", "current"):
        sample[name] = memory.u64(process + layout.offset("Process", name))
    if layout.has("Process", "frame_pointer"):
        place = layout.offset("Process", "frame_pointer")
        sample["frame_pointer"] = memory.u64(process + place)
    stop, end = int(sample["stop"][0]), int(sample["hend"][0])
    if sample["i"] != waiting["i"] or not stop < end:
        return None
    words = memory.read(stop, min(end - stop, _MAX_STACK))
    sample["bottom"] = memory.u64(end - 8)
    sample["erlang_from"], sample["erlang_bytes"] = stop, len(words)
    return sample.tobytes() + words


def _weigh(profile: Profile, reader: Reader, sites: Counter[tuple[int, int]]) -> None:
    """Let the samples of each place sum up to all waiting there."""
    sampled: Counter[tuple[int, int]] = Counter()
    for site, sample in zip(reader.sites, profile.samples, strict=True):
        sampled[site] += sample.weight_ns
    profile.samples = [
        sample._replace(weight_ns=round(sample.weight_ns * sites[site] / sampled[site]))
        for site, sample in zip(reader.sites, profile.samples, strict=True)
    ]
    for (address, reason), total in sites.items():
        if not sampled[address, reason] and total:
            stack = (Frame("(not sampled)", "process"), reader.code_frame(address))
            whole = (*stack, wait_frame(reason))
            profile.samples.append(Sample(time.monotonic_ns(), "waiting", whole, total))


class _Spent:
    """What the hooks have taken of the target: two hits for each time that a process waits."""

    def __init__(self, target: Target, waits: Waits, aside: Aside) -> None:
        self._waits, self._aside = waits, aside
        self._measures = ReferenceCounters(target)
        self._before = self._switches()

    def _switches(self) -> int:
        found = self._measures.now().get("context_switches")
        if found is None:
            found = sum(count for _, count in self._waits.sites().values())
        return found

    def seconds(self) -> float:
        """Seconds of CPU so far."""
        with contextlib.suppress(ScopeError):  # it has ended, which is found out elsewhere
            price = self._aside.cost() or GUESS
            return price.entry * 2 * (self._switches() - self._before)
        return 0.0


def _say_cost(profile: Profile, times: int, price: HitCost) -> None:
    seconds = price.entry * 2 * times
    used = profile.cpu_seconds
    share = f", {share_of(seconds, used):.1%} of its CPU time" if used else ""
    profile.notes.append(
        f"{times:,} waits were seen; the hooks cost the target about {seconds:.3f} s{share}"
    )
