# SPDX-License-Identifier: Apache-2.0
"""
A process that only looks like a BEAM does no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fakes import running

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Scene


def test_a_fake_beside_a_real_vm(scene: Scene, fake: Path):
    """
    A fake BEAM of another user runs beside the canary, which is observed as before.
    """
    with running(fake) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        scene.daemon.until(scene.canary.pid, bool)
