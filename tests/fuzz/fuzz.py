# SPDX-License-Identifier: Apache-2.0
"""
Everything that a stranger can give us, mutated: no traceback, no hang, bounded memory.

    python tests/fuzz/fuzz.py                            a million cases, split over the kinds
    python tests/fuzz/fuzz.py --only elves --first 5000 --cases 100
    python tests/fuzz/fuzz.py --only elves --first 5017 --cases 1 --show     one case that failed

A case is its kind and its number, which seeds all that is drawn: what failed once fails again,
and a run goes on where another ended with ``--first``. Ctrl-C prints the totals until then. Ends
with 1 if any case failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Protocol

HERE = Path(__file__).parent
for near in (HERE, HERE.parent, HERE.parent / "unit"):
    sys.path.insert(0, str(near))

from scope_ebpf.errors import ScopeError  # noqa: E402 - after the path

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Each kind, its class, and its share of all cases: what is slow has less of them.
KINDS = {
    "captures": ("Captures", 0.2),
    "configs": ("Configs", 0.3),
    "rings": ("Rings", 0.35),
    "images": ("Images", 0.03),
    "elves": ("Elves", 0.12),
}
#: Seconds of CPU of one case. What even then does not let its interpreter go on is killed by the
#: kernel after so many more, and what waits for ever by us.
PATIENCE, GIVE_UP, WAITED = 10.0, 300, 3600.0
#: Bytes of memory of one process beside what it has when its first case begins.
MEMORY = 1536 << 20
#: Cases that a process does before it is replaced: what leaks shows, and what fails costs no more.
BATCH = 1000
#: Seconds between two lines about how far it is.
_SAY = 60.0


class Kind(Protocol):
    """
    One kind of hostile input; its files are in *folder*.
    """

    def __init__(self, folder: Path) -> None: ...

    def run(self, random: Random) -> None:
        """
        Do one case. A ScopeError refuses it; everything else that is raised is a failure.
        """


class HangError(BaseException):
    """
    A case took longer than PATIENCE; nothing that catches exceptions catches this.
    """


@dataclass
class Totals:
    """
    What became of some cases: of them all, by failure, and the most memory.
    """

    cases: int = 0
    refused: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    peak: int = 0
    slowest: float = 0.0

    def add(self, other: Totals) -> None:
        """
        Take another's in.
        """
        self.cases += other.cases
        self.refused += other.refused
        self.failures.update(other.failures)
        self.examples = other.examples | self.examples
        self.peak = max(self.peak, other.peak)
        self.slowest = max(self.slowest, other.slowest)

    def line(self, name: str) -> str:
        """
        One line of the table.
        """
        kinds: Counter[str] = Counter()
        for failure, count in self.failures.items():
            kinds[failure.partition(" ")[0]] += count
        hangs, memory = kinds.pop("HangError", 0), kinds.pop("MemoryError", 0)
        return (
            f"{name:<10} {self.cases:>9,} {self.refused:>9,} "
            f"{self.cases - self.refused - self.failures.total():>9,} {kinds.total():>10,} "
            f"{hangs:>6,} {memory:>6,} {self.peak >> 20:>8,} {self.slowest:>8.2f}"
        )


HEADINGS = (
    f"{'kind':<10} {'cases':>9} {'refused':>9} {'accepted':>9} {'tracebacks':>10} "
    f"{'hangs':>6} {'memory':>6} {'peak MB':>8} {'worst s':>8}"
)


def kind_of(name: str, folder: Path) -> Kind:
    """
    A kind by its name, with its files in *folder*.
    """
    made: Kind = getattr(importlib.import_module(name), KINDS[name][0])(folder)
    return made


def run(name: str, kind: Kind, numbers: range, *, show: bool = False) -> Totals:
    """
    Do some cases in this process, each within its seconds.
    """
    totals = Totals()
    signal.signal(signal.SIGPROF, _hang)
    for number in numbers:
        totals.cases += 1
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)
        try:
            kind.run(Random(f"{name} {number}"))
        except ScopeError as error:
            totals.refused += 1
            if show:
                print(f"{name} {number}: refused: {error!r}")
        except (Exception, HangError) as error:  # noqa: BLE001 - all of them are what is looked for
            where = _where(error)
            totals.failures[where] += 1
            totals.examples.setdefault(where, f"{name} {number}: {error!r:.200}")
            if show:
                traceback.print_exc()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        totals.slowest = max(totals.slowest, time.process_time() - began)
    totals.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return totals


def _hang(_number: int, _frame: object) -> None:
    raise HangError


def _where(error: BaseException) -> str:
    """
    Its type, and the innermost frame of the package.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [p for p in frames if "/scope_ebpf/" in p.filename] or frames
    frame = ours[-1]
    file = "/".join(Path(frame.filename).parts[-2:])
    return f"{type(error).__name__} {file}:{frame.lineno} {frame.name}"


def _process(name: str, numbers: range, answer: multiprocessing.SimpleQueue[Totals]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process gets it too
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        kind = kind_of(name, Path(folder))
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmSize:"):
                most = MEMORY + (int(line.split()[1]) << 10)
                resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (GIVE_UP, GIVE_UP))
        answer.put(run(name, kind, numbers))


def _jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, range]]:
    for name, (_, share) in KINDS.items():
        if arguments.only in (None, name):
            count = arguments.cases if arguments.only else round(arguments.cases * share)
            last = arguments.first + count
            for first in range(arguments.first, last, BATCH):
                yield name, range(first, min(first + BATCH, last))


class Workers:
    """
    As many processes at once as are wanted, each with one batch.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: list[tuple[str, range, multiprocessing.Process, object, float]] = []
        self.totals: dict[str, Totals] = {}
        self._said = time.monotonic()

    def start(self, name: str, numbers: range) -> None:
        """
        Begin a batch as soon as there is room.
        """
        while len(self._running) >= self._most:
            self._reap()
        answer: multiprocessing.SimpleQueue[Totals] = multiprocessing.SimpleQueue()
        process = multiprocessing.Process(target=_process, args=(name, numbers, answer))
        process.start()
        self._running.append((name, numbers, process, answer, time.monotonic()))

    def finish(self) -> None:
        """
        Wait for all.
        """
        while self._running:
            self._reap()

    def stop(self) -> None:
        """
        End those that run; their cases do not count.
        """
        for _, _, process, _, _ in self._running:
            process.kill()
            process.join()

    def _reap(self) -> None:
        for job in list(self._running):
            name, numbers, process, answer, began = job
            if process.is_alive() and answer.empty():  # type: ignore[attr-defined]
                if time.monotonic() - began < WAITED:
                    continue
                process.kill()
            self._running.remove(job)
            found = Totals(1)  # of a process that died it is known only that it did
            if not answer.empty():  # type: ignore[attr-defined]
                found = answer.get()  # type: ignore[attr-defined]
            process.join()
            if process.exitcode:
                where = f"Died with {process.exitcode} in {numbers.start} to {numbers.stop - 1}"
                found.failures[where] += 1
            self.totals.setdefault(name, Totals()).add(found)
            if time.monotonic() - self._said > _SAY:
                self._said = time.monotonic()
                print(self.totals[name].line(name), file=sys.stderr, flush=True)
        time.sleep(0.05)


def main() -> int:
    """
    Run it all; print the totals of each kind.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--cases", type=int, default=1_000_000, help="in all (default: %(default)s)"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first of each kind")
    parser.add_argument("--only", choices=list(KINDS), help="all cases of this kind")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--show", action="store_true", help="here, with each refusal and traceback")
    arguments = parser.parse_args()
    if arguments.show:
        with tempfile.TemporaryDirectory() as folder:
            numbers = range(arguments.first, arguments.first + arguments.cases)
            run(arguments.only, kind_of(arguments.only, Path(folder)), numbers, show=True)
        return 0
    # Also where a shell lets what it starts behind itself ignore it: the totals are printed then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    workers = Workers(arguments.processes)
    with contextlib.suppress(KeyboardInterrupt):
        for job in _jobs(arguments):
            workers.start(*job)
        workers.finish()
    workers.stop()
    return _report(workers.totals)


def _report(totals: dict[str, Totals]) -> int:
    print(HEADINGS)
    whole = Totals()
    for name, found in totals.items():
        print(found.line(name))
        whole.add(found)
    print(whole.line("all"))
    for failure, count in whole.failures.most_common():
        print(f"FAILED {count:,} times: {failure}; first: {whole.examples.get(failure, '')}")
    return 1 if whole.failures else 0


if __name__ == "__main__":
    sys.exit(main())
