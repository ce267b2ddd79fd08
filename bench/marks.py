# SPDX-License-Identifier: Apache-2.0
"""
What marking does to all compiled code of this host, and what marked code costs while nobody looks.

    sudo .venv/bin/python bench/marks.py [corpus] [fuzz] [marker] [observed] [compiler] [rabbitmq]
                                         [--folders FOLDER...] [--rounds 6] [--messages 30000]

corpus: every module below the folders is marked, taken by the loader, marked again and unmarked.
fuzz: 10,000 mutated files. marker: nanoseconds of one marker. observed: what a hit takes while
``scope-trace marks`` counts and times everything, by release and class. compiler: CPU of the Erlang
compiler on an OTP that is marked whole, against plain. rabbitmq: a broker on an OTP, both marked
``callbacks``, against a plain one beside it: messages delivered, CPU of a message.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/mark")]

import pika  # noqa: E402 - after the path
import psutil  # noqa: E402
from apps.rabbitmq import rabbitmq  # noqa: E402
from beams_run import Beam, build, start_beam  # noqa: E402
from mark_run import HERE, MODULES, compiled, erl, folder, mark, run, terms  # noqa: E402

from scope_ebpf.beam.vm.discover import inspect  # noqa: E402
from scope_ebpf.runs.marks import MarkOptions, watch  # noqa: E402
from scope_ebpf.runs.target_cost import cpu_seconds  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OTP = Path("/usr/lib/erlang")
RABBITMQ = Path("/usr/lib/rabbitmq/lib")
INSTALLED = (
    OTP / "lib",
    RABBITMQ,
    Path("/usr/lib/elixir"),
    *Path("/usr/lib/x86_64-linux-gnu").glob("ejabberd-*"),
)
HOST = "stock25"
#: Two-sided 95 % quantiles of Student's t, by degrees of freedom.
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def ratio(pairs: list[tuple[float, float]]) -> str:
    """The mean of marked / plain with its 95 % interval."""
    logs = [math.log(marked / plain) for plain, marked in pairs]
    mean = statistics.mean(logs)
    wide = T95[len(logs) - 2] * statistics.stdev(logs) / math.sqrt(len(logs))
    low, high = (math.exp(mean + sign * wide) for sign in (-1, 1))
    return f"{math.exp(mean):.3f} (95 % interval {low:.3f} to {high:.3f}, {len(logs)} pairs)"


def corpus(options: argparse.Namespace) -> bool:
    """Mark, load, mark again and unmark every module."""
    folders = [str(folder) for folder in options.folders or INSTALLED if folder.is_dir()]
    good = True
    for profile in ("callbacks", "all"):
        found = erl(HOST, compiled(HOST), "-run", "corpus", "main", profile, *folders)
        totals = terms(found)
        good &= totals["failed"] == 0
        print(found.strip() if totals["failed"] else f"corpus {profile}: {totals}", flush=True)
        larger = totals["marked_bytes"] / totals["bytes"]
        print(f"corpus {profile}: marked files are {larger:.3f} times as large, undo included")
    return good


def fuzz(options: argparse.Namespace) -> bool:
    """Ten thousand mutated files."""
    files = [f"{{}}/plain/{name}.beam" for name in MODULES if name != "ring"]
    files += [
        str(next((OTP / "lib").glob(f"stdlib-*/ebin/{x}.beam"))) for x in ("gen_server", "maps")
    ]
    found = erl(HOST, compiled(HOST), "-run", "fuzz", "main", "0", str(options.cases), *files)
    print(f"fuzz: {terms(found)}", flush=True)
    return terms(found)["failed"] == 0


def marker(_: argparse.Namespace) -> bool:
    """Nanoseconds a marker: the difference of two calls, of which one has two or three markers."""
    with tempfile.TemporaryDirectory() as name:
        plain, marked = Path(name) / "plain", Path(name) / "marked"
        plain.mkdir()
        subprocess.run(["erlc", "-o", plain, HERE / "cost.erl"], check=True)
        shutil.copytree(plain, marked)
        only = [w for f in ("leaf", "real", "handle_info") for w in ("--only", f"cost:{f}")]
        mark(marked, "--profile", "all", *only)
        least: dict[tuple[str, str], float] = {}
        for _round in range(3):
            for folder in (plain, marked):
                command: list[str | Path] = [
                    "erl",
                    "+S",
                    "1",
                    "-noshell",
                    "-pa",
                    folder,
                    "-run",
                    "cost",
                    "main",
                    "x",
                ]
                text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                for loop, value in re.findall(r"\{(\w+),([\d.e+-]+)\}", text):
                    key = (folder.name, loop)
                    least[key] = min(least.get(key, math.inf), float(value))
    for loop, markers in (("leaf", 2), ("real", 3), ("callback", 2)):
        without, with_ = least["plain", loop], least["marked", loop]
        each = (with_ - without) / markers
        print(f"marker, {loop}: {without:.1f} -> {with_:.1f} ns a call, {each:.1f} ns a marker")
    return True


def observed(options: argparse.Namespace) -> bool:
    """CPU of the VM that a hit takes, entries and returns paired: the least of some rounds."""
    for kind in ("stock25", "trixie27", "sid29"):
        for profile, name in (("callbacks", "callback"), ("all", "function")):
            modules = folder("scope-observed-")
            shutil.copy(HERE / "counted.erl", modules)
            if name == "function":  # no callback: the same function is marked as any other
                text = (modules / "counted.erl").read_text().replace("-behaviour(gen_server).", "")
                (modules / "counted.erl").write_text(text)
            run(kind, [*build(kind).erlc, "-o", "{}", "{}/counted.erl"], modules)
            mark(modules / "counted.beam", "--profile", profile, "--only", "counted:terminate/2")
            with start_beam(kind, "+S", "1", "-s", "counted", "main", module_dir=modules) as beam:
                beam.expect("ready")
                print(f"{kind}, {name}: {_us_a_hit(beam, options.rounds):.2f} us a hit", flush=True)
    return True


#: Hits of one answer of counted.erl.
_HITS = 1_000_000


def _us_a_hit(beam: Beam, rounds: int) -> float:
    def spun() -> float:
        before = cpu_seconds(beam.pid) or 0.0
        beam.send("spin")
        beam.expect("spun")
        return (cpu_seconds(beam.pid) or 0.0) - before

    watched: list[float] = []
    plain = min(spun() for _ in range(rounds))
    options = MarkOptions(0.1, "all", math.inf)
    for _ in range(rounds):
        watch(inspect(beam.pid), [], options, lambda: watched.append(spun()))
    return (min(watched) - plain) / _HITS * 1e6


@contextlib.contextmanager
def marked_otp(profile: str) -> Iterator[Path]:
    """A copy of OTP, marked whole, that runs from where it lies."""
    with tempfile.TemporaryDirectory(prefix="scope-otp-") as name:
        copy = Path(name) / "erlang"
        shutil.copytree(OTP, copy, symlinks=False, ignore_dangling_symlinks=True)
        for script in (copy / "bin/erl", *copy.glob("erts-*/bin/erl")):
            text = script.read_text().replace(f"ROOTDIR={OTP}\n", f"ROOTDIR={copy}\n")
            script.unlink()
            script.write_text(text)
            script.chmod(0o755)
        print(f"OTP, {profile}: {mark(copy, '--profile', profile).stdout.strip()}", flush=True)
        yield copy


_COMPILE = (
    'Fs=lists:sublist(filelib:wildcard(code:lib_dir(stdlib)++"/ebin/[d-i]*.beam"),40),'
    "As=[A||F<-Fs,{ok,{_,[{abstract_code,{_,A}}]}}<-[beam_lib:chunks(F,[abstract_code])]],"
    "compile:forms(hd(As),[]),statistics(runtime),[compile:forms(A,[])||A<-As],"
    '{_,T}=statistics(runtime),io:format("~p",[T]),halt().'
)


def compiler(options: argparse.Namespace) -> bool:
    """CPU of compiling modules of stdlib, plain and marked by turns."""

    def spent(program: str | Path) -> float:
        command = [program, "+S", "1", "-noshell", "-eval", _COMPILE]
        return float(subprocess.run(command, check=True, capture_output=True).stdout)

    with marked_otp("all") as copy:
        pairs = [(spent("erl"), spent(copy / "bin/erl")) for _ in range(options.rounds)]
    least = min(m for _, m in pairs) / min(p for p, _ in pairs)
    print(f"compiler, all functions marked, CPU: {ratio(pairs)}; least of each {least:.3f}")
    return least <= 1.25


def delivered(port: int, messages: int) -> int:
    """Messages that came out of a queue of those that were put into it."""
    parameters = pika.ConnectionParameters(
        "127.0.0.1", port, credentials=pika.PlainCredentials("guest", "guest")
    )
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.queue_declare("marked", auto_delete=True)
        for _ in range(messages):
            channel.basic_publish("", "marked", b"x" * 100)
        count = 0
        for _ in channel.consume("marked", auto_ack=True, inactivity_timeout=30):
            count += 1
            if count == messages:
                break
        channel.cancel()
    return count


def cpu(pid: int) -> float:
    """Seconds of CPU of a process."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def broker(options: argparse.Namespace) -> bool:
    """A marked and a plain broker by turns."""
    home = max(RABBITMQ.glob("rabbitmq_server-*"))
    with marked_otp("callbacks") as otp, tempfile.TemporaryDirectory() as name:
        copy = Path(name) / home.name
        shutil.copytree(home, copy)
        print(
            f"RabbitMQ: {mark(copy, '--profile', 'callbacks', '--behaviours', OTP).stdout.strip()}"
        )
        with rabbitmq() as plain, rabbitmq(home=copy, otp=otp) as marked:
            loaded = marked.eval(
                "length([M || {M,_} <- code:all_loaded(), "
                "lists:keymember(scope_mark, 1, M:module_info(attributes))])"
            )
            print(f"RabbitMQ: {loaded} loaded modules are marked")
            pairs, good = [], True
            for number in range(options.rounds + 1):
                spent = []
                for app in (plain, marked):
                    before = cpu(app.pid)
                    good &= delivered(app.ports["amqp"], options.messages) == options.messages
                    spent.append((cpu(app.pid) - before) / options.messages * 1e6)
                if number:  # the first warms both up
                    pairs.append((spent[0], spent[1]))
                    print(
                        f"  us of CPU a message: plain {spent[0]:.0f}, marked {spent[1]:.0f}",
                        flush=True,
                    )
            errors = marked.log().count("[error]")
    print(f"RabbitMQ, all messages delivered: {good}; errors in its log: {errors}")
    print(f"RabbitMQ, callbacks marked, nobody looks, CPU of a message: {ratio(pairs)}")
    return good


PARTS: dict[str, Callable[[argparse.Namespace], bool]] = {
    "corpus": corpus,
    "fuzz": fuzz,
    "marker": marker,
    "observed": observed,
    "compiler": compiler,
    "rabbitmq": broker,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--folders", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--cases", type=int, default=10_000)
    options = parser.parse_args()
    good = [PARTS[name](options) for name in options.parts]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
