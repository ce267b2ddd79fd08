# SPDX-License-Identifier: Apache-2.0
"""
What a VM says of itself through RabbitMQ's own ``/metrics``, and what we say of it.
"""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

#: (name, labels) of a sample, labels sorted, without the node.
Key = tuple[str, tuple[tuple[str, str], ...]]
Samples = dict[Key, float]


def scrape(port: int) -> Samples:
    """
    Every sample of ``/metrics`` of *port* on loopback.
    """
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        (s.name, tuple(sorted((k, v) for k, v in s.labels.items() if k != "node"))): s.value
        for family in families
        for s in family.samples
    }


def value(samples: Samples, series: str, /, **labels: str) -> float:
    return samples[series, tuple(sorted(labels.items()))]


@dataclass(frozen=True)
class Between:
    """
    What we say of a moment between two at which the VM was asked.
    """

    before: Samples
    ours: Samples
    after: Samples
