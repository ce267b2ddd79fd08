# SPDX-License-Identifier: Apache-2.0
"""
How right ``genservers`` is: planted servers and callers that time themselves, beside one view.

    sudo .venv/bin/python bench/genservers.py memory [--seconds 60] [--kinds stock25 trixie27 sid29]
    sudo .venv/bin/python bench/genservers.py all [--seconds 10] [--kinds stock25 trixie27]
    sudo .venv/bin/python bench/genservers.py windows [--seconds 10]
    sudo .venv/bin/python bench/genservers.py busy [--seconds 10]
    sudo .venv/bin/python bench/genservers.py long [--seconds 10]
    sudo .venv/bin/python bench/genservers.py swarm [--seconds 10] [--modules 1 4 20]
    sudo .venv/bin/python bench/genservers.py million [--seconds 10]
    sudo .venv/bin/python bench/genservers.py churn [--seconds 10]
    sudo .venv/bin/python bench/genservers.py apps [--seconds 10]

``memory`` prints, by module, utilization and callers that wait, as the view has them and as
planted; ``all`` counts and times of everything with --budget none; ``windows`` the same within the
budget; ``long`` that of calls of which one in ten takes seconds; ``busy`` that of eight callers
without a pause, with what hooks took; ``swarm`` that of 400
callers of 1, 4 and 20 modules without a pause, about 100,000 calls a second in all; ``million``
what the view takes itself of a VM with 1,000,000 processes, 50,000 of them servers, with hooks and
without them, and whether it finds the server that 200 callers wait for, then three in a circle;
``churn`` the servers of a VM with always 3,000 that live for 4 to 6 s among 9,000 processes;
``apps`` the busiest modules of RabbitMQ under pika and of ejabberd under XMPP clients, all counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import beams_run
from apps.ejabberd import ejabberd
from apps.rabbitmq import rabbitmq

if TYPE_CHECKING:
    from apps.app import App

Truth = dict[str, dict[str, int]]
MODULES = ("gs_slow", "gs_chain", "gs_backend", "gs_state")
_FIGURES = 3
#: Callers of a swarm.
_CALLERS = 400
#: Processes of a large VM that nobody calls, those of them that are servers, callers of one more.
_PROCESSES, _SERVERS, _CROWD = 1_000_000, 50_000, 200
#: Milliseconds below which times are not compared.
_FROM = 1.0
_WAYS = {
    "all": ("load", ("--budget", "none", "--max-cost", "100%")),
    "windows": ("keep", ()),
    "busy": ("rate", ()),
    "long": ("long", ()),
}
#: Commands of the VM that answer when all is done.
_WHOLE = ("load", "long")


def truth(beam: beams_run.Beam) -> tuple[int, list[int]]:
    """The VM's time, us; for each module us in callbacks, callbacks, us that callers waited."""
    time_us, *figures = (int(word) for word in beam.ask("truth").split()[1:])
    return time_us, figures


def started(beam: beams_run.Beam | App, *words: str) -> subprocess.Popen[str]:
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
        whole = command in _WHOLE
        if not whole:
            beam.ask("rate 8" if command == "rate" else command)
        lasts = ("--duration", "0" if whole else str(seconds))
        view = started(beam, *lasts, *words)
        own = _planted(beam, command, seconds)
        if whole:
            view.terminate()
        document, found = ended(view)
    print(
        f"{kind}: {document['looks']} looks, {document['cost']}, {document['lost']} lost; "
        f"{'; '.join(document['notes'])}"
    )
    for module, one in own.items():
        if any(one.values()) and (seen := found.get(module)) and seen["calls"] is not None:
            _print_counts(module, seen, one)
            _print_times(seen, one)


def swarm(kind: str, seconds: int, modules: int) -> None:
    """Print rates and times of *modules* modules under as many calls as the VM can do."""
    with beams_run.start_beam(kind, "-s", "gs_kinds") as beam:
        beam.expect("ready")
        beam.ask(f"swarm {modules} {_CALLERS // modules}")
        view = started(beam, "--duration", str(seconds))
        own = _parsed(beam.ask(f"swarmed {seconds}"))
        document, found = ended(view)
    times = own.pop("gs_swarm")
    total = sum(one["answered"] for one in own.values())
    print(f"{kind}: {modules} modules, {total / seconds:,.0f} calls/s, {document['cost']}")
    print(f"  {'; '.join(document['notes'])}")
    off: list[float] = []
    figures: dict[str, list[float | None]] = {"p50": [], "p90": []}
    for module, one in own.items():
        seen = found[module]["calls"] if module in found else None
        if seen is None:
            continue
        off.append((seen["count"] / one["answered"] - 1) / max(seen["error_ratio"], 1e-9))
        for figure, values in figures.items():
            values.append((found[module]["call_seconds"] or {}).get(figure))
    if not off:
        print("  null")
        return
    counted = sum(one["calls"]["count"] for one in found.values() if one["calls"])
    errors = [one["calls"]["error_ratio"] for one in found.values() if one["calls"]]
    print(
        f"  calls in all {counted / total - 1:+.1%}, errors {min(errors):.1%} to {max(errors):.1%}"
    )
    print(f"  modules off by {min(off):+.1f} to {max(off):+.1f} of their errors")
    for figure, values in figures.items():
        planted = times[f"call_{figure}"] / 1e6
        texts = ["null" if value is None else f"{value / planted - 1:+.1%}" for value in values]
        print(f"  call {figure} of {planted * 1e3:.2f} ms: {', '.join(texts)}")


def million(seconds: int) -> None:
    """Print what views of a large VM take themselves, and what they find."""
    numbers = (str(_PROCESSES - _SERVERS), str(_SERVERS))
    with beams_run.start_beam(
        "stock25", "+P", "2000000", "-run", "gs_host", "start", *numbers
    ) as beam:
        beam.expect("ready", 10 * beams_run.PATIENCE)
        beam.ask(f"crowd {_CROWD}")
        for words in (("--no-hooks",), (), ("--no-hooks", "--by", "module")):
            if "--by" in words:
                beam.ask("circle")
            began, before = time.monotonic(), os.times()
            view = started(beam, "--duration", str(seconds), *words)
            ready = time.monotonic() - began
            document, found = ended(view)
            lasted, after = time.monotonic() - began, os.times()
            cpu = after[2] + after[3] - before[2] - before[3]
            servers = sum(one["processes"] or 0 for name, one in found.items() if "gs_host" in name)
            print(
                f"{' '.join(words) or 'hooks'}: {cpu:.1f} s of CPU, "
                f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10} MB or less, "
                f"{lasted:.1f} s, {ready:.1f} s of them before the looks; {document['looks']} looks"
            )
            print(
                f"  {servers:.0f} servers of 20 modules, {found['gs_slow']['waiting_callers']} "
                f"callers; {document['verdict']}; {document['cost']}"
            )


def churn(seconds: int) -> None:
    """Print how many servers that live for seconds there are, and how busy, in a large table."""
    with beams_run.start_beam("stock25", "-run", "gs_churn", "start", "9000", "3000") as beam:
        beam.expect("ready", beams_run.PATIENCE)
        for lasts in (3, seconds):
            document, found = ended(started(beam, "--no-hooks", "--duration", str(lasts)))
            one = found["gs_churn"]
            print(
                f"{lasts} s: {document['looks']} looks, {one['processes']} servers of 3,000, busy "
                f"{one['utilization']['mean']} (planted 0.5), {document['cost']}"
            )


def apps(seconds: int) -> None:
    """Print the modules of two applications under load, and times that cannot be."""
    for name, start, port in (("rabbitmq", rabbitmq, "amqp"), ("ejabberd", ejabberd, "c2s")):
        client = Path(__file__).parents[1] / f"tests/apps/load_{name}.py"
        with start() as app:
            command = [sys.executable, str(client), "--port", str(app.ports[port])]
            load = subprocess.Popen(
                [*command, "--seconds", str(seconds + 10)], stdout=subprocess.DEVNULL
            )
            words = ("--duration", str(seconds), "--budget", "none", "--max-cost", "100%")
            document, found = ended(started(app, *words))
            load.wait()
        print(f"{name}: {document['looks']} looks, {document['lost']} lost, {document['cost']}")
        print(f"  {'; '.join(document['notes'])}\n  {document['verdict']['because']}")
        for module, one in sorted(found.items(), key=_traffic)[:10]:
            rates = [
                one[kind]["rate"] if one[kind] else None for kind in ("calls", "casts", "infos")
            ]
            print(f"  {module} ({one['behaviour']}) {one['processes']}: {rates} a second")
            for kind in ("queue", "service", "call"):
                times = one[f"{kind}_seconds"] or {}
                if any(value is not None and not 0 <= value <= seconds for value in times.values()):
                    print(f"    impossible: {kind} {times}")


def _traffic(item: tuple[str, dict[str, Any]]) -> float:
    """Modules with most messages first."""
    return -sum(
        float(one["rate"]) for kind in ("calls", "casts", "infos") if (one := item[1][kind])
    )


def _planted(beam: beams_run.Beam, command: str, seconds: int) -> Truth:
    """What servers and callers measure themselves while the view runs."""
    if command in _WHOLE:
        answer = beam.ask(f"{command} {seconds * 1000}")
    else:
        beam.ask("reset")
        time.sleep(seconds - 0.2)
        answer = beam.ask("truth")
    return _parsed(answer)


def _parsed(answer: str) -> Truth:
    """The words MODULE:WHAT=NUMBER of an answer."""
    found: Truth = {}
    for name, _, number in (word.partition("=") for word in answer.split()[1:]):
        module, _, what = name.partition(":")
        found.setdefault(module, {})[what] = int(number)
    return found


def _print_counts(module: str, seen: dict[str, Any], own: dict[str, int]) -> None:
    calls = own["answered"] + own["timeout"] + own["down"]
    errors = "".join(
        f", {kind} {one['count']} +- {one['error_ratio']:.1%} (planted {planted})"
        if (one := seen[kind])
        else f", {kind} null"
        for kind, planted in (("calls", calls), ("casts", own["casts"]), ("infos", own["infos"]))
        if planted
    )
    # A caller that finds nobody registered sends nothing; one whose server ends meanwhile does.
    more = f", {own['noproc']} more found no server" if own["noproc"] else ""
    print(f"  {module}{errors}{more}")
    if seen["failures"] and (own["timeout"] or own["down"]):
        print(
            f"    timeouts {seen['failures']['timeout']} (planted {own['timeout']}), down "
            f"{seen['failures']['down']} (planted {own['down']}), "
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


#: Ways of one VM that is not chosen.
_ALONE = {"million": million, "churn": churn, "apps": apps}


def main() -> None:
    """Measure each build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=("memory", *_WAYS, *_ALONE, "swarm"))
    parser.add_argument("--modules", type=int, nargs="+", default=[1, 4, 20])
    parser.add_argument("--seconds", type=int, default=None)
    parser.add_argument("--kinds", nargs="+", default=None)
    arguments = parser.parse_args()
    if arguments.way in _ALONE:
        _ALONE[arguments.way](arguments.seconds or 10)
        return
    default = (
        ["stock25", "trixie27", "sid29"] if arguments.way == "memory" else ["stock25", "trixie27"]
    )
    for kind in arguments.kinds or default:
        if arguments.way == "memory":
            memory(kind, arguments.seconds or 60)
        elif arguments.way == "swarm":
            for modules in arguments.modules:
                swarm(kind, arguments.seconds or 10, modules)
        else:
            messages(kind, arguments.seconds or 10, arguments.way)


if __name__ == "__main__":
    main()
