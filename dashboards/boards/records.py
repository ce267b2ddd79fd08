# SPDX-License-Identifier: Apache-2.0
"""
What a panel is, as plain data.

Three words stand in expressions for what every query needs:

HERE    the hosts and nodes that the variables at the top choose
NODE    the labels that tell one VM from another (two hosts may have a node of the same name)
RATE    a span that holds enough scrapes for a rate, at any zoom

NODE in a legend is what those labels say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal

from boards.colours import SKY

_WORDS: Final = {
    "HERE": 'instance=~"$host", node=~"$node"',
    "NODE": "instance, node",
    "RATE": "$__rate_interval",
}
_WORD: Final = re.compile(r"\b(" + "|".join(_WORDS) + r")\b")
_NODE_IN_LEGEND: Final = "{{node}} {{instance}}"
#: Alerts of ours that fire for what is chosen; one of a whole host has no node.
FIRING: Final = (
    'ALERTS{alertname=~"(Beam|Scope).*", alertstate="firing", instance=~"$host|", node=~"$node|"}'
)

#: ``bars`` is a ranking; ``table`` is one row per VM, with a column for each label.
Kind = Literal["series", "stat", "bars", "table", "heatmap"]


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, what its series are called, and their colour."""

    expr: str
    legend: str = "NODE"
    hue: str = SKY
    #: Of a table: the heading and the unit of the column that this query fills.
    column: str = ""
    unit: str = ""

    @property
    def promql(self) -> str:
        """The expression with its words replaced; Grafana's variables are still in it."""
        return _WORD.sub(lambda found: _WORDS[found[1]], " ".join(self.expr.split()))

    @property
    def names(self) -> str:
        """The legend with its word replaced; Grafana puts labels in the place of their names."""
        return re.sub(r"\bNODE\b", _NODE_IN_LEGEND, self.legend)


@dataclass(frozen=True, slots=True)
class Panel:
    """
    One panel. *shows* and *act* become its description: what is seen, what to do when it is bad.

    *warn* and *bad* are the values from which it is worth a look and bad; with *falling*, the
    values below which it is.
    """

    title: str
    unit: str
    shows: str
    act: str
    queries: tuple[Query, ...]
    kind: Kind = "series"
    warn: float | None = None
    bad: float | None = None
    falling: bool = False
    width: int = 8
    height: int = 8
    stack: bool = False
    low: float | None = 0
    high: float | None = None
    decimals: int | None = None
    #: Series whose name matches have that colour.
    hues: tuple[tuple[str, str], ...] = ()
    #: The key of the dashboard that shows more of it.
    more: str = ""

    @property
    def description(self) -> str:
        """What the panel shows, and what to do."""
        when = "When it is red" if self.bad is not None else "When it looks wrong"
        return f"{self.shows}\n\n**{when}:** {self.act}"


def bound(exponent: int) -> float:
    """
    Seconds at a bound of a histogram, 2^*exponent* ns; the catalogue says which there are.

    Within a bucket a quantile is a guess, so what is told by one is bad from a bound on.
    """
    return (1 << exponent) / 1e9


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading, laid out from left to right in 24 columns."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    key: str
    title: str
    description: str
    rows: tuple[Row, ...] = field(default=())

    @property
    def uid(self) -> str:
        """What it is called in links; the same in every Grafana."""
        return f"scope-ebpf-{self.key}"
