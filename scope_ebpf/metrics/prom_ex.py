# SPDX-License-Identifier: Apache-2.0
"""
Names of PromEx for series of telemetry that mean the same (PromEx 1.x, lib/prom_ex/plugins).

PromEx begins each name with that of the application. From outside that is the name of the node
before its @, which in a release is that of the release.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from prometheus_client.core import Metric

from scope_ebpf.metrics.catalogue import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

#: Characters of an application's name.
_MOST = 64


class Rule(NamedTuple):
    """A histogram of PromEx, which is made of one of ours."""

    #: Its name behind ``APPLICATION_prom_ex_``, without the unit.
    name: str
    #: Our labels by those of PromEx.
    labels: Mapping[str, str]
    #: The label and its value that a series of ours must have; None for all.
    where: tuple[str, str] | None = None
    #: The name of a counter of the same events; None for none.
    counter: str | None = None


_LIVE_VIEW = {"module": "view"}
RULES: Mapping[str, tuple[Rule, ...]] = {
    "beam_http_request_duration_seconds": (
        Rule(
            "phoenix_http_request_duration",
            {"status": "status", "method": "method", "path": "route"},
            counter="phoenix_http_requests_total",
        ),
    ),
    "beam_live_view_duration_seconds": (
        Rule("phoenix_live_view_mount_duration", _LIVE_VIEW, ("callback", "mount")),
        Rule(
            "phoenix_live_view_handle_event_duration",
            {**_LIVE_VIEW, "event": "event"},
            ("callback", "handle_event"),
        ),
    ),
    "beam_db_query_duration_seconds": (
        Rule(
            "ecto_repo_query_total_time",
            {"repo": "repo", "source": "source", "command": "command"},
        ),
    ),
    "beam_job_duration_seconds": (
        Rule(
            "oban_job_processing_duration",
            {"queue": "queue", "state": "state", "worker": "worker"},
        ),
    ),
}


class _Sum:
    """A histogram of series that have the same labels here."""

    def __init__(self, bounds: int) -> None:
        self.slots, self.total_ns = np.zeros(bounds), 0.0


class PromExNames:
    """Samples under names of PromEx."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str, tuple[tuple[str, str], ...]], _Sum] = {}
        self._rules: dict[str, tuple[str, Rule]] = {}

    def add(
        self, series: str, slots: NDArray[np.float64], total_ns: float, labels: Mapping[str, str]
    ) -> int:
        """Add a histogram, as ``Page.histogram``; the number of new samples that this makes."""
        new = 0
        for rule in RULES.get(series, ()):
            if rule.where and labels[rule.where[0]] != rule.where[1]:
                continue
            name = f"{application(labels['node'])}_prom_ex_{rule.name}_milliseconds"
            theirs = {"node": labels["node"]} | {n: labels[o] for n, o in rule.labels.items()}
            key = (series, name, tuple(theirs.items()))
            if key not in self._sums:
                self._sums[key] = _Sum(len(slots))
                new += len(catalogue()[series].exponents) + 3 + bool(rule.counter)
            self._rules[name] = (series, rule)
            self._sums[key].slots += slots
            self._sums[key].total_ns += total_ns
        return new

    def families(self) -> Iterator[Metric]:
        """Every family, sorted by name."""
        found: dict[str, Metric] = {}
        for (series, name, pairs), one in self._sums.items():
            rule, labels = self._rules[name][1], dict(pairs)
            text = f"As {series}, under the name of PromEx."
            family = found.setdefault(name, Metric(name, text, "histogram"))
            running = np.rint(one.slots.cumsum())
            for exponent in catalogue()[series].exponents:
                bound = {**labels, "le": repr(2**exponent / 1e6)}
                family.add_sample(f"{name}_bucket", bound, float(running[exponent - 1]))
            family.add_sample(f"{name}_bucket", {**labels, "le": "+Inf"}, float(running[-1]))
            family.add_sample(f"{name}_count", labels, float(running[-1]))
            family.add_sample(f"{name}_sum", labels, one.total_ns / 1e6)
            if rule.counter:
                total = name.replace(f"{rule.name}_milliseconds", rule.counter)
                counter = found.setdefault(
                    total, Metric(total.removesuffix("_total"), text, "counter")
                )
                counter.add_sample(total, labels, float(running[-1]))
        yield from (found[name] for name in sorted(found))


def application(node: str) -> str:
    """The name of the application of *node*, as a part of a name of Prometheus."""
    name = re.sub(r"[^a-z0-9_]", "_", node.partition("@")[0].lower())[:_MOST]
    return f"_{name}" if not name or name[0].isdigit() else name
