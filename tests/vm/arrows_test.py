# SPDX-License-Identifier: Apache-2.0
"""
What `export --to perfetto` makes of a recorded ring, read back where there is no SQL engine.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from perfetto_read import Read
from test_record import N, ring
from tracing import scope_trace

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ring"]


def test_each_message_of_a_ring_is_an_arrow(ring, tmp_path: Path):
    """
    Of 23 processes that pass 23 messages each, every message is an arrow to the next process.
    """
    path, _, handled = ring
    target = tmp_path / "run.pftrace"
    said = scope_trace("export", str(path), "--to", "perfetto", "-o", str(target))
    assert 0 == said.code, said.errors
    events = Read(target.read_bytes()).events
    to = {n: notes["to"] for *_, event, notes in events for n in event.flow_ids}
    sender = {n: notes["from"] for *_, event, notes in events for n in event.terminating_flow_ids}
    passed = collections.Counter((sender[n], to[n]) for n in sender if sender[n] in handled)
    pids = list(handled)
    following = zip(pids, pids[1:] + pids[:1], strict=True)
    assert dict.fromkeys(following, N) == passed
