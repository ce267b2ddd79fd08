# SPDX-License-Identifier: Apache-2.0
"""
A process of user nobody becomes a setuid-root program at every point of attaching and detaching.

    python3 bench/exec_attack.py --runs 1000
    python3 bench/exec_attack.py --runs 20 --control

In each run breakpoints go in and out of a process that looks like a BEAM, which executes a setuid
copy of itself at a random moment, or when it sees a breakpoint in its own text; and they go on
going in and out. The copy compares its text with its file all the time. Every other run leaves out
the check before each attach, as if the exec came right behind it. The control attaches by the path
of the program, as it is at that moment, to a copy that is not setuid: there bytes must change, or
the comparison sees nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/hostile"))

from fakes import as_nobody, compiled

from scope_ebpf import events
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.errors import TargetChangedError
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.kernel.observers.governed import GovernedSession
from scope_ebpf.kernel.observers.program_pool import ProgramPool
from scope_ebpf.planning.planner import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.attach.uprobes import Identity

#: Moments of the exec, microseconds after breakpoints begin to come and go; a round takes some
#: ten thousand.
_LATEST = 60_000
#: Breakpoints that it sees before it executes, at most.
_MOST_SEEN = 3
#: Rounds of attaching and detaching after the exec, and at most in all.
_AFTER, _ROUNDS = 3, 200


class Unchecked:
    """The identity of *target* without its check."""

    def __init__(self, target: Target) -> None:
        self.pid, self.pidfd = target.identity.pid, target.identity.pidfd
        self._file = target.identity.file

    @property
    def file(self) -> int:
        """The file that was inspected."""
        return self._file

    def check(self) -> None:
        """Pass."""


class Resolved(Unchecked):
    """The same with whatever its program is by now."""

    @property
    def file(self) -> int:
        """What the path leads to."""
        self._opened = Path(f"/proc/{self.pid}/exe").open("rb")  # noqa: SIM115 - kept until the next
        return self._opened.fileno()


@contextmanager
def fake(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A process of user nobody that looks like a BEAM VM."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(as_nobody(*words), stdin=pipe, stdout=pipe, text=True)
    try:
        assert said(process) == "ready"
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """Its next line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def send(process: subprocess.Popen[str]) -> None:
    """The line that it waits for."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def in_and_out(session: GovernedSession, pid: int, victim: Path) -> tuple[int, bool]:
    """Attach and detach until some rounds after the exec; rounds, and whether they were ended."""
    left = _AFTER
    for rounds in range(_ROUNDS):
        try:
            session.attach("send")
        except TargetChangedError:
            return rounds, True
        session.release("send")
        if Path(f"/proc/{pid}/exe").readlink() == victim:
            left -= 1
        if not left:
            return rounds, False
    raise SystemExit("it never executed its victim")


def run(
    kind: type | None, program: Path, victim: Path, attacher: Attacher, pool: ProgramPool
) -> Counter[str]:
    """One run; what happened in it, as counts."""
    delay = random.choice(("us", "cc"))
    number = random.randrange(_LATEST) if delay == "us" else 1 + random.randrange(_MOST_SEEN)
    words = ("beam", "20", delay, str(number), str(victim), "text", "60000")
    with fake(str(program), *words) as process:
        target = inspect(process.pid)
        identity: Identity = kind(target) if kind else target.identity
        plan = make_plan(target.binary, target.flavor, ["send"])
        settings = np.zeros((), events.SETTINGS)
        given = plan, identity, target.base, settings
        with GovernedSession(*given, attacher=attacher, pool=pool) as session:
            if delay == "us":
                send(process)
            rounds, ended = in_and_out(session, process.pid, victim)
        as_whom = said(process)
        send(process)
        changed = int(said(process).split()[1])
    return Counter(
        runs=1,
        rounds=rounds,
        ended=ended,
        setuid=as_whom == "comparing as 0",
        changed=changed > 0,
        bytes=changed,
    )


def main() -> None:
    """Print the totals; exit 1 if a byte changed, or in the control none did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--control", action="store_true")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    began, totals = time.monotonic(), dict[str, Counter[str]]()
    pool = ProgramPool(4, 60.0)
    with tempfile.TemporaryDirectory(prefix="exec-attack-") as name, Attacher() as attacher:
        folder = Path(name)
        folder.chmod(0o755)
        program = compiled("becomes", folder)
        victim = folder / "victim"
        victim.write_bytes(program.read_bytes())
        victim.chmod(0o755 if arguments.control else 0o4755)
        for number in range(arguments.runs):
            kind = Resolved if arguments.control else (None, Unchecked)[number % 2]
            what = kind.__name__.lower() if kind else "checked"
            totals.setdefault(what, Counter()).update(run(kind, program, victim, attacher, pool))
        pool.expire(everything=True)
    for what, counts in totals.items():
        print(
            f"{what}: {counts['runs']:,} runs, {counts['rounds']:,} times in and out before the "
            f"end, {counts['ended']:,} ended by the check, {counts['setuid']:,} victims ran as "
            f"root, {counts['changed']:,} victims changed, {counts['bytes']:,} bytes"
        )
    print(f"{time.monotonic() - began:.0f} s on {os.cpu_count()} CPUs")
    changed = sum(counts["changed"] for counts in totals.values())
    raise SystemExit(bool(changed) != arguments.control)


if __name__ == "__main__":
    main()
