# SPDX-License-Identifier: Apache-2.0
"""
A cluster of two RabbitMQ brokers, recorded on both nodes and merged; links against the nodes' own.
And calls between two nodes that TLS connects.

    sudo .venv/bin/python bench/cluster.py [rabbitmq] [tls] [--seconds 5] [--kinds stock25 trixie27]

The queue is on the one node, publisher and consumer are connected to the other. Only one capture
has the packets at its ends; all others must have their pair.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import beams_run  # noqa: E402
from apps.load_rabbitmq import Load  # noqa: E402
from apps.rabbitmq import rabbitmq_cluster  # noqa: E402

from scope_ebpf.beam.processes.table import ALL  # noqa: E402
from scope_ebpf.beam.processes.view import Viewer  # noqa: E402
from scope_ebpf.beam.vm.discover import inspect  # noqa: E402
from scope_ebpf.runs.links import Looking  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apps.app import App

PEERS = ("rabbit@localhost", "hare@localhost")
#: What a node itself says of the one port that carries its link.
_GETSTAT = (
    "[element(2, inet:getstat(P, [recv_oct, recv_cnt, send_oct, send_cnt]))"
    " || {N, P} <- erlang:system_info(dist_ctrl), lists:member(N, nodes(visible))]"
)


@contextmanager
def record(pid: int, path: Path) -> Iterator[None]:
    """A recording of *pid* into *path*, which counts within the block."""
    command = [sys.executable, "-m", "scope_ebpf.cli.main", "record", "--pid", str(pid)]
    options = ["--duration", "0", "--max-cost", "100%", "-o", str(path)]
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while "Ctrl-C ends it" not in (line := process.stderr.readline()):
        if not line:
            raise SystemExit(f"the recording of {pid} has ended")
    yield
    process.terminate()
    process.communicate()


def load(holder: App, other: App, seconds: float) -> int:
    """Publish to and consume from a queue of *holder* through *other*; messages."""
    parameters = pika.ConnectionParameters(
        host="127.0.0.1",
        port=holder.ports["amqp"],
        credentials=pika.PlainCredentials("guest", "guest"),
    )
    with pika.BlockingConnection(parameters) as connection:
        connection.channel().queue_declare("planted", auto_delete=True)
        made = Load(other.ports["amqp"], 256)
        made.run(seconds)
        return made.consumed


def merged(paths: list[Path]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The document of a merge, and its packets."""
    packets = paths[0].with_suffix(".jsonl")
    command = [sys.executable, "-m", "scope_ebpf.cli.main", "merge", *map(str, paths)]
    done = subprocess.run(
        [*command, "-f", "json", "-o", str(packets)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout), [json.loads(line) for line in packets.read_text().splitlines()]


def print_links(app: App) -> None:
    """A line: what a look says of the only link, and what the node says before and after it."""
    numbers = []
    with closing(Looking(Viewer(inspect(app.pid), ALL))) as looking:
        numbers.append(_figures(app.eval(_GETSTAT)))
        rows: list[Any] = list(looking.look().as_json()["links"])
        numbers.append(_figures(app.eval(_GETSTAT)))
    # The node that has asked, a C node, may not be gone yet.
    (row,) = [one for one in rows if one["peer"] in PEERS]
    ours = [(row[what] or {}).get(way) for way in ("in", "out") for what in ("bytes", "packets")]
    between = all(
        one is not None and first <= one <= last
        for one, first, last in zip(ours, *numbers, strict=True)
    )
    print(
        f"{row['peer']} {row['state']} {row['carrier']}: {ours}, inet:getstat {numbers}: {between}"
    )


def _figures(text: str) -> list[int]:
    """The four numbers of inet:getstat in their order."""
    names = ("recv_oct", "recv_cnt", "send_oct", "send_cnt")
    return [int(re.findall(rf"{name},\s*(\d+)", text)[0]) for name in names]


def rabbitmq(options: argparse.Namespace) -> None:
    """Run the load within two recordings, and print what the merge and the links are."""
    with rabbitmq_cluster() as (first, second), tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "a.scope", Path(folder) / "b.scope"]
        with record(first.pid, paths[0]), record(second.pid, paths[1]):
            messages = load(first, second, options.seconds)
        print(f"{messages:,} messages through the other node")
        print_merge(paths)
        for app in (first, second):
            print_links(app)


def tls(options: argparse.Namespace) -> None:
    """1,000 calls there and 523 back, with 23 requests of 1 MB, of each release with itself."""
    for kind in options.kinds:
        flags = beams_run.tls(kind)
        with (
            beams_run.dist_pair(kind, *flags, module="rpc_calls", peer=flags) as (a, b),
            tempfile.TemporaryDirectory() as folder,
        ):
            a.ask("connect peer@127.0.0.2")
            a.ask("over peer@127.0.0.2 1")
            paths = [Path(folder) / "a.scope", Path(folder) / "b.scope"]
            with record(a.pid, paths[0]), record(b.pid, paths[1]):
                a.ask("over peer@127.0.0.2 1000")
                b.ask("over watched@127.0.0.1 523")
                a.ask("large peer@127.0.0.2 23")
            print(f"{kind} by TLS: 1,000 calls there, 523 back, 23 of 1 MB")
            print_merge(paths)


def main() -> None:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["rabbitmq", "tls"])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--kinds", nargs="+", default=["stock25", "trixie27"])
    options = parser.parse_args()
    for part in options.parts:
        {"rabbitmq": rabbitmq, "tls": tls}[part](options)


def print_merge(paths: list[Path]) -> None:
    """The pairs of each direction, and the calls that have all their legs."""
    document, packets = merged(paths)
    for link in document["links"]:
        print_pairs(link, [row["packet"] for row in packets if row["from_node"] == link["from"]])
    for row in document["calls"]:
        print(
            f"{row['from']} -> {row['to']}: {row['calls']:,} calls of {row['server']}, "
            f"{row['legs_known']:,} with seven legs"
        )


def print_pairs(link: dict[str, Any], numbers: list[int]) -> None:
    """A line for one direction; *numbers* are those of its paired packets."""
    missing = max(numbers) - min(numbers) + 1 - len(numbers) if numbers else 0
    print(
        f"{link['from']} -> {link['to']}: {link['sent']:,} packets sent, "
        f"{link['received']:,} received, {link['paired']:,} paired, {missing} between them not; "
        f"{link['refused'] or 'no end differs'}"
    )


if __name__ == "__main__":
    main()
