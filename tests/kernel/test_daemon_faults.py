# SPDX-License-Identifier: Apache-2.0
"""
A target that is stopped, replaced or killed while it is being attached, and the daemon goes on.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import test_daemon
from tracing import breakpoints, hooked_addresses, in_kernel, nothing_left, wait_until

if TYPE_CHECKING:
    from pathlib import Path


def spawns(samples: dict[tuple[str, ...], float]) -> float:
    return samples["beam_process_spawns_total",]


def test_a_stopped_target_is_observed_once_it_goes_on(tmp_path: Path):
    """
    A VM that is stopped (SIGSTOP) is attached and read; its later events count.
    """
    with test_daemon.named("+S", "1:1") as beam:
        beam.freeze()
        with test_daemon.daemon(test_daemon.QUICK, tmp_path) as running:
            before = spawns(running.until(beam.pid, test_daemon.always))
            beam.thaw()
            assert 23 == beam.plant("spawns 23")
            running.until(beam.pid, lambda now: spawns(now) - before == 23)


def test_a_target_whose_binary_was_replaced_is_observed_as_it_runs(
    tmp_path: Path, private_emulator: Path
):
    """
    After an upgrade the path of the VM leads to another file; its own is the one that runs.
    """
    folder = shutil.copytree(private_emulator, tmp_path / "emulator")
    with test_daemon.named("+S", "1:1", emulator=folder) as beam:
        (folder / "new").write_bytes(b"#!/bin/false\n")
        (folder / "new").replace(folder / "beam.smp")
        with test_daemon.daemon(test_daemon.QUICK, tmp_path) as running:
            before = spawns(running.until(beam.pid, test_daemon.always))
            assert 23 == beam.plant("spawns 23")
            running.until(beam.pid, lambda now: spawns(now) - before == 23)


def test_a_target_that_is_killed_while_it_is_attached_affects_no_other(
    tmp_path: Path, private_emulator: Path
):
    """
    A VM that is killed while its first hooks are attached is dropped, and another is observed.
    """
    before = in_kernel()
    with test_daemon.daemon(test_daemon.QUICK, tmp_path) as running:
        with test_daemon.named("+S", "1:1", emulator=private_emulator) as mortal:
            places = hooked_addresses(mortal.pid)
            wait_until(lambda: breakpoints(mortal.pid, places) > 0, "the first hooks")
            mortal.stop()
        with test_daemon.named("+S", "1:1") as other:
            running.until(other.pid, test_daemon.always)
            assert not running.samples(mortal.pid)
        code, errors = running.end()
    assert 0 == code, errors
    assert f'message="no longer observing" pid={mortal.pid} ' in errors
    assert "Traceback" not in errors
    nothing_left(before)
