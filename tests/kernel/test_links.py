# SPDX-License-Identifier: Apache-2.0
"""
``scope-trace links`` against what the nodes, the kernel and ``ss`` say of the same links.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import beams_run
import documents
import pytest
from fake_peers import fake_peers
from tracing import trace

from scope_ebpf.beam.processes.table import ALL
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.cli import main
from scope_ebpf.daemon.readings.memory import Readers
from scope_ebpf.runs.links import Looking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from beams_run import Beam

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="reading another process takes root")

PEER = "peer@127.0.0.2"


@pytest.fixture(scope="module", params=["stock25", "trixie27", "sid29"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Beam, Beam]]:
    """
    A node to watch, whose ticks are planted, and a hidden node that is its peer.
    """
    seldom = ("-kernel", "net_ticktime", "36000")
    with beams_run.dist_pair(request.param, *seldom, peer=["-hidden"]) as both:
        yield both


@contextlib.contextmanager
def looking(beam: Beam) -> Iterator[Callable[[], dict[str, Any]]]:
    """
    A function that looks once more, and gives the rows of the document by their peers.
    """
    with contextlib.closing(Looking(Viewer(inspect(beam.pid), ALL))) as looks:

        def look() -> dict[str, Any]:
            document = looks.look().as_json()
            documents.validated(document, "links")
            return {row["peer"]: row for row in document["links"]}

        yield look


def known(beam: Beam) -> dict[str, list[int]]:
    """
    Of each link: received bytes and packets, sent ones, packets in and out, bytes that wait.
    """
    rows = [line.split() for line in beam.ask("links").split(",")]
    return {row[0]: [int(number) for number in row[1:]] for row in rows if row}


def until(look: Callable[[], dict[str, Any]], holds: Callable[[dict[str, Any]], bool]) -> Any:
    """
    What is seen as soon as it *holds*.
    """
    deadline = time.monotonic() + beams_run.PATIENCE
    while not holds(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def agrees(row: dict[str, Any], numbers: list[int]) -> bool:
    """
    Whether what is queued and what was sent is what the node says, a moment later.
    """
    return [row["queued_bytes"], row["bytes"]["out"]] == [numbers[6], numbers[2]]


def is_told(row: dict[str, Any], beam: Beam) -> bool:
    """
    Whether all figures of a link are what the node and ss say a moment later: a tick may come.
    """
    tcp = row["tcp"]
    text, numbers = ss(tcp["local"]), known(beam)[PEER]
    ours = [row[what][way] for way in ("in", "out") for what in ("bytes", "packets")]
    names = {
        "bytes_acked": "bytes_acked",
        "bytes_received": "bytes_received",
        "send_window_bytes": "snd_wnd",
        "congestion_window_packets": "cwnd",
    }
    return (
        ours == numbers[:4]
        and tcp["remote"] in text
        and all(tcp[name] == figure(text, theirs) for name, theirs in names.items())
        and tcp["rtt_seconds"] == pytest.approx(figure(text, "rtt") / 1000, abs=2e-6)
    )


def at_rest(row: dict[str, Any]) -> bool:
    """
    Whether nothing waits.
    """
    return not (row["busy"] or row["queued_bytes"] or row["suspended_total"])


def ss(address: str, within: tuple[str, ...] = ()) -> str:
    """
    What ``ss`` reports of the socket with this address on this side.
    """
    command = [*within, "ss", "-tinH", "src", address]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def figure(text: str, name: str) -> float:
    """
    One figure of ``ss``; what it leaves out is 0.
    """
    found = re.search(rf"\b{name}:([\d.]+)", text)
    return float(found[1]) if found else 0.0


def test_a_link_at_rest_is_what_the_node_and_ss_say(pair: tuple[Beam, Beam]):
    """
    Bytes and packets are those of inet:getstat, and the socket's figures those of ss.
    """
    watched, _ = pair
    assert watched.plant("remote 523") == 523
    with looking(watched) as look:
        row = until(look, lambda rows: is_told(rows[PEER], watched))[PEER]
    assert (row["state"], row["type"], row["carrier"], row["tls"]) == (
        "connected", "hidden", "tcp", False,
    )  # fmt: skip
    assert row["packets"]["out"] >= 523
    assert (row["queued_bytes"], row["driver_queued_bytes"], row["busy"]) == (0, 0, False)
    assert (row["suspended_total"], row["full_seconds"]) == (0, None)


def test_ticks_that_a_peer_has_missed_are_counted(pair: tuple[Beam, Beam]):
    """
    A stopped peer has missed 2 of 3 planted ticks: before the first one something had come.
    """
    watched, peer = pair
    with looking(watched) as look:
        watched.plant("back 23")
        peer.freeze()
        try:
            assert watched.plant("ticks 1") == 1
            seen = [look()[PEER]["ticks_missed"]]
            assert watched.plant("ticks 2") == 2
            row = look()[PEER]
        finally:
            peer.thaw()
        watched.plant("back 23")
        assert watched.plant("ticks 1") == 1
        seen += [row["ticks_missed"], look()[PEER]["ticks_missed"]]
    assert (seen, row["ticks_limit"]) == ([0, 2, 0], 4)


def test_a_full_link_is_shown_with_who_waits_for_it(pair: tuple[Beam, Beam]):
    """
    The peer is stopped: three senders are suspended, and what waits is what the node says.
    """
    watched, peer = pair
    with looking(watched) as look:
        peer.freeze()
        try:
            for _ in range(3):
                assert watched.ask(f"flood {PEER} sync 200") == "done flood suspended"
            until(look, lambda rows: rows[PEER]["suspended_total"] == 3)
            row = until(look, lambda rows: agrees(rows[PEER], known(watched)[PEER]))[PEER]
            (named,) = Readers(inspect(watched.pid)).read().peers
            local = row["tcp"]["local"]
            until(
                look,
                lambda rows: rows[PEER]["tcp"]["send_window_bytes"] == figure(ss(local), "snd_wnd"),
            )
        finally:
            peer.thaw()
        assert (row["busy"], row["suspended_total"]) == (True, 3)
        assert {one["name"] for one in row["suspended"]} == {"dist:flood/3"}
        assert len({one["process"] for one in row["suspended"]}) == 3
        assert (named.peer, named.full, named.suspended) == (PEER, 1, 3)
        assert named.queued == row["queued_bytes"] + row["driver_queued_bytes"]
        assert named.octets == (row["bytes"]["in"], row["bytes"]["out"])
        assert row["queued_bytes"] > 100_000
        assert row["full_seconds"] > 0
        assert all(one["seconds"] > 0 for one in row["suspended"])
        assert row["driver_queued_bytes"] > 0
        assert row["tcp"]["send_queue_bytes"] > 100_000
        rested = until(look, lambda rows: at_rest(rows[PEER]))[PEER]
    assert (rested["suspended"], rested["full_seconds"]) == ([], None)


def test_the_queue_of_senders_that_never_wait_is_shown(pair: tuple[Beam, Beam]):
    """
    With async_dist (OTP 25.3 and later) megabytes wait, and the link is not full.
    """
    watched, peer = pair
    target = inspect(watched.pid)
    if not target.layout.has("DistEntry", "total_qsize"):
        pytest.skip("this release has no async_dist")
    with looking(watched) as look:
        peer.freeze()
        try:
            assert watched.ask(f"flood {PEER} async 120") == "done flood waiting"
            row = until(look, lambda rows: agrees(rows[PEER], known(watched)[PEER]))[PEER]
        finally:
            peer.thaw()
        assert row["queued_bytes"] > 6 << 20
        assert (row["busy"], row["suspended_total"]) == (False, 0)
        until(look, lambda rows: at_rest(rows[PEER]))


def port_of(beam: Beam) -> int:
    """
    The port on which its peers listen.
    """
    arguments = Path(f"/proc/{beam.pid}/cmdline").read_text().split("\0")
    return int(arguments[arguments.index("-erl_epmd_port") + 1])


def test_a_connection_that_is_being_made_is_shown(pair: tuple[Beam, Beam]):
    """
    A peer that accepts and says nothing is pending, and its sender waits.
    """
    watched, _ = pair
    with socket.socket() as silent, looking(watched) as look:
        silent.bind(("127.0.0.3", port_of(watched)))
        silent.listen()
        assert watched.ask("flood silent@127.0.0.3 sync 40") == "done flood suspended"
        row = look()["silent@127.0.0.3"]
    assert (row["state"], row["type"], row["busy"]) == ("pending", None, True)
    assert (row["suspended_total"], row["suspended"][0]["name"]) == (1, "dist:flood/3")
    assert row["queued_bytes"] > 1 << 20


def test_500_peers_that_are_no_beam_are_all_shown(
    pair: tuple[Beam, Beam], capsys: pytest.CaptureFixture[str]
):
    """
    Each has its own bytes and its own socket; a table has as many rows as were wished.
    """
    watched, _ = pair
    names = [f"n{i}@127.99.{i // 250}.{i % 250 + 1}" for i in range(1, 501)]
    with fake_peers(names, port_of(watched)):
        assert watched.plant("many 500 127.99") == 500
        with looking(watched) as look:
            before, rows = known(watched), look()
            memory, after = Readers(inspect(watched.pid)).read(), known(watched)
        assert main.main(["links", "--pid", str(watched.pid), "--once", "--limit", "7"]) == 0
        text = capsys.readouterr().out
    assert set(names) <= rows.keys()
    assert (len(memory.peers), memory.connections.nodes) == (6, (500, 1))
    octets = sum(one.octets[0] for one in memory.peers if one.octets)
    # A tick may come meanwhile.
    least, most = (sum(one[0] for one in said.values()) for said in (before, after))
    assert least <= octets <= most
    for name in names:
        row = rows[name]
        assert row["tcp"]["remote"] == f"{name.partition('@')[2]}:{port_of(watched)}"
        assert before[name][0] <= row["bytes"]["in"] <= after[name][0]
        assert before[name][1] <= row["packets"]["in"] <= after[name][1]
    assert len(re.findall(r"^\S+@127\.\S+ +(?:connected|hidden|pending) ", text, re.MULTILINE)) == 7
    assert re.search(r"and 49\d links more", text)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """
    Two network namespaces with a veth pair between them: commands that run others in them.
    """

    def ip(*words: str) -> None:
        made = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        beams_run.require(made.returncode == 0, f"ip {' '.join(words)}: {made.stderr}")

    names = [f"scope-links-{os.getpid()}-{end}" for end in "ab"]
    with contextlib.ExitStack() as made:
        for name in names:
            ip("netns", "add", name)
            made.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        ip(
            "-n",
            names[0],
            "link",
            "add",
            "veth0",
            "type",
            "veth",
            "peer",
            "veth0",
            "netns",
            names[1],
        )
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.99.7.{number}/24", "dev", "veth0")
            for device in ("lo", "veth0"):
                ip("-n", name, "link", "set", device, "up")
        enter = [("ip", "netns", "exec", name) for name in names]
        yield enter[0], enter[1]


def test_a_split_is_seen_from_the_network_of_the_node():
    """
    In a namespace of its own its socket is found; cut off, it is silent, and sends again and again.
    The loss has the reason that the node gives.
    """
    ticks = ("-kernel", "net_ticktime", "8")
    with (
        two_hosts() as within,
        beams_run.dist_pair(
            "stock25", *ticks, peer=ticks, addresses=("10.99.7.1", "10.99.7.2"), within=within
        ) as (watched, _),
        looking(watched) as look,
        trace(watched.pid, "--stream", "--events", "dist_down", form="jsonl") as run,
    ):
        peer = "peer@10.99.7.2"
        assert watched.ask("watch") == "done watch"
        row = look()[peer]
        assert row["tcp"]["local"].startswith("10.99.7.1:")
        assert row["tcp"]["remote"] in ss(row["tcp"]["local"], within[0])
        subprocess.run([*within[1], "ip", "link", "set", "veth0", "down"], check=True)
        assert watched.ask(f"flood {peer} sync 200") == "done flood suspended"
        cut = until(
            look,
            lambda rows: (
                peer in rows
                and rows[peer]["state"] == "connected"
                and (rows[peer]["tcp"] or {}).get("retransmitting", 0) > 0
            ),
        )[peer]
        assert (cut["busy"], cut["suspended_total"]) == (True, 1)
        assert cut["silent_seconds"] > 0
        loss = watched.ask("gone").split()[1:]
        gone = look()
        down = run.stop().lines
        assert gone.get(peer, {"state": "closing"})["state"] in ("pending", "closing")
    assert [peer, "net_tick_timeout"] == loss
    assert [loss] == [[one["peer"], one["reason"]] for one in down]


def test_a_link_by_tls_is_shown_with_its_socket():
    """
    A process carries it: its socket, queue and waiting senders are those of the link.
    """
    tls = beams_run.tls("stock25")
    with (
        beams_run.dist_pair("stock25", *tls, peer=tls) as (watched, peer),
        looking(watched) as look,
    ):
        local = look()[PEER]["tcp"]["local"]
        row = until(
            look,
            lambda rows: rows[PEER]["bytes"]["in"] == figure(ss(local), "bytes_received"),
        )[PEER]
        assert (row["carrier"], row["tls"], row["busy"]) == ("process", True, False)
        assert (row["ticks_missed"], row["ticks_limit"]) == (None, None)
        assert row["tcp"]["remote"] in ss(local)
        assert row["bytes"]["in"] > 1000
        peer.freeze()
        try:
            assert watched.ask(f"flood {PEER} sync 200") == "done flood suspended"
            # The carrier encrypts and writes after the sender was suspended.
            full = until(
                look,
                lambda rows: (
                    rows[PEER]["suspended_total"] == 1
                    and rows[PEER]["tcp"]["send_queue_bytes"] > 100_000
                ),
            )[PEER]
        finally:
            peer.thaw()
    assert (full["busy"], full["suspended"][0]["name"]) == (True, "dist:flood/3")
    assert full["queued_bytes"] > 100_000
