# SPDX-License-Identifier: Apache-2.0
"""
Looks at all VMs of a host, of which one may be hostile.
"""

from __future__ import annotations

import struct
import time
from dataclasses import fields
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from scope_ebpf.beam.memory.look_limits import spend
from scope_ebpf.beam.memory.roots import Roots
from scope_ebpf.beam.vm import discover, nifs
from scope_ebpf.beam.vm.discover import Refusal, beams
from scope_ebpf.cli.trouble import health
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from pathlib import Path

TOP = (1 << 64) - 1


def fails(_pid: int, _proc: Path) -> None:
    raise OverflowError("int too big to convert")


def reads(_pid: int, _proc: Path) -> None:
    for _ in range(100_000):
        spend(8)


@pytest.mark.parametrize(("look", "why"), [(fails, "int too big"), (reads, "50,000 readings")])
def test_one_vm_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look, why: str
):
    """
    Whatever a look at it leads to, and however much it would read, it is one refusal.
    """
    for pid in (7, 8, 9):
        (tmp_path / str(pid)).mkdir()
    monkeypatch.setattr(discover, "_has_schedulers", lambda _: True)
    monkeypatch.setattr(discover, "inspect", lambda pid, proc: look(pid, proc) if pid == 8 else pid)
    first, refused, last = beams(tmp_path)
    assert (7, 9) == (first, last)
    assert isinstance(refused, Refusal)
    assert why in str(refused.reason)


def test_one_vm_does_not_hide_what_is_wrong_with_others():
    """
    For a target that leads to an unforeseen error, that error is all that is shown.
    """
    seen = health([SimpleNamespace(pid=7), SimpleNamespace(pid=8)])
    assert [(None, None)] * 2 == [(one.trouble, one.usage) for one in seen]
    assert all("AttributeError" in one.refused for one in seen)


def test_an_address_that_a_file_makes_too_large_is_one_all_the_same(tmp_path: Path):
    """
    Neither an entry before the first address nor a symbol behind the last one leads out of them.
    """
    (tmp_path / "auxv").write_bytes(struct.pack("<QQ", 9, 5))
    base = discover._base(7, tmp_path, SimpleNamespace(relative=True, entry=10))
    assert TOP - 4 == base
    symbols = SimpleNamespace(symbol=lambda _: SimpleNamespace(address=TOP))
    assert TOP - 5 == Roots(SimpleNamespace(base=base, binary=symbols)).find("erts_port")


def test_a_mapping_is_found_by_its_bounds():
    """
    Between mappings, before the first and behind the last there is none.
    """
    made = [nifs._Mapping(start, start + 10, 0, "/lib") for start in (100, 200, 210)]
    found = [nifs._find(made, at) for at in (99, 100, 109, 110, 199, 209, 210, 219, 220)]
    first, second, third = made
    assert [None, first, first, None, None, second, third, third, None] == found
    assert nifs._find([], 5) is None


@pytest.mark.parametrize(
    ("uid", "mask", "said"),
    [
        (1000, "0", "belongs to another user: run as root, or with CAP_SYS_PTRACE and "),
        (0, "0", "may not be looked into: root lacks CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH here"),
        (0, "80000", "may not be looked into: root lacks CAP_DAC_READ_SEARCH here"),
        (0, "1ffffffffff", "may not be looked into, not even by root: a security module such as "),
    ],
)
def test_a_refusal_names_what_is_missing(
    uid: int, mask: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """
    Root is not asked to be root, but which capability is missing, or that none is.
    """
    status = tmp_path / "status"
    status.write_text(f"Name:\tx\nCapEff:\t{mask:0>16}\n")
    missing = partial(discover._missing_capabilities, status)
    monkeypatch.setattr(discover, "_missing_capabilities", missing)
    monkeypatch.setattr(discover, "in_user_namespace", lambda: False)
    monkeypatch.setattr(discover.os, "geteuid", lambda: uid)
    assert discover._forbidden(7).startswith(f"process 7 {said}")


def test_a_layout_that_is_refused_is_not_checked_at_every_tick(monkeypatch: pytest.MonkeyPatch):
    """
    It is checked again after 30 s, or after as long as the VM has lived; one that fits only once.
    """
    now, calls, fits = 1000.0, [], False

    def check(target: discover.Beam) -> str:
        calls.append(target)
        if not fits:
            raise ReadRefusedError("it does not fit")
        return "the layout"

    monkeypatch.setattr(discover, "layout_for", check)
    monkeypatch.setattr(time, "clock_gettime", lambda _: now)

    def beam(started: float) -> discover.Beam:
        names = [field.name for field in fields(discover.Beam)]
        return discover.Beam(**dict.fromkeys(names) | {"started": started})

    def checked(target: discover.Beam) -> int:
        with pytest.raises(ReadRefusedError, match="it does not fit"):
            _ = target.layout
        return len(calls)

    old, young = beam(100.0), beam(998.0)
    assert (1, 1, 2, 2) == (checked(old), checked(old), checked(young), checked(young))
    now = 1002.5
    assert (2, 3) == (checked(old), checked(young))
    now = 1030.5
    fits = True
    assert ("the layout", "the layout", 4) == (old.layout, old.layout, len(calls))
