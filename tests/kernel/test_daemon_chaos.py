# SPDX-License-Identifier: Apache-2.0
"""
Kills of the daemon and of its attacher together: ``bench/chaos.py``, which ``make chaos`` runs for
half an hour with every other way to end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import beams_run
import pytest

#: Seconds: about 30 where nothing else runs.
PATIENCE = 600.0
CHAOS = Path(__file__).parents[2] / "bench" / "chaos.py"


@pytest.mark.timeout(1.5 * PATIENCE)
def test_a_kill_of_both_harms_no_vm():
    """
    Both are killed while hooks are attached and while they are detached: the next daemon leaves
    nothing, and every VM lives.
    """
    beams_run.require(os.geteuid() == 0, "attaching BPF programs takes root")
    options = ["--only", "kill-leaving", "--only", "kill-both", "--minutes", "0.3"]
    command, pipe = [sys.executable, str(CHAOS), *options], subprocess.PIPE
    chaos = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    try:
        output, errors = chaos.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        chaos.terminate()  # it ends its daemon and its VMs
        output, errors = chaos.communicate()
    assert chaos.returncode == 0, output + errors
    assert "nothing was harmed, nothing stayed" in output
