# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import beams_run
import pytest
from tracing import require_root, trace

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The variants of conftest.py that have two nodes of a kind for these tests, and stock OTP 27 and
#: 29, which hides its functions.
VARIANTS = {
    "stock": ("stock25", "auto"),
    "trixie": ("trixie27", "auto"),
    "usdt": ("usdt25", "usdt"),
    "hidden": ("sid29", "auto"),
}


RELEASES = {"trixie": "27", "hidden": "29"}


@pytest.fixture(params=VARIANTS, scope="module")
def nodes(request: pytest.FixtureRequest) -> Iterator[tuple[beams_run.Beam, beams_run.Beam, str]]:
    """
    A node, its peer, and how to look at the first.
    """
    require_root()
    kind, via = VARIANTS[request.param]
    with beams_run.dist_pair(kind) as (watched, peer):
        yield watched, peer, via


def test_messages_to_another_node_are_remote_sends(nodes):
    """
    23 messages to a process of another node are 23 remote sends, and go out in one output or more.
    """
    watched, _, via = nodes
    with trace(watched.pid, "--via", via, "--events", "send,dist_output") as run:
        watched.plant("remote 23")
        events = run.stop().events
    assert 23 == events["send"]["by_class"]["remote"]
    # Each output takes all that waits, so there are no more of them than messages and ticks.
    assert 1 <= events["dist_output"]["count"] <= 23 + 2


def test_packets_are_counted_in_both_directions(nodes):
    """
    23 messages to another node are 23 packets out, 23 messages of it 23 packets in.
    """
    watched, _, via = nodes
    with trace(watched.pid, "--via", via, "--events", "dist_out,dist_in,exit") as run:
        watched.plant("remote 23")
        watched.plant("back 23")
        events = run.stop().events
    if via == "usdt":
        reason = "OTP has no USDT probe for single packets"
        unavailable = {"via": "unavailable", "reason": reason}
        assert [unavailable] * 2 == [events["dist_out"], events["dist_in"]]
        return
    # The request to send back is one more message, and so is the answer to the last of the others.
    assert 23 + 1 == events["dist_out"]["by_class"]["message"] == events["dist_out"]["count"]
    assert 23 + 1 == events["dist_in"]["by_class"]["packet"] == events["dist_in"]["count"]


def test_connections_that_are_lost_are_counted(nodes):
    """
    23 times that a node disconnects and connects again are 23 lost connections.
    """
    watched, _, via = nodes
    with trace(watched.pid, "--via", via, "--events", "dist_down,exit") as run:
        watched.plant("drops 23")
        event = run.stop().events["dist_down"]
    if via == "usdt":
        reason = "OTP's USDT probes do not carry the reason"
        assert {"via": "unavailable", "reason": reason} == event
        return
    assert 23 == event["count"]


def test_senders_to_a_node_that_does_not_read_are_busy(nodes, request):
    """
    Seven processes that are suspended because the buffer to a stopped node is full are counted.
    """
    watched, peer, via = nodes
    said = "passed"
    while said == "passed":  # the buffer was busy for long and not full: all of it again
        with trace(watched.pid, "--via", via, "--events", "dist_busy,exit") as run:
            peer.freeze()
            try:
                assert watched.ask("fill").startswith("done fill ")
                said = watched.ask("block 7")
            finally:
                peer.thaw()
            watched.expect("done block 7")
            event = run.stop().events["dist_busy"]
    assert "suspended 7" == said
    if via == "usdt":
        reason = "dist__port_busy was not seen to fire when senders were suspended"
        assert {"via": "unavailable", "reason": reason} == event
        return
    assert 7 == event["count"]
    if "hidden" not in request.node.callspec.id:  # erts_resume_processes is not sure enough there
        (durations,) = event["durations"].values()
        assert 7 == sum(bucket["count"] for bucket in durations["buckets"])


def test_a_node_is_called_by_its_name(nodes, request):
    """
    The document names the node as it calls itself.
    """
    watched, _, via = nodes
    with trace(watched.pid, "--via", via, "--events", "exit") as run:
        target = run.stop().document["target"]
    release = RELEASES.get(request.node.callspec.params["nodes"], "25")
    assert ("watched@127.0.0.1", release, "jit") == (
        target["node"],
        target["otp_release"],
        target["flavor"],
    )
