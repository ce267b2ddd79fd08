# SPDX-License-Identifier: Apache-2.0
"""
What merging costs: CPU and memory of ``scope-trace merge`` for captures of nodes that all talk.

    python bench/merge.py [EVENTS] [NODES] [PEERS]

Each capture has so many events: half of them packets to and from all other nodes, or so many of
them (an even number), half messages within the node. They are made here, so no VM and no root is
needed. The command runs in a process of its own, so what making them takes is not in the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/unit")]

from scope_ebpf import events  # noqa: E402
from scope_ebpf.attach.plan import Attachment, Item, Plan  # noqa: E402
from scope_ebpf.beam.memory.terms import PidCodec, PortCodec  # noqa: E402
from scope_ebpf.capture.facts import Clocks, End, Head  # noqa: E402
from scope_ebpf.capture.store import FileStore  # noqa: E402
from scope_ebpf.capture.writer import Names, Writer  # noqa: E402
from scope_ebpf.results.summary import Cost  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scope_ebpf.results.documents.vms import Target

_BLOCK = 8192
#: ns between two packets of a link, and until one comes in at the earliest.
_EVERY, _UNDER_WAY = 10_000, 50_000
_KINDS = ("dist_out", "dist_in", "send", "receive")


def main() -> None:
    """Make the captures, merge them, and print what it took."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000
    nodes = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    peers = int(sys.argv[3]) if len(sys.argv) > 3 else nodes - 1
    planted = 0
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"n{number}.scope" for number in range(nodes)]
        for number, path in enumerate(paths):
            planted += write(path, number, peers_of(number, nodes, peers), count)
        words = [sys.executable, "-m", "scope_ebpf.cli.main", "merge", *map(str, paths)]
        words += ["-f", "json"]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        text = process.stdout.read() if process.stdout else ""
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"merge ended with {status}")
    links = json.loads(text)["links"]
    sent, paired = (sum(link[name] for link in links) for name in ("sent", "paired"))
    refused = sum(link["refused"] is not None for link in links)
    print(
        f"{len(links):,} directions of links, {refused} refused; {planted:,} packets planted, "
        f"{sent:,} seen, {paired:,} paired; each pair has equal ends, or its link is refused"
    )
    spent = used.ru_utime + used.ru_stime
    memory = used.ru_maxrss >> 10
    print(
        f"{nodes} captures of {count:,} events, each node connected to {peers}: "
        f"{spent:.1f} s of CPU, {memory} MB"
    )
    if paired != planted:
        raise SystemExit("not every packet has its pair")


def peers_of(number: int, nodes: int, peers: int) -> list[int]:
    """All other nodes, or those that are next in a ring, half of them to each side."""
    if peers >= nodes - 1:
        return [other for other in range(nodes) if other != number]
    steps = [step for step in range(-(peers // 2), peers // 2 + 1) if step]
    return [(number + step) % nodes for step in steps]


def write(path: Path, number: int, peers: Sequence[int], count: int) -> int:
    """A capture of the node *number*, of *count* events with its *peers*; packets sent in it."""
    store = FileStore(path.open("wb", buffering=0), None)
    names = Names()
    for other in peers:
        names.atom(_atom(other), f"n{other}@h")
    writer = Writer(store, names)
    hook = (Attachment("program", "link", "f", 0, 0),)
    plan = Plan(tuple(Item(name, "symbol", "f", hook, "") for name in _KINDS))
    target = _target(f"n{number}@h")
    writer.head(Head(target, {"name": "h"}, Clocks(0, 0, 0), plan, PidCodec(), PortCodec()))
    done, round_of = 0, 4 * len(peers)
    packets = _BLOCK // round_of
    while done < count // round_of:
        rows = np.concatenate([_block(number, other, done, packets) for other in peers])
        writer.records(rows[np.argsort(rows["time_ns"], kind="stable")])
        done += packets
    writer.end(End(1.0, "duration", Cost(0, None, None)))
    store.close()
    return done * len(peers)


def _block(number: int, other: int, first: int, count: int) -> NDArray[np.void]:
    """Packets to and from another node, and as many sends and receives."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    times = numbers * np.uint64(_EVERY) + np.uint64(10**9)
    ends = {
        "dist_out": (times, _check(number, other, numbers)),
        "dist_in": (times + np.uint64(_UNDER_WAY), _check(other, number, numbers)),
    }
    made = []
    for kind, (at, checks) in ends.items():
        rows = np.zeros(count, events.RECORDS[kind])
        rows["time_ns"], rows["kind"], rows["number"] = at, events.KINDS[kind].id, numbers + 1
        rows["peer"], rows["check"], rows["size"] = _atom(other), checks, 100
        if kind == "dist_out":
            rows["class"], rows["process"], rows["flags"] = 1, numbers % 100 + 1, 1
            rows["receiver"] = numbers % 50 + 1 | np.uint64(1 << 62)
        made.append(rows.view(events.RECORD))
    for kind in ("send", "receive"):
        rows = np.zeros(count, events.RECORDS[kind])
        rows["time_ns"], rows["kind"] = times, events.KINDS[kind].id
        rows["process"] = (numbers % 100 + 1) << np.uint64(4) | np.uint64(3)
        made.append(rows.view(events.RECORD))
    return np.concatenate(made)


def _check(source: int, target: int, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The ends of packets, of which both nodes have the same."""
    mixed = (numbers + np.uint64((source * 100 + target) << 32)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(32)) | np.uint64(1)


def _atom(number: int) -> int:
    return (100 + number) << 6 | 0x0B


def _target(node: str) -> Target:
    return {
        "pid": 1,
        "exe": "/beam.smp",
        "node": node,
        "otp_release": "25",
        "erts_version": "13.1.5",
        "flavor": "jit",
        "schedulers": 2,
    }


if __name__ == "__main__":
    main()
