# SPDX-License-Identifier: Apache-2.0
"""
One daemon that hostile programs share, and the real VM that it must go on observing.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "kernel"))
sys.path.insert(0, str(Path(__file__).parent))  # a package is imported from the folder above it

import beams_run
from fakes import compiled
from test_daemon import Running, always, daemon, named
from tracing import require_root

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Events that are planted before and after each attack.
PLANTED = 23
_SPAWNS = ("beam_process_spawns_total",)


class Scene(NamedTuple):
    """
    The daemon, the VM that is not hostile, and a folder that every user may read.
    """

    daemon: Running
    canary: beams_run.Beam
    folder: Path


@pytest.fixture(scope="package")
def hostile_folder() -> Iterator[Path]:
    """
    A folder that every user may enter and read.
    """
    # Not one of pytest's: whenever it is started it takes the rights of all of these away.
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="package")
def fake(hostile_folder: Path) -> Path:
    """
    The program of ``programs/fake.c``.
    """
    return compiled("fake", hostile_folder)


@pytest.fixture(scope="package")
def shared_scene(hostile_folder: Path) -> Iterator[Scene]:
    """
    The daemon observes what runs a file of the hostile folder, where the canary's is, too.
    """
    require_root()
    quick = 'scan_interval = "200ms"\nmin_age = 0\nsnapshot_interval = "1s"\n'
    config = f'{quick}include_paths = ["^{hostile_folder}/"]\n'
    emulator = hostile_folder / "emulator"
    emulator.mkdir()
    beams_run.build("stock25")
    (source,) = Path("/usr/lib/erlang").glob("erts-*/bin")
    for program in ("beam.smp", "erlexec", "erl_child_setup", "inet_gethost"):
        shutil.copy(source / program, emulator)
    with contextlib.ExitStack() as stack:
        canary = stack.enter_context(named(emulator=emulator))
        running = stack.enter_context(daemon(config, hostile_folder))
        running.until(canary.pid, always)
        yield Scene(running, canary, hostile_folder)


@pytest.fixture
def scene(shared_scene: Scene) -> Iterator[Scene]:
    """
    The shared scene; afterwards the canary is still observed and none of its events was lost.
    """
    yield shared_scene
    pid = shared_scene.canary.pid
    before = spawned(shared_scene.daemon.until(pid, always))
    shared_scene.canary.plant(f"spawns {PLANTED}")
    samples = shared_scene.daemon.until(pid, lambda s: spawned(s) >= before + PLANTED)
    assert before + PLANTED == spawned(samples)
    assert shared_scene.daemon.process.poll() is None


def spawned(samples: dict[tuple[str, ...], float]) -> float:
    """
    What the daemon says of spawns.
    """
    return samples.get(_SPAWNS, 0.0)
