# SPDX-License-Identifier: Apache-2.0
"""
Each alert has a runbook, and what a runbook says to type exists.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from scope_ebpf import events
from scope_ebpf.cli import main

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs/runbooks"
ALERTS = {
    rule["alert"]: rule["annotations"]
    for group in yaml.safe_load((ROOT / "dashboards/rules.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
BOARDS = ROOT / "dashboards"


def section(name: str, heading: str) -> str:
    """
    The text of a runbook below a heading.
    """
    text = (RUNBOOKS / f"{name}.md").read_text()
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def commands(text: str) -> list[str]:
    """
    The lines of *text* that are shown as code.
    """
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def scope_trace() -> list[tuple[str, str]]:
    """
    Each command of ours in a runbook or on the first dashboard, with where it stands.
    """
    found = [(name, line) for name in ALERTS for line in commands(section(name, "Command"))]
    start = (BOARDS / "start.json").read_text()
    found += [("start", line) for line in re.findall(r"`(scope-trace [^`]*)`", start)]
    ours = [(name, re.sub("^sudo ", "", line)) for name, line in found]
    return [(name, line) for name, line in ours if line.startswith("scope-trace")]


def test_there_is_a_runbook_for_each_alert_and_no_other():
    """
    Its file is named like the alert, and the alert and the list of runbooks lead to it.
    """
    names = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}
    assert names == ALERTS.keys()
    listed = (RUNBOOKS / "README.md").read_text()
    for name, notes in ALERTS.items():
        assert notes["runbook_url"] == f"docs/runbooks/{name}.md"
        assert f"[{name}]({name}.md)" in listed


@pytest.mark.parametrize("name", ALERTS)
def test_a_runbook_says_symptom_command_and_remedy(name):
    """
    None of the three is empty, the remedy is a list, and its links lead to a runbook or a page.
    """
    assert len(section(name, "Symptom").split()) > 8
    assert commands(section(name, "Command"))
    assert re.search(r"^- ", section(name, "Remedy"), re.MULTILINE)
    text = (RUNBOOKS / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    for link in re.findall(r"\]\(([^)]*)\)", text):
        assert (RUNBOOKS / link).exists(), link


@pytest.mark.parametrize("name", ALERTS)
def test_the_panel_of_a_runbook_exists(name):
    """
    The last line names a dashboard and a panel or a row of it.
    """
    last = (RUNBOOKS / f"{name}.md").read_text().rstrip().splitlines()[-1]
    board, panel = re.fullmatch(r"Dashboard: (.+), \*(.+)\*\.", last).groups()
    boards = [path.read_text() for path in BOARDS.glob("*.json")]
    (text,) = [text for text in boards if f'"title": "scope-ebpf / {board}"' in text]
    assert f'"title": "{panel}"' in text


@pytest.mark.parametrize(("place", "line"), scope_trace())
def test_a_command_of_a_runbook_is_accepted(place, line):
    """
    The command, its options and the events that it names are there.
    """
    words = line.replace("PID", "4711").split()[1:]
    assert main.parsed(words), place
    if asked := re.search(r"--events (\S+)", line):
        assert set(asked[1].split(",")) <= events.KINDS.keys()


def test_there_are_commands_to_check():
    """
    The list that the test above goes through is not empty.
    """
    assert len(scope_trace()) > 40
