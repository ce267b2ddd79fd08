# SPDX-License-Identifier: Apache-2.0
"""
Rules, config and docs say what the catalogue and the daemon say.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import beams_run

from scope_ebpf.daemon.config import Config, load
from scope_ebpf.metrics.catalogue import catalogue

ROOT = Path(__file__).parents[2]
RULES = ROOT / "dashboards" / "rules.yml"
_NAME = re.compile(r"\b(?:beam|scope_ebpf)_[a-z0-9_]+\b")


def exported() -> set[str]:
    names = set()
    for series in catalogue().values():
        parts = ("_bucket", "_count", "_sum") if series.type == "histogram" else ("",)
        names |= {series.name + part for part in parts}
    return names


def test_every_series_of_the_rules_is_exported():
    """
    A rule on a series that nobody exports would never fire.
    """
    lines = RULES.read_text().splitlines()
    text = "\n".join(line for line in lines if "expr:" in line)
    text = re.sub(r"node:[a-z0-9_:]+", "", text)  # what the rules record themselves
    found = set(_NAME.findall(text))
    assert found
    assert found <= exported()


def test_every_alert_has_a_case():
    """
    An alert without a case may never fire, or always.
    """
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    cases = (ROOT / "dashboards" / "rules.test.yml").read_text()
    near = [name for name in alerts if name.startswith("BeamNear")]
    assert len(near) == 3
    assert "BeamNear.*" in cases
    assert [name for name in alerts if name not in near and name not in cases] == []


def test_promtool_agrees():
    """
    The rules are valid, and each case of the rules holds.
    """
    beams_run.require(shutil.which("promtool"), "promtool is not installed (apt: prometheus)")
    for command in (
        ["check", "rules", RULES],
        ["test", "rules", ROOT / "dashboards/rules.test.yml"],
    ):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_shipped_config_has_every_key_with_its_default():
    """
    Uncommented, the config that is shipped is the one that holds without it.
    """
    text = (ROOT / "packaging" / "config.toml").read_text()
    plain = re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE)
    table = {k: v for k, v in tomllib.loads(plain).items() if not k.startswith("tls_")}
    table.pop("prometheus", None)
    assert load(None, table) == Config()
    fields = {name for name in Config.__dataclass_fields__ if name not in ("users", "compat")}
    assert fields <= set(tomllib.loads(plain))


def test_the_list_of_series_is_current():
    """
    docs/metrics.md is what the catalogue makes it.
    """
    command = [sys.executable, ROOT / "docs" / "metrics.py", "--check"]
    assert subprocess.run(command).returncode == 0
