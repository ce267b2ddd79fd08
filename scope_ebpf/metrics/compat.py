# SPDX-License-Identifier: Apache-2.0
"""
Names of prometheus.erl for equivalent series: ``compat.toml``.

Version 6 of prometheus.erl renamed many; present nodes, such as RabbitMQ 3.10, have the names of
version 4. Both are exported.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client.core import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Rule:
    """One name of prometheus.erl; ``compat.toml`` explains the fields at its top."""

    name: str
    source: str
    type: Literal["counter", "gauge"]
    help: str
    take: tuple[Mapping[str, str], ...] = ({},)
    labels: Mapping[str, str] = field(default_factory=dict)
    suffix: Mapping[str, str] = field(default_factory=dict)
    factor: float = 1
    constant: float | None = None
    old: str | None = None
    old_factor: float = 1

    @property
    def family(self) -> str:
        """The name of its family, which for a counter lacks ``_total``."""
        return self.name.removesuffix("_total")


@cache
def rules() -> dict[str, list[Rule]]:
    """Every rule, by the name of the series that it is made from."""
    text = resources.files(__package__).joinpath("compat.toml").read_text("utf-8")
    found: defaultdict[str, list[Rule]] = defaultdict(list)
    for name, table in tomllib.loads(text).items():
        values: dict[str, Any] = {k: tuple(v) if k == "take" else v for k, v in table.items()}
        rule = Rule(name=name, **values)
        found[rule.source].append(rule)
    return dict(found)


class CompatNames:
    """Samples under names of prometheus.erl; samples with the same labels are added up."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        self._rules: dict[str, Rule] = {}

    def add(self, series: str, labels: Mapping[str, str], value: float) -> int:
        """Add a sample of *series*; the number of new samples that this makes."""
        new = 0
        for rule in rules().get(series, []):
            if not any(where.items() <= labels.items() for where in rule.take):
                continue
            theirs = {"node": labels["node"]} | {
                new: labels[ours] + rule.suffix.get(ours, "") for ours, new in rule.labels.items()
            }
            self._rules[rule.name] = rule
            values = self._values.setdefault(rule.name, {})
            key = tuple(theirs.items())
            figure = value * rule.factor if rule.constant is None else rule.constant
            new += key not in values
            values[key] = values.get(key, 0.0) + figure
        return new

    def families(self) -> Iterator[Metric]:
        """All families, each under the name of version 6, then under that of version 4."""
        for name, values in self._values.items():
            rule = self._rules[name]
            # A counter X_total is a family X in OpenMetrics, so beside it there is no room for the
            # name X of version 4: then both are families of unknown type.
            clash = rule.old == rule.family != rule.name
            family = (
                Metric(rule.name, rule.help, "unknown")
                if clash
                else Metric(rule.family, rule.help, rule.type)
            )
            for labels, value in values.items():
                family.add_sample(rule.name, dict(labels), value)
            yield family
            if rule.old:
                # In version 4 some gauges end in _total, and some counters do not.
                old = Metric(rule.old, rule.help, "gauge" if rule.type == "gauge" else "unknown")
                for labels, value in values.items():
                    old.add_sample(rule.old, dict(labels), value * rule.old_factor)
                yield old
