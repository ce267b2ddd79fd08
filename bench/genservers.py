# SPDX-License-Identifier: Apache-2.0
"""
How right ``genservers`` is: planted servers and callers that time themselves, beside one view.

    sudo .venv/bin/python bench/genservers.py [--seconds 60] [--kinds stock25 trixie27 sid29]

Prints, by module: utilization, and callers that wait, as the view has them and as planted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import beams_run

MODULES = ("gs_slow", "gs_chain", "gs_backend", "gs_state")
_FIGURES = 3


def truth(beam: beams_run.Beam) -> tuple[int, list[int]]:
    """The VM's time, us; for each module us in callbacks, callbacks, us that callers waited."""
    time_us, *figures = (int(word) for word in beam.ask("truth").split()[1:])
    return time_us, figures


def view(beam: beams_run.Beam, seconds: int) -> dict[str, Any]:
    """The modules of one view, by name, and "view" for the document."""
    command = [sys.executable, "-m", "scope_ebpf.cli.main", "genservers", "--pid", str(beam.pid)]
    command += ["--duration", str(seconds), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    return {one["module"]: one for one in document["modules"]} | {"view": document}


def measure(kind: str, seconds: int) -> None:
    """Print a table of one build."""
    with beams_run.start_beam(kind, "-s", "gs_main") as beam:
        beam.expect("ready")
        began, before = truth(beam)
        found = view(beam, seconds)
        ended, after = truth(beam)
    elapsed = ended - began
    document = found["view"]
    print(
        f"{kind}: {document['looks']} looks, {document['unresolved']} callers not found out, "
        f"{document['cost']['own_cpu_seconds']} s of CPU"
    )
    for number, module in enumerate(MODULES):
        at = number * _FIGURES
        busy, _, waited = (after[at + n] - before[at + n] for n in range(_FIGURES))
        one = found[module]
        print(
            f"  {module:<11} busy {one['utilization']['mean']:.3f} (planted {busy / elapsed:.3f})"
            f"  waiting {one['waiting_callers']:.2f} (planted {waited / elapsed:.2f})"
        )


def main() -> None:
    """Measure each build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--kinds", nargs="+", default=["stock25", "trixie27", "sid29"])
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        measure(kind, arguments.seconds)


if __name__ == "__main__":
    main()
