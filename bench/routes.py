# SPDX-License-Identifier: Apache-2.0
"""
CPU time by route, as ``scope-trace profile --by route`` shows it, beside what was planted.

    sudo .venv/bin/python bench/routes.py

A VM serves requests that burn CPU for 60, 30 and 10 parts of their time; the 10 are a LiveView's
mount within the 60.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from beams_run import Beam, compiled_part, start_beam

SPLITS, ROUNDS, HZ = 8_000, 3, 999
PLANTED = {
    "/cpu/60 ShopWeb.PageController show [phoenix.router_dispatch]": 60,
    "/cpu/30 ShopWeb.PageController show [phoenix.router_dispatch]": 30,
    "ShopWeb.CounterLive [phoenix.live_view.mount]": 10,
}


def shares(beam: Beam) -> tuple[dict[str, float], int]:
    """
    The percent of each request among all requests, and the number of samples of these.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.speedscope.json"
        command = [sys.executable, "-m", "scope_ebpf.cli.main", "profile", "--pid", str(beam.pid)]
        command += ["--duration", "0", "--hz", str(HZ), "--by", "route", "-o", str(path)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stderr=pipe, text=True) as run:
            assert run.stderr is not None
            next(line for line in run.stderr if "profiling process" in line)
            beam.ask(f"split {SPLITS}")
            run.send_signal(signal.SIGINT)
            run.stderr.read()
        document = json.loads(path.read_text())
    frames, (whole, *_) = document["shared"]["frames"], document["profiles"]
    found: Counter[str] = Counter()
    for stack, weight in zip(whole["samples"], whole["weights"], strict=True):
        found[frames[stack[0]]["name"]] += weight
    total = sum(found[name] for name in PLANTED) or 1
    # Equal stacks are one sample of the document, with all their nanoseconds.
    return {name: 100 * found[name] / total for name in PLANTED}, round(total * HZ / 1e9)


def main() -> None:
    """
    Print the percent of each request, planted and seen, with the standard error of such samples.
    """
    worst = 0.0
    for kind, part in (("stock25", "telemetry-1.3"), ("trixie27", "telemetry-1.4")):
        with start_beam(kind, "-pa", compiled_part(kind, part), "-s", "telling") as beam:
            beam.expect("ready")
            for _ in range(ROUNDS):
                seen, samples = shares(beam)
                print(f"{kind}, {part}, {samples:,} samples: percent planted, seen, error")
                for name, planted in PLANTED.items():
                    error = (planted * (100 - planted) / max(samples, 1)) ** 0.5
                    worst = max(worst, abs(seen[name] - planted))
                    print(f"  {planted:5} {seen[name]:6.1f} {error:5.1f}  {name}", flush=True)
    print(f"at most {worst:.1f} points from what was planted")


if __name__ == "__main__":
    main()
