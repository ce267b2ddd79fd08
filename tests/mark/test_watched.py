# SPDX-License-Identifier: Apache-2.0
"""
Calls of marked callbacks, counted from outside, against what was planted.
"""

from __future__ import annotations

import shutil

import pytest
from beams_run import build, start_beam
from mark_run import HERE, folder, mark, run

from scope_ebpf.beam.code.functions import parse
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.runs.marks import watch

CALLS, CASTS = 2323, 1777


@pytest.fixture(scope="module", params=["stock25", "trixie27", "sid29"])
def beam(request):
    """
    A VM with a marked server.
    """
    kind, modules = request.param, folder("scope-counted-")
    shutil.copy(HERE / "counted.erl", modules)
    run(kind, [*build(kind).erlc, "-o", "{}", "{}/counted.erl"], modules)
    mark(modules / "counted.beam", "--profile", "callbacks")
    with start_beam(kind, "-s", "counted", "main", module_dir=modules) as running:
        running.expect("ready")
        yield running


def test_every_call_of_a_callback_is_counted(beam):
    """
    Calls, returns and the one failure of a planted server are exact.
    """
    marks, error = watch(
        inspect(beam.pid),
        [parse("counted:*")],
        "callbacks",
        0.5,
        lambda: (beam.send("go"), beam.expect("done"))[0],
    )
    found = {f"{m.function.function}/{m.function.arity}": m for m in marks.functions}
    counts = {name: (m.calls, m.returns, m.failures, m.open) for name, m in found.items()}
    assert error is None
    assert counts == {
        "init/1": (1, 1, 0, 0),
        "handle_call/3": (CALLS + 1, CALLS, 1, 0),
        "handle_cast/2": (CASTS, CASTS, 0, 0),
    }
    assert marks.counts["unpaired"] == marks.counts["no_room"] == 0
    assert all(m.mean is not None and m.mean > 0 for m in found.values())
