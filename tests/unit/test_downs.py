# SPDX-License-Identifier: Apache-2.0
"""
Lost connections by peer and reason: totals that never fall, under a bounded number of labels.
"""

from __future__ import annotations

from dataclasses import replace

from test_metrics_exposition import exported, reading, samples

from scope_ebpf.attach.plan import DEFAULT_EVENTS
from scope_ebpf.metrics.downs import MOST, OTHER, REASONS, DownSums, DownTotal


def test_reasons_are_those_of_monitor_nodes():
    """
    What the VM calls normal is connection_closed, and what is no documented reason is other.
    """
    rows = [("b@h", "normal", 2), ("b@h", "connection_closed", 21), ("b@h", "net_tick_timeout", 1)]
    rows += [("b@h", "killed", 3), ("b@h", None, 4), (None, "disconnect", 5)]
    found = DownSums().update(rows)
    assert {
        ("b@h", "connection_closed", 23),
        ("b@h", "net_tick_timeout", 1),
        ("b@h", OTHER, 7),
        (OTHER, "disconnect", 5),
    } == {tuple(one) for one in found if one.total}


def test_no_loss_is_a_series_of_each_reason():
    """
    From 0 on, so that Prometheus sees the first one as an increase.
    """
    assert tuple(DownTotal(OTHER, reason, 0) for reason in REASONS) == DownSums().update(())


def test_later_peers_are_other_with_their_reason_and_no_series_falls():
    """
    The first pairs keep their series when peers are lost more often later.
    """
    sums = DownSums(most=2)
    first = [("a@h", "disconnect", 3), ("b@h", "normal", 2), ("c@h", "net_tick_timeout", 1)]
    named = {("a@h", "disconnect"), ("b@h", "connection_closed")}
    assert named == {(one.peer, one.reason) for one in sums.update(first)[:2]}
    later = sums.update([*first[:2], ("c@h", "net_tick_timeout", 500), ("d@h", "killed", 40)])
    assert named == {(one.peer, one.reason) for one in later[:2]}
    assert {"net_tick_timeout": 500, OTHER: 40} == {
        one.reason: one.total for one in later[2:] if one.total
    }
    assert 3 + 2 + 540 == sum(one.total for one in later)


def test_a_peer_may_be_called_other_or_obey_no_rule():
    """
    It is counted with the others; control characters and long names are no labels.
    """
    found = DownSums().update([(OTHER, "normal", 2), ("a@\x1b[2J" + "h" * 500, "normal", 1)])
    assert [2] == [one.total for one in found if one.peer == OTHER and one.total]
    assert "\x1b" not in found[0].peer
    assert len(found[0].peer) < 500
    assert len(found) == len({one[:2] for one in found})


def test_lost_connections_are_exported_and_many_peers_make_few_series():
    """
    A peer has its series; of 500 peers with several reasons each there are 14 series at most.
    """
    rows = [(f"p{n}@h", reason, 23) for n in range(500) for reason in ("normal", "killed")]
    text = samples(exported(replace(reading(), downs=DownSums().update(rows))))
    found = [one for one in text if one.name == "beam_node_down_total"]
    assert MOST + len(REASONS) == len(found)
    assert 500 * 2 * 23 == sum(one.value for one in found)
    assert "dist_down" in DEFAULT_EVENTS
    assert not [one for one in samples(exported(reading())) if one.name == "beam_node_down_total"]
