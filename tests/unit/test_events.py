# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from scope_ebpf import events


def test_every_record_is_64_bytes():
    """
    Every kind of record has the size of all others, so that a batch is one array.
    """
    sizes = {dtype.itemsize for dtype in (events.RECORD, *events.RECORDS.values())}
    assert {64} == sizes


@pytest.mark.parametrize("name", events.KINDS)
def test_every_record_begins_with_the_same_header(name: str):
    """
    Each kind has its header where any record has it.
    """
    header = events.RECORD.names[:-1]
    fields = {field: events.RECORD.fields[field] for field in header}
    assert fields == {field: events.RECORDS[name].fields[field] for field in header}


def test_kinds_are_numbered_in_order():
    """
    The number of a kind is its index in the maps and its bit in the settings.
    """
    assert list(range(len(events.KINDS))) == [kind.id for kind in events.KINDS.values()]


@pytest.mark.parametrize("kind", events.KINDS.values(), ids=lambda kind: kind.name)
def test_a_kind_speaks_of_what_it_has(kind: events.Kind):
    """
    Counted classes, histograms, units and absent values name classes and fields that exist.
    """
    assert {kind.counted} <= {None, *kind.classes}
    assert {kind.histogram} <= {None, "all", *kind.classes}
    assert len(kind.classes) <= events.CLASSES
    assert {*kind.units, *kind.absent} <= set(events.RECORDS[kind.name].names)


def test_every_event_can_be_seen():
    """
    Each kind of event has a variant.
    """
    assert set(events.KINDS) == {variant.event for variant in events.VARIANTS}


def test_every_program_has_a_hook_and_every_hook_a_program():
    """
    The programs that are counted are those that hooks name, each once.
    """
    assert sorted({h.program for w in events.VARIANTS for h in w.hooks}) == sorted(events.PROGRAMS)


def test_a_program_is_attached_to_entries_or_to_returns():
    """
    No program is attached to an entry by one hook and to a return by another.
    """
    sides: dict[str, set[bool]] = {}
    for hook in (h for w in events.VARIANTS for h in w.hooks):
        sides.setdefault(hook.program, set()).add(hook.returns)
    assert {} == {name: both for name, both in sides.items() if len(both) > 1}
