# SPDX-License-Identifier: Apache-2.0
"""
A VM whose schedulers all sit in a native function: who, in what, of which library.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import beam_fixtures  # noqa: F401 - puts tests/ on the path
import beams_run
import documents
import pytest
from beam_fixtures import zoo  # noqa: F401 - a fixture

from scope_ebpf.cli import main, schedulers, top

SOURCE = Path(__file__).parents[1] / "workloads/names_nif.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """
    The test's native functions, built against the installed interface.
    """
    include = Path("/usr/lib/erlang/usr/include")
    beams_run.require(shutil.which("gcc"), "there is no C compiler for the test's NIF")
    beams_run.require((include / "erl_nif.h").exists(), "erlang-dev is not installed")
    made = tmp_path_factory.mktemp("nif") / "names_nif.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", made, SOURCE, f"-I{include}"], check=True, timeout=60
    )
    return made


def look(pid: int, capsys) -> dict:
    scope = ["schedulers", "--pid", str(pid), "--once", "--format", "json"]
    schedulers.run(main.parsed(scope))
    return documents.load(capsys.readouterr().out)


@pytest.mark.parametrize(("command", "kind"), [("nif", "normal"), ("nif dirty", "dirty_cpu")])
def test_schedulers_that_sit_in_a_native_function_are_named(library, capsys, command, kind):
    """
    Library, function, C function and process of each, and that nothing runs.
    """
    env = {"NAMES_NIF": str(library.with_suffix(""))}
    with beams_run.start_beam("stock25", "-s", "names_mix", "-names_size", "100", env=env) as beam:
        beam.expect("ready")
        beam.send(command)
        deadline = time.monotonic() + 120
        while True:
            seen = look(beam.pid, capsys)
            there = [t for t in seen["threads"] if t["kind"] == kind]
            if all(t["nif"] and t["unchanged_seconds"] for t in there):
                break
            assert time.monotonic() < deadline, seen
        function = "names_nif:wedge/0" if kind == "normal" else "names_nif:dirty/0"
        symbol = "names_wedge" if kind == "normal" else "names_dirty"
        expected = {"library": str(library), "function": function, "symbol": symbol}
        assert [expected] * len(there) == [t["nif"] for t in there]
        names = {f"names_nif_{n + 1}" for n in range(len(there))}
        assert names == {t["name"] for t in there}
        assert all(t["doing"] == "running" for t in there)
        assert bool(seen["trouble"]) == (kind == "normal")
        words = ["--once", "--interval", "100ms", "--limit", "5", "--sort", "mailbox"]
        top.run(main.parsed(["top", "--pid", str(beam.pid), *words]))
        assert (kind == "normal") == ("nothing runs" in capsys.readouterr().out)
