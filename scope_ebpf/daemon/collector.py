# SPDX-License-Identifier: Apache-2.0
"""What a scrape sees: the readings of all targets, and the daemon's own figures."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
from prometheus_client.registry import Collector

from scope_ebpf.metrics.catalogue import catalogue
from scope_ebpf.metrics.exposition import expose
from scope_ebpf.metrics.page import Page, label_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

    from scope_ebpf.daemon.loop import Daemon
    from scope_ebpf.metrics.reading import Reading


class Readings(Collector):
    """Collects from *daemon*, waiting for its loop for no more than a moment."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        catalogue()  # read from its file now, not by the first scrape

    def describe(self) -> list[Metric]:
        """Nothing: so that nobody collects to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family of this moment."""
        daemon = self._daemon
        daemon.refresh()
        page = Page(compat="erlang-vm" in daemon.config.compat)
        for reading in _told_apart(watch.reading for watch in daemon.targets.watches):
            expose(page, reading)
        for program, stats in sorted((daemon.targets.program_stats() | daemon.host_stats).items()):
            page.add("scope_ebpf_program_runs_total", stats.runs, program=program)
            page.add("scope_ebpf_program_run_seconds_total", stats.seconds, program=program)
            page.add("scope_ebpf_program_misses_total", stats.missed, program=program)
        self._own(page)
        yield from page.families()

    def _own(self, page: Page) -> None:
        daemon = self._daemon
        page.add("scope_ebpf_targets", len(daemon.targets.watches))
        page.add("scope_ebpf_targets_refused", len(daemon.targets.refused))
        page.add("scope_ebpf_targets_seen_total", daemon.targets.seen)
        page.add("scope_ebpf_hit_cost_seconds", daemon.cost.entry, at="entry")
        page.add("scope_ebpf_hit_cost_seconds", daemon.cost.returns, at="return")
        page.add("scope_ebpf_scan_seconds_total", daemon.scanner.seconds)
        with suppress(psutil.NoSuchProcess):  # then the daemon ends, too
            both = [psutil.Process(), psutil.Process(daemon.targets.attacher.pid)]
            times = [process.cpu_times() for process in both]
            page.add("scope_ebpf_cpu_seconds_total", sum(one.user + one.system for one in times))
            resident = sum(process.memory_info().rss for process in both)
            page.add("scope_ebpf_resident_memory_bytes", resident)
        if watch := daemon.targets.thread_watch:
            attached = watch.attached(time.monotonic())
            page.add("scope_ebpf_tracepoints_attached_seconds_total", attached)
        for where in ("watch", "snapshot", "http"):
            page.add("scope_ebpf_errors_total", daemon.errors[where], where=where)
        for result, count in daemon.reloads.items():
            page.add("scope_ebpf_config_reloads_total", count, result=result)


def _told_apart(readings: Iterable[Reading]) -> Iterator[Reading]:
    """
    The same readings, each of another node: Prometheus refuses a series that is there twice.

    A node may call itself what another is called here, its pid and all.
    """
    labels: set[str] = set()
    for reading in readings:
        node = reading.node
        while label_value(node) in labels:
            node = f"{node}#{reading.info['pid']}"
        labels.add(label_value(node))
        yield replace(reading, node=node)
