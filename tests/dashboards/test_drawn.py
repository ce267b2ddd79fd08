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
from statistics import median
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
#: Drawing all dashboards takes minutes on a machine that does much else.
pytestmark = pytest.mark.timeout(1200)
#: Height of the panels of figures.
TILE = 4
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
        if panel["type"] == "table":
            return bool(re.search(r"\d|\bnone\b", figures))
        return bool(re.search(r"\d", figures)) and self.counted > 0


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


def drawing(folder: Path, scenes: list[dict]) -> dict[str, dict]:
    """
    Draw *scenes*; their pictures are in *folder*. Returns what is to be seen of each.
    """
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    require(chromium, "chromium is not installed")
    (folder / "scenes.json").write_text(json.dumps(scenes))
    pictures = ["pictures"] if "SCOPE_PICTURES" in os.environ else []
    command = ["node", "draw.mjs", "scenes.json", ".", chromium, *pictures]
    done = grafana_run.run(command, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    assert answer["errors"] == []
    return answer["said"]


def looks(folder: Path, scenes: list[dict]) -> dict[str, dict[int, Look]]:
    """
    What is to be seen of each panel of *scenes*.
    """
    return {
        uid: {
            int(number): Look(said["blank"][number], counted, said["text"][number])
            for number, counted in said["counted"].items()
        }
        for uid, said in drawing(folder, scenes).items()
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


def styled(panel: dict) -> list[str]:
    """
    The colours of a panel's nodes, by slot; none if its lines are no nodes.
    """
    rules = {
        rule["matcher"]["options"]: rule["properties"] for rule in panel["fieldConfig"]["overrides"]
    }
    properties = [rules[f"/^{slot} /"] for slot in range(6)] if "/^0 /" in rules else []
    return [next(p["value"]["fixedColor"] for p in one if p["id"] == "color") for one in properties]


def dash(runs: list[int]) -> tuple[float, float]:
    """
    How many pixels are drawn at once and how many left out, of *runs* of both by turns.
    """
    return median(runs[2:-2:2] or runs[:1]), median(runs[3:-2:2] or [0])


def test_lines_of_nodes_differ_by_colour_and_dash(folder):
    """
    Six nodes in each panel of the processes' dashboard are drawn in six colours, and no two have
    the same runs of drawn pixels and gaps.
    """
    (board,) = [board for board in asked.dashboards() if board["uid"] == "scope-ebpf-processes"]
    panels = [p for p in board["panels"] if p["type"] == "timeseries" and styled(p)]
    assert len(panels) >= 4
    answers = {}
    for panel in panels:
        panel["fieldConfig"]["defaults"]["custom"]["fillOpacity"] = 0
        answers[f"{panel['id']}A"] = [
            {
                "metric": {"slot": str(slot), "who": f"n{slot}", "node": f"n{slot}"},
                "values": [[at, str(slot + 1)] for at in range(25)],
            }
            for slot in range(6)
        ]
    scene = {"board": board | {"panels": panels}, "answers": answers, "start": 0, "end": 24}
    said = drawing(folder, [scene | {"colours": styled(panels[0])}])["scope-ebpf-processes"]
    for panel in panels:
        lines = said["runs"][str(panel["id"])]
        dashes = {dash(line) for line in lines}
        assert len(dashes) == 6, (panel["title"], dashes)
        assert all(f"n{slot}" in said["text"][str(panel["id"])] for slot in range(6))
        assert not re.search(r"\d n\d", said["text"][str(panel["id"])])


#: Panels that may show zeros alone: on a fast machine the queue is empty at each scrape.
#: Their values are compared with the VM's own where the queue is full, in test_values.
EMPTY_BY_CHANCE = {"schedulers: Run queue", "schedulers: Run queues"}


def test_zeros_take_no_space(scene):
    """
    A panel that shows nothing but zeros of a node that is well is no higher than a tile, or in a
    folded row.
    """
    high = []
    for path in sorted(asked.FOLDER.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            targets = panel.get("targets", ()) if panel["type"] in DRAWN[:3] else ()
            values = [
                float(sample[1])
                for target in targets
                for one in (scene.now | scene.over)[asked.replaced(target["expr"])]
                for sample in one.get("values") or [one["value"]]
            ]
            if values and not any(values) and panel["gridPos"]["h"] > TILE:
                high.append(f"{path.stem}: {panel['title']}")
    assert set(high) <= EMPTY_BY_CHANCE


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
