# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import beams_run
import pytest
from tracing import require_root, trace

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The variants of conftest.py that have two nodes of a kind for these tests, and stock OTP 29,
#: which hides its functions.
VARIANTS = {
    "stock": ("stock25", "auto"),
    "usdt": ("usdt25", "usdt"),
    "hidden": ("sid29", "auto"),
}


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
    release = "29" if "hidden" in request.node.callspec.id else "25"
    assert ("watched@127.0.0.1", release, "jit") == (
        target["node"],
        target["otp_release"],
        target["flavor"],
    )
