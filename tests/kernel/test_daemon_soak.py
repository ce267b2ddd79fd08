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
import pytest

#: Seconds: on an idle machine it takes 140.
PATIENCE = 600.0
SOAK = Path(__file__).parents[2] / "bench" / "soak.py"


@pytest.mark.timeout(1.5 * PATIENCE)
def test_nothing_is_left_of_vms_that_came_and_went():
    """
    Memory, files, maps, programs and threads are as before, and no VM was missed.
    """
    beams_run.require(os.geteuid() == 0, "attaching BPF programs takes root")
    options = ["--minutes", "0.8", "--cycle", "12", "--starts", "3", "--crowd", "8"]
    command, pipe = [sys.executable, str(SOAK), *options], subprocess.PIPE
    soak = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    try:
        output, errors = soak.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        soak.terminate()  # it ends its daemon and its VMs
        output, errors = soak.communicate()
    assert soak.returncode == 0, output + errors
    assert "nothing grew, nothing was missed or lost" in output
