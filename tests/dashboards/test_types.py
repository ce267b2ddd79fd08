# SPDX-License-Identifier: Apache-2.0
"""
The dashboards are what Grafana's published types say that a dashboard is.
"""

from __future__ import annotations

import asked
import grafana_run
import pytest

HEAD = "import type { Board } from './types';\nexport const board: Board = "
COMPILE = (
    *("node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--target", "es2022"),
    *("--module", "esnext", "--moduleResolution", "node10"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return grafana_run.folder(tmp_path_factory.mktemp("types"))


def complaints(folder, sources: dict[str, str]) -> list[str]:
    """
    What the compiler has to say of each dashboard, given as JSON.
    """
    for name, text in sources.items():
        (folder / f"{name}.ts").write_text(HEAD + text)
    done = grafana_run.run([*COMPILE, *(f"{name}.ts" for name in sources)], folder)
    assert (done.returncode == 0) == (not done.stdout), done.stderr
    return done.stdout.splitlines()


def test_every_dashboard_has_the_types_of_grafana(folder):
    """
    The compiler has nothing to say of any of them.
    """
    sources = {path.stem: path.read_text() for path in asked.FOLDER.glob("*.json")}
    assert len(sources) == 12
    assert complaints(folder, sources) == []


#: What stands in the overview, and what is put in its place.
PLANTED = {
    "value": ('"graphMode": "area"', '"graphMode": "aria"'),
    "mode": ('"mode": "thresholds"', '"mode": "threshold"'),
    "key": ('"schemaVersion": ', '"schemaVersions": '),
    "kind": ('"showHeader": true', '"showHeader": "yes"'),
    "panel": ('"type": "timeseries"', '"type": "timeserie"'),
    "query": ('"legendFormat": "{{node}}"', '"legend": "{{node}}"'),
    "field": ('"lineWidth": 2', '"lineWidht": 2'),
    "number": ('"w": 24', '"w": "24"'),
}


def test_a_planted_error_is_found(folder):
    """
    A wrong value, name or type anywhere in a dashboard is a complaint, each of its own.
    """
    overview = (asked.FOLDER / "overview.json").read_text()
    assert [right for right, _ in PLANTED.values() if right not in overview] == []
    sources = {name: overview.replace(*change, 1) for name, change in PLANTED.items()}
    found = complaints(folder, sources)
    assert [name for name in PLANTED if not any(x.startswith(f"{name}.ts(") for x in found)] == []
