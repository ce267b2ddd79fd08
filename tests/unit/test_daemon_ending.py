# SPDX-License-Identifier: Apache-2.0
"""
How the daemon ends while its threads wait for memory that does not come.
"""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace

import pytest

from scope_ebpf.daemon import loop
from scope_ebpf.daemon.blackbox import BlackBox
from scope_ebpf.daemon.looks.owners import ROOT
from scope_ebpf.daemon.loop import Daemon, Threads
from scope_ebpf.daemon.readings import findings
from scope_ebpf.daemon.readings.findings import Findings
from scope_ebpf.daemon.readings.marks import MarkWindows
from scope_ebpf.daemon.readings.servers import ServerLooks
from scope_ebpf.daemon.readings.snapshots import Snapshots
from scope_ebpf.daemon.readings.telemetry import TelemetryLooks
from scope_ebpf.errors import ReadRefusedError

#: Seconds after which a thread that waits for memory gives up, and the test fails.
PATIENCE = 30.0


class Hanging:
    """
    A VM whose memory does not come until the readers are closed.
    """

    owner, income, hooks = ROOT, 1.0, None
    reading = SimpleNamespace(counters=SimpleNamespace(processes=1))

    def __init__(self) -> None:
        identity = SimpleNamespace(check=lambda: None, process=None)
        self.target = SimpleNamespace(pid=7, identity=identity)
        self.waits, self.closed, self.outcome = threading.Event(), threading.Event(), ""

    def read(self, *_: object) -> None:
        self.waits.set()
        self.outcome = "woken" if self.closed.wait(PATIENCE) else "joined first"
        raise ReadRefusedError("no memory is read any more")


@pytest.mark.parametrize("which", ["snapshots", "findings", "servers", "telemetry", "marks"])
def test_threads_are_woken_before_they_are_joined(which: str, monkeypatch: pytest.MonkeyPatch):
    """
    All are asked to end first, so that none begins with another target meanwhile.
    """
    vm = Hanging()
    config = SimpleNamespace(top=1, snapshot_interval=1.0, findings_interval=0.001, genservers=60)
    config.marks = 60
    config.telemetry = SimpleNamespace(series=200)
    reported = Counter()
    monkeypatch.setattr(loop, "notify", lambda _: None)
    monkeypatch.setattr(findings, "_PASS", 0.01)
    monkeypatch.setattr(findings, "replace", lambda target, **_: target)
    monkeypatch.setattr(findings, "Memory", lambda *_: None)
    monkeypatch.setattr("scope_ebpf.daemon.readings.snapshots._PASS", 0.01)
    monkeypatch.setattr("scope_ebpf.daemon.readings.snapshots.Readers", vm.read)
    given = (lambda: [vm], lambda: config, reported)
    daemon = object.__new__(Daemon)
    daemon.threads = Threads(
        snapshots=Snapshots(*given),
        findings=Findings(*given, look=vm.read),
        servers=ServerLooks(*given, make=vm.read),
        blackbox=BlackBox(*given),
        telemetry=TelemetryLooks(*given, make=vm.read),
        marks=MarkWindows(*given, make=vm.read),
    )
    stopped = []
    daemon.discovery = SimpleNamespace(stop=lambda: None, close=lambda: None)
    daemon.targets = SimpleNamespace(
        close=lambda: stopped.extend(each._ended.is_set() for each in daemon.threads)
    )
    daemon.readers = SimpleNamespace(close=vm.closed.set)
    getattr(daemon.threads, which).start()
    if which != "snapshots":
        daemon.threads.snapshots._thread = SimpleNamespace(join=lambda: None)
    assert vm.waits.wait(PATIENCE)
    daemon._end()
    assert ("woken", [True] * 6, Counter()) == (vm.outcome, stopped, reported)
