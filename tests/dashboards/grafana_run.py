# SPDX-License-Identifier: Apache-2.0
"""
Grafana's packages in the cache, and a folder in which its compiler and its components run.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from beams_run import require

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCES = Path(__file__).parent / "grafana"
#: Seconds; what takes longer hangs.
PATIENCE = 900.0


def folder(made: Path) -> Path:
    """
    *made*, with our sources and a link to the installed packages.
    """
    require(shutil.which("npm"), "npm is not installed")
    done = subprocess.run([SOURCES / "install.sh"], capture_output=True, text=True)
    require(done.returncode == 0, f"Grafana's packages cannot be had: {done.stderr.strip()}")
    for source in (*SOURCES.glob("*.ts*"), *SOURCES.glob("*.mjs")):
        shutil.copy(source, made)
    (made / "node_modules").symlink_to(Path(done.stdout.strip()) / "node_modules")
    return made


def run(command: Sequence[str | Path], where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=PATIENCE)
