# SPDX-License-Identifier: Apache-2.0
"""
Readings as Prometheus families.

The catalogue says which family is filled from which figure; a name that is not in it cannot be
exported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.layouts.checks import KINDS
from scope_ebpf.beam.vm.threads import ROLES
from scope_ebpf.metrics.catalogue import Series, catalogue
from scope_ebpf.metrics.columns import SLOTS, EventReading, sum_column
from scope_ebpf.metrics.crashes import expose_crashes
from scope_ebpf.metrics.downs import expose_downs
from scope_ebpf.metrics.findings import expose_findings
from scope_ebpf.metrics.marks import expose_marks
from scope_ebpf.metrics.memory import expose_memory
from scope_ebpf.metrics.servers import expose_servers
from scope_ebpf.metrics.snapshot import MAILBOX_STEPS, MEMORY_STEPS
from scope_ebpf.metrics.telemetry import expose_telemetry
from scope_ebpf.relations import checked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.metrics.page import Page
    from scope_ebpf.metrics.reading import HooksReading, Reading, Sampled, ThreadAccounting
    from scope_ebpf.metrics.snapshot import SnapshotReading

#: Types of threads whose waits are exported; for async threads only the time on a CPU is.
_WAITING = ROLES[: ROLES.index("async")]
#: Types of threads whose run queue latency is exported; processes never wait for the others.
_LATENT = ROLES[: ROLES.index("aux")]


def expose(page: Page, reading: Reading) -> None:
    """Add all figures of one target, except impossible ones (``relations``)."""
    reading, impossible = checked(reading)
    for series in catalogue().values():
        if series.event:
            _expose_event(page, series, reading)
        elif series.threads and reading.threads is not None:
            roles = ROLES if series.threads == "on_ns" else _WAITING
            for role, totals in zip(roles, reading.threads, strict=False):
                value = float(totals[series.threads]) * series.factor
                page.add(series.name, value, node=reading.node, scheduler_type=role)
        else:
            _expose_field(page, series, reading)
    _expose_target(page, reading)
    _expose_counters(page, reading)
    _expose_waits(page, reading)
    _expose_parts(page, reading)
    _expose_observer(page, reading, impossible)


def _expose_parts(page: Page, reading: Reading) -> None:
    """Add the figures that threads beside the loop have read, where there are any."""
    if reading.memory:
        expose_memory(page, reading.node, reading.memory)
    if reading.snapshot:
        _expose_snapshot(page, reading.node, reading.snapshot)
    if reading.findings:
        expose_findings(page, reading.node, reading.findings)
    if reading.servers:
        expose_servers(page, reading.node, reading.servers)
    if reading.crashes is not None:
        expose_crashes(page, reading.node, reading.crashes)
    if reading.downs is not None:
        expose_downs(page, reading.node, reading.downs)
    if reading.telemetry:
        expose_telemetry(page, reading.node, reading.telemetry)
    if reading.marks:
        expose_marks(page, reading.node, reading.marks)


def _expose_field(page: Page, series: Series, reading: Reading) -> None:
    """Add a series that is one field of a part of the reading, if that part is known."""
    for part, field in (
        (reading.counters, series.counter),
        (reading.limits, series.limit),
        (reading.process, series.process),
        (reading.snapshot, series.snapshot),
    ):
        if field and part:
            page.add(series.name, getattr(part, field) * series.factor, node=reading.node)


def _expose_event(page: Page, series: Series, reading: Reading) -> None:
    event = reading.events.get(series.event or "")
    if event is None or event.mode == "off":
        return
    kind = events.KINDS[series.event or ""]
    wanted = [
        (number, name)
        for number, name in enumerate(kind.classes)
        if name in (series.classes or kind.classes)
    ]
    if series.type == "histogram":
        _expose_durations(page, series, event, wanted, reading.node)
        return
    if series.class_label is None:
        columns = [sum_column(n) if series.seconds else n for n, _ in wanted]
        total = sum(event.totals[column] for column in columns) * series.factor
        page.add(series.name, float(total), node=reading.node)
        return
    for number, name in wanted:
        labels = {"node": reading.node, series.class_label: name}
        page.add(series.name, float(event.totals[number]), **labels)


def _expose_durations(
    page: Page, series: Series, event: EventReading, wanted: list[tuple[int, str]], node: str
) -> None:
    columns = [sum_column(number) for number, _ in wanted]
    if series.merged:
        slots = np.sum([event.totals[at + 1 : at + 1 + SLOTS] for at in columns], axis=0)
        page.histogram(series.name, slots, float(sum(event.totals[columns])), node=node)
        return
    for column, (_, name) in zip(columns, wanted, strict=True):
        slots = event.totals[column + 1 : column + 1 + SLOTS]
        labels = {"node": node}
        if series.class_label:
            labels[series.class_label] = name
        page.histogram(series.name, slots, float(event.totals[column]), **labels)


def _expose_target(page: Page, reading: Reading) -> None:
    node = reading.node
    page.add("beam_target_info", 1, node=node, **reading.info)
    page.add("beam_schedulers", reading.schedulers, node=node)
    page.add_compat("user_seconds", reading.process.user_seconds, node=node)
    page.add_compat("uptime", reading.process.uptime, node=node)
    if reading.counters and reading.counters.dirty_collections is not None:  # else some are missing
        page.add_compat("collections", reading.counters.collections, node=node)
        page.add_compat("reclaimed_bytes", 8 * reading.counters.reclaimed_words, node=node)
    throttled = reading.process.throttled
    if throttled:
        page.add("beam_cgroup_throttled_seconds_total", throttled.seconds, node=node)
        page.add("beam_cgroup_throttled_periods_total", throttled.throttled, node=node)
        page.add("beam_cgroup_periods_total", throttled.periods, node=node)
    if limit := reading.memory_limit:
        page.add("beam_cgroup_memory_bytes", limit.used, node=node)
        page.add("beam_cgroup_memory_limit_bytes", limit.limit, node=node)
        page.add("beam_cgroup_oom_kills_total", limit.kills, node=node)
    if reading.accounting:
        _expose_accounting(page, node, reading.accounting)


def _expose_accounting(page: Page, node: str, accounting: ThreadAccounting) -> None:
    for role, count in zip(ROLES, accounting.counts, strict=True):
        page.add("beam_threads", count, node=node, scheduler_type=role)
    for kind, faults in (("minor", accounting.minor), ("major", accounting.major)):
        by_role = {role: faults[ROLES.index(role)] for role in KINDS}
        by_role["other"] = sum(faults) - sum(by_role.values())
        for role, count in by_role.items():
            labels = {"node": node, "scheduler_type": role, "type": kind}
            page.add("beam_page_faults_total", count, **labels)
    if accounting.sampled:
        _expose_sampled(page, node, accounting.sampled)


def _expose_sampled(page: Page, node: str, sampled: Sampled) -> None:
    for kind, seconds in zip(KINDS, sampled.busy_wait, strict=True):
        if seconds is not None:
            page.add("beam_busy_wait_seconds_total", seconds, node=node, scheduler_type=kind)
    page.add("scope_ebpf_busy_wait_error_ratio", sampled.error_ratio, node=node)
    for name, one in sampled.nifs.items():
        page.add("beam_native_cpu_seconds_total", one.seconds, node=node, name=name)
        page.add("beam_native_long_calls_total", one.long_calls, node=node, name=name)


def _expose_counters(page: Page, reading: Reading) -> None:
    node, counters = reading.node, reading.counters
    if counters is None:
        return
    for kind, length in zip(KINDS, counters.waiting, strict=True):
        page.add("beam_run_queue_length", length, node=node, scheduler_type=kind)
    for kind, online in zip(KINDS[:2], counters.online, strict=False):
        page.add("beam_schedulers_online", online, node=node, scheduler_type=kind)
    sampled = reading.accounting.sampled if reading.accounting else None
    if sampled and sampled.working is not None and counters.online[0]:
        ratio = min(1.0, sampled.working / counters.online[0])
        page.add("beam_scheduler_utilization_ratio", ratio, node=node)
    page.add("beam_port_io_bytes_total", counters.bytes_in, node=node, direction="in")
    page.add("beam_port_io_bytes_total", counters.bytes_out, node=node, direction="out")


def _expose_waits(page: Page, reading: Reading) -> None:
    if reading.threads is None:
        return
    for role, totals in zip(_WAITING, reading.threads, strict=False):
        labels = {"node": reading.node, "scheduler_type": role}
        for reason, ns in zip(events.OFF_REASONS, totals["off_ns"].tolist(), strict=True):
            page.add("beam_thread_offcpu_seconds_total", ns / 1e9, **labels, reason=reason)
        if role in _LATENT:
            page.histogram(
                "beam_thread_run_queue_latency_seconds",
                totals["slots"].astype(np.float64),
                float(totals["waited_ns"]),
                **labels,
            )


def _expose_snapshot(page: Page, node: str, taken: SnapshotReading) -> None:
    for name, steps, counts in (
        ("beam_mailbox_processes", MAILBOX_STEPS, taken.mailbox_counts),
        ("beam_memory_processes", MEMORY_STEPS, taken.memory_counts),
    ):
        for step, number in zip(steps, counts.tolist(), strict=True):
            page.add(name, number, node=node, at_least=str(step))
    for name, ranking, total in (
        ("beam_top_mailbox_messages", taken.mailboxes, taken.messages),
        ("beam_top_memory_bytes", taken.memories, taken.memory),
        ("beam_top_reductions_per_second", taken.rates, taken.rate),
    ):
        for rank, one in enumerate(ranking, 1):
            who = taken.names.get(one.pid, "?")
            page.add(name, one.value, node=node, rank=str(rank), name=who)
        rest = total - sum(one.value for one in ranking)
        page.add(name, rest, node=node, rank="other", name="")
    page.add("scope_ebpf_snapshot_cpu_seconds", taken.seconds, node=node)
    page.add("scope_ebpf_snapshot_torn_processes", taken.torn, node=node)


def _expose_observer(page: Page, reading: Reading, impossible: Iterable[str]) -> None:
    node = reading.node
    for what, read in (("processes", reading.snapshot), ("memory", reading.memory)):
        if read and read.taken:
            page.add("scope_ebpf_snapshot_timestamp_seconds", read.taken, node=node, what=what)
    for hook, event in reading.events.items():
        page.add("scope_ebpf_sampling_ratio", event.sampling_ratio, node=node, hook=hook)
        if event.mode == "windows" or event.error_ratio:
            page.add("scope_ebpf_sampling_error_ratio", event.error_ratio, node=node, hook=hook)
    for what in sorted({*refused(reading), *impossible}):
        page.add("scope_ebpf_refused", 1, node=node, what=what)
    _expose_hooks(page, node, reading.hooks)
    page.add("scope_ebpf_reads_refused_total", reading.failed_reads, node=node, where="user")
    if reading.threads is not None:
        missed = int(reading.threads["refused"].sum())
        page.add("scope_ebpf_reads_refused_total", missed, node=node, where="clock")


def _expose_hooks(page: Page, node: str, hooks: HooksReading) -> None:
    page.add("scope_ebpf_trips_total", hooks.exhausted, node=node)
    page.add("scope_ebpf_windows_total", hooks.windows, node=node)
    page.add("scope_ebpf_overhead_ratio", hooks.overhead, node=node)
    page.add("scope_ebpf_budget_ratio", hooks.budget, node=node)
    page.add("scope_ebpf_hook_cpu_seconds_total", hooks.seconds, node=node)
    page.add("scope_ebpf_events_lost_total", hooks.lost, node=node)
    page.add("scope_ebpf_reads_refused_total", hooks.refused, node=node, where="kernel")


def refused(reading: Reading) -> list[str]:
    """Parts of a target that cannot be exported; the daemon's log says why."""
    names = set(reading.memory.refused) if reading.memory else set()
    if reading.findings and reading.findings.refused:
        names.add("findings")
    if reading.servers and reading.servers.refused:
        names.add("servers")
    if reading.telemetry and reading.telemetry.refused:
        names.add("telemetry")
    if reading.marks and reading.marks.refused:
        names.add("marks")
    if reading.counters is None:
        names.add("counters")
    elif reading.counters.dirty_collections is None:
        names.add("dirty_collections")
    if reading.threads is None:
        names.add("threads")
    sampled = reading.accounting.sampled if reading.accounting else None
    if sampled is None or None in sampled.busy_wait:
        names.add("samples")
    return sorted(names)
