# SPDX-License-Identifier: Apache-2.0
"""
What a check costs, and whether it finds something where nothing is wrong.

Its own CPU seconds on VMs with many processes that wait, and its verdicts beside nodes that work:
one of its own with calls and timers, RabbitMQ and ejabberd under their loads.

    sudo python bench/check.py [processes] [busy] [rabbitmq] [ejabberd]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import beams_run
from apps.ejabberd import ejabberd
from apps.rabbitmq import rabbitmq

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


def busy() -> None:
    """
    Check a VM of its own that works.
    """
    with beams_run.start_beam("stock25", "+S", "2:2", eval=_WORK) as beam:
        beam.readline()
        verdicts("busy", beam.pid)


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
    parts = ("processes", "busy", "rabbitmq", "ejabberd")
    parser.add_argument("parts", nargs="*", default=list(parts))
    for part in parser.parse_args().parts:
        {"processes": processes, "busy": busy}.get(part, lambda part=part: application(part))()


if __name__ == "__main__":
    main()
