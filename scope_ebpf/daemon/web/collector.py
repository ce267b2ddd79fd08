# SPDX-License-Identifier: Apache-2.0
"""The content of a scrape: the readings of all targets, and the daemon's own figures."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
from prometheus_client.registry import Collector

from scope_ebpf.daemon.looks.inspector import RESULTS
from scope_ebpf.daemon.looks.owners import in_turns
from scope_ebpf.daemon.notify import line_limit
from scope_ebpf.metrics.catalogue import catalogue
from scope_ebpf.metrics.exposition import expose
from scope_ebpf.metrics.page import Page, label_value
from scope_ebpf.sandbox import client

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

    from scope_ebpf.daemon.loop import Daemon
    from scope_ebpf.metrics.reading import Reading

#: Assumed maximum series of one target, until one has more.
_PER_TARGET = 300


class Readings(Collector):
    """Collects from *daemon*; waits only a moment for its loop."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        catalogue()  # read from its file now, not by the first scrape

    def describe(self) -> list[Metric]:
        """Nothing, so that the registry does not collect to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family, with the values of this moment."""
        daemon = self._daemon
        daemon.refresh()
        compat = daemon.config.compat
        page = Page(compat="erlang-vm" in compat, prom_ex="prom-ex" in compat)
        left_out = self._expose(page)
        for program, stats in sorted((daemon.targets.program_stats() | daemon.host_stats).items()):
            page.add("scope_ebpf_program_runs_total", stats.runs, program=program)
            page.add("scope_ebpf_program_run_seconds_total", stats.seconds, program=program)
            page.add("scope_ebpf_program_misses_total", stats.missed, program=program)
        page.add("scope_ebpf_targets_left_out", left_out)
        self._own(page)
        yield from page.families()

    def _expose(self, page: Page) -> int:
        """
        Add the targets up to the maximum of series; returns the number of targets left out.

        Owners take turns, so that the many targets of one do not leave out the few of another.
        """
        most, largest, left_out = self._daemon.config.max_series, _PER_TARGET, 0
        watches = in_turns(self._daemon.targets.watches, lambda watch: watch.owner)
        for reading in _unique_nodes(watch.reading for watch in watches):
            if page.samples + largest > most:
                left_out += 1
                continue
            before = page.samples
            expose(page, reading)
            largest = max(largest, page.samples - before)
        return left_out

    def _own(self, page: Page) -> None:
        daemon = self._daemon
        page.add("scope_ebpf_targets", len(daemon.targets.watches))
        page.add("scope_ebpf_targets_refused", len(daemon.targets.admission.refused))
        page.add("scope_ebpf_targets_seen_total", daemon.targets.seen)
        page.add("scope_ebpf_hit_cost_seconds", daemon.cost.entry, at="entry")
        page.add("scope_ebpf_hit_cost_seconds", daemon.cost.returns, at="return")
        discovery = daemon.discovery
        looking = discovery.scanner.seconds + discovery.looker.seconds
        page.add("scope_ebpf_scan_seconds_total", looking)
        for result in RESULTS:
            page.add("scope_ebpf_looks_total", discovery.looker.results[result], result=result)
        page.add("scope_ebpf_looks_hanging", discovery.inspector.lost)
        page.add("scope_ebpf_renames_held_total", daemon.targets.admission.labels.held)
        page.add("scope_ebpf_top_names_held_total", daemon.threads.snapshots.held)
        page.add("scope_ebpf_log_lines_held_total", line_limit.held)
        with suppress(psutil.NoSuchProcess):  # then the daemon ends, too
            both = [psutil.Process(), psutil.Process(daemon.targets.attacher.pid)]
            times = [process.cpu_times() for process in both]
            helpers = daemon.readers.seconds() + client.all_cpu_seconds()
            cpu = sum(one.user + one.system for one in times) + helpers
            page.add("scope_ebpf_cpu_seconds_total", cpu)
            parsing = client.server_pid()
            both += _running([*daemon.readers.pids(), *([parsing] if parsing else [])])
            resident = sum(process.memory_info().rss for process in both)
            page.add("scope_ebpf_resident_memory_bytes", resident)
        if watch := daemon.targets.tracepoints.thread_watch:
            attached = watch.attached(time.monotonic())
            page.add("scope_ebpf_tracepoints_attached_seconds_total", attached)
        for where in ("watch", "snapshot", "http"):
            page.add("scope_ebpf_errors_total", daemon.errors[where], where=where)
        for result, count in daemon.reloads.items():
            page.add("scope_ebpf_config_reloads_total", count, result=result)


def _running(pids: list[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


def _unique_nodes(readings: Iterable[Reading]) -> Iterator[Reading]:
    """
    The same readings with unique nodes: Prometheus refuses a series that occurs twice.

    A node may choose a name that is the label of another, including the pid.
    """
    labels: set[str] = set()
    for reading in readings:
        node = reading.node
        while label_value(node) in labels:
            node = f"{node}#{reading.info['pid']}"
        labels.add(label_value(node))
        yield replace(reading, node=node)
