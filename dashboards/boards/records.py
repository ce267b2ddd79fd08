# SPDX-License-Identifier: Apache-2.0
"""
What a panel is, as plain data.

Three words stand in expressions for what every query needs:

HERE    the hosts and nodes that the variables at the top choose
NODE    the labels that distinguish VMs (two hosts may have a node of the same name)
RATE    a span that holds enough scrapes for a rate, at any zoom

NODE in a legend is the node's name, with its host only if two nodes have that name. ``nodes`` makes
these names.

Lines of a panel are either nodes, each with a colour and a dash of its own, or meanings (such as
reasons of exits), each with a fixed colour, of all chosen nodes together. Colour and dash cannot say
both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal

from boards.colours import SKY
from boards.nodes import LEGEND, SLOTTED, named

_WORDS: Final = {
    "HERE": 'instance=~"$host", node=~"$node"',
    "NODE": "instance, node",
    "RATE": "$__rate_interval",
}
_WORD: Final = re.compile(r"\b(" + "|".join(_WORDS) + r")\b")
#: Alerts of ours that fire for what is chosen; one of a whole host has no node.
FIRING: Final = (
    'ALERTS{alertname=~"(Beam|Scope).*", alertstate="firing", instance=~"$host|", node=~"$node|"}'
)

#: ``bars`` is a ranking; ``table`` is one row per VM, with a column for each label.
Kind = Literal["series", "stat", "bars", "table", "heatmap", "text"]
_TOGETHER: Final = "Of all chosen nodes together: choose one node to see its own."


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, what its series are called, and their colour."""

    expr: str
    legend: str = "NODE"
    hue: str = SKY
    #: Of a table: the heading and the unit of the column that this query fills.
    column: str = ""
    unit: str = ""
    #: Of a table: values from which a cell of the column is worth a look, and bad.
    warn: float | None = None
    bad: float | None = None
    #: Of bars: sorted, the largest first.
    ranked: bool = False

    @property
    def of_nodes(self) -> bool:
        """Whether each series is one of a node."""
        return re.search(r"\bNODE\b", self.legend) is not None

    @property
    def promql(self) -> str:
        """The expression with its words replaced; Grafana's variables are still in it."""
        text = _WORD.sub(lambda found: _WORDS[found[1]], " ".join(self.expr.split()))
        if self.of_nodes:
            text = named(text)
        return f"sort_desc({text})" if self.ranked else text

    def names(self, kind: Kind) -> str:
        """The legend with its word replaced; Grafana puts labels in the place of their names."""
        if kind == "series" and self.of_nodes:
            if self.legend != "NODE":
                raise ValueError(f"a line is a node or a meaning, not both: {self.legend}")
            return SLOTTED
        return re.sub(r"\bNODE\b", LEGEND, self.legend)


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
    #: Of a table: labels that are columns, with their headings, before those of the queries and after.
    columns: tuple[tuple[str, str], ...] = ()
    details: tuple[tuple[str, str], ...] = ()
    #: Of a text: Markdown.
    text: str = ""

    @property
    def of_nodes(self) -> bool:
        """Whether it distinguishes nodes."""
        return any(query.of_nodes for query in self.queries)

    @property
    def description(self) -> str:
        """What the panel shows, and what to do."""
        when = "When it is red" if self.bad is not None else "When it looks wrong"
        shows = self.shows
        if self.kind in ("series", "bars") and not self.of_nodes and self.of_vms:
            shows = f"{shows} {_TOGETHER}"
        return f"{shows}\n\n**{when}:** {self.act}"

    @property
    def of_vms(self) -> bool:
        """Whether its figures are those of VMs, not of a daemon or of Prometheus."""
        return any(re.search(r"\bHERE\b", query.expr) for query in self.queries)


def firing(width: int = 8, height: int = 8) -> Panel:
    """Alerts by name; its runbook says what to do about one."""
    return Panel(
        "Alerts that fire",
        "none",
        'Alerts of dashboards/rules.yml that fire now; "none" also where Prometheus has no such rules.',
        "read the runbook of that name, docs/runbooks/NAME.md: symptom, command, remedy.",
        (Query(f'{FIRING} or on () label_replace(vector(0), "alertname", "none", "", "")', ""),),
        "table",
        width=width,
        height=height,
        low=None,
        columns=(
            ("alertname", "alert"),
            ("severity", "severity"),
            ("node", "node"),
            ("instance", "host"),
            ("name", "process"),
        ),
    )


def bound(exponent: int) -> float:
    """
    Seconds at a bound of a histogram, 2^*exponent* ns; the catalogue says which there are.

    Within a bucket a quantile is a guess, so a panel of one is bad from a bound on.
    """
    return (1 << exponent) / 1e9


@dataclass(frozen=True, slots=True)
class Row:
    """
    Panels under one heading, laid out from left to right in 24 columns.

    A *folded* row shows its heading only, until it is opened: what is all zeros in a healthy system
    would only take space.
    """

    title: str
    panels: tuple[Panel, ...]
    folded: bool = False


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
