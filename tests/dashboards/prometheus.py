# SPDX-License-Identifier: Apache-2.0
"""
A Prometheus of our own on loopback, and what it answers.
"""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

import beams_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = beams_run.PATIENCE
_CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
{jobs}
"""
_JOB = '  - {{job_name: {name}, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}'


@dataclass(frozen=True)
class Prometheus:
    """
    A running server.
    """

    port: int

    def wait_until_ready(self) -> None:
        """
        Wait until it answers queries; before that it says that it is not available.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready").close()
                return
            select.select([], [], [], 0.1)
        raise AssertionError(f"Prometheus is not ready after {PATIENCE} s")

    def ask(self, path: str, **parameters: str) -> dict:
        """
        The data of an answer; an expression that is refused is an error that has its text.
        """
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}", timeout=PATIENCE
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {json.load(error)['error']}") from error

    def now(self, expression: str, at: float | None = None) -> list[dict]:
        """
        The samples of *expression* at a moment.
        """
        moment = {} if at is None else {"time": f"{at:.3f}"}
        return self.ask("query", query=expression, **moment)["result"]

    def over(self, expression: str, start: float, end: float) -> list[dict]:
        """
        The series of *expression* from *start* to *end*, second by second.
        """
        span = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": "1"}
        return self.ask("query_range", query=expression, **span)["result"]

    def wait_for(self, expression: str) -> list[dict]:
        """
        The samples of *expression* as soon as it has any.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := self.now(expression):
                return found
            select.select([], [], [], 0.2)  # until the next scrape
        raise AssertionError(f"{expression} has no samples after {PATIENCE} s")


@contextlib.contextmanager
def prometheus(folder: Path, rules: Path, **ports: int) -> Iterator[Prometheus]:
    """
    A server that scrapes each of *ports* once a second, under the name of its keyword.
    """
    beams_run.require(shutil.which("prometheus"), "prometheus is not installed")
    jobs = "\n".join(_JOB.format(name=name, port=port) for name, port in ports.items())
    config = folder / "prometheus.yml"
    config.write_text(_CONFIG.format(rules=rules, jobs=jobs))
    port = beams_run.free_port()
    command = [
        *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        running = Prometheus(port)
        running.wait_until_ready()
        yield running
    finally:
        server.terminate()
        server.wait()
