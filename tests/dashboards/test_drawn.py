# SPDX-License-Identifier: Apache-2.0
"""
Grafana's own components draw each panel in a browser, with what the live Prometheus answered.

Heatmaps are not among the components that Grafana publishes: of them only the queries and the types
are checked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import TYPE_CHECKING, NamedTuple

import asked
import grafana_run
import pytest
from beams_run import require

if TYPE_CHECKING:
    from pathlib import Path

BROWSERS = ("chromium", "google-chrome", "chromium-browser")
DRAWN = ("timeseries", "stat", "bargauge", "table")
EVERY = [
    pytest.param(board["uid"], panel, id=f"{board['uid']}: {panel['title']}")
    for board in asked.dashboards()
    for panel in board["panels"]
    if panel["type"] in DRAWN
]
#: Pixels of one line of two pixels over a good part of the narrowest panel.
LINE = 200


class Look(NamedTuple):
    """
    What is to be seen of a panel: coloured pixels without and with its data, and its text.
    """

    blank: int
    counted: int
    text: str

    def shows(self, panel: dict) -> bool:
        """
        Whether there is something: a line for a line, a figure for what has figures.
        """
        if "failed:" in self.text or re.search("no data", self.text, re.IGNORECASE):
            return False
        if panel["type"] == "timeseries":
            return self.counted - self.blank >= LINE
        figures = self.text.removeprefix(panel["title"])
        return bool(re.search(r"\d", figures)) and (self.counted > 0 or panel["type"] == "table")


def answers(board: dict, scene) -> dict:
    """
    *board* with what Prometheus answered to each of its expressions.
    """
    found = {}
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            text = asked.replaced(target["expr"])
            said = scene.now if target.get("instant") else scene.over
            found[f"{panel['id']}{target['refId']}"] = said[text]
    return {"board": board, "answers": found, "start": scene.start, "end": scene.end}


def looks(folder: Path, scenes: list[dict]) -> dict[str, dict[int, Look]]:
    """
    Draw *scenes*; their pictures are in *folder*.
    """
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    require(chromium, "chromium is not installed")
    (folder / "scenes.json").write_text(json.dumps(scenes))
    done = grafana_run.run(["node", "draw.mjs", "scenes.json", ".", chromium], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    assert answer["errors"] == []
    return {
        uid: {
            int(number): Look(said["blank"][number], counted, said["text"][number])
            for number, counted in said["counted"].items()
        }
        for uid, said in answer["said"].items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return grafana_run.folder(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def drawn(scene, folder):
    """
    All dashboards; their pictures are kept in ``SCOPE_PICTURES``, if that is given.
    """
    seen = looks(folder, [answers(board, scene) for board in asked.dashboards()])
    if kept := os.environ.get("SCOPE_PICTURES"):
        for picture in folder.glob("*.png"):
            shutil.copy(picture, kept)
    return seen


@pytest.mark.parametrize(("uid", "panel"), EVERY)
def test_a_panel_shows_its_data(drawn, uid, panel):
    """
    It has a line for its data, or figures, and nothing in it failed.
    """
    look = drawn[uid][panel["id"]]
    assert look.shows(panel), look


def test_a_panel_without_data_is_found(scene, folder):
    """
    The same dashboard without a single answer shows nothing, in all its panels but the time's.
    """
    (board,) = [board for board in asked.dashboards() if board["uid"] == "scope-ebpf-overview"]
    empty = answers(board, scene)
    empty["answers"] = {key: [] for key in empty["answers"]}
    seen = looks(folder, [empty])[board["uid"]]
    panels = [panel for panel in board["panels"] if panel["type"] in DRAWN]
    assert len(panels) > 10
    assert [panel["title"] for panel in panels if seen[panel["id"]].shows(panel)] == []
