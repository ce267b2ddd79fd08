# SPDX-License-Identifier: Apache-2.0
"""
What VMs may be called, at one moment and over time.
"""

from __future__ import annotations

import logging

import pytest

from scope_ebpf.daemon.looks.owners import ROOT, Owner
from scope_ebpf.daemon.names import LABELS, PERIOD, RENAMES, NodeLabels
from scope_ebpf.daemon.notify import LineLimit
from scope_ebpf.errors import HostError
from scope_ebpf.metrics.values import OTHER, Values

EVIL = Owner(666, "")


class Clock:
    """
    A clock that stands still.
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_first_vm_has_the_name_and_no_two_have_the_same_label():
    """
    A node whose name is another's name with its pid gets a different label.
    """
    labels = NodeLabels()
    assert "rabbit@prod" == labels.assign(1, "rabbit@prod", EVIL)
    assert "rabbit@prod_2" == labels.assign(3, "rabbit@prod#2", EVIL)
    assert "rabbit@prod#2" == labels.assign(2, "rabbit@prod", ROOT)
    labels.drop(1)
    assert "rabbit@prod#2" == labels.follow(2, "rabbit@prod")
    assert "nonode@nohost" == labels.assign(4, None, EVIL)
    assert "nonode@nohost#5" == labels.assign(5, None, EVIL)


def test_a_label_cannot_end_a_raw_string_of_promql():
    """
    The dashboards write names of chosen nodes between backquotes.
    """
    assert "a_}) or vector(1) #@b".replace("#", "_") == NodeLabels().assign(
        1, "a`}) or vector(1) #@b", EVIL
    )


def test_names_that_differ_in_what_cannot_be_printed_have_two_labels():
    """
    Characters are replaced before names are compared, so no VM can take the label of another.
    """
    labels = NodeLabels()
    one, other = (labels.assign(n, f"a{chr(n)}@b", EVIL) for n in (1, 2))
    assert one != other
    assert one.startswith("a?@b~")
    assert f"{one}#3" == labels.assign(3, one, EVIL)


def test_a_long_name_has_room_for_its_pid():
    """
    No label is longer than 255 characters, so that none is cut later.
    """
    labels = NodeLabels()
    assert [255, 242] == [len(labels.assign(pid, "x" * 255, EVIL)) for pid in (1, 2)]


def test_a_node_that_is_renamed_in_a_loop_keeps_a_label():
    """
    Three new names an hour, and each further change is counted; the old name is free.
    """
    clock = Clock()
    labels = NodeLabels(clock)
    labels.assign(1, None, EVIL)
    given = set()
    for turn in range(100):
        given.add(labels.follow(1, f"n{turn}@host"))
        given.add(labels.follow(1, "nonode@nohost"))
    assert {"nonode@nohost", "n0@host", "n1@host", "n2@host"} == given
    assert 100 - RENAMES == labels.held
    labels.follow(1, "late@host")
    clock.now += PERIOD
    assert "late@host" == labels.follow(1, "late@host")


def test_an_owner_cannot_start_vms_of_ever_new_names():
    """
    120 names an hour; those that it has had are free, and so is everything for root.
    """
    clock = Clock()
    labels = NodeLabels(clock)
    for pid in range(LABELS):
        labels.assign(pid, f"n{pid}@host", EVIL)
        labels.drop(pid)
    with pytest.raises(HostError, match="within an hour"):
        labels.assign(999, "new@host", EVIL)
    assert "n0@host" == labels.assign(999, "n0@host", EVIL)
    assert "new@host" == labels.assign(1000, "new@host", ROOT)
    clock.now += PERIOD
    assert "newer@host" == labels.assign(999, "newer@host", EVIL)


def test_names_in_rankings_come_at_a_bounded_rate():
    """
    Values in use stay; a hundred new ones an hour are admitted, and all others are one.
    """
    clock = Clock()
    values = Values(clock=clock)
    for number in range(100):
        assert f"p{number}" == values.admit(f"p{number}")
    assert [OTHER, "p0", "p99"] == [values.admit(name) for name in ("p100", "p0", "p99")]
    assert 1 == values.held
    clock.now += 3599
    assert "p0" == values.admit("p0")
    clock.now += 1
    assert ["p100", "p0"] == [values.admit(name) for name in ("p100", "p0")]


def line(message: str, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("x", logging.INFO, "", 0, message, (), None)
    record.fields = fields
    return record


def test_log_lines_about_one_owner_are_limited_and_counted():
    """
    A burst, then one a minute with the number of suppressed ones; others pass, and all of root's.
    """
    clock = Clock()
    limit = LineLimit(5, clock)
    passed = [limit.filter(line("renamed", owner=EVIL)) for _ in range(20)]
    assert [True] * 5 + [False] * 15 == passed
    assert all(limit.filter(line("renamed", owner=ROOT)) for _ in range(20))
    assert limit.filter(line("refused", owner=EVIL))
    clock.now += 60
    record = line("renamed", owner=EVIL)
    assert limit.filter(record)
    assert {"owner": EVIL, "held_back": 15} == record.fields
    assert 15 == limit.held
