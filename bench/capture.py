# SPDX-License-Identifier: Apache-2.0
"""
RabbitMQ under full load in a capture: what is lost, how large it is, how long exports take.

    sudo .venv/bin/python bench/capture.py [--seconds 10]

Prints one JSON document. The capture is recorded and exported by the commands that a user types;
that the timeline opens is what Perfetto's own trace processor says of it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from apps.rabbitmq import rabbitmq  # noqa: E402
from perfetto_sql import ask  # noqa: E402

from scope_ebpf.capture.reader import Capture  # noqa: E402

if TYPE_CHECKING:
    from apps.app import App

COMMAND = (sys.executable, "-m", "scope_ebpf.cli.main")


def record(app: App, seconds: float, path: Path) -> dict[str, Any]:
    """A recording of *seconds* within a load that goes on before and after it."""
    client = [sys.executable, str(ROOT / "tests/apps/load_rabbitmq.py")]
    load = subprocess.Popen(
        [*client, "--port", str(app.ports["amqp"]), "--seconds", str(seconds + 4)],
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(1)
    words = ("record", "--pid", str(app.pid), "--duration", str(seconds), "-o", str(path))
    tool = subprocess.Popen(
        [*COMMAND, *words, "--max-cost", "100%"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert tool.stdout
    report = tool.stdout.read()
    _, status, usage = os.wait4(tool.pid, 0)
    assert status == 0, report
    done = load.communicate()[0]
    lost = next(line for line in report.splitlines() if line.startswith("lost"))
    return {
        "load": json.loads(done),
        "lost": lost,
        "recorder_cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "recorder_rss_mb": round(usage.ru_maxrss / 1024),
    }


def export(path: Path, form: str, target: Path, events: int) -> dict[str, Any]:
    """One export: seconds of the clock and of CPU, for a million events, and what it says."""
    began = time.monotonic()
    tool = subprocess.Popen(
        [*COMMAND, "export", str(path), "--to", form, "-o", str(target)],
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert tool.stderr
    said = tool.stderr.read().strip()
    _, status, usage = os.wait4(tool.pid, 0)
    assert status == 0, said
    millions = events / 1e6
    return {
        "seconds_per_million": round((time.monotonic() - began) / millions, 1),
        "cpu_seconds_per_million": round((usage.ru_utime + usage.ru_stime) / millions, 1),
        "rss_mb": round(usage.ru_maxrss / 1024),
        "mb": round(target.stat().st_size / 1e6, 1),
        "said": re.sub(r"^.*?: .*?: ", "", said),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.scope"
        with rabbitmq() as app:
            result = record(app, arguments.seconds, path)
        contents = Capture(path).contents()
        events = contents.records
        result |= {
            "events": events,
            "events_per_second": round(events / arguments.seconds),
            "bytes_per_event": round(contents.raw_bytes / events, 1),
            "bytes_per_event_in_the_file": round(path.stat().st_size / events, 1),
            "damage": contents.damage,
        }
        for form in ("perfetto", "jsonl", "parquet", "otlp"):
            result[form] = export(path, form, Path(folder) / f"run.{form}", events)
        queries = (
            "select count(*) as n from slice",
            "select count(*) as n from flow",
            "select count(*) as n from sched",
            "select name, value from stats where severity in ('error', 'data_loss') and value > 0",
        )
        slices, flows, sched, broken = ask(Path(folder) / "run.perfetto", *queries)
        result["opens"] = {
            "slices": slices[0]["n"],
            "flows": flows[0]["n"],
            "sched": sched[0]["n"],
            "errors": broken,
        }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
