# SPDX-License-Identifier: Apache-2.0
"""
Settings of the BPF programs, where a part of a VM's memory does not fit.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from scope_ebpf.beam import layouts
from scope_ebpf.beam.layouts import checks
from scope_ebpf.beam.vm import constants
from scope_ebpf.beam.vm.constants import kernel_constants, known
from scope_ebpf.errors import ReadRefusedError

#: Of a connection to another node.
DIST = ("dist", "dsig")
#: Of a process: its own fields, its messages, and what crashes are named by.
PROCESS = ("process", "message", "slow", "registered", "map")


class Checks:
    """
    Checks of processes and of ports, each of which fails as often as it is planned to.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, processes: int, ports: int) -> None:
        self.left = {"processes": processes, "ports": ports}
        monkeypatch.setattr(constants, "ProcessTable", lambda *_: self.check("processes"))
        monkeypatch.setattr(constants, "check_ports", lambda _: self.check("ports"))
        monkeypatch.setattr(constants, "check_entry", lambda _: None)
        monkeypatch.setattr(constants, "_atoms", lambda _: {})
        monkeypatch.setattr(checks.time, "sleep", lambda _: None)

    def check(self, part: str) -> None:
        if self.left[part]:
            self.left[part] -= 1
            raise ReadRefusedError(f"{part} do not fit")

    def settings(self) -> tuple[set[str], list[str]]:
        target = SimpleNamespace(
            layout=layouts.load(25, usdt=False, interpreter=False),
            binary=SimpleNamespace(symbol=lambda _: None),
            otp_release="25",
        )
        settings, _, refused = kernel_constants(target)
        return {name.partition("_")[0] for name in known(settings)}, refused


@pytest.mark.parametrize(
    ("processes", "ports", "parts", "refused"),
    [
        (0, 0, {*PROCESS, "port", *DIST}, []),
        (0, 3, {*PROCESS, "port", *DIST}, []),
        (0, 1000, {*PROCESS, *DIST}, ["ports do not fit"]),
        (1, 0, {"slow", "port", *DIST}, ["processes do not fit"]),
    ],
)
def test_what_does_not_fit_takes_nothing_else_along(
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    ports: int,
    parts: set[str],
    refused: list[str],
):
    """
    Ports that change while they are checked are checked again, and lose no offset of a process.
    """
    assert (parts, refused) == Checks(monkeypatch, processes, ports).settings()


def test_a_layout_that_is_refused_is_told_once(monkeypatch: pytest.MonkeyPatch):
    """
    Each part needs it, and the reason is the same for all.
    """

    class Target:
        binary = SimpleNamespace(symbol=lambda _: None)

        @property
        def layout(self) -> layouts.Layout:
            raise ReadRefusedError("no layout")

        memory = address = None

    monkeypatch.setattr(constants, "check_entry", lambda _: None)
    monkeypatch.setattr(checks.time, "sleep", lambda _: None)
    assert ["no layout"] == kernel_constants(Target()).refused
