# SPDX-License-Identifier: Apache-2.0
"""
What observing costs a VM at full load, by two methods.

    sudo .venv/bin/python bench/overhead.py [--rounds 6] [--seconds 6] [--loads ...]

Each load runs in one VM. A round has slices with the daemon and its defaults, with a plain summary
(``scope-trace --pid``), with every event always counted (what observing costs without a governor)
and with sends always counted; before, between and after them are slices without anything. Every
other round has them backwards. A slice's throughput is what was done per second of CPU that the VM
used, compared with the slices without anything on either side of it.

Second by second: a summary begins and ends amid seconds without one, so its start is among them.
Each is compared with the median of those without. Work per second of the VM's CPU shows the cost of
hooks; work per second of the clock also what the tool and other processes take of the CPUs. How
long the VM's threads waited for a CPU, and what the tool used, is printed beside it. The least of
the seconds without a summary shows how much of a bad second is noise.
With ``--summary`` all seconds are printed.

Straight: how much less is done beside the daemon. How much one slice without anything differs from
the next shows what of it is noise. By slope: where everything is always counted, the loss is large,
and so is what hits x cost makes of it. How many times more was lost than that says is the *truth of
hits x cost*; times the daemon's own hits x cost it is what the daemon's hooks take.

Printed are means and their 95 % confidence intervals. The daemon's CPU includes that of the process
that holds its breakpoints, and of a scrape each 15 s. The defaults take about half an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import daemon_run
from daemon_run import cpu_seconds
from overhead_loads import LOADS, Load

from scope_ebpf.attach.plan import DEFAULT_EVENTS
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.beam.vm.node import NodeName
from scope_ebpf.budget.fits import quantile
from scope_ebpf.budget.hit_costs import HitCosts
from scope_ebpf.budget.reference_counters import cpu_clock
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.kernel.bpf.stats import measuring
from scope_ebpf.kernel.cost import measure as measure_cost
from scope_ebpf.sessions import open_governed_session, plan_target

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds until the daemon has detached hot hooks and measured the VM.
_SETTLE = 20.0
_SCOPE_TRACE = (sys.executable, "-m", "scope_ebpf.cli.main")
#: Seconds without anything that the seconds of a summary are compared with.
_SECONDS = 10
#: Seconds between two scrapes of Prometheus.
_SCRAPES = 15.0
_ATTACHED = "scope_ebpf_tracepoints_attached_seconds_total"
_cost = measure_cost()

Found = defaultdict[str, list[float]]


@contextlib.contextmanager
def with_daemon(load: Load, found: Found) -> Iterator[None]:
    node = NodeName(inspect(load.pid)).read()
    config = f"include_nodes = ['^{node}$']\nmin_age = 0\n"
    with tempfile.TemporaryDirectory() as folder, daemon_run.daemon(Path(folder), config) as daemon:
        daemon.until_observed(load.pid)
        load.work(_SETTLE)
        first = daemon.page()
        own, target, began = daemon.cpu_seconds(), cpu_seconds(load.pid), time.monotonic()
        yield
        passed = time.monotonic() - began
        target, own = cpu_seconds(load.pid) - target, daemon.cpu_seconds() - own
        scrape, page = daemon.cpu_seconds(), daemon.page()
        scrape = daemon.cpu_seconds() - scrape
        found["daemon: its own CPU"].append((own + scrape * passed / _SCRAPES) / target)
        found["daemon: hits x cost"].append((_hooks(page) - _hooks(first)) / target)
        attached = daemon_run.value(page, _ATTACHED) - daemon_run.value(first, _ATTACHED)
        found["daemon: tracepoints attached, of the time"].append(min(1.0, attached / passed))


def _hooks(page: str) -> float:
    """Seconds that hits took, at what a hit costs by our own measurement."""
    seconds = daemon_run.value(page, "scope_ebpf_hook_cpu_seconds_total{")
    return seconds * _cost.entry / daemon_run.value(page, 'scope_ebpf_hit_cost_seconds{at="entry"}')


@contextlib.contextmanager
def with_counts(load: Load, found: Found, name: str, events: tuple[str, ...]) -> Iterator[None]:
    target = inspect(load.pid)
    planned = plan_target(target, events)
    costs = HitCosts(planned.plan, _cost)
    with (
        contextlib.closing(Attacher()) as attacher,
        open_governed_session(target, planned, attacher) as session,
        measuring(),
    ):
        for event in costs.by_event():
            session.attach(event)
            session.enable(event, None)
        hits, used = session.hits(), cpu_seconds(load.pid)
        yield
        news = {program: count - hits[program] for program, count in session.hits().items()}
        used = cpu_seconds(load.pid) - used
        costs.update(session.program_stats())
        found[f"{name}: hits x cost"].append(sum(costs.spent(news).values()) / used)


@contextlib.contextmanager
def with_summary(load: Load, found: Found) -> Iterator[None]:
    command = [*_SCOPE_TRACE, "--pid", str(load.pid), "--duration", "0", "--format", "json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        if "Ctrl-C ends it" not in process.stderr.readline():
            raise SystemExit(process.stderr.read())
        yield
        process.send_signal(signal.SIGINT)
        cost = json.loads(process.communicate()[0])["cost"]
    found["summary: hits x cost"].append(cost["share_of_target"])


class Second(NamedTuple):
    """
    One second of a VM: work in a second of the clock and in one of the VM's CPU.

    What its schedulers waited for a CPU, and what the tool took, of the second.
    """

    by_clock: float
    by_cpu: float
    waited: float
    tool: float


def second_by_second(load: Load, found: Found, *, each: bool) -> None:
    """Seconds beside a summary of ten, its start among them, and as many without."""
    before = [_second(load) for _ in range(_SECONDS // 2)]
    command = [*_SCOPE_TRACE, "--pid", str(load.pid)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        beside = []
        while process.poll() is None:
            beside.append(_second(load, process.pid))
    after = [_second(load) for _ in range(_SECONDS // 2)]
    for name, kind in (("the clock", "by_clock"), ("CPU", "by_cpu")):
        without = [getattr(second, kind) for second in before + after]
        usual = statistics.median(without)
        parts = [getattr(second, kind) / usual for second in beside]
        found[f"summary, second by second: median, by {name}"].append(statistics.median(parts))
        found[f"summary, second by second: least, by {name}"].append(min(parts))
        found[f"without, second by second: least, by {name}"].append(min(without) / usual)
    if each:
        usual = statistics.median(second.by_cpu for second in before + after)
        for name, seconds in (("without", before), ("summary", beside), ("without", after)):
            texts = (
                f"{s.by_cpu / usual:.0%} ({s.waited:.0%} waited, tool {s.tool:.0%})"
                for s in seconds
            )
            print(f"  {name}: {', '.join(texts)}", flush=True)


def _second(load: Load, tool: int = 0) -> Second:
    """The next second of *load*, beside the process *tool*."""
    began, cpu, own = time.monotonic(), cpu_clock(load.pid), _tree_seconds(tool)
    waited = _waited(load.pid)
    done = load.work(1.0)
    passed, used = time.monotonic() - began, cpu_clock(load.pid) - cpu
    return Second(
        done / passed,
        done / used,
        (_waited(load.pid) - waited) / passed,
        max(0.0, _tree_seconds(tool) - own) / passed,
    )


def _waited(pid: int) -> float:
    """Seconds that the threads of a process were ready to run and did not (schedstat)."""
    total = 0
    for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total += int(stat.read_text().split()[1])
    return total / 1e9


def _tree_seconds(pid: int) -> float:
    """CPU seconds of a process and its children, those that have ended among them; 0 of none."""
    if not pid:
        return 0.0
    total = 0.0
    with contextlib.suppress(OSError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        total += sum(_tree_seconds(int(child)) for child in children)
    return total


#: What is compared with slices without anything.
CONDITIONS = {
    "daemon": with_daemon,
    "summary": with_summary,
    "all counted": lambda load, found: with_counts(load, found, "all counted", DEFAULT_EVENTS),
    "sends counted": lambda load, found: with_counts(load, found, "sends counted", ("send",)),
}


def slice_of(load: Load, seconds: float) -> float:
    """Work for each second of the VM's CPU."""
    cpu = cpu_seconds(load.pid)
    return load.work(seconds) / (cpu_seconds(load.pid) - cpu)


def play_round(load: Load, seconds: float, found: Found, *, backwards: bool) -> None:
    """One round: each condition between two slices without anything."""
    conditions = list(CONDITIONS.items())
    before = slice_of(load, seconds)
    for name, context in reversed(conditions) if backwards else conditions:
        with context(load, found):
            rate = slice_of(load, seconds)
        after = slice_of(load, seconds)
        found[f"{name}: done, of without"].append(2 * rate / (before + after))
        found["without: done, of without"].append(after / before)
        before = after
    second_by_second(load, found, each=False)


def measure(name: str, rounds: int, seconds: float) -> None:
    """Play *rounds* of the load *name* and print what was found."""
    found: Found = defaultdict(list)
    with LOADS[name]() as load:
        slice_of(load, 3.0)
        for number in range(rounds):
            play_round(load, seconds, found, backwards=number % 2 == 1)
        print(f"\n{name}: {load.unit}, {rounds} rounds of 9 x {seconds:g} s", flush=True)
    _by_slope(found)
    for label in sorted(found):
        print(f"  {label:48} {interval(found[label])}", flush=True)


def measure_summary(name: str, rounds: int) -> None:
    """The same of summaries second by second alone."""
    found: Found = defaultdict(list)
    with LOADS[name]() as load:
        slice_of(load, 3.0)
        for _ in range(rounds):
            second_by_second(load, found, each=True)
        print(f"\n{name}: {load.unit}, {rounds} summaries of 10 s", flush=True)
    for label, values in sorted(found.items()):
        print(f"  {label:48} {interval(values)}  least of all {min(values):.2%}", flush=True)


def _by_slope(found: Found) -> None:
    """What the daemon's hooks take, by how true hits x cost is where everything is counted."""
    done, said = (found[f"all counted: {what}"] for what in ("done, of without", "hits x cost"))
    truth = [(1 - part) / cost for part, cost in zip(done, said, strict=True)]
    hooks = [cost * statistics.fmean(truth) for cost in found["daemon: hits x cost"]]
    both = [sum(pair) for pair in zip(hooks, found["daemon: its own CPU"], strict=True)]
    found["all counted: truth of hits x cost"] = truth
    found["daemon: its hooks, by slope"] = hooks
    found["daemon: its hooks, by slope, and its own CPU"] = both


def interval(values: list[float]) -> str:
    """Mean and 95 % confidence interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:9.2%}"
    off = quantile(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:9.2%}  [{mean - off:8.2%} .. {mean + off:8.2%}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each slice")
    parser.add_argument("--summary", action="store_true", help="second by second, and nothing else")
    parser.add_argument("--loads", nargs="*", default=list(LOADS), choices=list(LOADS))
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("attaching BPF programs takes root: sudo")
    for name in arguments.loads:
        if arguments.summary:
            measure_summary(name, arguments.rounds)
            continue
        measure(name, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
