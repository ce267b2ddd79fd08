# SPDX-License-Identifier: Apache-2.0
"""
The dashboards are what their tables make, and say what an operator needs.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import beams_run
import numpy as np
import pytest
import yaml
from colorspacious import cspace_convert, deltaE

from scope_ebpf.metrics.catalogue import catalogue
from scope_ebpf.metrics.snapshot import MAILBOX_STEPS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))
RULES = FOLDER / "rules.yml"
_SERIES = re.compile(r"\b(?:beam|scope_ebpf)_[a-z0-9_]+\b")
#: Series that no panel and no rule shows, and why.
UNSEEN: dict[str, str] = {}
#: Alerts of a host, not of a VM.
OF_A_HOST = ("ScopeTargetsRefused", "ScopeDaemonDown")
_HEX = re.compile(r'"(#[0-9A-Fa-f]{6})"')


def board(path: Path) -> dict:
    return json.loads(path.read_text())


def placed(path: Path) -> list[dict]:
    """
    All panels and rows, and after a folded row its panels.
    """
    return [one for panel in board(path)["panels"] for one in (panel, *panel.get("panels", ()))]


def panels(path: Path) -> list[dict]:
    return [panel for panel in placed(path) if panel["type"] not in ("row", "text")]


EVERY = [
    pytest.param(panel, id=f"{path.stem}: {panel['title']}")
    for path in FILES
    for panel in panels(path)
]


@pytest.fixture
def build(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("build")


def test_the_dashboards_are_current(build):
    """
    Each JSON file is what the tables of its module make, and there are no others.
    """
    assert build.stale() == []
    assert len(FILES) == 12


def test_a_dashboard_changed_by_hand_is_found(build, monkeypatch, tmp_path, capsys):
    """
    A file that is not what its table makes is named, one that no table makes too.
    """
    for path in FILES:
        shutil.copy(path, tmp_path)
    (tmp_path / "overview.json").write_text("{}\n")
    (tmp_path / "stray.json").write_text("{}\n")
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["build.py", "--check"])
    assert build.main() == 1
    said = capsys.readouterr().err
    assert [line.split()[0] for line in said.splitlines()] == [
        str(tmp_path / "overview.json"),
        str(tmp_path / "stray.json"),
    ]


@pytest.mark.parametrize("panel", EVERY)
def test_a_panel_says_what_it_shows_and_what_to_do(panel):
    """
    Description, unit, legends and, where it says red, what is red are there.
    """
    shows, _, act = panel["description"].partition("\n\n**When it ")
    assert shows.endswith((".", ")"))
    assert len(act.partition(":** ")[2]) > 20
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    steps = defaults["thresholds"]["steps"]
    assert (len(steps) > 1) == act.startswith("is red")
    bounds = [step["value"] for step in steps[1:]]
    assert bounds == sorted(bounds)
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("panel", [one for one in EVERY if one.values[0]["type"] != "table"])
def test_a_node_is_named_by_what_tells_it_apart(panel):
    """
    A legend has the name that the hidden variable gives a node, which is short if it can be, and
    the expression asks for it.
    """
    for target in panel["targets"]:
        assert "{{node}}" not in target["legendFormat"]
        assert ("{{who}}" in target["legendFormat"]) == ("$looks" in target["expr"])


def looks(path: Path) -> str:
    """
    The text of the variable that says how nodes are drawn, for the test's data.
    """
    variables = {v["name"]: v for v in board(path)["templating"]["list"]}
    assert variables["looks"]["hide"] == 2
    assert variables["looks"]["skipUrlSync"]
    text = variables["looks"]["allValue"]
    return re.sub(r"\$\{(?:host|node):regex\}", ".*", text).replace("$__range", "15m")


def test_each_node_has_a_slot_of_its_own(tmp_path):
    """
    The oldest of eight is in slot 0 and so on to 5, the others in 6; one that has ended keeps its
    slot, and of two with one name each is named with its host.
    """
    (text,) = {looks(path) for path in FILES}
    ages = {f"n{number}@x": 1000 * number for number in range(1, 8)}
    series = {
        f'beam_start_time_seconds{{instance="h:1",node="{node}"}}': f"{age}x20"
        for node, age in ages.items()
    }
    series['beam_start_time_seconds{instance="h:1",node="n2@x"}'] = "2000x8 stale"
    series['beam_start_time_seconds{instance="other:1",node="n7@x"}'] = "500x20"
    wanted = {("other:1", "n7@x"): ("0", "n7@x other:1")} | {
        ("h:1", f"n{n}@x"): (str(min(n, 6)), f"n{n}@x" + (" h:1" if n == 7 else ""))
        for n in range(1, 8)
    }
    samples = {
        f'instance="{host}",node="{node}",slot="{slot}",who="{who}"': 1
        for (host, node), (slot, who) in wanted.items()
    }
    asked_of_promtool(tmp_path, text, series, samples)


TIMES = [one for one in EVERY if one.values[0]["type"] == "timeseries"]


@pytest.mark.parametrize("panel", TIMES)
def test_lines_of_two_nodes_differ_by_colour_and_dash(panel):
    """
    A panel of nodes has for each slot an override with a colour and a dash that no other has, and
    shows a line without its slot; no line of it is a node and a meaning at once.
    """
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert not [text for text in legends if "{{who}}" in text and text != "{{slot}} {{who}}"]
    if "{{slot}} {{who}}" not in legends:
        return
    found = {
        rule["matcher"]["options"]: {p["id"]: p["value"] for p in rule["properties"]}
        for rule in panel["fieldConfig"]["overrides"]
    }
    slots = [found[f"/^{slot} /"] for slot in range(6)]
    assert len({one["color"]["fixedColor"] for one in slots}) == 6
    assert len({str(one["custom.lineStyle"]) for one in slots}) == 6
    last = panel["fieldConfig"]["overrides"][-1]
    assert last["properties"] == [{"id": "displayName", "value": "${__field.labels.who}"}]


@pytest.mark.parametrize(
    "panel", [one for one in EVERY if "histogram_quantile" in str(one.values[0]["targets"])]
)
def test_a_quantile_is_bad_from_a_bound_of_its_buckets_on(panel):
    """
    Within a bucket a quantile is a guess; the description says how wide the buckets are.
    """
    (name,) = {exported()[name] for name in _SERIES.findall(str(panel["targets"]))}
    first, last, step = catalogue()[name].bounds
    bounds = [2**exponent / 1e9 for exponent in range(first, last + 1, step)]
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [step["value"] for step in steps[1:] if step["value"] not in bounds] == []
    assert f"off by a factor of {2**step}," in panel["description"]


def test_without_a_ranking_the_steps_of_mailboxes_are_powers_of_ten():
    """
    The overview's longest mailbox counts them, where the config has ``top = 0``.
    """
    assert tuple(10**place for place in range(len(MAILBOX_STEPS))) == MAILBOX_STEPS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_lie_side_by_side(path):
    """
    No two panels cover one place, none sticks out, and no two have one title or number.

    Panels of a folded row have places of their own: what is below moves down when it is opened.
    """
    rows = [panel.get("panels") for panel in board(path)["panels"]]
    for beside in filter(None, [board(path)["panels"], *rows]):
        taken = set()
        for panel in beside:
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= 24
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not taken & cells, panel["title"]
            taken |= cells
    titles = [panel["title"] for panel in panels(path)]
    assert len(titles) == len(set(titles))
    numbers = [panel["id"] for panel in placed(path)]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_dashboard_chooses_source_host_and_nodes(path):
    """
    The variables are the same everywhere, so that links can take them along.
    """
    variables = {v["name"]: v for v in board(path)["templating"]["list"]}
    assert list(variables) == ["datasource", "host", "node", "looks"]
    assert variables["node"]["multi"]
    assert variables["node"]["includeAll"]
    sources = {panel["datasource"]["uid"] for panel in panels(path)}
    assert sources == {"${datasource}"}


def test_links_lead_to_a_dashboard():
    """
    Links of panels and of alerts name a dashboard that exists, and keep the time or the node.
    """
    uids = {board(path)["uid"] for path in FILES}
    links = [link["url"] for path in FILES for p in panels(path) for link in p.get("links") or []]
    assert len(links) > 10
    assert all("${node:queryparam}" in link for link in links)
    texts = [
        panel["options"]["content"]
        for path in FILES
        for panel in placed(path)
        if panel["type"] == "text"
    ]
    links += re.findall(r"\]\(([^)]*)\)", "".join(texts))
    alerts = [rule["annotations"]["dashboard"] for rule in rules() if "alert" in rule]
    found = {re.match(r"/d/([a-z-]+)\?", link)[1] for link in [*links, *alerts]}
    assert found <= uids
    for path in FILES:
        (menu,) = board(path)["links"]
        assert set(menu["tags"]) <= set(board(path)["tags"])
        assert menu["includeVars"]


def rules() -> list[dict]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> str:
    shown = [target["expr"] for path in FILES for p in panels(path) for target in p["targets"]]
    return "\n".join([*shown, *(rule["expr"] for rule in rules())])


def exported() -> dict[str, str]:
    """
    The names that a scrape has, and of which series of the catalogue each is.
    """
    return {
        series.name + part: series.name
        for series in catalogue().values()
        for part in (("_bucket", "_count", "_sum") if series.type == "histogram" else ("",))
    }


def test_every_series_that_is_asked_for_is_exported():
    """
    A panel on a series that nobody exports would be empty for ever.
    """
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    text = expressions()
    for name in recorded:
        text = text.replace(name, "")
    assert set(_SERIES.findall(text)) - exported().keys() == set()


def test_every_series_that_is_exported_is_seen():
    """
    Each series of the catalogue is in a panel or a rule, or stands above with the reason.
    """
    names = exported()
    seen = {names[name] for name in _SERIES.findall(expressions()) if name in names}
    assert catalogue().keys() - seen == UNSEEN.keys()


@pytest.mark.parametrize(
    "alert", [rule for rule in rules() if "alert" in rule], ids=lambda r: r["alert"]
)
def test_an_alert_says_what_to_do_and_where_to_look(alert):
    """
    Severity, summary, description and the link to a dashboard are there.
    """
    assert alert["labels"]["severity"] in ("info", "warning", "critical")
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "dashboard", "runbook_url"}
    assert "on {{ $labels.instance }}" in notes["summary"]
    assert len(notes["description"]) > 40
    assert "var-host={{ $labels.instance | urlquery }}" in notes["dashboard"]
    if alert["alert"] not in OF_A_HOST:
        assert "$labels.node" in notes["summary"]
        assert "var-node={{ $labels.node | urlquery }}" in notes["dashboard"]


def test_alerts_are_shown_of_the_chosen_hosts_and_nodes():
    """
    What asks for alerts takes the host and the node into account; one of a host has no node.
    """
    asked = [
        text
        for path in FILES
        for text in re.findall(r"ALERTS\{.*?\}", path.read_text().replace('\\"', '"'))
    ]
    assert len(asked) == len(FILES) + 2
    assert all('instance=~"$host|", node=~"$node|"' in text for text in asked)


#: Of panels that stand on several series: what there is, minute by minute, and what is shown of it
#: for each node (or by the label named first).
SHOWN = {
    "overview: Longest mailbox": (
        {
            'beam_top_mailbox_messages{node="ranked",rank="1",name="deaf"}': "7x20",
            'beam_mailbox_processes{node="ranked",at_least="1"}': "3x20",
            'beam_mailbox_processes{node="nameless",at_least="1"}': "20x20",
            'beam_mailbox_processes{node="nameless",at_least="10"}': "4x20",
            'beam_mailbox_processes{node="nameless",at_least="100"}': "1x20",
            'beam_mailbox_processes{node="nameless",at_least="1000"}': "0x20",
            'beam_mailbox_processes{node="empty",at_least="1"}': "0x20",
        },
        {'node="ranked"': 7, 'node="nameless"': 100, 'node="empty"': 0},
    ),
    "overview: Long schedules": (
        {
            'beam_schedule_duration_seconds_count{node="timed"}': "0+600x20",
            'beam_schedule_duration_seconds_bucket{node="timed",le="0.067108864"}': "0+585x20",
            'beam_native_long_calls_total{node="timed",name="other"}': "0+60x20",
            'scope_ebpf_sampling_ratio{node="timed",hook="schedule"}': "1x20",
            'beam_schedule_duration_seconds_count{node="busy"}': "0+600x20",
            'beam_schedule_duration_seconds_bucket{node="busy",le="0.067108864"}': "0+600x20",
            'beam_native_long_calls_total{node="busy",name="other"}': "0+30x20",
            'scope_ebpf_sampling_ratio{node="busy",hook="schedule"}': "0.1x20",
            'beam_native_long_calls_total{node="hidden",name="other"}': "0+60x20",
        },
        {'node="timed"': 0.25, 'node="busy"': 0.5, 'node="hidden"': 1},
    ),
    "overview: Writers suspended by a busy port or link": (
        {
            'beam_dist_busy_total{node="both"}': "0+30x20",
            'beam_port_busy_total{node="both"}': "0+60x20",
            'beam_port_busy_total{node="hidden"}': "0+60x20",
        },
        {'node="both"': 1.5, 'node="hidden"': 1},
    ),
    "schedulers: Throttled by the cgroup": (
        {
            'beam_cgroup_periods_total{node="narrow"}': "0+600x20",
            'beam_cgroup_throttled_periods_total{node="narrow"}': "0+150x20",
            'beam_cgroup_periods_total{node="still"}': "600x20",
            'beam_cgroup_throttled_periods_total{node="still"}': "150x20",
            'beam_schedulers{node="free"}': "2x20",
        },
        {'node="narrow"': 0.25, 'node="still"': 0, 'node="free"': 0},
    ),
    "schedulers: Schedulers that wait for a CPU": (
        {
            f'beam_thread_{series}node="{node}",scheduler_type="normal"}}': f"0+{seconds}x20"
            for node, wait, sleep, work in (("two of 32", 60, 1800, 60), ("calm", 3, 114, 3))
            for series, seconds in (
                ('offcpu_seconds_total{reason="queued",', wait),
                ('offcpu_seconds_total{reason="idle",', sleep),
                ("cpu_seconds_total{", work),
            )
        },
        {'node="two of 32"': 0.5, 'node="calm"': 0.05},
    ),
    "schedulers: Where a normal scheduler's time goes": (
        {
            'beam_schedulers{node="pair"}': "2x20",
            'beam_thread_offcpu_seconds_total{node="pair",scheduler_type="normal",reason="idle"}': (
                "0+120x20"
            ),
            'beam_schedulers{node="one"}': "1x20",
            'beam_thread_offcpu_seconds_total{node="one",scheduler_type="normal",reason="idle"}': (
                "0+30x20"
            ),
        },
        {'reason="idle"': 0.75},
    ),
}


@pytest.mark.parametrize("title", SHOWN)
def test_a_panel_of_several_series_shows(title, tmp_path):
    """
    Where one of them is missing or stands still, too.
    """
    (panel,) = [one.values[0] for one in EVERY if one.id == title]
    query = panel["targets"][0]["expr"].replace("$__rate_interval", "5m")
    query = query.removesuffix(" * on (instance, node) group_left (slot, who) $looks")
    given, wanted = SHOWN[title]
    asked_of_promtool(tmp_path, re.sub(r"\$(host|node)", ".*", query), given, wanted)


def asked_of_promtool(
    folder: Path, expression: str, given: dict[str, str], wanted: dict[str, float]
) -> None:
    """
    After fifteen minutes of the series *given* the answer to *expression* is *wanted*, by labels.
    """
    beams_run.require(shutil.which("promtool"), "promtool is not installed (apt: prometheus)")
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in given.items()],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": "15m",
                "exp_samples": [
                    {"labels": f"{{{labels}}}", "value": value} for labels, value in wanted.items()
                ],
            }
        ],
    }
    path = folder / "case.yml"
    path.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def apart(kind: str) -> float:
    """
    The distance (CAM02-UCS) of the two colours that are most alike to people with *kind*.
    """
    space = {"name": "sRGB1+CVD", "cvd_type": kind, "severity": 100}
    seen = [
        np.clip(
            cspace_convert([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)], space, "sRGB1"), 0, 1
        )
        for c in sorted(palette())
    ]
    return min(deltaE(a, b, input_space="sRGB1") for a, b in combinations(seen, 2))


def palette() -> set[str]:
    return {colour for path in FILES for colour in _HEX.findall(path.read_text())}


@pytest.mark.parametrize("kind", ["protanomaly", "deuteranomaly", "tritanomaly"])
def test_colours_stay_apart_for_the_colour_blind(kind):
    """
    Any two colours of the dashboards differ without red, without green and without blue.
    """
    assert len(palette()) == 8
    assert apart(kind) > 10


def test_no_colour_has_a_name():
    """
    Grafana's own red and green are not used: all colours are of the palette, or follow from it.
    """
    for path in FILES:
        named = re.findall(r'"(?:fixedColor|color|iconColor|fill)": "([^"#]+)"', path.read_text())
        assert set(named) <= {"solid", "dash", "dot"}  # how lines are filled
