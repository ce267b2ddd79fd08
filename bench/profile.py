# SPDX-License-Identifier: Apache-2.0
"""
The cost of a profile for the VM, and its accuracy.

    bench/profile.py [cost] [split] [waits] [rabbitmq]      default: all

cost      what the timer of a profile at 99 Hz takes from a busy scheduler (profile_cost.py), what
          the profiler's own process takes, and what the kernel says of the BPF program
split     a planted split of CPU time (60, 30, 10 %) beside what the VM measured of it
waits     two planted waits beside what the VM measured of them
rabbitmq  how many Erlang stacks are whole in RabbitMQ under load
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]

import beams_run  # noqa: E402 - found by the line above
from profile_cost import reader_cost, timer_cost  # noqa: E402
from top_cost import cpu_seconds  # noqa: E402

from scope_ebpf.beam.stacks.sampling import sample_settings, scheduler_threads  # noqa: E402
from scope_ebpf.beam.vm.discover import inspect  # noqa: E402
from scope_ebpf.kernel.bpf.stats import measuring  # noqa: E402
from scope_ebpf.kernel.observers.sampler import Sampler  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCOPE_TRACE = (sys.executable, "-m", "scope_ebpf.cli.main")
MODULES = ("split_a", "split_b", "split_c")


@contextmanager
def profile(pid: int, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A profile that has begun; it is ended as Ctrl-C does."""
    command = [*_SCOPE_TRACE, "profile", "--pid", str(pid), "--duration", "0", *words]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert run.stderr is not None
    assert b"profiling" in run.stderr.readline()
    try:
        yield run
    finally:
        run.send_signal(2)
        run.last = run.stderr.read().decode()  # type: ignore[attr-defined]
        run.wait()


def cost() -> None:
    timer_cost()
    reader_cost()
    with beams_run.start_beam("stock25", "-s", "names_mix", "-names_size", "1000") as beam:
        beam.expect("ready", timeout=120)
        program(beam)


def program(beam: beams_run.Beam) -> None:
    """What the kernel says of the program: it runs on all ticks, and samples those of the VM."""
    target = inspect(beam.pid)
    with measuring(), Sampler(target.identity, sample_settings(target), 99) as sampler:
        sampler.add_schedulers(scheduler_threads(target))
        before = cpu_seconds(beam.pid)
        sampler.start()
        beam.ask("work 5", timeout=60)
        sampler.stop()
        used = cpu_seconds(beam.pid) - before
        records = list(sampler.records())
        stats = sampler.stats()
    size = sum(map(len, records)) / len(records) if records else 0.0
    print(
        f"cost: the program ran {stats.runs:,} times for {1e6 * stats.seconds / stats.runs:.2f} us "
        f"each, {stats.seconds / used:.3%} of the VM's {used:.1f} CPU s; "
        f"{len(records):,} samples of {size / 1024:.1f} KB"
    )


def stacks(path: Path) -> list[tuple[list[str], int]]:
    document = json.loads(path.read_text())
    names = [frame["name"] for frame in document["shared"]["frames"]]
    whole = document["profiles"][0]
    pairs = zip(whole["samples"], whole["weights"], strict=True)
    return [([names[index] for index in stack], weight) for stack, weight in pairs]


def split() -> None:
    for kind, flags in (
        ("stock25", ()),
        ("stock25", ("+JPperf", "true")),
        ("trixie27", ()),
        ("trixie27", ("+JPperf", "true")),
        ("sid29", ()),
    ):
        with (
            tempfile.TemporaryDirectory() as folder,
            beams_run.start_beam(kind, *flags, "-s", "split") as beam,
        ):
            beam.expect("ready")
            beam.ask("run 0")
            output = Path(folder) / "out.json"
            with profile(beam.pid, "-o", str(output)) as run:
                truth = [int(n) for n in beam.ask("run 20", timeout=90).split()[2:]]
            found: Counter[str] = Counter()
            for stack, weight in stacks(output):
                found.update({m: weight for m in MODULES if f"{m}:work/1" in stack})
        total = sum(found.values())
        shares = [100 * found[module] / total for module in MODULES]
        real = [100 * spent / sum(truth) for spent in truth]
        worst = max(abs(a - b) for a, b in zip(shares, (60, 30, 10), strict=True))
        print(
            f"split: {' '.join((kind, *flags))}: {_percent(shares)} sampled, 60 / 30 / 10 planted "
            f"({_percent(real)} by the VM's clock): {worst:.2f} points apart; {_whole(run)}"
        )


def _percent(values: list[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in values)


def _whole(run: subprocess.Popen[bytes]) -> str:
    text = run.last  # type: ignore[attr-defined]
    found = re.search(r"whole: (.*)", text)
    frames = re.search(r"(\S+ %) of the samples have every C frame", text)
    assert found, text
    return f"{found[1]}, {frames[1] if frames else '?'} have every C frame"


def waits() -> None:
    for kind in ("stock25", "trixie27"):
        with (
            tempfile.TemporaryDirectory() as folder,
            beams_run.start_beam(kind, "-s", "split") as beam,
        ):
            beam.expect("ready")
            beam.ask("run 0")
            output = Path(folder) / "out.json"
            words = ("--off-cpu", "--max-cost", "100%", "-o", str(output))
            with profile(beam.pid, *words):
                truth = [int(n) / 1e6 for n in beam.ask("waits 10", timeout=60).split()[2:]]
            found: Counter[str] = Counter()
            for stack, weight in stacks(output):
                if "split:waiter/2" in stack:
                    found[stack[-2]] += weight
        for module, real in zip(MODULES, truth, strict=False):
            seen = found[f"{module}:wait/1"] / 1e9
            print(
                f"waits: {kind}: {module}:wait/1 {seen:.3f} s seen, {real:.3f} s by the VM's "
                f"clock: {100 * abs(seen - real) / real:.2f} % apart"
            )


def rabbitmq() -> None:
    from apps.rabbitmq import rabbitmq as started

    client = [sys.executable, str(ROOT / "tests/apps/load_rabbitmq.py"), "--seconds", "20"]
    with (
        started() as app,
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [*client, "--port", str(app.ports["amqp"])], stdout=subprocess.DEVNULL
        ) as load,
    ):
        time.sleep(1)  # until the client has connected
        with profile(app.pid, "-o", f"{folder}/out.folded") as run:
            load.wait()
    print(f"rabbitmq: {_whole(run)}")


def main() -> int:
    parts = {"cost": cost, "split": split, "waits": waits, "rabbitmq": rabbitmq}
    for name in sys.argv[1:] or parts:
        parts[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
