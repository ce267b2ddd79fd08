# SPDX-License-Identifier: Apache-2.0
"""What a scrape sees: the readings of all targets, and the daemon's own figures."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from prometheus_client.registry import Collector

from scope_ebpf.metrics.exposition import expose
from scope_ebpf.metrics.page import Page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from scope_ebpf.daemon.loop import Daemon


class Readings(Collector):
    """Collects from *daemon*, without waiting for its loop."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def describe(self) -> list[Metric]:
        """Nothing: so that nobody collects to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family of this moment."""
        daemon = self._daemon
        page = Page(compat="erlang-vm" in daemon.config.compat)
        runs: Counter[str] = Counter()
        seconds: defaultdict[str, float] = defaultdict(float)
        for watch in daemon.targets.watches:
            reading = watch.reading
            expose(page, reading)
            for program, (ran, took) in reading.programs.items():
                runs[program] += ran
                seconds[program] += took
        for program, stats in daemon.host_stats.items():
            runs[program], seconds[program] = stats.runs, stats.seconds
        for program in sorted(runs):
            page.add("scope_ebpf_program_runs_total", runs[program], program=program)
            page.add("scope_ebpf_program_run_seconds_total", seconds[program], program=program)
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
        for where in ("watch", "http"):
            page.add("scope_ebpf_errors_total", daemon.errors[where], where=where)
        for result, count in daemon.reloads.items():
            page.add("scope_ebpf_config_reloads_total", count, result=result)
