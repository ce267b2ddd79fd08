# SPDX-License-Identifier: Apache-2.0
"""
The installed package on Debian 12's own, older libraries: ``make packages-test`` runs it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from machine import machine, root
from tracing import require_root

ROOT = Path(__file__).parents[2]
#: What the tests take beside the package: their own tools, and what exports can be written with.
TOOLS = (
    *("python3-pytest", "python3-hypothesis", "python3-fastjsonschema", "python3-jsonschema"),
    *("gcc", "libc6-dev", "openssl"),
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """
    The tests and what they read, without the code under test, and the package.
    """
    require_root()
    tmp_path.chmod(0o755)
    for name in ("tests", "docs", "dashboards", "packaging", "probes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, str(ROOT / "packaging/build_packages.py"), "--to", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    return tmp_path


def test_the_unit_tests_pass_on_the_distributions_libraries(sources: Path):
    """
    numpy 1.24, prometheus-client 0.16, pyelftools 0.29 and the others do what newer ones do.
    """
    (deb,) = sources.glob("*.deb")
    said = subprocess.run(
        ["dpkg-deb", "-f", str(deb), "Depends"], check=True, capture_output=True, text=True
    ).stdout
    depends = re.findall(r"(?:^|, )([a-z0-9.+-]+)", said)
    test = (
        "cp -r /mnt /root/scope && cd /root/scope && export PYTHONPATH=/usr/lib/scope-ebpf"
        # Exports by pyarrow and others, and mcp, are extras, which Debian 12 does not have.
        " && python3 -m pytest -q -p no:cacheprovider tests/unit"
        " --ignore tests/unit/test_exports.py --ignore tests/unit/test_mcp_pure.py"
        # These need duckdb, OpenTelemetry's and Perfetto's messages, which Debian does not have.
        " --ignore tests/unit/test_cluster.py --ignore tests/unit/test_collector.py"
        " --ignore tests/unit/test_marked_calls.py"
    )
    with machine(root("erlang-base", *TOOLS, *depends), sources) as bare:
        bare.run("dpkg", "-i", f"/mnt/{deb.name}")
        bare.run("sh", "-c", test)
