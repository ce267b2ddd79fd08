# SPDX-License-Identifier: Apache-2.0
"""
A minute of VMs that come and go: ``bench/soak.py``, as ``make soak`` runs it for an hour.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import beams_run

SOAK = Path(__file__).parents[2] / "bench" / "soak.py"


def test_nothing_is_left_of_vms_that_came_and_went():
    """
    Memory, files, maps, programs and threads are what they were, and nobody was missed or lost.
    """
    beams_run.require(os.geteuid() == 0, "attaching BPF programs takes root")
    options = ["--minutes", "0.8", "--cycle", "12", "--starts", "3", "--crowd", "8"]
    done = subprocess.run(
        [sys.executable, str(SOAK), *options], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing grew, nothing was missed or lost" in done.stdout
