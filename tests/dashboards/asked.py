# SPDX-License-Identifier: Apache-2.0
"""
What the dashboards and the rules ask of Prometheus.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[2] / "dashboards"
#: What Grafana would put in the place of its variables, for scrapes a second apart.
VARIABLES = {"$__rate_interval": "10s", "$host": ".*", "$node": ".*"}


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
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    assert "$" not in text, text
    return text


def dashboards() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]


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

    A comparison hides what is well, so ``>`` is made to say 0 or 1.
    """
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return [
        Asked(group["name"], rule.get("alert") or rule["record"], "-", told(rule["expr"]), True)
        for group in groups
        for rule in group["rules"]
    ]


def told(expression: str) -> str:
    return expression.replace(" > ", " > bool ")


def alternatives(expression: str) -> list[str]:
    """
    The operands of ``or`` outside all parentheses: each must answer for itself.
    """
    parts, depth, begin = [], 0, 0
    for found in re.finditer(r"[(){}]| or ", expression):
        if found[0] in "({":
            depth += 1
        elif found[0] in ")}":
            depth -= 1
        elif depth == 0:
            parts.append(expression[begin : found.start()])
            begin = found.end()
    return [part.strip() for part in (*parts, expression[begin:])]
