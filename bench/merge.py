# SPDX-License-Identifier: Apache-2.0
"""
What merging costs: CPU and memory for two captures of planted packets.

    python bench/merge.py [PACKETS]

The captures are of two nodes that send each other so many packets; they are made here, so no VM and
no root is needed.
"""

from __future__ import annotations

import resource
import sys
import time
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
from scope_ebpf.capture.merging import align_all, links, read_node  # noqa: E402
from scope_ebpf.capture.reader import Capture  # noqa: E402
from scope_ebpf.capture.store import FileStore  # noqa: E402
from scope_ebpf.capture.writer import Names, Writer  # noqa: E402
from scope_ebpf.results.summary import Cost  # noqa: E402

if TYPE_CHECKING:
    from scope_ebpf.results.documents.vms import Target

_BLOCK = 8192
_PEER = 100 << 6 | 0x0B


def main() -> None:
    """Make the captures, merge them, and print what it took."""
    packets = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    random = np.random.default_rng(23)
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.scope" for name in "ab"]
        checks = random.integers(1, 1 << 32, (2, packets), dtype=np.uint64)
        times = np.arange(packets, dtype=np.uint64) * np.uint64(10_000) + np.uint64(10**9)
        later = times + np.uint64(50_000)
        _write(paths[0], "a@h", "b@h", (times, checks[0]), (later, checks[1]))
        _write(paths[1], "b@h", "a@h", (times, checks[1]), (later, checks[0]))
        before = time.process_time()
        nodes = [read_node(Capture(path)) for path in paths]
        found = links(nodes)
        align_all(nodes, found)
        spent = time.process_time() - before
    paired = sum(len(link.out) for link in found)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{2 * packets:,} packets sent, {paired:,} paired: {spent:.1f} s of CPU, {memory} MB")


_Ends = tuple[np.ndarray, np.ndarray]


def _write(path: Path, node: str, peer: str, sent: _Ends, received: _Ends) -> None:
    """A capture of *node* with times and ends of packets to and from *peer*."""
    store = FileStore(path.open("wb", buffering=0), None)
    names = Names()
    names.atom(_PEER, peer)
    writer = Writer(store, names)
    hook = (Attachment("program", "link", "f", 0, 0),)
    plan = Plan(tuple(Item(name, "symbol", "f", hook, "") for name in ("dist_out", "dist_in")))
    writer.head(Head(_target(node), {"name": "h"}, Clocks(0, 0, 0), plan, PidCodec(), PortCodec()))
    for kind, (times, checks) in (("dist_out", sent), ("dist_in", received)):
        rows = np.zeros(len(times), events.RECORDS[kind])
        rows["time_ns"], rows["kind"] = times, events.KINDS[kind].id
        rows["peer"], rows["check"] = _PEER, checks
        rows["number"] = np.arange(1, len(times) + 1)
        for first in range(0, len(rows), _BLOCK):
            writer.records(rows[first : first + _BLOCK].view(events.RECORD))
    writer.end(End(1.0, "duration", Cost(0, None, None)))
    store.close()


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
