# SPDX-License-Identifier: Apache-2.0
"""
How long a scrape takes, and how many series it has, whatever the size of the node.

    bench/scrape.py [--processes 1000000] [--scrapes 50] [--idle 24 --idle 500]

Observes three nodes, one after the other: a small one, one of 16 schedulers, and one
with a million processes whose table is being read while it is scraped. Prints the time
of a scrape (median, 99th percentile, longest) and the series of the node.

Then, on a small node, scrapes alone and beside clients that have sent half a request and wait, by
turns, and how long /healthz takes beside them.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import beams_run
import daemon_run
import numpy as np

#: A million processes that wait, a hundred mailboxes and registered names among them.
_CROWD = (
    "spawn(fun() -> Wait = fun(F) -> receive never -> F(F) end end, "
    "Pids = [spawn(fun() -> Wait(Wait) end) || _ <- lists:seq(1, {count})], "
    '[begin P = lists:nth(I * 10, Pids), register(list_to_atom("n" ++ integer_to_list(I)), P), '
    "[P ! J || J <- lists:seq(1, I)] end || I <- lists:seq(1, 100)], "
    'io:format("ready~n"), Wait(Wait) end).'
)
_CONFIG = 'min_age = 0\nsnapshot_interval = "1s"\n'
_SERIES, _SECONDS = 300, 0.05
#: Factor on the median of a scrape beside idle clients, and the longest time of /healthz.
_LONGER, _HEALTHY = 0.01, 0.1


def measure(name: str, flags: tuple[str, ...], count: int, scrapes: int, folder: Path) -> bool:
    """Measure one node; true if it is within the limits."""
    code = _CROWD.format(count=count)
    named, config = daemon_run.alone("scraped")
    with beams_run.start_beam("stock25", *flags, *named, eval=code) as beam:
        beam.expect("ready", timeout=300)
        with daemon_run.daemon(folder, _CONFIG + config) as daemon:
            daemon.until_observed(beam.pid, "beam_top_mailbox_messages")
            times = []
            for _ in range(scrapes):
                times.append(_timed(daemon))
                time.sleep(0.1)
            series = daemon.series_of(beam.pid)
            rss = daemon.resident_mb()
    total = sum(series.values())
    print(f"{name:28}{_figures(times)} {total:7} {rss:7.0f}", flush=True)
    if total > _SERIES:
        most = sorted(series.items(), key=lambda item: -item[1])[:12]
        print("    " + ", ".join(f"{name} {count}" for name, count in most))
    return total <= _SERIES and float(np.median(times)) <= _SECONDS


def beside(idle: tuple[int, ...], scrapes: int, folder: Path) -> bool:
    """Scrapes alone and beside idle clients; true if they are answered as soon."""
    named, config = daemon_run.alone("scraped")
    good = True
    with (
        beams_run.start_beam("stock25", "+S", "2:2", *named) as beam,
        daemon_run.daemon(folder, _CONFIG + config) as daemon,
    ):
        daemon.until_observed(beam.pid)
        for count in idle:
            times: dict[str, list[float]] = {"alone": [], "beside": [], "/healthz": []}
            for _ in range(scrapes):
                times["alone"].append(_timed(daemon))
                with _waiting(daemon.port, count):
                    # First, so that it waits for all of them to be let in.
                    times["/healthz"].append(_timed(daemon, "/healthz"))
                    times["beside"].append(_timed(daemon))
            for what, taken in times.items():
                print(f"{count:4} idle clients, {what:11}{_figures(taken)}", flush=True)
            alone, together = np.median(times["alone"]), np.median(times["beside"])
            good &= bool(together - alone < _LONGER) and max(times["/healthz"]) < _HEALTHY
    return good


def _timed(daemon: daemon_run.Daemon, path: str = "/metrics") -> float:
    began = time.monotonic()
    daemon.page(path)
    return time.monotonic() - began


def _waiting(port: int, count: int) -> ExitStack:
    """Clients that have sent half a request."""
    stack = ExitStack()
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        with suppress(OSError):  # it was dropped for those that came later
            client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
    return stack


def _figures(times: list[float]) -> str:
    of = (np.median(times), np.percentile(times, 99), max(times))
    return "".join(f"{seconds * 1000:8.1f}" for seconds in of)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--processes", type=int, default=1_000_000, help="default: 1,000,000")
    parser.add_argument("--scrapes", type=int, default=50, help="default: 50")
    parser.add_argument(
        "--idle",
        action="append",
        type=int,
        help="only scrapes beside so many clients (default: nodes first, then 24 and 500)",
    )
    wanted = parser.parse_args()
    nodes = (
        ("small", ("+S", "2:2"), 1_000),
        ("16 schedulers", ("+S", "16:16"), 1_000),
        (f"{wanted.processes:,} processes", ("+P", str(2 * wanted.processes)), wanted.processes),
    )
    print("ms                            median    99 % longest  series  RSS MB")
    with tempfile.TemporaryDirectory() as folder:
        good = [
            measure(name, flags, count, wanted.scrapes, Path(folder))
            for name, flags, count in nodes
            if not wanted.idle
        ]
        good.append(beside(tuple(wanted.idle or (24, 500)), wanted.scrapes, Path(folder)))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
