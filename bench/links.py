# SPDX-License-Identifier: Apache-2.0
"""
What a look at the links of a node costs: CPU of this host, with few peers and with 500. And what
the daemon's hooks cost a node that does nothing but talk to another one, and what they lose.

    sudo .venv/bin/python bench/links.py [--looks 20] [--seconds 60] [--kinds stock25 ...]

The 500 peers are of one process that shakes hands as nodes do, on loopback.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import beams_run
from daemon_run import daemon, value
from fake_peers import fake_peers

from scope_ebpf.beam.processes.table import ALL
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.budget.governor import DAEMON_POLICY
from scope_ebpf.daemon.readings.memory import Readers
from scope_ebpf.runs.links import Looking

PEERS = 500
#: Messages to the other node at once, and connections that are cut off.
MESSAGES, DROPS = 10_000, 23
CONFIG = 'scan_interval = "200ms"\nmin_age = 0\ninclude_nodes = ["^watched@127.0.0.1$"]\n'


def looks(pid: int, count: int) -> tuple[int, float, float]:
    """Links, ms of the first look, and the median ms of those after it."""
    spent, found = [], 0
    with closing(Looking(Viewer(inspect(pid), ALL))) as looking:
        for _ in range(count):
            began = time.process_time()
            found = len(looking.look().rows)
            spent.append(1000 * (time.process_time() - began))
    return found, spent[0], statistics.median(spent[1:])


def memory(pid: int, count: int) -> float:
    """Median ms of the daemon's reading of allocators and connections together."""
    readers = Readers(inspect(pid))
    return 1000 * statistics.median([readers.read().seconds for _ in range(count)])


def measure(kind: str, count: int) -> None:
    """Print a line for one peer and for all of one build."""
    with beams_run.dist_pair(kind) as (watched, _):
        arguments = Path(f"/proc/{watched.pid}/cmdline").read_text().split("\0")
        port = int(arguments[arguments.index("-erl_epmd_port") + 1])
        names = [f"n{i}@127.98.{i // 250}.{i % 250 + 1}" for i in range(1, PEERS + 1)]
        _line(kind, watched.pid, count)
        with fake_peers(names, port):
            watched.plant(f"many {PEERS} 127.98")
            _line(kind, watched.pid, count)


def _line(kind: str, pid: int, count: int) -> None:
    found, first, later = looks(pid, count)
    print(
        f"{kind}: {found} links: first look {first:.1f} ms of CPU, later ones {later:.1f} ms; "
        f"the daemon's reading {memory(pid, count):.1f} ms"
    )


def hooks(kind: str, seconds: float) -> None:
    """Print what the daemon's hooks take of the CPU of a node that sends all the time, and lose."""
    with (
        tempfile.TemporaryDirectory() as folder,
        beams_run.dist_pair(kind) as (watched, _),
        daemon(Path(folder), CONFIG) as running,
    ):
        running.until_observed(watched.pid)
        while not _is_counted(running.page()):
            time.sleep(0.2)
        watched.plant(f"drops {DROPS}")
        before, began, sent = running.page(), time.monotonic(), 0
        while time.monotonic() - began < seconds:
            sent += watched.plant(f"remote {MESSAGES}")
        time.sleep(5)  # a tick of the daemon is due at the latest
        page, elapsed = running.page(), time.monotonic() - began
    used, spent = (
        value(page, name) - value(before, name)
        for name in ("beam_cpu_seconds_total", "scope_ebpf_hook_cpu_seconds_total")
    )
    downs = sum(float(x.split()[-1]) for x in page.splitlines() if x.startswith("beam_node_down_"))
    lost = value(page, "scope_ebpf_events_lost_total")
    budget, ratio = (value(page, f"scope_ebpf_{name}_ratio") for name in ("budget", "overhead"))
    granted = budget * max(used, DAEMON_POLICY.min_cpus * elapsed)
    print(
        f"{kind}: {sent:,} messages to the other node, hooks took {spent:.3f} s beside the node's "
        f"{used:.1f} s of CPU in {elapsed:.0f} s ({granted:.3f} s granted), {ratio:.2%} of what "
        f"counts as used in the last minute (budget {budget:.1%}), "
        f"lost {lost:.0f}; {downs:.0f} of {DROPS} lost connections"
    )


def _is_counted(page: str) -> bool:
    """Whether the hook of lost connections is in."""
    ratios = [x for x in page.splitlines() if x.startswith("scope_ebpf_sampling_ratio{")]
    return any(float(x.split()[-1]) > 0 for x in ratios if 'hook="dist_down"' in x)


def main() -> None:
    """Measure each kind of VM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--looks", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kinds", nargs="+", default=["stock25", "trixie27", "sid29"])
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        if arguments.looks:
            measure(kind, arguments.looks)
        hooks(kind, arguments.seconds)


if __name__ == "__main__":
    main()
