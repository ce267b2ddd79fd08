# SPDX-License-Identifier: Apache-2.0
"""
Readings as Prometheus families.

Which family is filled from which figure says the catalogue; what is not in the
catalogue cannot be exported.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client.core import Metric

from scope_ebpf import events
from scope_ebpf.beam.threads import ROLES
from scope_ebpf.metrics.catalogue import Series, catalogue
from scope_ebpf.metrics.reading import SLOTS, EventReading, Reading, sum_column
from scope_ebpf.metrics.snapshot import MAILBOX_STEPS, MEMORY_STEPS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from scope_ebpf.metrics.snapshot import SnapshotReading

#: A label value is no longer than this; OTP's names are at most 255 characters.
MAX_LABEL = 255


class Page:
    """
    Families that are being filled: each name, label and type is that of the catalogue.

    With *compat*, what means the same as a series of prometheus.erl has its name too.
    """

    def __init__(self, *, compat: bool = False) -> None:
        self._compat = compat
        self._families: dict[str, Metric] = {}

    def add(self, series_name: str, value: float, /, **labels: str) -> None:
        """One sample of a counter or a gauge; KeyError for a name that is not in the catalogue."""
        series = catalogue()[series_name]
        checked = _checked(series, labels)
        self._family(series).add_sample(series_name, checked, value)
        if self._compat and series.compat:
            same = replace(series, name=series.compat)
            self._family(same).add_sample(same.name, checked, value)

    def histogram(
        self, name: str, slots: NDArray[np.float64], total_ns: float, **labels: str
    ) -> None:
        """
        One histogram of log2 *slots*: slot N counts 2^N ns up to 2^(N+1).

        A bound of 2^E ns takes in all slots below E.
        """
        series = catalogue()[name]
        family, values = self._family(series), _checked(series, labels)
        running = slots.cumsum()
        for exponent in series.exponents:
            bound = {**values, "le": repr(2**exponent / 1e9)}
            family.add_sample(f"{name}_bucket", bound, float(running[exponent - 1]))
        family.add_sample(f"{name}_bucket", {**values, "le": "+Inf"}, float(running[-1]))
        family.add_sample(f"{name}_count", values, float(running[-1]))
        family.add_sample(f"{name}_sum", values, total_ns / 1e9)

    def families(self) -> Iterator[Metric]:
        """Everything that was added, in the order of the catalogue; then by other names."""
        order = {series.family: place for place, series in enumerate(catalogue().values())}
        yield from sorted(
            self._families.values(), key=lambda family: order.get(family.name, len(order))
        )

    def _family(self, series: Series) -> Metric:
        if series.family not in self._families:
            self._families[series.family] = Metric(series.family, series.help, series.type)
        return self._families[series.family]


def _checked(series: Series, labels: Mapping[str, str]) -> dict[str, str]:
    if set(labels) != set(series.labels):
        raise KeyError(f"{series.name} has the labels {series.labels}, not {tuple(labels)}")
    return {name: labels[name][:MAX_LABEL] for name in series.labels}


def expose(page: Page, reading: Reading) -> None:
    """Add everything of one target."""
    for series in catalogue().values():
        if series.event:
            _expose_event(page, series, reading)
        elif series.counter and reading.counters:
            value = getattr(reading.counters, series.counter) * series.factor
            page.add(series.name, value, node=reading.node)
        elif series.limit and reading.limits:
            page.add(series.name, getattr(reading.limits, series.limit), node=reading.node)
        elif series.process:
            page.add(series.name, getattr(reading.process, series.process), node=reading.node)
        elif series.snapshot and reading.snapshot:
            page.add(series.name, getattr(reading.snapshot, series.snapshot), node=reading.node)
        elif series.threads and reading.threads is not None:
            totals = reading.threads[series.threads] * series.factor
            for role, value in zip(ROLES, totals.tolist(), strict=True):
                page.add(series.name, value, node=reading.node, scheduler_type=role)
    _expose_target(page, reading)
    _expose_waits(page, reading)
    if reading.snapshot:
        _expose_snapshot(page, reading.node, reading.snapshot)
    _expose_observer(page, reading)


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
        total = sum(event.totals[number] for number, _ in wanted)
        page.add(series.name, float(total), node=reading.node)
        return
    for number, name in wanted:
        labels = {"node": reading.node, series.class_label: name}
        page.add(series.name, float(event.totals[number]), **labels)


def _expose_durations(
    page: Page, series: Series, event: EventReading, wanted: list[tuple[int, str]], node: str
) -> None:
    for number, name in wanted:
        place = sum_column(number)
        slots = event.totals[place + 1 : place + 1 + SLOTS]
        labels = {"node": node}
        if series.class_label:
            labels[series.class_label] = name
        page.histogram(series.name, slots, float(event.totals[place]), **labels)


def _expose_target(page: Page, reading: Reading) -> None:
    node, process = reading.node, reading.process
    page.add("beam_target_info", 1, node=node, **reading.info)
    page.add("beam_schedulers", reading.schedulers, node=node)
    page.add("beam_page_faults_total", process.minor_faults, node=node, type="minor")
    page.add("beam_page_faults_total", process.major_faults, node=node, type="major")
    if process.throttled_seconds is not None:
        page.add("beam_cgroup_throttled_seconds_total", process.throttled_seconds, node=node)
    if reading.counters:
        *normal, cpu, io = reading.counters.run_queues.tolist()
        for kind, length in (("normal", sum(normal)), ("dirty_cpu", cpu), ("dirty_io", io)):
            page.add("beam_run_queue_length", length, node=node, scheduler_type=kind)


def _expose_waits(page: Page, reading: Reading) -> None:
    if reading.threads is None:
        return
    for role, totals in zip(ROLES, reading.threads, strict=True):
        labels = {"node": reading.node, "scheduler_type": role}
        for reason, ns in zip(events.OFF_REASONS, totals["off_ns"].tolist(), strict=True):
            page.add("beam_thread_offcpu_seconds_total", ns / 1e9, **labels, reason=reason)
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
    for name, ranking in (
        ("beam_top_mailbox_messages", taken.mailboxes),
        ("beam_top_memory_bytes", taken.memories),
    ):
        for rank, one in enumerate(ranking, 1):
            who = taken.names.get(one.pid, "?")
            page.add(name, one.value, node=node, rank=str(rank), name=who)
    page.add("scope_ebpf_snapshot_cpu_seconds", taken.seconds, node=node)
    page.add("scope_ebpf_snapshot_timestamp_seconds", taken.taken, node=node)
    page.add("scope_ebpf_snapshot_torn_processes", taken.torn, node=node)


def _expose_observer(page: Page, reading: Reading) -> None:
    node = reading.node
    for hook, event in reading.events.items():
        attached = int(event.mode != "off")
        page.add("scope_ebpf_hook_attached", attached, node=node, hook=hook, via=event.via)
        if attached:
            page.add("scope_ebpf_sampling_ratio", event.sampling_ratio, node=node, hook=hook)
            page.add("scope_ebpf_sampling_error_ratio", event.error_ratio, node=node, hook=hook)
    page.add("scope_ebpf_trips_total", reading.trips, node=node)
    page.add("scope_ebpf_windows_total", reading.windows, node=node)
    page.add("scope_ebpf_overhead_ratio", reading.overhead, node=node)
    page.add("scope_ebpf_budget_ratio", reading.budget, node=node)
    page.add("scope_ebpf_hook_cpu_seconds_total", reading.hook_seconds, node=node)
    page.add("scope_ebpf_events_lost_total", reading.lost, node=node)
    page.add("scope_ebpf_reads_refused_total", reading.refused_kernel, node=node, where="kernel")
    page.add("scope_ebpf_reads_refused_total", reading.refused_user, node=node, where="user")
