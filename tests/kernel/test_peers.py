# SPDX-License-Identifier: Apache-2.0
"""
Peers that are no BEAM, and that stop: in links, in captures, merged.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import beams_run
import numpy as np
import pytest
from recording import record
from test_daemon import daemon
from test_links import known, looking, port_of, until
from tracing import require_root, scope_trace

from scope_ebpf import events
from scope_ebpf.capture.reader import Capture
from scope_ebpf.capture.terms import CapturedTerms
from scope_ebpf.sinks.columns import columns

if TYPE_CHECKING:
    from collections.abc import Iterator

PEER, FIRST, SECOND = "peer@127.0.0.2", "first@127.0.0.1", "second@127.0.0.1"
#: A peer that is silent for 3 to 5 seconds is lost.
TICKS = ("-kernel", "net_ticktime", "4", "logger_level", "none")
DAEMON = """
scan_interval = "200ms"
min_age = 0
include_nodes = ["^watched@127.0.0.1$"]
budget = "20%"
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The C node.
    """
    require_root()
    beams_run.require(shutil.which("gcc"), "gcc is not installed")
    beams_run.require(Path("/usr/include/ei.h").exists(), "erlang-dev is not installed")
    made = tmp_path_factory.mktemp("cnode") / "cnode"
    source = beams_run.WORKLOADS / "cnode.c"
    command = ["gcc", "-D_REENTRANT", "-o", str(made), str(source), "-lei", "-lpthread"]
    subprocess.run(command, check=True)
    return made


@contextlib.contextmanager
def c_node(program: Path, name: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """
    A C node that is connected to the node on *port*; it ends with its stdin.
    """
    pipe = subprocess.PIPE
    command = [str(program), name.partition("@")[0], "127.0.0.1", str(port)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], command: str) -> str:
    """
    The answer of a C node.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(command + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@pytest.fixture(scope="module", params=["stock25", "trixie27"])
def story(
    request: pytest.FixtureRequest, program: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """
    A node with a C node, that ends, one that it cuts off, and a peer that is stopped.
    """
    folder = tmp_path_factory.mktemp("peers")
    seen = SimpleNamespace(paths=(folder / "a.scope", folder / "b.scope"), losses=[])
    with (
        beams_run.dist_pair(request.param, *TICKS, peer=TICKS) as (watched, peer),
        daemon(DAEMON, folder) as running,
        record(watched.pid, seen.paths[0]) as one,
        record(peer.pid, seen.paths[1]) as other,
        looking(watched) as look,
    ):
        running.until(watched.pid, lambda now: now.get(("attached", "dist_down")))
        assert watched.ask("watch") == "done watch"
        assert watched.plant("remote 31") == 31
        port = port_of(watched)
        with c_node(program, FIRST, port) as first:
            assert said(first, "send 23") == "sent 23"
            assert watched.plant(f"tell {FIRST} 29") == 29
            assert said(first, "read 52") == "read 52"
            seen.row = until(look, lambda rows: agrees(rows[FIRST], known(watched)[FIRST]))[FIRST]
        seen.losses.append(watched.ask("gone").split()[1:])
        with c_node(program, SECOND, port):
            assert watched.ask(f"cut {SECOND}") == "done cut"
            seen.losses.append(watched.ask("gone").split()[1:])
        peer.freeze()
        try:
            for _ in range(3):
                assert watched.ask(f"flood {PEER} sync 200") == "done flood suspended"
            seen.full = until(look, lambda rows: rows[PEER]["suspended_total"] == 3)[PEER]
            seen.busy = watched.ask("busy 3").split()[1:]
            seen.losses.append(watched.ask("gone").split()[1:])
            seen.after = look()
            one.stop()
            seen.metrics = running.until(
                watched.pid, lambda now: now.get(("beam_node_down_total", PEER, "net_tick_timeout"))
            )
        finally:
            peer.thaw()
        other.stop()
    return seen


def agrees(row: dict, numbers: list[int]) -> bool:
    """
    Whether bytes and packets are those of the node, a moment later.
    """
    return [row[what][way] for way in ("in", "out") for what in ("bytes", "packets")] == numbers[:4]


def table(path: Path, kind: str) -> list[dict]:
    """
    The records of one kind in a capture, as texts.
    """
    capture = Capture(path)
    terms = CapturedTerms(capture.contents())
    rows = np.concatenate(list(capture.batches()))
    found = columns(kind, rows[rows["kind"] == events.KINDS[kind].id], terms)
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def test_a_c_node_is_a_link_as_others_are(story: SimpleNamespace):
    """
    Hidden, connected by TCP, with the bytes and packets of inet:getstat.
    """
    row = story.row
    assert (row["state"], row["type"], row["carrier"]) == ("connected", "hidden", "tcp")
    assert row["packets"]["in"] >= 23
    assert row["packets"]["out"] >= 29
    assert row["tcp"]["local"].startswith("127.0.0.1:")


def test_packets_of_a_c_node_are_recorded(story: SimpleNamespace):
    """
    Each planted message is one, in both directions, with what its packet says.
    """
    out = [row for row in table(story.paths[0], "dist_out") if row["peer"] == FIRST]
    came = [row for row in table(story.paths[0], "dist_in") if row["peer"] == FIRST]
    kinds = Counter((row["class"], row["operation"]) for row in out)
    # REG_SEND, whose name is spelled out and no atom of the node's, and SEND, which has no sender.
    assert {("message", 6): 29, ("message", 2): 23} == kinds
    assert {True: 29, False: 23} == Counter(row["pid"] is not None for row in out)
    (receiver,) = {row["receiver"] for row in out if row["operation"] == 2}
    assert re.fullmatch(r"<0\.\d+\.\d+>", receiver)
    assert 23 == sum(row["class"] == "packet" for row in came)


def test_packets_with_short_messages_have_the_ends_that_their_receiver_sees(
    story: SimpleNamespace,
):
    """
    Of 30 small integers each packet has its hash, and the same at the other node.
    """
    out = [row for row in table(story.paths[0], "dist_out") if row["peer"] == PEER]
    came = [row for row in table(story.paths[1], "dist_in") if row["class"] == "packet"]
    ends = [row["check"] for row in out[:31]]
    assert ends == [row["check"] for row in came[:31]]
    assert None not in ends
    assert 31 == len(set(ends))


def test_lost_connections_have_the_reasons_that_the_node_gives(story: SimpleNamespace):
    """
    One that ends, one that is cut off and one that is silent, in their order.
    """
    expected = [
        [FIRST, "connection_closed"],
        [SECOND, "disconnect"],
        [PEER, "net_tick_timeout"],
    ]
    assert expected == story.losses
    down = table(story.paths[0], "dist_down")
    assert expected == [[row["peer"], row["reason"]] for row in down[:3]]


def test_the_daemon_counts_lost_connections_by_peer_and_reason(story: SimpleNamespace):
    """
    Each has a series of its own with the node's reason, and no other reason is counted.
    """
    found = {key[1:]: n for key, n in story.metrics.items() if key[0] == "beam_node_down_total"}
    seen = {tuple(loss): 1.0 for loss in story.losses}
    assert seen == {key: number for key, number in found.items() if number}
    assert found["other", "net_tick_timeout"] == 0


def test_who_waits_for_a_stopped_peer_is_what_system_monitor_says(story: SimpleNamespace):
    """
    The processes of busy_dist_port are those that wait for the link, which is gone later.
    """
    full = story.full
    assert sorted(story.busy) == sorted(one["process"] for one in full["suspended"])
    assert (full["busy"], full["type"]) == (True, "visible")
    assert full["silent_seconds"] is not None
    assert story.after.get(PEER, {"state": "pending"})["state"] in ("pending", "closing")


def test_a_merge_names_who_was_not_recorded(story: SimpleNamespace):
    """
    Packets to and from a C node are counted, and no pairs of them are looked for.
    """
    merged = scope_trace("merge", *map(str, story.paths), "-f", "json").document
    assert {"watched@127.0.0.1", "peer@127.0.0.2"} == {link["from"] for link in merged["links"]}
    rows = {row["peer"]: row for row in merged["unrecorded"]}
    assert {FIRST} == rows.keys()
    assert ("watched@127.0.0.1", 29 + 23, 23) == tuple(
        rows[FIRST][name] for name in ("node", "sent", "received")
    )
