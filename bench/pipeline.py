# SPDX-License-Identifier: Apache-2.0
"""
Throughput and cost of the pipeline, in one run on one machine.

    sudo .venv/bin/python bench/pipeline.py [PART ...] [--json FILE]

Parts: ring, reader, live, hits, start, peers, leave; without any, all of them. Figures are
CPU seconds, counts and ratios of paired runs: wall times of a shared machine say
little.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "packaging")]

import beams_run  # noqa: E402
import build_objects  # noqa: E402

from scope_ebpf import events  # noqa: E402
from scope_ebpf.attach.plan import EVENTS  # noqa: E402
from scope_ebpf.beam.vm.constants import kernel_constants, known  # noqa: E402
from scope_ebpf.beam.vm.discover import inspect  # noqa: E402
from scope_ebpf.errors import ScopeError  # noqa: E402
from scope_ebpf.kernel.bpf.libbpf import TestRunOptions, check, library  # noqa: E402
from scope_ebpf.kernel.bpf.objects import BpfObject  # noqa: E402
from scope_ebpf.kernel.bpf.ring import Ring  # noqa: E402
from scope_ebpf.kernel.cost import measure  # noqa: E402
from scope_ebpf.kernel.observers.session import Session  # noqa: E402
from scope_ebpf.planning.planner import make_plan  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

BURST = 64
RING_BYTES = 16 << 20
INTERVAL = 0.01
#: How often each workload of a paired run is timed.
PAIRS = 5


# ------------------------------------------------------------------------------ without a trap


class Burst:
    """A ring that is filled by BPF_PROG_TEST_RUN from a child process."""

    def __init__(self, folder: Path) -> None:
        build_objects.compile_probe(ROOT / "bench/burst.bpf.c", folder / "burst.bpf.o")
        self._object = BpfObject("burst", (folder / "burst.bpf.o").read_bytes())
        settings = np.zeros((), events.SETTINGS)
        settings["streamed"] = 1 << events.KINDS["send"].id
        self._object.set_constants(settings.tobytes())
        self._object.set_entries("ring", RING_BYTES)
        self._object.load({"burst"})
        self.ring = Ring(self._object.map_fd("ring"), RING_BYTES)

    def produce(self, rate: int, seconds: float) -> None:
        """Write *rate* records a second, in slices of a millisecond. Runs in a child."""
        data = ctypes.create_string_buffer(64)
        options = TestRunOptions(sz=ctypes.sizeof(TestRunOptions), data_size_in=64)
        options.data_in = ctypes.cast(data, ctypes.c_void_p)
        start = time.monotonic()
        done = 0
        while (now := time.monotonic() - start) < seconds:
            due = int(now * rate / BURST) - done
            if due > 0:
                options.repeat = due
                check(
                    library().bpf_prog_test_run_opts(
                        self._object.program_fd("burst"), ctypes.byref(options)
                    ),
                    "cannot run the burst",
                )
                done += due
            time.sleep(0.001)

    def tally(self) -> tuple[int, int]:
        """Records written, and of these lost, since the start."""
        cpus = library().libbpf_num_possible_cpus()
        values = np.zeros(cpus, events.TALLY)
        key = ctypes.c_uint32(events.KINDS["send"].id * events.CLASSES)
        library().bpf_map_lookup_elem(
            self._object.map_fd("tallies"), ctypes.byref(key), values.ctypes.data
        )
        return int(values["count"].sum()), int(values["lost"].sum())


def decode(records: NDArray[np.void]) -> NDArray[np.int64]:
    """The work of a metrics sink on a batch: counts by kind and class, and sums of a column."""
    index = records["kind"].astype(np.intp) * events.CLASSES + records["class"]
    return np.bincount(index, minlength=len(events.KINDS) * events.CLASSES)


def drive(burst: Burst, rate: int, seconds: float) -> dict[str, Any]:
    """One run at *rate*: records written, seen and lost, and the reader's CPU."""
    written_before, lost_before = burst.tally()
    child = os.fork()
    if child == 0:
        burst.produce(rate, seconds)
        os._exit(0)
    seen = 0
    cpu = time.thread_time()
    start = time.monotonic()
    running = True
    while running:
        time.sleep(INTERVAL)
        running = os.waitpid(child, os.WNOHANG)[0] == 0
        with burst.ring.batch() as records:
            seen += int(decode(records).sum())
    wall = time.monotonic() - start
    written, lost = burst.tally()
    return {
        "rate": round((written - written_before) / wall),
        "written": written - written_before,
        "seen": seen,
        "lost": lost - lost_before,
        "reader_cpu_share": (time.thread_time() - cpu) / wall,
    }


def part_ring(folder: Path) -> dict[str, Any]:
    """The highest rate at which nothing is lost for five seconds."""
    burst = Burst(folder)
    best: dict[str, Any] = {}
    for rate in (500_000, 1_000_000, 1_500_000, 2_000_000, 3_000_000, 4_000_000, 6_000_000):
        run = drive(burst, rate, 5)
        assert run["seen"] + run["lost"] == run["written"], run
        say(
            f"  asked {rate:>9,}/s: {run['rate']:>9,}/s written, lost {run['lost']:,}, "
            f"reader {run['reader_cpu_share']:.1%} of a core"
        )
        if run["lost"]:
            break
        best = run
    return best


def part_reader(folder: Path) -> dict[str, Any]:
    """The reader's CPU at 100,000 records a second."""
    run = drive(Burst(folder), 100_000, 10)
    say(
        f"  {run['rate']:,}/s: reader {run['reader_cpu_share']:.2%} of a core, lost {run['lost']:,}"
    )
    return run


# ------------------------------------------------------------------------------- on a live VM


def cpu_of(pid: int) -> float:
    """CPU seconds of a process's threads so far; a VM's threads live as long as it does."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def observing(pid: int, wanted: tuple[str, ...], *, streamed: bool) -> Iterator[Session]:
    """A session on *pid* with its gate open."""
    target = inspect(pid)
    settings, _ = kernel_constants(target)
    plan = make_plan(target.binary, target.flavor, wanted, "auto", known(settings))
    if streamed:
        settings["streamed"] = sum(1 << kind.id for kind in plan.kinds)
    with Session(plan, target.identity, target.base, settings, ring_bytes=RING_BYTES) as session:
        session.count(on=True)
        yield session


def part_live(folder: Path) -> dict[str, Any]:
    """Every event of a BEAM at full load streamed for 20 s: what is lost."""
    del folder
    wanted = ("spawn", "exit", "send", "receive", "schedule", "gc")
    with beams_run.planted("stock25") as beam:
        beam.ask("storm pingpong 8")
        with observing(beam.pid, wanted, streamed=True) as session:
            seen, most, cpu, start = 0, 0.0, time.thread_time(), time.monotonic()
            while time.monotonic() < start + 20:
                time.sleep(INTERVAL)
                most = max(most, session.ring.fill())
                with session.ring.batch() as records:
                    seen += int(decode(records).sum())
            session.count(on=False)
            wall = time.monotonic() - start
            with session.ring.batch() as records:
                seen += int(decode(records).sum())
            tallies = session.tallies()
            cpu = time.thread_time() - cpu
        beam.send("stop")
        beam.readline()
    counted, lost = int(tallies["count"].sum()), int(tallies["lost"].sum())
    assert seen + lost == counted, (seen, lost, counted)
    say(
        f"  {seen / wall:,.0f} records/s from uprobes, lost {lost:,}, "
        f"ring at most {most:.0%} full, reader {cpu / wall:.1%} of a core"
    )
    return {"rate": round(seen / wall), "lost": lost, "ring_fill": most, "reader": cpu / wall}


#: For each event: the command that plants it, the hits that it makes, and what is observed.
HIT_WORKLOADS = {
    "spawn": "spawns 20000",
    "exit": "spawns 20000",
    "send": "messages 50000",
    "receive": "messages 50000",
    "schedule": "spawns 20000",
    "gc": "gc_major 50000",
}


def part_hits(folder: Path) -> dict[str, Any]:
    """What a hit costs the VM: its CPU with and without the hooks, in turn, over the hits."""
    del folder
    cost = measure()
    say(f"  on ourselves: entry {cost.entry * 1e9:,.0f} ns, return {cost.returns * 1e9:,.0f} ns")
    result: dict[str, Any] = {"entry_ns": cost.entry * 1e9, "return_ns": cost.returns * 1e9}
    with beams_run.planted("stock25") as beam:
        for event, command in HIT_WORKLOADS.items():
            for streamed in (False, True):
                costs = [hit_cost(beam, event, command, streamed=streamed) for _ in range(PAIRS)]
                name = f"{event} {'streamed' if streamed else 'counted'}"
                result[name] = statistics.median(costs)
                say(
                    f"  {name:<18} {result[name]:>7,.0f} ns a hit "
                    f"({min(costs):,.0f} to {max(costs):,.0f})"
                )
    return result


def hit_cost(beam: beams_run.Beam, event: str, command: str, *, streamed: bool) -> float:
    """Ns of the VM's CPU for one hit of *event*'s hooks: one pair of runs."""
    bare = vm_cpu(beam, command)
    with observing(beam.pid, (event,), streamed=streamed) as session:
        before = sum(session.hits().values())
        with_hooks = vm_cpu(beam, command)
        hits = sum(session.hits().values()) - before
    return (with_hooks - bare) / hits * 1e9


def vm_cpu(beam: beams_run.Beam, command: str) -> float:
    """The VM's CPU seconds for one command, done three times."""
    before = cpu_of(beam.pid)
    for _ in range(3):
        beam.plant(command)
    return cpu_of(beam.pid) - before


# ------------------------------------------------------------------------------------ the tool


#: Python keeps what it has compiled, as it does of an installed program.
INSTALLED = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
#: A process every five milliseconds: a VM that leaves its CPUs to others.
CALM = "F = fun(G) -> spawn(fun() -> ok end), timer:sleep(5), G(G) end, F(F)."


def part_start(folder: Path) -> dict[str, Any]:
    """From start to the first line of an event, and the memory that takes."""
    del folder
    calm = subprocess.Popen(["erl", "-noshell", "-eval", CALM])
    try:
        wait_for_beam(calm.pid)
        result = {"calm": first_events("a calm VM", calm.pid)}
    finally:
        calm.kill()
        calm.wait()
    with beams_run.planted("stock25") as beam:
        beam.ask("storm pingpong 2")
        result["full load"] = first_events("a VM that takes every CPU", beam.pid)
        beam.send("stop")
        beam.readline()
    return result


def wait_for_beam(pid: int) -> None:
    """Wait until the VM can be inspected."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if inspect(pid).layout:
                return
        except ScopeError:
            time.sleep(0.05)
    raise SystemExit(f"the VM {pid} did not come up")


def first_events(name: str, pid: int) -> dict[str, float]:
    first_event(pid)  # compiles
    runs = [first_event(pid) for _ in range(7)]
    waits, memory = [wait for wait, _ in runs], [peak for _, peak in runs]
    say(
        f"  {name}: {statistics.median(waits):.2f} s ({min(waits):.2f} to {max(waits):.2f}), "
        f"RSS at most {max(memory):.0f} MB"
    )
    return {"seconds": statistics.median(waits), "rss_mb": max(memory)}


def first_event(pid: int) -> tuple[float, float]:
    """Seconds to the first line, and peak RSS in MB after a second of tracing."""
    start = time.monotonic()
    tool = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "scope_ebpf.cli.main",
            "--pid",
            str(pid),
            "--duration",
            "2",
            "--format",
            "jsonl",
            "--max-cost",
            "100%",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=INSTALLED,
    )
    assert tool.stdout is not None
    tool.stdout.readline()
    wait = time.monotonic() - start
    for _ in tool.stdout:
        pass
    _, _, usage = os.wait4(tool.pid, 0)
    return wait, usage.ru_maxrss / 1024


def part_peers(folder: Path) -> dict[str, Any]:
    """The same job, sends of a BEAM at full load, by others: events seen and lost, and CPU."""
    del folder
    import peer_bcc  # needs packages that only this part needs
    import peer_bpftrace

    result: dict[str, Any] = {}
    with beams_run.planted("stock25") as beam:
        beam.ask("storm pingpong 8")
        runs: dict[str, Callable[[int, float], dict[str, Any]]] = {
            "scope-ebpf": ours,
            "bcc": peer_bcc.measure,
            "bpftrace (counts only)": peer_bpftrace.measure,
        }
        for name, run in runs.items():
            try:
                result[name] = run(beam.pid, 10)
            except (peer_bcc.PeerError, peer_bpftrace.PeerError) as error:
                result[name] = {"failed": str(error).splitlines()[-1]}
            say(f"  {name}: {json.dumps(result[name])}")
        beam.send("stop")
        beam.readline()
    return result


def ours(pid: int, seconds: float) -> dict[str, Any]:
    """Every send as a record, decoded: what bcc's callback does."""
    with observing(pid, ("send",), streamed=True) as session:
        seen, cpu, start = 0, time.thread_time(), time.monotonic()
        while time.monotonic() < start + seconds:
            time.sleep(INTERVAL)
            with session.ring.batch() as records:
                seen += int(decode(records).sum())
        wall = time.monotonic() - start
        cpu = time.thread_time() - cpu
        session.count(on=False)
        lost = int(session.tallies()["lost"].sum())
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seen": seen,
        "lost": lost,
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 3),
        "cpu_us_per_event": round(cpu / seen * 1e6, 3),
        "rss_mb": round(rss),
    }


def part_leave(folder: Path) -> dict[str, Any]:
    """Seconds to detach every hook, with one link a program and with one a site."""
    del folder
    result = {}
    with beams_run.planted("stock25") as beam:
        target = inspect(beam.pid)
        settings, _ = kernel_constants(target)
        plan = make_plan(target.binary, target.flavor, EVENTS, "auto", known(settings))
        for name, multi in (("links of programs", True), ("links of places", False)):
            with Session(plan, target.identity, target.base, settings, multi=multi) as session:
                start = time.monotonic()
                session.detach()
                result[name] = time.monotonic() - start
            say(f"  {len(plan.attachments)} hooks, {name}: {result[name]:.2f} s")
    return result


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ring": part_ring,
    "reader": part_reader,
    "live": part_live,
    "hits": part_hits,
    "start": part_start,
    "peers": part_peers,
    "leave": part_leave,
}


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    say(f"Linux {platform.release()}, {os.cpu_count()} CPUs")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.parts or PARTS:
            say(f"{name}: {PARTS[name].__doc__}")
            results[name] = PARTS[name](Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
