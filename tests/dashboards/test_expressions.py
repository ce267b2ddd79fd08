# SPDX-License-Identifier: Apache-2.0
"""
Every expression of the dashboards and of the rules finds data in a Prometheus that scrapes us.
"""

from __future__ import annotations

import math

import asked
import pytest
import scene as scenes

PANELS = asked.panels()
RULES = scenes.rules()
#: Operands that are rightly empty in a healthy system, and why.
EMPTY = {
    "(no peers)": "the VM is connected to a node",
    "ALERTS": "there is no such series until an alert is pending",
    "== 0 unless": "every hook could be had, so none is counted",
    "scope_ebpf_refused{": "every part could be read, so none is counted",
    "unless on (instance, node) instance_node_name:": "there is a ranking",
    "unless beam_node_down_total": "no peer was lost for the first time just now",
    "unless on (instance, node) min_over_time": "every schedule could be counted",
}


def finite(series: list[dict]) -> int:
    """
    How many samples say a number.
    """
    samples = [sample for one in series for sample in one.get("values") or [one["value"]]]
    return sum(math.isfinite(float(value)) for _, value in samples)


def excused(text: str) -> bool:
    return any(part in text for part in EMPTY)


def test_there_is_much_to_ask():
    """
    The lists that the other tests go through are not empty.
    """
    assert len(PANELS) > 80
    assert len(RULES) >= 17


@pytest.mark.parametrize("one", PANELS, ids=lambda one: one.place)
def test_an_expression_of_a_panel_finds_data(scene, one):
    """
    Each expression has numbers now, and over the time of the load where a panel draws time.
    """
    assert finite(scene.now[one.expression]) > 0, one.expression
    if not one.instant:
        assert finite(scene.over[one.expression]) >= 5, one.expression
    for part in asked.alternatives(one.expression):
        assert finite(scene.now[part]) > 0 or excused(part), part


@pytest.mark.parametrize("one", RULES, ids=lambda one: one.panel)
def test_an_expression_of_a_rule_finds_data(scene, one):
    """
    Each rule has all its operands, whether its alert fires or not.
    """
    assert finite(scene.now[one.expression]) > 0, one.expression
    for part in asked.alternatives(one.expression):
        assert finite(scene.now[part]) > 0 or excused(part), part


def test_prometheus_evaluates_every_rule(scene):
    """
    Prometheus itself took the rules, and none of them failed.
    """
    health = {
        rule["name"]: rule["health"] for group in scene.rule_groups for rule in group["rules"]
    }
    assert health == dict.fromkeys([one.panel for one in RULES if one.panel in health], "ok")
    assert len(health) == len(RULES)


def test_only_few_expressions_are_excused():
    """
    Each reason for an empty answer is still one of some expression's.
    """
    parts = [part for one in (*PANELS, *RULES) for part in asked.alternatives(one.expression)]
    assert [name for name in EMPTY if not any(name in part for part in parts)] == []
    assert len([part for part in parts if excused(part)]) <= 9


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a or b", ["a", "b"]),
        ("max(a or b)", ["max(a or b)"]),
        ('a{x=~"y or z"} or (b or c) or d', ['a{x=~"y or z"}', "(b or c)", "d"]),
    ],
)
def test_an_expression_is_cut_at_its_outer_or(text, parts):
    """
    What stands in parentheses is not cut.
    """
    assert asked.alternatives(text) == parts
