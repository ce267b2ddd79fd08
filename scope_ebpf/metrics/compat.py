# SPDX-License-Identifier: Apache-2.0
"""
Names of prometheus.erl for series of ours that mean the same: ``compat.toml``.

Its version 6 renamed many; nodes of today, RabbitMQ 3.10 among them, have the names
of version 4. Both are given.
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
    """One name of theirs; the fields are explained at the top of ``compat.toml``."""

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
        """The name of its family: a counter's ends before ``_total``."""
        return self.name.removesuffix("_total")


@cache
def rules() -> dict[str, list[Rule]]:
    """Every rule, by the series of ours that it is made of."""
    text = resources.files(__package__).joinpath("compat.toml").read_text("utf-8")
    found: defaultdict[str, list[Rule]] = defaultdict(list)
    for name, table in tomllib.loads(text).items():
        values: dict[str, Any] = {k: tuple(v) if k == "take" else v for k, v in table.items()}
        rule = Rule(name=name, **values)
        found[rule.source].append(rule)
    return dict(found)


class Names:
    """Samples under their names; several of ours that are one of theirs are added up."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        self._rules: dict[str, Rule] = {}

    def add(self, series: str, labels: Mapping[str, str], value: float) -> int:
        """One sample of ours; how many it makes that were not there."""
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
        """Everything that was added: under the name of version 6, then under that of 4."""
        for name, values in self._values.items():
            rule = self._rules[name]
            family = Metric(rule.family, rule.help, rule.type)
            old = family
            if rule.old and rule.old != rule.family:
                # Some of their old gauges end in _total, and not all of their counters did.
                old = Metric(rule.old, rule.help, "gauge" if rule.type == "gauge" else "unknown")
            for labels, value in values.items():
                family.add_sample(rule.name, dict(labels), value)
                if rule.old:
                    old.add_sample(rule.old, dict(labels), value * rule.old_factor)
            yield family
            if old is not family:
                yield old
