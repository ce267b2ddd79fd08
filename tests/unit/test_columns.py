# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from stream_fixtures import UNKNOWN, Terms, record

from scope_ebpf import events
from scope_ebpf.sinks.columns import columns


def test_units_are_those_of_people():
    """
    Nanoseconds become seconds and words become bytes, and the labels say so.
    """
    one = record(
        "gc", process=3, duration_ns=1_500_000_000, reclaimed=100, live=7, **{"class": "major"}
    )
    expected = {
        "pid": ["t3"],
        "class": ["major"],
        "duration_seconds": [1.5],
        "reclaimed_bytes": [800],
        "live_bytes": [56],
    }
    assert expected == columns("gc", one, Terms())


def test_absent_values_are_none():
    """
    A value that is not known is None in every unit, and its neighbours in the column are not.
    """
    rows = np.concatenate(
        [
            record("gc", process=0, duration_ns=UNKNOWN, reclaimed=UNKNOWN, live=UNKNOWN),
            record("gc", process=5, duration_ns=1, reclaimed=1, live=0),
        ]
    )
    expected = {
        "pid": [None, "t5"],
        "class": ["unknown", "unknown"],
        "duration_seconds": [None, 1e-09],
        "reclaimed_bytes": [None, 8],
        "live_bytes": [None, 0],
    }
    assert expected == columns("gc", rows, Terms())


def test_an_address_may_be_absent():
    """
    An address of 0 is no address.
    """
    one = record("long_call", process=3, duration_ns=2_000_000, code=0, native=4096)
    expected = {
        "pid": ["t3"],
        "class": ["nif"],
        "duration_seconds": [0.002],
        "code": [None],
        "native": [4096],
    }
    assert expected == columns("long_call", one, Terms())


def test_the_name_of_a_port_is_text():
    """
    A port's name ends at its zero byte, or at the 24 there is room for; any byte is a character.
    """
    rows = np.concatenate(
        [
            record("port_open", process=3, port=9, name=b"tcp_inet"),
            record("port_open", process=3, port=9, name=b"\xff" * 24),
        ]
    )
    assert ["tcp_inet", "\xff" * 24] == columns("port_open", rows, Terms())["name"]


def test_each_term_is_asked_for_once():
    """
    The text of a term that comes again and again is made once for a batch.
    """
    terms = Terms()
    rows = np.concatenate([record("hibernate", process=p) for p in (5, 3, 5, 5, 3)])
    assert {"pid": ["t5", "t3", "t5", "t5", "t3"]} == columns("hibernate", rows, terms)
    assert [([3, 5], False)] == terms.asked


def test_pids_that_were_text_are_distinguished():
    """
    Records of USDT probes hold pids in another form, which is passed to the maker of texts.
    """
    terms = Terms()
    columns("spawn", record("spawn", process=3, flags=events.FLAG_TEXT_PID), terms)
    assert {True} == {text_pids for _, text_pids in terms.asked}


@pytest.mark.parametrize("name", events.KINDS)
def test_every_kind_has_columns(name: str):
    """
    Each kind has a column for each of its own fields, and none for what fills it up.
    """
    own = events.RECORDS[name].names[len(events.RECORD.names) - 1 :]
    table = columns(name, record(name), Terms())
    extra = 2 if len(events.KINDS[name].classes) > 1 else 1
    extra += "form" in own  # with the reference of its call
    assert len([field for field in own if field != "reserved"]) == len(table) - extra
    assert {1} == {len(values) for values in table.values()}


def test_a_batch_that_is_not_contiguous_is_fine():
    """
    Every second record of a ring is as good as all of them.
    """
    rows = np.concatenate([record("hibernate", process=p) for p in (1, 2, 3, 4)])[::2]
    assert {"pid": ["t1", "t3"]} == columns("hibernate", rows, Terms())
