# SPDX-License-Identifier: Apache-2.0
"""
Whatever happens to the daemon while it puts hooks in and takes them out, nothing of it stays.
"""

from __future__ import annotations

import random
import select
import signal
from typing import TYPE_CHECKING

import pytest
import test_daemon
from tracing import (
    breakpoints,
    holder_of,
    holdings,
    hooked_addresses,
    in_kernel,
    nothing_left,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import beams_run

#: So much that windows of several events follow each other without a pause.
BUDGET = 'budget = "20%"\n'
ROUNDS = 10


@pytest.fixture(scope="module")
def storm(private_emulator: Path) -> Iterator[beams_run.Beam]:
    """
    A VM in a storm of messages, which runs from a file of its own.
    """
    with test_daemon.named("+S", "2:2", emulator=private_emulator) as beam:
        beam.send("storm pingpong 2")
        beam.expect("storming")
        yield beam
        assert beam.ask("stop").startswith("done storm")


def links(daemon: test_daemon.Running) -> set[int]:
    assert daemon.process.poll() is None, daemon.process.stderr.read()
    return holdings(daemon.process.pid)["link_id"]


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_kill_of_the_daemon_leaves_nothing(storm: beams_run.Beam, tmp_path: Path, number: int):
    """
    Killed in a storm, at a random moment or when a hook is attached or detached, it leaves nothing.
    """
    places = hooked_addresses(storm.pid)
    before = in_kernel()
    with test_daemon.daemon(test_daemon.QUICK + BUDGET, tmp_path) as running:
        wait_until(lambda: breakpoints(storm.pid, places) > 0, "the first hooks")
        if number % 2:
            now = links(running)
            wait_until(lambda: links(running) != now, "a hook that comes or goes")
        else:
            select.select([], [], [], random.uniform(0, 2))
        running.process.send_signal(signal.SIGKILL)
        assert -signal.SIGKILL == running.process.wait()
    nothing_left(before)
    wait_until(lambda: breakpoints(storm.pid, places) == 0, "the end of all breakpoints")
    assert storm.alive


def test_the_daemon_does_not_outlive_what_holds_its_breakpoints(tmp_path: Path):
    """
    When the process that holds the breakpoints is killed, the daemon says so and ends with an
    error, so that its supervisor starts it anew.
    """
    config = test_daemon.QUICK + BUDGET
    with test_daemon.named("+S", "1:1") as beam, test_daemon.daemon(config, tmp_path) as running:
        running.until(beam.pid, test_daemon.always)
        holder = holder_of(running.process.pid)
        holder.kill()
        _, errors = running.process.communicate(timeout=test_daemon.PATIENCE)
        assert 0 != running.process.returncode
        assert "the process that holds the breakpoints has ended" in errors.decode()
        assert 23 == beam.plant("spawns 23")
