# SPDX-License-Identifier: Apache-2.0
"""
What is told of a VM, or of a process in it, that does not get on: why, and with which figures.
"""

from __future__ import annotations

import argparse
import json
import time

import beam_fixtures  # noqa: F401 - puts tests/ on the path
import beams_run
import pytest

from scope_ebpf.beam import discover
from scope_ebpf.cli import schedulers

KINDS = ("stock25", "trixie27")


def until(found, patience: float = beams_run.PATIENCE):
    """
    What *found* returns, once it is something.
    """
    deadline = time.monotonic() + patience
    while not (seen := found()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return seen


def looked(pid: int, capsys, form: str = "json", interval: float = 0.05):
    """
    What ``schedulers --once`` prints.
    """
    schedulers.run(argparse.Namespace(pid=pid, once=True, interval=interval, format=form))
    text = capsys.readouterr().out
    return json.loads(text) if form == "json" else text


@pytest.mark.parametrize("kind", (*KINDS, "emu25"))
def test_a_process_that_is_collected_is_in_no_function(kind, capsys):
    """
    A process of a million words that collects without end is told to collect, and never in a function then.
    """
    with beams_run.start_beam(kind, "-s", "stuck") as beam:
        beam.expect("ready")
        beam.ask("collect")
        until(lambda: beam.ask("collecting") != "collecting 0")

        def seen():
            beam.freeze()  # so that text and JSON are of one moment
            document, text = looked(beam.pid, capsys), looked(beam.pid, capsys, "text")
            beam.thaw()
            mine = [t for t in document["threads"] if t["name"] == "stuck_collector"]
            return [(one, text) for one in mine if one["collecting"]]

        ((thread, text),) = until(seen)
        assert thread["function"] is None
        (line,) = (line for line in text.splitlines() if "stuck_collector" in line)
        assert "stuck_collector collecting garbage" in line
