# SPDX-License-Identifier: Apache-2.0
"""
Prometheus itself scrapes the daemon, and its rules find data.
"""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import beams_run
import test_daemon

ROOT = Path(__file__).parents[2]
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: scope-ebpf
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def query(port: int, expression: str) -> list[dict]:
    """
    What Prometheus answers to *expression* now; nothing while it starts.
    """
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(url, timeout=test_daemon.PATIENCE) as answer:
            return json.load(answer)["data"]["result"]
    except OSError:
        return []


def test_prometheus_accepts_the_exposition(tmp_path):
    """
    The scrape succeeds, promtool has nothing to say, and the recording rules return data.
    """
    beams_run.require(shutil.which("prometheus"), "prometheus is not installed")
    with test_daemon.named("+S", "2:2") as beam:
        folder = tmp_path / "daemon"
        folder.mkdir()
        with test_daemon.daemon(test_daemon.QUICK, folder) as running:
            running.until(beam.pid, lambda n: ("scope_ebpf_snapshot_cpu_seconds",) in n)
            lint = subprocess.run(
                ["promtool", "check", "metrics"],
                input=running.get(),
                capture_output=True,
                text=True,
            )
            assert lint.returncode == 0, lint.stdout + lint.stderr
            beam.send("storm gc 1")
            beam.expect("storming")
            port = beams_run.free_port()
            config = tmp_path / "prometheus.yml"
            rules = (ROOT / "dashboards/rules.yml").read_text().replace("[5m]", "[4s]")
            (tmp_path / "rules.yml").write_text(rules)
            config.write_text(CONFIG.format(rules=tmp_path / "rules.yml", port=running.port))
            command = [
                *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data"),
                f"--web.listen-address=127.0.0.1:{port}",
            ]
            with (tmp_path / "log").open("w") as log:
                server = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                wanted = [
                    "up == 1",
                    "instance_node:beam_gc_busy:ratio_rate5m > 0",
                    "instance_node:beam_scheduler_starved:ratio_rate5m >= 0",
                    "beam_processes / beam_process_limit > 0",
                    "rate(beam_thread_run_queue_latency_seconds_count[4s]) > 0",
                ]
                deadline = time.monotonic() + test_daemon.PATIENCE
                while wanted and time.monotonic() < deadline:
                    wanted = [e for e in wanted if not query(port, e)]
                    select.select([], [], [], 0.2)  # until the next scrape
                assert wanted == [], (tmp_path / "log").read_text()
            finally:
                server.kill()
                server.wait()
            assert beam.ask("stop").startswith("done storm")
