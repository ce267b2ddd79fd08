# SPDX-License-Identifier: Apache-2.0
"""
Snapshots of a VM that spawns as fast as it can; ``bench/churn.py`` does it for ten minutes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from beam_fixtures import zoo  # noqa: F401 - says whether this can run here

BENCH = Path(__file__).parents[2] / "bench/churn.py"


def test_nothing_impossible_is_shown_of_a_vm_that_spawns_without_end(zoo):  # noqa: F811
    """
    Ten seconds of thousands of spawns each: torn rows are counted, no value is out of bounds.
    """
    command = [sys.executable, str(BENCH), "10", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (0, "") == (done.returncode, done.stderr)
    assert "0 impossible values" in done.stdout
    spawned = int(done.stdout.split(", ")[1].split()[0].replace(",", ""))
    assert spawned > 1000
