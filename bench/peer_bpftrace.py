# SPDX-License-Identifier: Apache-2.0
"""
Counts of bpftrace at function symbols of one process: a witness for tests, a peer for benches.

    python bench/peer_bpftrace.py PID SECONDS [SYMBOL ...]

It only counts, which is the least that a tool can do with an event.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SEND: Final = ("erts_send_message",)


class PeerError(Exception):
    """bpftrace does not run here; the text says why."""


@dataclass
class Counted:
    """The counts; filled when the counting has ended."""

    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    start_seconds: float = 0.0
    cpu_seconds: float = 0.0
    rss_mb: int = 0


def program(pid: int, symbols: Sequence[str]) -> str:
    """The bpftrace program that counts *symbols* of the process *pid*."""
    # Its option -p does not keep the hits of other processes with the same file away from a uprobe.
    probes = (
        f'uprobe:/proc/{pid}/exe:{symbol} /pid == {pid}/ {{ @["{symbol}"] = count(); }}'
        for symbol in symbols
    )
    return "\n".join(['BEGIN { printf("counting"); }', *probes])


@contextmanager
def counting(pid: int, symbols: Sequence[str]) -> Iterator[Counted]:
    """
    Count the calls of *symbols* by *pid* while the block runs; a symbol never called counts 0.

    The block starts when all are attached.
    """
    if shutil.which("bpftrace") is None:
        raise PeerError("bpftrace is not installed; packaging/install-deps.sh bench installs it")
    counted = Counted(dict.fromkeys(symbols, 0))
    started = time.monotonic()
    tracer = subprocess.Popen(
        ["bpftrace", "-f", "json", "-e", program(pid, symbols)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stdout is not None
    assert tracer.stderr is not None
    ended = False
    try:
        _wait_attached(tracer.stdout, tracer.stderr)
        begun = time.monotonic()
        counted.start_seconds = round(begun - started, 3)
        yield counted
        counted.seconds = round(time.monotonic() - begun, 3)
        tracer.send_signal(signal.SIGINT)
        for line in tracer.stdout:
            counted.counts |= _counts(line)
        _, _, usage = os.wait4(tracer.pid, 0)
        ended = True
        tracer.returncode = 0
        counted.cpu_seconds = round(usage.ru_utime + usage.ru_stime, 3)
        counted.rss_mb = round(usage.ru_maxrss / 1024)
    finally:
        if not ended:
            tracer.kill()
            tracer.wait()
        tracer.stdout.close()
        tracer.stderr.close()


def _wait_attached(output: IO[str], errors: IO[str]) -> None:
    # The output of BEGIN is read when all is attached; "attached_probes" is said before that.
    for line in output:
        if '"counting' in line:
            return
    raise PeerError(f"bpftrace ended: {errors.read().strip()}")


def _counts(line: str) -> dict[str, int]:
    if not line.startswith("{"):
        return {}
    message = json.loads(line)
    if message["type"] != "map":
        return {}
    return {symbol: int(count) for symbol, count in message["data"]["@"].items()}


def measure(pid: int, seconds: float, symbols: Sequence[str] = SEND) -> dict[str, Any]:
    """Count *symbols* of *pid* for *seconds*; the figures have the names of the other peers."""
    with counting(pid, symbols) as counted:
        time.sleep(seconds)
    seen = sum(counted.counts.values())
    return {
        "seen": seen,
        "lost": 0,  # a count in the kernel loses nothing
        "seconds": counted.seconds,
        "cpu_seconds": counted.cpu_seconds,
        "cpu_us_per_event": round(counted.cpu_seconds / max(seen, 1) * 1e6, 3),
        "rss_mb": counted.rss_mb,
        "start_seconds": counted.start_seconds,
        "counts": counted.counts,
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:] or SEND)))
