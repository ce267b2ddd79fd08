# SPDX-License-Identifier: Apache-2.0
"""
Real applications under their load clients, traced whole: what is lost, and does the GC count agree.

    sudo .venv/bin/python bench/real_apps.py [rabbitmq|ejabberd ...] [--seconds 60]

Every default event is streamed to a file at the default ring size. The witness is
``erlang:statistics(garbage_collection)``, asked around the trace and within it: what
is seen must lie between the two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from apps.ejabberd import ejabberd  # noqa: E402
from apps.rabbitmq import rabbitmq  # noqa: E402

if TYPE_CHECKING:
    from apps.app import App

GCS = "element(1, erlang:statistics(garbage_collection))"


def trace(app: App, load: list[str], seconds: float, folder: Path) -> dict[str, Any]:
    """One trace around a load: the summary's JSON, lines by event, and the VM's own GC count."""
    lines, report = folder / "events.jsonl", folder / "report.txt"
    outer = int(app.eval(GCS))
    with report.open("w") as errors:
        tool = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "scope_ebpf.cli.main",
                "--pid",
                str(app.pid),
                "--duration",
                "0",
                "--format",
                "jsonl",
                "--max-cost",
                "100%",
                "--output",
                str(lines),
            ],
            stderr=errors,
            cwd=ROOT,
        )
        while "tracing process" not in report.read_text():
            if tool.poll() is not None:
                raise SystemExit(report.read_text())
        inner = int(app.eval(GCS))
        done = subprocess.run(load, check=True, capture_output=True, text=True)
        inner = int(app.eval(GCS)) - inner
        tool.terminate()
        _, _, usage = os.wait4(tool.pid, 0)
    outer = int(app.eval(GCS)) - outer
    seen, classes = Counter[str](), Counter[str]()
    with lines.open() as stream:
        for event in map(json.loads, stream):
            seen[event["event"]] += 1
            if event["event"] == "gc":
                classes[event["class"]] += 1
    gcs = classes["minor"] + classes["major"]
    return {
        "seconds": seconds,
        "load": json.loads(done.stdout),
        "lines": dict(seen),
        "per_second": round(seen.total() / seconds),
        "lost": next(x for x in report.read_text().splitlines() if x.startswith("lost")),
        "gc_seen": gcs,
        "gc_of_the_vm": [inner, outer],
        "gc_difference": f"{(gcs - inner) / inner:.3%}",
        "tool_cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "tool_rss_mb": round(usage.ru_maxrss / 1024),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("apps", nargs="*", default=["rabbitmq", "ejabberd"])
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    for name, start, port in (("rabbitmq", rabbitmq, "amqp"), ("ejabberd", ejabberd, "c2s")):
        if name in arguments.apps:
            with start() as app:
                client = str(ROOT / f"tests/apps/load_{name}.py")
                load = [sys.executable, client, "--port", str(app.ports[port])]
                load += ["--seconds", str(arguments.seconds)]
                with tempfile.TemporaryDirectory() as folder:
                    result = trace(app, load, arguments.seconds, Path(folder))
            print(name, json.dumps(result, indent=2), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
