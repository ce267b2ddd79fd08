# SPDX-License-Identifier: Apache-2.0
"""
What the dashboards and the rules ask of Prometheus.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[2] / "dashboards"
#: What Grafana would put in the place of its variables, for scrapes a second apart.
VARIABLES = {
    "$__rate_interval": "10s",
    "$__range": "25s",
    "${host:regex}": ".*",
    "${node:regex}": ".*",
    "$host": ".*",
    "$node": ".*",
}
#: The hidden variable whose "all" value is a part of expressions, and has variables itself.
LOOKS = "$looks"
NAMED = re.compile(r"(?:sort_desc\()?\((.*)\) \* on \(instance, node\) group_left \(slot, who\) .*")


@dataclass(frozen=True)
class Asked:
    """
    One expression: who asks it, and how.
    """

    board: str
    panel: str
    ref: str
    expression: str
    instant: bool

    @property
    def place(self) -> str:
        return f"{self.board}: {self.panel} ({self.ref})"


def replaced(text: str) -> str:
    """
    *text* without Grafana's variables.
    """
    text = text.replace(LOOKS, looks())
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    assert "$" not in text.replace('"$1"', ""), text
    return text


@cache
def looks() -> str:
    """
    How nodes are distinguished, as the first dashboard has it; a test says that all have the same.
    """
    variables = dashboards()[0]["templating"]["list"]
    return next(one["allValue"] for one in variables if f"${one['name']}" == LOOKS)


def dashboards() -> list[dict]:
    """
    All dashboards, with all rows open.
    """
    return [unfolded(json.loads(path.read_text())) for path in sorted(FOLDER.glob("*.json"))]


def unfolded(board: dict) -> dict:
    """
    *board* with folded rows opened: their panels follow them, and what is below moves down.
    """
    panels, down = [], 0
    for panel in board["panels"]:
        panels.append(moved(panel, down) | ({"panels": []} if panel["type"] == "row" else {}))
        inner = panel.get("panels") or []
        panels += [moved(one, down) for one in inner]
        ends = [one["gridPos"]["y"] + one["gridPos"]["h"] for one in inner]
        down += (
            max(ends, default=panel["gridPos"]["y"] + 1) - panel["gridPos"]["y"] - 1 if inner else 0
        )
    return board | {"panels": panels}


def moved(panel: dict, down: int) -> dict:
    return panel | {"gridPos": panel["gridPos"] | {"y": panel["gridPos"]["y"] + down}}


def panels() -> list[Asked]:
    """
    Every expression of every panel.
    """
    return [
        Asked(
            board["uid"].removeprefix("scope-ebpf-"),
            panel["title"],
            target["refId"],
            replaced(target["expr"]),
            target.get("instant", False),
        )
        for board in dashboards()
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]


def rules() -> list[Asked]:
    """
    Every expression of every rule; of an alert all its operands, whether it fires or not.

    A comparison hides what is well, so it is made to say 0 or 1.
    """
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return [
        Asked(group["name"], rule.get("alert") or rule["record"], "-", reported(rule["expr"]), True)
        for group in groups
        for rule in group["rules"]
    ]


def reported(expression: str) -> str:
    return re.sub(r" (>=|>|<) ", r" \1 bool ", expression)


def alternatives(expression: str) -> list[str]:
    """
    The operands of ``or`` outside all parentheses: each must answer for itself.

    How a panel names and sorts its nodes is not looked at.
    """
    if found := NAMED.fullmatch(expression):
        expression = found[1]
    parts, depth, begin = [], 0, 0
    for found in re.finditer(r"[(){}]| or ", expression):
        if found[0] in "({":
            depth += 1
        elif found[0] in ")}":
            depth -= 1
        elif depth == 0:
            parts.append(expression[begin : found.start()])
            begin = found.end()
    parts.append(expression[begin:])
    return [re.sub(r"^on \([^)]*\) ", "", part.strip()) for part in parts]
