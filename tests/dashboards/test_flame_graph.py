# SPDX-License-Identifier: Apache-2.0
"""
The page of a profile in a browser, opened from its file as a user does.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import grafana_run
import pytest
from beams_run import WORKLOADS, require, start_beam
from test_drawn import BROWSERS

sys.path += [str(Path(__file__).parents[1] / name) for name in ("kernel", "unit")]
from profile_fixtures import HOSTILE, hostile
from tracing import require_root, scope_trace

from scope_ebpf.results.profile import Frame
from scope_ebpf.sinks.speedscope import html

VIEWER = Path(__file__).parents[2] / "scope_ebpf/sinks/viewer/speedscope.js"
FUNCTION = "split_a:spin/2"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> list[dict]:
    """
    What a browser shows of a real profile, and of one whose every text is hostile; a picture is
    kept in ``SCOPE_PICTURES``, if that is given.
    """
    require_root()
    require(VIEWER.exists(), "the viewer is not built: make viewer")
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    require(chromium, "chromium is not installed")
    folder = grafana_run.folder(tmp_path_factory.mktemp("flame"))
    with start_beam("stock25", "-s", "split") as beam:
        beam.expect("ready")
        beam.send("run 20")
        words = ("--pid", str(beam.pid), "--duration", "3", "-o", str(folder / "real.html"))
        outcome = scope_trace("profile", *words)
    assert 0 == outcome.code, outcome.errors
    made = hostile()
    stack = (*made.samples[0].stack, Frame(f"{FUNCTION} {HOSTILE}", "erlang"))
    made.samples = [made.samples[0]._replace(stack=stack)]
    (folder / "hostile.html").write_bytes(html(made))
    command = ["node", "flame.mjs", chromium, "page.png", FUNCTION, "real.html", "hostile.html"]
    done = grafana_run.run(command, folder)
    assert 0 == done.returncode, done.stderr[-3000:]
    if kept := os.environ.get("SCOPE_PICTURES"):
        shutil.copy(folder / "page.png", Path(kept) / "flame-graph.png")
    return json.loads(done.stdout)


def line_of(text: str) -> int:
    lines = (WORKLOADS / "split_a.erl").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_a_page_shows_erlang_frames_with_file_and_line(pages: list[dict]):
    """
    The function that computes is found with its line, and its callers up to the process beneath it.
    """
    shown = pages[0]["shown"].splitlines()
    assert pages[0]["title"].startswith("nonode@nohost: CPU")
    frame = next(line for line in shown if line.startswith(f"{FUNCTION} ("))
    lines = [line_of("spin(0, Sum)"), line_of("spin(N, Sum)")]
    assert any(frame.endswith(f"split_a.erl:{line})") for line in lines)
    callers = [line.removeprefix("> ").partition(" (")[0] for line in shown if line[:2] == "> "]
    assert "split_a:work/1" == callers[0]
    assert ["split:worker/2", "split:worker/2"] == callers[-2:]


def test_a_page_asks_for_nothing_but_itself(pages: list[dict]):
    """
    No request is answered but the one for the file, not even of the script that speedscope wants.
    """
    assert [1, 1] == [len(page["requests"]) for page in pages]
    assert pages[0]["requests"][0].endswith("/real.html")


def test_hostile_names_are_shown_as_text(pages: list[dict]):
    """
    Markup in a name is read by nobody: it opens no dialog and makes no element.
    """
    assert '<b onload="alert(1)">' in pages[1]["shown"]
    assert [] == pages[1]["dialogs"]
    assert 0 == pages[1]["elements"]
