# SPDX-License-Identifier: Apache-2.0
"""
What the daemon keeps of a VM that the kernel kills for want of memory.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from beams_run import start_beam
from tracing import require_root, scope_trace, wait_until

from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.daemon.blackbox import BlackBox
from scope_ebpf.daemon.looks.owners import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 100_000_000


class Subject:
    """
    A VM as the daemon has it.
    """

    owner = ROOT
    reading = SimpleNamespace(counters=SimpleNamespace(processes=100))

    def __init__(self, pid: int) -> None:
        self.target = inspect(pid)


@contextmanager
def limited(pid: int) -> Iterator[None]:
    """
    A memory cgroup of LIMIT bytes around process *pid*, of version 1 or 2.
    """
    first = Path("/sys/fs/cgroup/memory")
    parent, limit = (
        (first, "memory.limit_in_bytes") if first.is_dir() else (first.parent, "memory.max")
    )
    own = parent / f"scope-test-{os.getpid()}"
    try:
        own.mkdir()
        (own / limit).write_text(str(LIMIT))
        (own / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        yield
    finally:
        own.rmdir()


def test_a_vm_that_was_killed_has_left_its_culprit(tmp_path):
    """
    94 binaries of a million bytes in a cgroup of 100 MB are kept; 23 more, and the VM is killed.
    """
    require_root()
    config = SimpleNamespace(blackbox_share=0.9, blackbox_folder=str(tmp_path / "kept"))
    with start_beam("stock25", "-s", "holding") as beam:
        beam.expect("ready")
        subject = Subject(beam.pid)
        box = BlackBox(lambda: [subject], lambda: config, Counter())
        with limited(beam.pid):
            assert [] == box.near()
            assert "done" == beam.ask("swell 94")
            assert [subject] == box.near()
            box.keep(subject)
            beam.send("swell 23")
            wait_until(lambda: not beam.alive, "the kernel kills the VM")
    (file,) = (tmp_path / "kept").iterdir()
    document = scope_trace("memory", "--from", str(file), "--format", "json").document
    first = document["binaries"][0]
    assert "culprit" == first["name"]
    assert 94_000_000 == pytest.approx(first["binary_bytes"], rel=0.001)
    assert 0.9 <= document["cgroup"]["used_share"] <= 1
    assert Counter() == box.errors
