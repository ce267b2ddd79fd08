# SPDX-License-Identifier: Apache-2.0
"""
The processes that ``top`` shows first, compared with what the VM says of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import beams_run
import pytest
from tracing import scope_trace

from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.daemon.readings.snapshots import Table

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def moving() -> Iterator[beams_run.Beam]:
    """
    A stock VM that runs ``moving.erl``, with one mailbox of 150,000 messages.
    """
    beams_run.require(os.geteuid() == 0, "reading another process's memory takes root")
    with beams_run.start_beam("stock25", "-s", "moving") as beam:
        beam.expect("ready")
        assert beam.ask("fill moving_deaf 150000") == "done fill 150000"
        yield beam


def shown(beam: beams_run.Beam, *arguments: str) -> list[str]:
    """
    The rows of one table, as text.
    """
    command = ("top", "--pid", str(beam.pid), "--once", "--interval", "0.5", *arguments)
    text = scope_trace(*command).output.splitlines()
    return text[next(n for n, line in enumerate(text) if line.startswith("PID ")) + 1 :]


def test_by_memory_the_largest_process_is_first_in_text_json_and_metrics(moving: beams_run.Beam):
    """
    A mailbox counts as ``process_info(memory)`` counts it, wherever the figure is shown.
    """
    memory = int(moving.ask("memory moving_deaf").split()[1])
    first = shown(moving, "--sort", "memory", "--limit", "2")[0].split()
    assert "moving_deaf" == first[1]
    assert memory == pytest.approx(1e6 * float(first[3].strip("~M")), rel=0.1)
    command = ("top", "--pid", str(moving.pid), "--once", "--sort", "memory", "--format", "json")
    found = scope_trace(*command).document["processes"]
    sizes = [one["memory_bytes"] for one in found]
    assert sizes == sorted(sizes, reverse=True)
    assert (found[0]["name"], memory) == ("moving_deaf", pytest.approx(sizes[0], rel=0.05))
    reading = Table(inspect(moving.pid)).read(5, lambda _: None)
    assert reading.names[reading.memories[0].pid] == "moving_deaf"
    assert memory == pytest.approx(reading.memories[0].value, rel=0.05)
    assert reading.memory >= reading.memories[0].value
    assert reading.memory_counts.tolist()[2:] == [1, 0]  # 16 MiB, 256 MiB


def test_by_collections_the_busiest_collector_is_first(moving: beams_run.Beam):
    """
    A long list every 20 ms is more than a short one every 2 ms; sleeping processes collect nothing.
    """
    assert moving.ask("collect") == "done collect"
    rows = [row.split() for row in shown(moving, "--sort", "gc", "--limit", "100")]
    names = [row[1] for row in rows]
    assert names[0] == "moving_heavy"
    assert "0" == rows[names.index("moving_deaf")][2]
    command = ("top", "--pid", str(moving.pid), "--once", "--sort", "gc", "--format", "json")
    found = scope_trace(*command).document["processes"]
    assert found[0]["name"] == "moving_heavy"
    speeds = {one["name"]: one["collected_bytes_per_second"] for one in found}
    assert speeds["moving_heavy"] > speeds["moving_light"] > speeds["moving_deaf"] == 0


@pytest.mark.parametrize(
    "words",
    [["list"], ["top", "--once"], ["ps", "moving_deaf"], ["trace", "--duration", "0.2"]],
    ids=" ".join,
)
def test_a_start_loads_no_part_of_numpy_that_it_does_not_need(moving: beams_run.Beam, words):
    """
    One name of ``numpy.lib``, such as ``np.append``, loads all of it: a sixth of a start.
    """
    of_one = [] if words == ["list"] else ["--pid", str(moving.pid)]
    command = [sys.executable, "-X", "importtime", "-m", "scope_ebpf.cli.main", *words, *of_one]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr[-2000:]
    loaded = [line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()]
    # What is left out is imported empty first; what is asked for is imported once more.
    assert 1 == loaded.count("numpy.lib._function_base_impl")
    assert [] == [name for name in set(loaded) if "numpy.l" in name and loaded.count(name) > 1]
