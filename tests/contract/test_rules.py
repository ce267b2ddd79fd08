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
import yaml

from scope_ebpf.daemon.config import Config, load

ROOT = Path(__file__).parents[2]
RULES = ROOT / "dashboards" / "rules.yml"


def test_every_alert_has_a_case():
    """
    For each alert there is a moment at which it must fire, and one at which it must not.
    """
    groups = yaml.safe_load(RULES.read_text())["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    cases = yaml.safe_load((ROOT / "dashboards/rules.test.yml").read_text())["tests"]
    reported = [moment for case in cases for moment in case["alert_rule_test"]]
    fires = {moment["alertname"] for moment in reported if moment["exp_alerts"]}
    silent = {moment["alertname"] for moment in reported if not moment["exp_alerts"]}
    assert len(alerts) >= 10
    assert fires == silent == set(alerts)


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
