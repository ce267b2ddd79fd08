# SPDX-License-Identifier: Apache-2.0
"""
CPU time of short commands: user and system time of all their processes.

    sudo .venv/bin/python bench/start.py [ROW ...] [--runs 15] [--against CHECKOUT]

In a pid namespace of its own it starts an OTP 25 with a process that has 1,000,000 messages, the
only VM that the commands find; outside of it an OTP 25 and a stock OTP 29. What says "until" is
counted up to that line of output, and its wall time is printed, too. With --against the commands
of another checkout run by turns with these; ROW is the beginning of a row's name. Wall times, and
CPU times above the least ones, mean something on an idle machine only.
"""

from __future__ import annotations

import argparse
import compileall
import ctypes
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import beams_run  # noqa: E402 - found by the line above

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_HEAVY = (
    "P = spawn(fun() -> receive never -> ok end end), register(heavy, P), "
    "[P ! {hello, N} || N <- lists:seq(1, 1000000)], "
    'io:format("ready~n"), receive never -> ok end.'
)
#: A process every five milliseconds.
_CALM = (
    'F = fun(G) -> spawn(fun() -> ok end), timer:sleep(5), G(G) end, io:format("ready~n"), F(F).'
)
_SUBREAPER, _SCHEDULED = 36, 2
#: Name, VM, options and the stream whose first line counts.
_TRACED = (
    ("summary until its first line", "stock25", (), "stderr"),
    ("OTP 29, again, until an event", "sid29", ("--events", "spawn", "--stream"), "stdout"),
)
#: Set in the namespace.
_INSIDE = "SCOPE_BENCH_INSIDE"


class Row(NamedTuple):
    """A command, and whether it is counted until its first line on stdout or stderr, or its end."""

    name: str
    words: tuple[str, ...]
    until: str | None = None


class Run(NamedTuple):
    """Seconds of CPU time and of wall time."""

    cpu: float
    wall: float


def measure(row: Row, tree: Path) -> Run:
    """Run a command of *tree* once, in a process to which all that it starts comes back."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
        os.write(writing, json.dumps(_counted(row, tree)).encode())
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 4096)
    os.close(reading)
    os.waitpid(pid, 0)
    if not said:
        raise SystemExit(f"{row.name}: the command failed in {tree}")
    return Run(*json.loads(said))


def _counted(row: Row, tree: Path) -> tuple[float, float]:
    began = time.monotonic()
    command = [sys.executable, "-m", "scope_ebpf.cli.main", *row.words]
    kinds = {row.until: subprocess.PIPE} if row.until else {}
    tool = subprocess.Popen(
        command,
        cwd=tree,
        stdin=subprocess.DEVNULL,
        stdout=kinds.get("stdout", subprocess.DEVNULL),
        stderr=kinds.get("stderr", subprocess.DEVNULL),
    )
    if row.until:
        line = (tool.stdout or tool.stderr).readline()  # type: ignore[union-attr]
        wall = time.monotonic() - began
        cpu = sum(map(_cpu_of, _descendants(tool.pid)))
        assert line, f"{row.name} printed nothing"
        tool.send_signal(signal.SIGINT)
        tool.communicate()
        return cpu, wall
    assert tool.wait() == 0, f"{row.name} failed"
    wall = time.monotonic() - began
    while _has_children():
        os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime, wall


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _descendants(pid: int) -> Iterable[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _descendants(int(child))


def _cpu_of(pid: int) -> float:
    """CPU seconds of a process, and those of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ended = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
        return ended + time.clock_gettime(~pid << 3 | _SCHEDULED)
    except OSError:
        return 0.0


def compare(rows: Sequence[Row], only: tuple[str, ...], trees: Sequence[Path], runs: int) -> None:
    """Print the least and the median of commands whose names begin with *only*, in each tree."""
    for row in rows:
        if not row.name.startswith(only):
            continue
        for tree in trees:
            measure(row, tree)  # files come from the disk
        found: dict[Path, list[Run]] = {tree: [] for tree in trees}
        for _ in range(runs):
            for tree in trees:
                found[tree].append(measure(row, tree))
        for tree in trees:
            cpu, wall = zip(*found[tree], strict=True)
            line = f"{row.name:36} CPU {min(cpu):.3f} s, median {statistics.median(cpu):.3f} s"
            if row.until:
                line += f"; wall {min(wall):.2f} s, median {statistics.median(wall):.2f} s"
            print(line + (f"  ({tree})" if len(trees) > 1 else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", default=[""], metavar="ROW")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--against", type=Path, help="another checkout")
    given = parser.parse_args()
    trees = [ROOT, *([given.against.resolve()] if given.against else [])]
    only = tuple(given.rows)
    if _INSIDE in os.environ:
        _readers(only, trees, given.runs)
        return
    for tree in trees:
        compileall.compile_dir(tree / "scope_ebpf", quiet=1)
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *sys.orig_argv]
    subprocess.run(apart, env={**os.environ, _INSIDE: "1"}, check=True)
    _tracers(only, trees, given.runs)


def _readers(only: tuple[str, ...], trees: Sequence[Path], runs: int) -> None:
    """The commands that read, in a pid namespace with one VM."""
    with beams_run.start_beam("stock25", eval=_HEAVY) as beam:
        beam.expect("ready")
        rows = (
            Row("--help", ("--help",)),
            Row("list, one VM", ("list",)),
            Row("top --once", ("top", "--once")),
            Row("ps, 1,000,000 messages", ("ps", "heavy")),
        )
        compare(rows, only, trees, runs)


def _tracers(only: tuple[str, ...], trees: Sequence[Path], runs: int) -> None:
    """The commands that attach hooks, which a pid namespace would hide from the kernel's."""
    for name, kind, more, until in _TRACED:
        if not name.startswith(only):
            continue
        with beams_run.start_beam(kind, eval=_CALM) as beam:
            beam.expect("ready")
            row = Row(name, ("--pid", str(beam.pid), *more), until)
            if kind == "sid29":
                measure(row._replace(words=(*row.words, "-d", "0.1s"), until=None), ROOT)  # learns
            compare((row,), only, trees, runs)


if __name__ == "__main__":
    main()
