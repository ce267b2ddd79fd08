# SPDX-License-Identifier: Apache-2.0
"""
Layouts by version: which range describes a VM, and what happens to a version that none describes.
"""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from scope_ebpf.beam import layouts
from scope_ebpf.beam.layouts import live
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.processes import blocks, monitors
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator


def target(otp: str, erts: str) -> SimpleNamespace:
    """
    A target that says its versions, and hides every symbol.
    """
    binary = SimpleNamespace(symbol=lambda name: None)
    return SimpleNamespace(
        pid=1, otp_release=otp, erts_version=erts, usdt=False, flavor="jit", binary=binary
    )


# From the debug information of the headers of each version of OTP.
@pytest.mark.parametrize(
    ("otp", "erts", "struct", "field", "offset"),
    [
        ("24", "12.1.2", "ErtsAlignedSchedulerData", "sizeof", 41856),
        ("24", "12.2.1", "ErtsSchedulerData", "gc_info.garbage_cols", 41680),
        ("24", "12.3.2.17", "ErtsSchedulerData", "ets_tables.count", 41712),
        ("25", "13.0.4", "ErtsSchedulerData", "gc_info.garbage_cols", 41680),
        ("25", "13.0.4", "Allctr_t", "fix", 928),
        ("25", "13.1.5", "ErtsSchedulerData", "gc_info.garbage_cols", 41696),
        ("25", "13.2.2.5", "DistEntry", "total_qsize", 248),
        ("25", "13.2.2.11", "ErtsAlignedSchedulerData", "sizeof", 41792),
        ("26", "14.2.1", "ErtsPSD", "sizeof", 88),
        ("26", "14.2.5.5", "ErtsSchedulerData", "reductions", 41648),
        ("27", "15.0.1", "ErtsSchedulerData", "io.in", 41624),
        ("27", "15.2.7", "ErtsSchedulerData", "io.in", 41656),
        ("28", "16.4", "ErtsPSD", "sizeof", 112),
    ],
)
def test_the_version_of_erts_decides(otp: str, erts: str, struct: str, field: str, offset: int):
    """
    A field that moved within a release is where this version has it.
    """
    layout = live.layout_for(target(otp, erts))
    assert (offset, True) == (layout.offset(struct, field), layout.exact)


def test_monitors_are_numbered_as_the_version_does():
    """
    The kind of monitors that 24.3.4.3 and 25.0.4 brought is in no version before.
    """
    kinds = [
        live.layout_for(target(otp, erts)).facts.dist_port_monitors
        for otp, erts in (
            ("24", "12.3.2.2"),
            ("24", "12.3.2.3"),
            ("25", "13.0.3"),
            ("25", "13.0.4"),
        )
    ]
    assert [False, True, False, True] == kinds


@pytest.mark.parametrize("release", layouts.KNOWN)
def test_no_version_is_described_twice(release: int):
    """
    Ranges of one release do not overlap, and none is the same as its neighbour for nothing.
    """
    for usdt, interpreter in ((False, False), (True, False), (True, True)):
        found = layouts.ranges(release, usdt=usdt, interpreter=interpreter)
        for one, other in combinations(found, 2):
            assert one.last < other.first or other.last < one.first
            assert (one.structs, one.facts) != (other.structs, other.facts)


def everything() -> Iterator[layouts.Layout]:
    """
    Every layout there is.
    """
    for release in layouts.KNOWN:
        for usdt, interpreter in ((False, False), (True, False), (False, True), (True, True)):
            yield from layouts.ranges(release, usdt=usdt, interpreter=interpreter)


def test_every_field_lies_in_its_struct():
    """
    No field begins behind the end of its struct, where only an array without a length may begin.
    """
    indexes = ("proc", "msg_ref", "ll_ptimer", "hl_ptimer", "bif_timer", "monitor", "link")
    outside = {
        (struct, field)
        for layout in everything()
        for struct, fields in layout.structs.items()
        for field, at in fields.items()
        if field not in ("sizeof", *indexes) and at > fields["sizeof"] > 0
    }
    assert set() == outside


def test_messages_monitors_and_links_consist_of_the_same_parts_in_every_release():
    """
    What is taken for the same in all releases is so in every layout file.
    """
    assert all(blocks.as_ever(layout) and monitors.as_ever(layout) for layout in everything())


def test_a_field_outside_of_what_was_read_is_refused():
    """
    A layout may be wrong about the size of a struct, which is no error of the program.
    """
    rows = np.zeros((2, 16), np.uint8)
    assert (2,) == column(rows, 8, np.uint64).shape
    for offset in (-8, 9, 16):
        with pytest.raises(ReadRefusedError, match="does not lie in a struct of 16 bytes"):
            column(rows, offset, np.uint64)


def test_what_a_build_differs_in_is_kept_under_an_overlay():
    """
    A build with USDT probes has its own process, and the scheduler data of its version.
    """
    plain, usdt = (
        next(found for found in layouts.ranges(25, usdt=u, interpreter=False) if found.tag == tag)
        for u, tag in ((False, "OTP-25.0"), (True, "OTP-25.0"))
    )
    assert 16 == usdt.size("Process") - plain.size("Process")
    assert usdt.structs["ErtsSchedulerData"] == plain.structs["ErtsSchedulerData"]


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ({"OTP-25.3"}, None),
        (set(), "none passes the checks: the planted check does not hold"),
        ({"OTP-25.3", "OTP-25.1"}, r"several pass the checks \(OTP-25.1, OTP-25.3\)"),
    ],
)
def test_a_version_that_is_not_described_takes_what_alone_passes(
    monkeypatch: pytest.MonkeyPatch, passes: set[str], message: str | None
):
    """
    Of all ranges one is taken if it alone passes the checks; else none is.
    """

    def check(trial: SimpleNamespace) -> None:
        if trial.layout.tag not in passes:
            raise ReadRefusedError("the planted check does not hold")

    monkeypatch.setattr(live, "_CHECKS", (check,))
    unknown = target("25", "13.2.9")
    if message is None:
        layout = live.layout_for(unknown)
        assert ("OTP-25.3", False) == (layout.tag, layout.exact)
    else:
        with pytest.raises(ReadRefusedError, match=message):
            live.layout_for(unknown)


def test_a_version_that_is_described_is_not_searched_for(monkeypatch: pytest.MonkeyPatch):
    """
    No check runs where the version decides.
    """
    monkeypatch.setattr(live, "_CHECKS", (lambda _: pytest.fail("checked"),))
    base = layouts.load(25, usdt=False, interpreter=False)
    assert base._replace() == live.layout_for(target("25", "13.1.4"))
