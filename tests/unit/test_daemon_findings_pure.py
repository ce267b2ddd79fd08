# SPDX-License-Identifier: Apache-2.0
"""
When the daemon checks which target, and what it keeps of a check.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from beam_image import make
from profile_fixtures import TARGET
from test_beam_memory_image import view

from scope_ebpf.checks.scene import Scene
from scope_ebpf.daemon.looks.owners import ROOT, Owner
from scope_ebpf.daemon.readings import findings
from scope_ebpf.daemon.readings.findings import Findings, reading_of
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError, ReadRefusedError, TooMuchError
from scope_ebpf.metrics.findings import FindingsReading
from scope_ebpf.results.check import KINDS, Check, Finding, Name

REFUSED = ReadRefusedError("the layout does not fit")


@dataclass(eq=False)
class Watched:
    """
    A watch with planned results: checks, or exceptions that are raised.
    """

    pid: int = 7
    owner: Owner = ROOT
    planned: list = field(default_factory=list)
    income: float = 0.002
    processes: int = 50
    found: FindingsReading = field(default_factory=FindingsReading)
    error: Exception | None = None
    checks: int = 0

    def __post_init__(self) -> None:
        self.target = Target(self)
        self.reading = SimpleNamespace(counters=SimpleNamespace(processes=self.processes))

    def publish_findings(self, found: FindingsReading) -> None:
        self.found = found

    def fail(self, error: Exception) -> None:
        self.error = error


@dataclass(eq=False)
class Target:
    """
    As much of a target as is asked for.
    """

    watch: Watched
    memory: object = None

    @property
    def pid(self) -> int:
        return self.watch.pid

    @property
    def identity(self) -> SimpleNamespace:
        return SimpleNamespace(process=None, check=lambda: None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """
    Checks of *watches*, each of which takes *cpu* seconds; *order* has the pids that were checked.
    """
    state = SimpleNamespace(
        watches=[], now=100.0, cpu=0.0, spent=0.0, order=[], errors=Counter(), during=lambda: None
    )
    monkeypatch.setattr(findings, "cpu_seconds", lambda: state.spent)
    monkeypatch.setattr(findings, "Memory", lambda *_: None)
    state.config = SimpleNamespace(findings_interval=60.0)

    def look(target: Target, seconds: float, wait) -> Check:
        watch = target.watch
        watch.checks += 1
        state.order.append(watch.pid)
        state.spent += state.cpu
        state.during()
        planned = watch.planned.pop(0) if watch.planned else Check(TARGET, seconds)
        if isinstance(planned, Exception):
            raise planned
        return planned

    state.checker = Findings(
        lambda: state.watches, lambda: state.config, state.errors, lambda: state.now, look
    )

    def go(seconds: float) -> int:
        """
        Let time pass, second by second; the number of checks in it.
        """
        before = len(state.order)
        for _ in range(int(seconds)):
            state.now += 1
            state.checker.check_one()
        return len(state.order) - before

    state.go = go
    return state


def test_a_target_is_checked_soon_and_then_at_the_interval(run: SimpleNamespace):
    """
    First 15 s after observation began, then each 60 s.
    """
    run.watches = [Watched()]
    assert 0 == run.go(15)
    assert 1 == run.go(1)
    assert 0 == run.go(59)
    assert 1 == run.go(1)
    assert 10 == run.go(600)


def test_an_expensive_check_is_repeated_within_the_budget(run: SimpleNamespace):
    """
    A check of 0.9 s is made once in 0.9 / (0.1 * 0.002) = 4,500 s; of a VM with ten times the
    budget ten times as often.
    """
    run.cpu = 0.9
    run.watches = [Watched(1), Watched(2, income=0.02)]
    run.go(9030)
    counts = Counter(run.order)
    assert 3 == counts[1]
    assert 20 <= counts[2] <= 21


def test_owners_take_turns(run: SimpleNamespace):
    """
    One of many VMs of a user waits for its turn; the only VM of another user does not.
    """
    run.watches = [Watched(pid, Owner(666, "")) for pid in range(10, 20)]
    run.watches.append(Watched(1, Owner(1000, "")))
    run.go(18)
    assert 1 in run.order[:2]


def test_a_failed_check_shows_no_findings_and_is_repeated_later(run: SimpleNamespace, caplog):
    """
    The reason is published and logged once, until a good check, and the pause is doubled.
    """
    found = Check(TARGET, 3.0, [finding("mailbox")], ["mailboxes"])
    watch = Watched(planned=[found, REFUSED, REFUSED, found])
    run.watches = [watch]
    run.go(16)
    assert ["mailbox"] == [one.kind for one in watch.found.kinds]
    run.go(60)
    assert ((), "the layout does not fit") == (watch.found.kinds, watch.found.refused)
    assert watch.found.document is None
    run.go(60)
    assert 3 == watch.checks
    assert 0 == run.go(119)
    assert 1 == run.go(1)
    assert ("", 1) == (watch.found.refused, len(watch.found.kinds))
    assert 1 == len([one for one in caplog.records if one.msg == "not checked"])
    assert run.errors == {}


def test_a_failed_check_is_paid_for_as_any_other(run: SimpleNamespace):
    """
    One of 0.9 s is repeated after 0.9 / (0.1 * 0.002) = 4,500 s, too.
    """
    run.cpu = 0.9
    run.watches = [Watched(planned=[REFUSED] * 9)]
    assert 1 == run.go(4500)
    assert 1 == run.go(4500)


def test_a_good_check_halves_the_pause_after_a_failure(run: SimpleNamespace):
    """
    So a VM that fails every second time is not checked as often as one that never does.
    """
    good = Check(TARGET, 3.0)
    run.watches = [Watched(planned=[REFUSED, REFUSED, REFUSED, good, REFUSED, good, good, good])]
    assert 4 == run.go(16 + 60 + 120 + 240)
    assert 1 == run.go(60)
    assert 0 == run.go(239)
    assert 4 == run.go(1 + 3 * 60)


def test_a_check_that_the_end_interrupts_has_not_failed(run: SimpleNamespace, caplog):
    """
    Nothing is reported of the readers that are closed.
    """
    run.watches = [watch := Watched(planned=[REFUSED])]
    run.during = run.checker.stop
    assert 1 == run.go(20)
    assert ("", 0) == (watch.found.refused, len(caplog.records))


def test_an_unexpected_error_is_counted_and_affects_no_other_target(run: SimpleNamespace):
    """
    The other VM has its findings, and the reason is shown of the first.
    """
    broken, other = Watched(1, planned=[ValueError("odd")]), Watched(2)
    run.watches = [broken, other]
    run.go(20)
    assert Counter(snapshot=1) == run.errors
    assert "ValueError('odd')" == broken.found.refused
    assert other.found.document is not None


def test_a_target_whose_memory_hangs_is_given_to_the_loop(run: SimpleNamespace):
    """
    The loop drops it with the error; one that has ended is left to the loop as well.
    """
    hanging = Watched(1, planned=[NoAnswerError("no answer")])
    gone = Watched(2, planned=[NoSuchProcessError("ended")])
    run.watches = [hanging, gone]
    run.go(20)
    assert isinstance(hanging.error, NoAnswerError)
    assert gone.error is None
    assert run.errors == {}


@pytest.mark.parametrize("processes", [1 << 18, (1 << 18) + 1])
def test_a_vm_of_too_many_processes_is_not_checked(run: SimpleNamespace, processes: int):
    """
    Their rows would be in the daemon's memory at once.
    """
    run.watches = [watch := Watched(processes=processes)]
    run.go(20)
    assert (processes <= 1 << 18) == bool(watch.checks)
    assert bool(watch.checks) == (watch.found.refused == "")


def test_a_vm_of_more_processes_than_it_counts_is_not_checked(
    run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    """
    A table may claim 50 and have any number: a check by default reads 262,144 at most.
    """
    asked = []

    def scene(_target: object, _more: object, most: int | None) -> None:
        asked.append(most)
        raise TooMuchError("there are more")

    monkeypatch.setattr("scope_ebpf.runs.check.require_target", lambda *_: None)
    monkeypatch.setattr("scope_ebpf.runs.check.Scene", scene)
    default = Findings(list, lambda: run.config, Counter())
    with pytest.raises(TooMuchError):
        default.look(SimpleNamespace(identity=None, as_json=dict), 3.0, lambda _: None)
    assert [1 << 18] == asked


def test_each_reading_of_a_scene_is_of_so_many_processes_at_most(monkeypatch: pytest.MonkeyPatch):
    """
    The first one, and those between and at the end of a small table.
    """
    target = view(make(9)).target
    scene = Scene(target, Counter(), 9)
    scene.whole()
    monkeypatch.setattr(scene, "_most", 8)
    for read in (scene.whole, scene.end, lambda: Scene(target, Counter(), 8)):
        with pytest.raises(TooMuchError, match="more than 8 processes"):
            read()


def test_an_interval_of_0_ends_checks_and_findings(run: SimpleNamespace):
    """
    No old finding is shown for ever.
    """
    watch = Watched(planned=[Check(TARGET, 3.0, [finding("mailbox")], ["mailboxes"])])
    run.watches = [watch]
    run.go(16)
    assert watch.found.kinds
    run.config.findings_interval = 0.0
    assert 0 == run.go(200)
    assert FindingsReading() == watch.found


def finding(kind: str, severity: str = "warning", text: str = "12 messages wait") -> Finding:
    return Finding(kind, severity, {"name": text}, (Name("name", text),), {"newest": [text] * 50})


def test_a_kind_has_its_worst_severity_and_at_most_24_are_kept():
    """
    The critical ones come first, whatever the order of the findings.
    """
    every = [finding(kind) for kind in KINDS] + [finding("gc", "critical"), finding("gc")]
    kinds = reading_of(Check(TARGET, 3.0, every, ["x"]), 5.0).kinds
    assert ("gc", "critical") == kinds[0]
    assert 24 == len(kinds) == len({one.kind for one in kinds})


def test_what_a_vm_can_make_long_is_cut():
    """
    A check of a thousand findings with names of a megabyte is kept in some kilobytes.
    """
    long = Check(TARGET, 3.0, [finding("mailbox", text="x" * 1_000_000)] * 1000, ["x"])
    found = reading_of(long, 5.0).document
    assert len(json.dumps(found)) < 64_000
    assert 5 == len(found["findings"][0]["evidence"]["newest"])
    assert found["findings"][0]["summary"].endswith("x...")
