# SPDX-License-Identifier: Apache-2.0
"""
What a check costs, and whether it finds something where nothing is wrong.

Its own CPU seconds on VMs with many processes that wait, and its verdicts beside nodes that work:
one that idles, one of its own with calls and timers, RabbitMQ, ejabberd and yaws under their loads,
a release of Elixir whose servers call each other, and one with 200,000 processes.

    sudo python bench/check.py [--yaws FOLDER] [PART ...]

Parts are processes (CPU seconds), idle, busy, rabbitmq, ejabberd, yaws, elixir and many. yaws takes
the packages yaws and wrk; FOLDER is where the former was unpacked instead of installed. It logs no
requests: its log cannot keep up with what wrk asks for, which is a finding.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import beams_run
from apps.ejabberd import ejabberd
from apps.rabbitmq import rabbitmq

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
COUNTS = (1_000, 20_000, 200_000)
#: Checks beside each node that works, and seconds for which its load lasts at least.
TIMES, SECONDS = 10, 150
_SPAWN = (
    "[spawn(fun() -> receive stop -> ok end end) || _ <- lists:seq(1, {})], io:put_chars([10])."
)
#: Twenty that compute for some milliseconds by turns, with messages between them.
_WORK = (
    "F = fun(G, Next) -> receive go -> lists:sum(lists:seq(1, 20000)), "
    "erlang:send_after(10, Next(), go), G(G, Next) end end, "
    "[begin P = spawn(fun() -> F(F, fun self/0) end), P ! go end || _ <- lists:seq(1, 20)], "
    "io:put_chars([10])."
)


def check(pid: int) -> dict[str, Any]:
    """
    The document of a check of the VM *pid*.
    """
    command = [sys.executable, "-m", "scope_ebpf.cli.main", "check", str(pid), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def processes() -> None:
    """
    Print a line for each count of processes that wait.
    """
    for count in COUNTS:
        flags = ("+P", "1000000", "+S", "2:2")
        with beams_run.start_beam("stock25", *flags, eval=_SPAWN.format(count)) as beam:
            beam.readline()
            found = check(beam.pid)
            print(
                f"{count:>9,} processes  {found['own_cpu_seconds']:.2f} s of CPU  "
                f"{found['verdict']['summary']}",
                flush=True,
            )


def verdicts(name: str, pid: int) -> None:
    """
    Print how often each verdict was given.
    """
    counts = Counter(check(pid)["verdict"]["summary"] for _ in range(TIMES))
    for verdict, count in counts.most_common():
        print(f"{name}: {count} of {TIMES} times: {verdict}", flush=True)


#: What VMs of its own evaluate, which say an empty line when they have begun.
_OWN = {"idle": "io:put_chars([10]).", "busy": _WORK, "many": _SPAWN.format(COUNTS[-1])}


def own(name: str) -> None:
    """
    Check a VM that evaluates one of _OWN.
    """
    with beams_run.start_beam("stock25", "+P", "1000000", "+S", "2:2", eval=_OWN[name]) as beam:
        beam.readline()
        verdicts(name, beam.pid)


#: A page that yaws computes for each request.
_PAGE = (
    "<html><erl>out(_) -> {ehtml, [{li, [], integer_to_list(I)} || I <- lists:seq(1, 200)]}.</erl>"
)
_YAWS = (
    'ok = yaws:start_embedded("{0}", [{{port, {1}}}, {{listen, {{127,0,0,1}}}}, '
    '{{servername, "bench"}}, {{flags, [{{access_log, false}}]}}], '
    '[{{logdir, "{0}"}}, {{id, "bench"}}], "bench"), io:put_chars([10]).'
)


def yaws(unpacked: str) -> None:
    """
    Check yaws, of the packages below the folder *unpacked*, while 20 clients ask for a page.
    """
    (modules,) = Path(unpacked).glob("usr/lib/yaws-*/ebin")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="scope-yaws-"))
        (Path(folder) / "page.yaws").write_text(_PAGE)
        port = beams_run.free_port()
        flags = ("+S", "2:2", "-pa", str(modules))
        started = beams_run.start_beam("stock25", *flags, eval=_YAWS.format(folder, port))
        beam = stack.enter_context(started)
        beam.readline()
        url = f"http://127.0.0.1:{port}/page.yaws"
        load = ["wrk", "-t", "2", "-c", "20", "-d", str(SECONDS), url]
        stack.enter_context(ended(load))
        verdicts("yaws", beam.pid)


@contextmanager
def ended(command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """
    A command that runs for as long as the block does; it ends its own children.
    """
    env = {**os.environ, **environment}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, env=env) as process:
        try:
            yield process
        finally:
            process.terminate()


def elixir() -> None:
    """
    Check a release of tests/workloads/shop, whose servers are called all the time.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scope-shop-")))
        shutil.copytree(beams_run.WORKLOADS / "shop", folder, dirs_exist_ok=True)
        build = ["mix", "release", "--quiet", "--path", "rel"]
        subprocess.run(build, cwd=folder, env={**os.environ, "MIX_ENV": "prod"}, check=True)
        port = beams_run.free_port()
        command = [str(folder / "rel/bin/shop"), "start"]
        stack.enter_context(ended(command, SHOP_PORT=str(port), RELEASE_DISTRIBUTION="none"))
        lines = stack.enter_context(connected(port)).makefile("rw")
        lines.write("pid\n")
        lines.flush()
        pid = int(lines.readline())
        lines.write(f"load {10**9}\n")
        lines.flush()
        verdicts("elixir", pid)


def connected(port: int) -> socket.socket:
    """
    A connection to what listens soon.
    """
    until = time.monotonic() + beams_run.PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def application(name: str) -> None:
    """
    Check RabbitMQ or ejabberd under load.
    """
    with rabbitmq() if name == "rabbitmq" else ejabberd() as app:
        port = app.ports["amqp" if name == "rabbitmq" else "c2s"]
        client = str(ROOT / f"tests/apps/load_{name}.py")
        command = [sys.executable, client, "--port", str(port)]
        with subprocess.Popen(
            [*command, "--seconds", str(SECONDS)], stdout=subprocess.DEVNULL
        ) as load:
            try:
                verdicts(name, app.pid)
            finally:
                load.terminate()


def main() -> None:
    """
    Do what the command line asks for, or everything.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parts = ("processes", "idle", "busy", "rabbitmq", "ejabberd", "yaws", "elixir", "many")
    parser.add_argument("parts", nargs="*", default=list(parts))
    parser.add_argument("--yaws", default="/", help="where yaws was unpacked")
    arguments = parser.parse_args()
    do = {"processes": processes, "yaws": lambda: yaws(arguments.yaws), "elixir": elixir}
    for part in arguments.parts:
        if part in _OWN:
            own(part)
        else:
            do.get(part, lambda part=part: application(part))()


if __name__ == "__main__":
    main()
