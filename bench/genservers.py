# SPDX-License-Identifier: Apache-2.0
"""
How right ``genservers`` is: planted servers and callers that time themselves, beside one view.

    sudo .venv/bin/python bench/genservers.py memory [--seconds 60] [--kinds stock25 trixie27 sid29]
    sudo .venv/bin/python bench/genservers.py all [--seconds 10] [--kinds stock25 trixie27]
    sudo .venv/bin/python bench/genservers.py windows [--seconds 10]
    sudo .venv/bin/python bench/genservers.py busy [--seconds 10]

``memory`` prints, by module, utilization and callers that wait, as the view has them and as
planted; ``all`` counts and times of everything with --budget none; ``windows`` the same within the
budget; ``busy`` that of eight callers without a pause, with what hooks took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import beams_run

Truth = dict[str, dict[str, int]]
MODULES = ("gs_slow", "gs_chain", "gs_backend", "gs_state")
_FIGURES = 3
#: Milliseconds below which times are not compared.
_FROM = 1.0
_WAYS = {
    "all": ("load", ("--budget", "none", "--max-cost", "100%")),
    "windows": ("load", ()),
    "busy": ("rate", ()),
}


def truth(beam: beams_run.Beam) -> tuple[int, list[int]]:
    """The VM's time, us; for each module us in callbacks, callbacks, us that callers waited."""
    time_us, *figures = (int(word) for word in beam.ask("truth").split()[1:])
    return time_us, figures


def started(beam: beams_run.Beam, *words: str) -> subprocess.Popen[str]:
    """A view of *beam* that has begun."""
    command = [sys.executable, "-m", "scope_ebpf.cli.main", "genservers", "--pid", str(beam.pid)]
    view = subprocess.Popen(
        [*command, "--format", "json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert view.stderr is not None
    while "Ctrl-C ends it" not in (line := view.stderr.readline()):
        if not line:
            raise SystemExit("the view did not begin")
    return view


def ended(view: subprocess.Popen[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document of a view, and its modules by name."""
    document = json.loads(view.communicate()[0])
    return document, {one["module"]: one for one in document["modules"]}


def memory(kind: str, seconds: int) -> None:
    """Print a table of one build, without hooks."""
    with beams_run.start_beam(kind, "-s", "gs_main") as beam:
        beam.expect("ready")
        began, before = truth(beam)
        document, found = ended(started(beam, "--no-hooks", "--duration", str(seconds)))
        done, after = truth(beam)
    elapsed = done - began
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


def messages(kind: str, seconds: int, way: str) -> None:
    """Print counts and times of one build, with hooks."""
    command, words = _WAYS[way]
    with beams_run.start_beam(kind, "-s", "gs_kinds") as beam:
        beam.expect("ready")
        if command == "rate":
            beam.ask("rate 8")
        lasts = ("--duration", "0" if command == "load" else str(seconds))
        view = started(beam, *lasts, *words)
        own = _planted(beam, command, seconds)
        if command == "load":
            view.terminate()
        document, found = ended(view)
    print(f"{kind}: {document['cost']}, {document['lost']} lost; {'; '.join(document['notes'])}")
    for module, one in own.items():
        if (seen := found.get(module)) and seen["calls"] is not None:
            _print_counts(module, seen, one)
            _print_times(seen, one)


def _planted(beam: beams_run.Beam, command: str, seconds: int) -> Truth:
    """What servers and callers measure themselves while the view runs."""
    if command == "load":
        answer = beam.ask(f"load {seconds * 1000}")
    else:
        beam.ask("reset")
        time.sleep(seconds - 0.2)
        answer = beam.ask("truth")
    found: Truth = {}
    for name, _, number in (word.partition("=") for word in answer.split()[1:]):
        module, _, what = name.partition(":")
        found.setdefault(module, {})[what] = int(number)
    return found


def _print_counts(module: str, seen: dict[str, Any], own: dict[str, int]) -> None:
    calls = sum(own[how] for how in ("answered", "timeout", "down", "noproc"))
    errors = "".join(
        f", {kind} {seen[kind]['count']} +- {seen[kind]['error_ratio']:.1%} (planted {planted})"
        for kind, planted in (("calls", calls), ("casts", own["casts"]), ("infos", own["infos"]))
        if planted
    )
    print(f"  {module}{errors}")
    if seen["failures"] and (own["timeout"] or own["down"]):
        print(
            f"    timeouts {seen['failures']['timeout']} (planted {own['timeout']}), down "
            f"{seen['failures']['down']} (planted {own['down']}, not registered {own['noproc']}), "
            f"abandoned {seen['abandoned']} (planted {own['abandoned']})"
        )


def _print_times(seen: dict[str, Any], own: dict[str, int]) -> None:
    for kind in ("queue", "service", "call"):
        times = seen[f"{kind}_seconds"]
        if times is None or not own[f"{kind}_count"]:
            continue
        figures = [
            (figure, times[figure], own[f"{kind}_{figure}"] / 1e6)
            for figure in ("mean", "p50", "p90", "p99")
        ]
        texts = [
            f"{figure} {'null' if value is None else f'{value / planted - 1:+.1%}'}"
            for figure, value, planted in figures
            if planted * 1e3 >= _FROM
        ]
        if texts:
            print(f"    {kind}: {', '.join(texts)}")


def main() -> None:
    """Measure each build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=("memory", *_WAYS))
    parser.add_argument("--seconds", type=int, default=None)
    parser.add_argument("--kinds", nargs="+", default=None)
    arguments = parser.parse_args()
    default = (
        ["stock25", "trixie27", "sid29"] if arguments.way == "memory" else ["stock25", "trixie27"]
    )
    for kind in arguments.kinds or default:
        if arguments.way == "memory":
            memory(kind, arguments.seconds or 60)
        else:
            messages(kind, arguments.seconds or 10, arguments.way)


if __name__ == "__main__":
    main()
