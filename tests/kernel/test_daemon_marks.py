# SPDX-License-Identifier: Apache-2.0
"""
Calls of a marked callback as series of the daemon, held against the count of the server itself.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import test_daemon
from beams_run import build, start_beam

ROOT = Path(__file__).parents[2]

CONFIG = """
budget = "50%"
marks = { series = 60 }
"""
#: Windows that are compared at least: each is 0.1 s, and stands for two seconds or so.
WINDOWS = 3
CALLS = ("beam_marked_calls_total", "counted:handle_call/3")


def test_calls_of_callbacks_are_series(tmp_path):
    """
    Calls are as many as the server has counted; the VM goes on when the daemon has ended.
    """
    modules, command = tmp_path / "modules", tmp_path / "scope-mark"
    modules.mkdir()
    shutil.copy(ROOT / "tests/mark/counted.erl", modules)
    compiler = [*build("stock25").erlc, "-o", modules, modules / "counted.erl"]
    escript = ["escript", ROOT / "scope_mark/tools/escript.escript", command]
    mark = [command, modules / "counted.beam", "--profile", "callbacks"]
    for words in (compiler, escript, mark):
        subprocess.run(words, check=True, capture_output=True)
    flags = (*test_daemon.name_flags(), "-s", "counted", "main")
    with start_beam("stock25", *flags, module_dir=modules) as beam:
        beam.expect("ready")
        beam.send("load")
        beam.expect("loaded")

        def served() -> int:
            beam.send("served")
            return int(beam.readline().split()[1])

        with test_daemon.daemon(test_daemon.QUICK + CONFIG, tmp_path) as running:
            # The first windows are far apart: between them the daemon reads what code is marked.
            first = running.until(beam.pid, lambda n: n.get(CALLS, 0) > 0)
            first = running.until(beam.pid, lambda n: n[CALLS] > first[CALLS])
            before, known = served(), [first[CALLS]]

            def agrees(now: dict[tuple[str, ...], float]) -> bool:
                """Whether, after some windows, calls are as many as were served meanwhile."""
                if now[CALLS] > known[-1]:
                    known.append(now[CALLS])
                estimate, truth = now[CALLS] - first[CALLS], served() - before
                return len(known) > WINDOWS and abs(estimate - truth) < 0.35 * truth

            last = running.until(beam.pid, agrees)
            assert {"other", CALLS[1]} == {k[1] for k in last if k[0] == CALLS[0]}
            timed = last["beam_marked_timed_calls_total", CALLS[1]]
            assert 0.9 * last[CALLS] < timed <= last[CALLS]
            assert 0 < last["beam_marked_duration_seconds_total", CALLS[1]] < timed
            assert 0 == last["beam_marked_failures_total", CALLS[1]]
            assert 0 < last["scope_ebpf_marks_sampling_ratio",] < 1
            code, errors = running.end()
            assert 0 == code, errors
        assert served() > before
