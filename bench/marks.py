# SPDX-License-Identifier: Apache-2.0
"""
What marking does to all compiled code of this host, and what marked code costs while nobody looks.

    sudo .venv/bin/python bench/marks.py [corpus] [fuzz] [marker] [observed] [budget] [compiler]
                                         [rabbitmq] [ejabberd] [--folders FOLDER...] [--rounds 6]
                                         [--seconds 10]
                                         [--messages 30000] [--profiles callbacks all]
                                         [--kinds stock25 trixie27 sid29]

corpus: every module below the folders is marked, taken by the loader, marked again and unmarked.
fuzz: 10,000 mutated files. marker: nanoseconds of one marker. observed: what a hit takes while
``scope-trace marks`` counts and times everything, by release and class. budget: 100,000 calls a
second within the default budget, against what the VM itself counted. compiler: CPU of the Erlang
compiler on an OTP that is marked whole, against plain. rabbitmq, ejabberd: the application and the
OTP below it, both marked, against a plain one beside it: messages delivered, CPU of a message.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/mark")]

import pika  # noqa: E402 - after the path
import psutil  # noqa: E402
from apps.ejabberd import ejabberd  # noqa: E402
from apps.load_ejabberd import chat  # noqa: E402
from apps.rabbitmq import rabbitmq  # noqa: E402
from beams_run import Beam, build, start_beam  # noqa: E402
from mark_run import HERE, MODULES, compiled, erl, folder, mark, run, terms  # noqa: E402

from scope_ebpf.beam.code.functions import parse  # noqa: E402
from scope_ebpf.beam.vm.discover import inspect  # noqa: E402
from scope_ebpf.kernel.cost import measure  # noqa: E402
from scope_ebpf.runs.mark_run import MarkOptions  # noqa: E402
from scope_ebpf.runs.marks import watch  # noqa: E402
from scope_ebpf.runs.target_cost import cpu_seconds  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apps.app import App

OTP = Path("/usr/lib/erlang")
RABBITMQ = Path("/usr/lib/rabbitmq/lib")
EJABBERD = tuple(Path("/usr/lib/x86_64-linux-gnu").glob("ejabberd-*"))
INSTALLED = (
    OTP / "lib",
    RABBITMQ,
    Path("/usr/lib/elixir"),
    *EJABBERD,
)
HOST = "stock25"
#: Seconds that thousands of files take on a busy machine.
_LONG = 3600
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
        found = erl(
            HOST, compiled(HOST), "-run", "corpus", "main", profile, *folders, timeout=_LONG
        )
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
    found = erl(
        HOST, compiled(HOST), "-run", "fuzz", "main", "0", str(options.cases), *files, timeout=_LONG
    )
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
    for kind in options.kinds:
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
                whole = _us_a_hit(beam, options.rounds)
            trap = min(measure().entry for _ in range(options.rounds)) * 1e6
            print(
                f"{kind}, {name}: {whole:.2f} us a hit, {whole / trap - 1:.2f} of a trap beside "
                f"the trap of {trap:.2f} us",
                flush=True,
            )
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


#: Calls in each millisecond.
_PACE = 100


def budget(options: argparse.Namespace) -> bool:
    """Rates within the default budget, with what hooks took of the VM's CPU."""
    good = True
    for kind in options.kinds:
        modules = folder("scope-budget-")
        shutil.copy(HERE / "counted.erl", modules)
        run(kind, [*build(kind).erlc, "-o", "{}", "{}/counted.erl"], modules)
        mark(modules / "counted.beam", "--profile", "callbacks")
        with start_beam(kind, "-s", "counted", "main", module_dir=modules) as beam:
            beam.expect("ready")
            beam.favour()
            beam.ask(f"pace {_PACE}")
            for _ in range(options.rounds):
                good &= _estimated(kind, beam, options.seconds)
    return good


def _estimated(kind: str, beam: Beam, length: float) -> bool:
    """One run: the estimate is within three standard errors, and the cost within the budget."""
    before: list[tuple[int, float, float]] = []

    def now() -> tuple[int, float, float]:
        return int(beam.ask("paced").split()[1]), time.monotonic(), cpu_seconds(beam.pid) or 0.0

    options = MarkOptions(length)
    pattern = parse("counted:terminate/2")
    found, _ = watch(inspect(beam.pid), [pattern], options, lambda: before.append(now()))
    calls, seconds, used = (after - then for after, then in zip(now(), before[0], strict=True))
    truth, taken = calls / seconds, found.cost.seconds or 0.0
    rates = [
        (row["rate"], row["rate"] * row["error_ratio"]) for row in found.as_json()["functions"]
    ]
    seen = [
        f"seen {rate:,.0f} +- {error:,.0f}, {(rate - truth) / error:+.1f} errors"
        for rate, error in rates
    ]
    print(
        f"{kind}: {truth:,.0f} calls/s by the VM, {', '.join(seen) or found.notes}; "
        f"hooks {taken:.4f} s, {taken / used:.2%} of {used:.2f} s of CPU",
        flush=True,
    )
    within = [abs(rate - truth) <= 3 * error for rate, error in rates]
    return within == [True] and taken <= options.budget * used


def mark_all(top: Path, profile: str) -> subprocess.CompletedProcess[str]:
    """Mark a whole tree, which takes minutes on a busy machine."""
    return mark(top, "--profile", profile, "--behaviours", OTP, timeout=900)


@contextlib.contextmanager
def marked_otp(profile: str) -> Iterator[Path]:
    """A copy of OTP, marked whole, that runs from where it lies."""
    with tempfile.TemporaryDirectory(prefix="scope-otp-") as name:
        Path(name).chmod(0o755)  # ejabberd runs as another user
        copy = Path(name) / "erlang"
        shutil.copytree(OTP, copy, symlinks=False, ignore_dangling_symlinks=True)
        for script in (copy / "bin/erl", *copy.glob("erts-*/bin/erl")):
            text = script.read_text().replace(f"ROOTDIR={OTP}\n", f"ROOTDIR={copy}\n")
            script.unlink()
            script.write_text(text)
            script.chmod(0o755)
        print(f"OTP, {profile}: {mark_all(copy, profile).stdout.strip()}", flush=True)
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


def chatted(port: int, messages: int) -> int:
    """Chat messages that one account received of those that another one sent."""
    counts = asyncio.run(chat(port, ("alice", "bob"), messages))
    return round(counts["received"])


def cpu(pid: int) -> float:
    """Seconds of CPU of a process."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def by_turns(
    apps: dict[str, App], port: str, deliver: Callable[[int, int], int], options: argparse.Namespace
) -> bool:
    """The same load for each of *apps*, by turns: all of it delivered, and its CPU."""
    spent: dict[str, list[float]] = {profile: [] for profile in apps}
    good = True
    for number in range(options.rounds + 1):
        for profile, app in apps.items():
            before = cpu(app.pid)
            got = deliver(app.ports[port], options.messages)
            if got != options.messages:
                print(f"  {profile}: {got} of {options.messages} were delivered")
                good = False
            if number:  # the first warms all up
                spent[profile].append((cpu(app.pid) - before) / options.messages * 1e6)
    for profile, values in spent.items():
        print(f"  {profile}, us of CPU a message: {' '.join(f'{v:.0f}' for v in values)}")
        if profile != "plain":
            pairs = list(zip(spent["plain"], values, strict=True))
            print(f"  {profile} / plain, nobody looks: {ratio(pairs)}", flush=True)
    for profile, app in apps.items():
        print(f"  {profile}: {app.eval(_LOADED)} loaded modules are marked; {_errors(app)}")
    return good


#: How many modules of a node are marked.
_LOADED = (
    "length([M || {M,_} <- code:all_loaded(), "
    "lists:keymember(scope_mark, 1, M:module_info(attributes))])"
)


def _errors(app: App) -> str:
    log = (app.folder / "console.log").read_text(errors="replace")
    return f"{log.count('[error]') + log.count('[critical]')} errors in its log"


def broker(options: argparse.Namespace) -> bool:
    """A plain broker and marked ones by turns."""
    home = max(RABBITMQ.glob("rabbitmq_server-*"))
    with contextlib.ExitStack() as stack:
        apps = {"plain": stack.enter_context(rabbitmq())}
        for profile in options.profiles:
            otp = stack.enter_context(marked_otp(profile))
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / home.name
            shutil.copytree(home, copy)
            done = mark_all(copy, profile).stdout.strip()
            print(f"RabbitMQ, {profile}: {done}", flush=True)
            apps[profile] = stack.enter_context(rabbitmq(home=copy, otp=otp))
        good = by_turns(apps, "amqp", delivered, options)
    print(f"RabbitMQ, all messages delivered: {good}")
    return good


def chat_server(options: argparse.Namespace) -> bool:
    """A plain ejabberd and marked ones by turns, as the broker."""
    with contextlib.ExitStack() as stack:
        apps = {"plain": stack.enter_context(ejabberd())}
        for profile in options.profiles:
            otp = stack.enter_context(marked_otp(profile))
            top = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            top.chmod(0o755)
            for home in EJABBERD:
                shutil.copytree(home, top / home.name)
            done = mark_all(top, profile).stdout.strip()
            print(f"ejabberd, {profile}: {done}", flush=True)
            apps[profile] = stack.enter_context(ejabberd(home=top, otp=otp))
        good = by_turns(apps, "c2s", chatted, options)
    print(f"ejabberd, all messages delivered: {good}")
    return good


PARTS: dict[str, Callable[[argparse.Namespace], bool]] = {
    "corpus": corpus,
    "fuzz": fuzz,
    "marker": marker,
    "observed": observed,
    "budget": budget,
    "compiler": compiler,
    "rabbitmq": broker,
    "ejabberd": chat_server,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--folders", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--kinds", nargs="*", default=["stock25", "trixie27", "sid29"])
    parser.add_argument("--profiles", nargs="*", default=["callbacks", "all"])
    parser.add_argument("--cases", type=int, default=10_000)
    options = parser.parse_args()
    good = [PARTS[name](options) for name in options.parts]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
