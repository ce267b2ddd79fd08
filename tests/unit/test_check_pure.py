# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace

import documents
import numpy as np
import pytest
from beam_image import Image, ImageMemory
from profile_fixtures import TARGET

from scope_ebpf.beam.held.tables import ROW as TABLE
from scope_ebpf.beam.vm.nifs import NativeFunction
from scope_ebpf.beam.vm.schedulers import Queue, Scheduler
from scope_ebpf.beam.vm.threads import Thread
from scope_ebpf.cgroups import MemoryLimit, Throttled
from scope_ebpf.checks import held, machine, processes, waits
from scope_ebpf.checks.held import Held
from scope_ebpf.checks.machine import Ending, Quota
from scope_ebpf.checks.processes import Restarts, restarts
from scope_ebpf.checks.schedulers import Threads
from scope_ebpf.checks.waits import Calls, Suspended, _circles, _roots
from scope_ebpf.cli import check as command
from scope_ebpf.cli import main as cli
from scope_ebpf.errors import NoAnswerError, ReadRefusedError, TooMuchError
from scope_ebpf.results.check import KINDS, Check, Finding, Name
from scope_ebpf.sinks.check import lines


def finding(kind: str = "mailbox", severity: str = "warning", **more: object) -> Finding:
    text = ("12 messages wait for ", Name("name", "shop"))
    return Finding(kind, severity, {"name": "shop"}, text, {"messages": 12}, **more)


def check(*findings: Finding) -> Check:
    return Check(TARGET, 3.0, [*findings], ["mailboxes"])


def test_the_most_severe_and_certain_finding_comes_first():
    """
    Then causes before what follows from them, then the larger.
    """
    order = [
        finding("deadlock", "critical"),
        finding("mailbox", "critical", confidence="likely"),
        finding("limit"),
        finding("mailbox", weight=9),
        finding("mailbox", weight=2),
    ]
    assert order == check(*reversed(order)).sorted()


def test_ten_findings_are_shown_and_the_rest_is_counted():
    """
    Those that were made, and those that were only counted.
    """
    found = check(*[finding(weight=n) for n in range(13)])
    found.more["mailbox"] = 987
    document = documents.validated(found.as_json())
    assert 10 == len(document["findings"])
    assert (1000, {"mailbox": 990}) == (document["findings_total"], document["left_out"])
    assert document["verdict"]["summary"].endswith("(999 more)")
    assert "and 990 findings more: 990 mailbox" in lines(document)


@pytest.mark.parametrize(
    ("severity", "at", "fails"),
    [
        ("warning", "warning", True),
        ("warning", "critical", False),
        ("critical", "warning", True),
    ],
)
def test_a_finding_fails_from_the_asked_severity_on(severity, at, fails):
    """
    Nothing found never fails.
    """
    assert fails == check(finding(severity=severity)).fails(at)
    assert not check().fails(at)


def test_names_in_sentences_are_written_by_who_redacts_them():
    """
    No command has a name in it, so nothing of a VM gets into a shell.
    """
    found = check(finding(next=("ps {pid} 0.85.0",)))
    document = found.as_json(lambda name: f"({name.key})", redacted=True)
    assert "12 messages wait for (name)" == document["findings"][0]["summary"]
    assert [f"scope-trace ps {TARGET['pid']} 0.85.0"] == document["findings"][0]["next"]


def test_a_part_that_was_not_looked_at_makes_the_outcome_partial():
    """
    A verdict that nothing is wrong says so, too.
    """
    found = check()
    found.not_checked["memory"] = "it is hidden"
    document = documents.validated(found.as_json())
    assert ("partial", "good") == (document["outcome"], document["verdict"]["severity"])
    assert "1 could not be looked at" in document["verdict"]["summary"]
    assert "not looked at: memory: it is hidden" in lines(document)


def test_control_characters_of_names_do_not_reach_a_terminal():
    """
    Neither does a second line.
    """
    evil = Finding("mailbox", "warning", {}, (Name("name", "a\x1b[2J\nb"),), {})
    assert [] == [line for line in lines(check(evil).as_json()) if "\x1b" in line or "\n" in line]


def test_circles_of_waiting_are_found_once_and_chains_have_a_root():
    """
    What waits for a circle is no part of it.
    """
    waits = {1: 2, 2: 3, 3: 1, 7: 1, 8: 9}
    assert [[1, 2, 3]] == _circles(waits)
    assert 9 == _roots(waits)[8]
    assert _roots(waits)[7] in (1, 2, 3)


def test_a_circle_of_thousands_is_told_by_its_length_and_some_names():
    """
    5,023 processes: each is counted, ten are evidence, four are in the sentence.
    """
    waits = {pid: pid % 5023 + 1 for pid in range(1, 5024)} | {6000 + n: 7 for n in range(23)}
    scene = SimpleNamespace(seconds=3.0, rows_of=lambda pids: pids, involved=involved)
    calls = object.__new__(Calls)
    calls._scene = scene
    (circle,) = _circles(waits)
    document = documents.validated(check(calls._deadlock(circle, waits)).as_json())
    (one,) = document["findings"]
    assert (
        "deadlock: 5,023 processes wait for each other's reply: p1 -> p2 -> p3 -> p4 -> "
        "5,019 more -> p1; 23 more wait for them"
    ) == one["summary"]
    assert (5023, 23, 10) == (
        one["evidence"]["count"],
        one["evidence"]["waiting"],
        len(one["evidence"]["processes"]),
    )


def involved(pids: list[int]) -> list[dict[str, str | None]]:
    return [
        {"process": f"<0.{pid}.0>", "name": f"p{pid}", "initial_call": None, "function": None}
        for pid in pids
    ]


def test_restarts_of_supervisors_are_counted_within_a_bound():
    """
    Seven, a list that leads back to itself, a list of other terms; no state is no supervisor.
    """
    image = Image()
    state, other = 5 << 6 | 0xB, 6 << 6 | 0xB
    seven = 0x3B
    for n in range(7):
        seven = image.words(n << 4 | 0xF, seven) | 1
    endless = image.words(1 << 4 | 0xF, 0) | 1
    image.data[-8:] = struct.pack("<Q", endless)
    stops = []
    for tag, found in ((state, seven), (state, endless), (state, image.words(state, 0x3B) | 1),
                       (other, seven)):  # fmt: skip
        fields = (11 << 6, tag, 0, 0, 0, 0, 3 << 4 | 0xF, 10 << 4 | 0xF, found, 0, 0, 0)
        stops.append(image.words(0x3B, image.words(*fields) | 2))
    rows = np.zeros(4, [("id", "<u8"), ("stop", "<u8"), ("stack_words", "<u8")])
    rows["id"], rows["stop"], rows["stack_words"] = [1, 2, 3, 4], stops, 2
    atoms = SimpleNamespace(text=lambda term: {state: "state", other: "other"}[term])
    viewer = SimpleNamespace(target=SimpleNamespace(memory=ImageMemory(image.data)), atoms=atoms)
    assert {
        1: Restarts(7, 10, cut=False),
        2: Restarts(processes._CELLS - 8, 10, cut=True),
        3: Restarts(0, 10, cut=False),
    } == restarts(viewer, rows)


def test_a_full_link_has_a_next_command(monkeypatch: pytest.MonkeyPatch):
    """
    As the other findings: the command that shows the link, with the VM's pid filled in.
    """
    reader = SimpleNamespace(full=lambda: [(1, 4096, [7, 8])])
    monkeypatch.setattr(waits, "ConnectionReader", lambda _: reader)
    viewer = SimpleNamespace(atoms=SimpleNamespace(text=lambda _: "peer@host"))
    scene = SimpleNamespace(
        target=None, viewer=viewer, seconds=3.0, rows_of=lambda pids: pids, involved=lambda _: []
    )
    (found,) = Suspended(scene)._links({7, 8, 9})
    document = documents.validated(check(found).as_json())
    (one,) = document["findings"]
    assert ("full_link", 2) == (one["kind"], one["evidence"]["count"])
    assert [f"scope-trace links {TARGET['pid']} --once"] == one["next"]


def test_what_fills_the_memory_is_the_next_command(monkeypatch: pytest.MonkeyPatch):
    """
    Of a cgroup, of atoms, of what is outside of the allocators, and of empty carriers.
    """
    limit = MemoryLimit(95, 100, 3)
    monkeypatch.setattr(machine, "memory_limit", lambda _: limit)
    counts = SimpleNamespace(processes=1, ports=1, atoms=90)
    limits = SimpleNamespace(processes=100, ports=100, atoms=100)
    counters = SimpleNamespace(read=lambda: counts, limits=lambda: limits)
    monkeypatch.setattr(machine, "CounterReader", lambda _: counters)
    monkeypatch.setattr(processes, "AllocatorReader", lambda _: None)
    monkeypatch.setattr(processes, "read_bounded", lambda _: b"RssAnon:\t 900000 kB\n")
    atoms = SimpleNamespace(texts=dict.fromkeys)
    target, viewer = SimpleNamespace(pid=1), SimpleNamespace(atoms=atoms)
    scene = SimpleNamespace(target=target, viewer=viewer, seconds=3.0)
    memory = processes.Memory(scene)
    empty = SimpleNamespace(name="eheap", carriers=300_000_000, blocks=100_000_000)
    found = [
        *Quota(scene)._memory(),
        *machine.Tables(scene).findings(),
        *memory._outside((empty,)),
        *memory._fragmented((empty,)),
    ]
    assert ["memory", "limit", "outside", "fragmentation"] == [one.kind for one in found]
    document = documents.validated(check(*found).as_json())
    for one in document["findings"]:
        assert f"scope-trace memory {TARGET['pid']}" == one["next"][0], one["kind"]


def test_a_check_says_on_stderr_that_it_has_begun(monkeypatch, capsys):
    """
    Before it looks, so that who waits for it knows for how long; a document alone is on stdout.
    """
    said = []

    def looked(_target: object, _seconds: float) -> Check:
        said.append(capsys.readouterr().err)
        return Check(TARGET, 3.0, [], ["mailboxes", "memory"])

    monkeypatch.setattr(command, "target_of", lambda _: SimpleNamespace(pid=41))
    monkeypatch.setattr(command, "check", looked)
    assert 0 == command.run(cli.parsed(["check", "41"]))
    assert ["scope-trace: checking process 41 for 3 s; Ctrl-C ends it\n"] == said
    assert capsys.readouterr().out.startswith("good: nothing was found; 2 parts were looked at\n")


def test_every_kind_is_documented():
    """
    The published list is that of the schema.
    """
    text = (Path(__file__).parents[2] / "docs/check.md").read_text()
    assert [] == [kind for kind in KINDS if f"| `{kind}` |" not in text]


def test_a_vm_that_halts_names_its_code_and_what_it_waits_for():
    """
    Two ports or schedulers, with the code that it was given; one that does not halt is well.
    """
    words = {1: 2, 2: 0xFFFFFFFF - 22}
    memory = SimpleNamespace(u32=words.__getitem__)
    symbols = {"erts_halt_progress": 1, "erts_halt_code": 2}
    ending = Ending(
        SimpleNamespace(target=SimpleNamespace(address=symbols.__getitem__, memory=memory))
    )
    (found,) = ending._halting()
    assert ("halting", "critical", 2) == (found.kind, found.severity, found.evidence["waiting"])
    assert "halts with code -23 and waits for 2 of its ports and schedulers" in found.text()
    words[1] = 0xFFFFFFFF
    assert [] == ending._halting()
    assert {} == ending.refused


def test_a_build_that_hides_whether_it_halts_is_not_said_to_be_checked():
    """
    The reason is shown instead.
    """

    def hidden(name: str) -> int:
        raise ReadRefusedError(f"{name} is hidden")

    scene = Halting(hidden, np.array([False, False]))
    ending = Ending(scene)
    assert [] == ending._halting()
    assert {"halting": "erts_halt_progress is hidden"} == ending.refused
    # One that is in erlang:halt/2 and stays there is another witness.
    ending = Ending(Halting(hidden, np.array([False, True])))
    (found,) = ending._halting()
    assert ("halting", "critical", {}) == (found.kind, found.severity, ending.refused)
    assert "the VM halts: shop has been in erlang:halt/2 for 3.0 s or longer" in found.text()
    assert scene.asked(("erlang", "halt", 2, "bif"))
    assert not scene.asked(("erlang", "halt", 1, "bif"))


class Halting:
    """
    Two processes, those of which are in erlang:halt/2 that *here* says.
    """

    seconds = 3.0

    def __init__(self, address, here: np.ndarray) -> None:
        self.target = SimpleNamespace(address=address)
        rows = np.zeros(2, [("id", np.uint64)])
        rows["id"] = (23, 42)
        self.first = SimpleNamespace(rows=rows)
        self._here = dict(zip(rows["id"].tolist(), here.tolist(), strict=True))
        self.viewer = SimpleNamespace(names=SimpleNamespace(in_functions=self._in))

    def _in(self, rows: np.ndarray, asked) -> np.ndarray:
        self.asked = asked
        return np.array([self._here[pid] for pid in rows["id"].tolist()], np.bool_)

    def rows_of(self, pids: list[int]) -> np.ndarray:
        return self.first.rows[np.isin(self.first.rows["id"], pids)]

    def involved(self, rows: np.ndarray) -> list[dict[str, str]]:
        return [{"process": "<0.5.0>", "name": "shop", "initial_call": None, "function": None}]


def test_an_ets_table_of_any_name_is_named_by_escapes(monkeypatch: pytest.MonkeyPatch):
    """
    A table of 90 % of the memory; its owner has ended meanwhile, and its name clears a screen.
    """
    rows = np.zeros(2, TABLE)
    rows["memory_bytes"], rows["objects"], rows["name"] = (90 << 20, 1 << 20), 23, 7 << 6 | 0xB
    reader = SimpleNamespace(read=lambda: SimpleNamespace(rows=rows))
    monkeypatch.setattr(held, "TableReader", lambda _: reader)
    part = object.__new__(Held)
    atoms = SimpleNamespace(texts=lambda _: {7: "\x1b[2J\nshop"})
    pids = SimpleNamespace(text=lambda _: "<0.9.0>")
    part._scene = SimpleNamespace(
        target=None,
        viewer=SimpleNamespace(atoms=atoms, pids=pids),
        rows_of=lambda _: rows[:0],
        involved=lambda _: [],
    )
    blocks = [
        SimpleNamespace(name="ets", blocks=91 << 20),
        SimpleNamespace(name="ll", blocks=9 << 20),
    ]
    (found,) = part._tables(SimpleNamespace(allocators=blocks, memory=None))
    assert ("ets", 90 << 20, 23) == (found.kind, found.evidence["bytes"], found.evidence["count"])
    assert {"process": "<0.9.0>", "name": None}.items() <= found.subject.items()
    assert "\x1b" not in "".join(lines(check(found).as_json()))
    # Below half of the memory tables are not read at all.
    blocks[1] = SimpleNamespace(name="ll", blocks=900 << 20)
    monkeypatch.setattr(held, "TableReader", None)
    assert [] == part._tables(SimpleNamespace(allocators=blocks, memory=None))


@pytest.mark.parametrize(("throttled", "severity"), [(23, "critical"), (11, "warning"), (5, None)])
def test_a_quota_that_holds_the_vm_back_is_found_by_its_periods(throttled, severity):
    """
    Of 30 periods while it was looked at; what was before does not count.
    """
    quota = object.__new__(Quota)
    quota._first = Throttled(1000, 100, 7.0)
    quota._last = Throttled(1030, 100 + throttled, 9.3)
    found = quota._throttled()
    assert ([severity] if severity else []) == [one.severity for one in found]
    for one in found:
        assert (throttled, 30) == (one.evidence["count"], one.evidence["limit"])
        assert "its threads for 2.3 s together" in one.text()


def test_all_schedulers_that_are_stuck_are_said_to_be_all():
    """
    Both for five seconds in one native function, with 23 that wait behind them.
    """
    nif = NativeFunction("/srv/names.so", "names_nif:spin/1", None)
    items = []
    for number in (1, 2):
        queue = Queue({"normal": 23 * (number == 1)}, 0, 0, 7)
        thread = Thread(number, "normal", number, "R", 5.0, 0)
        items.append(
            Scheduler(thread, "running", f"<0.{80 + number}.0>", "hasher", nif=nif, queue=queue)
        )
    threads = object.__new__(Threads)
    threads._looks = [(5.0, items)]
    threads._since = dict.fromkeys((1, 2), (None, 0.0, 0.0))
    found = threads._wedged()
    assert ("wedged", "critical", 23, 2) == (
        found.kind,
        found.severity,
        found.evidence["waiting"],
        found.evidence["count"],
    )
    assert found.text().startswith("every scheduler is at one process for 5.0 s or longer: <0.8")
    assert "names_nif:spin/1" in found.text()


@pytest.mark.parametrize(("cpu", "is_found"), [(0.7, True), (0.04, False)])
def test_spinning_is_found_by_the_cpu_that_it_takes(cpu, is_found):
    """
    One of two schedulers spins at each of 13 looks; on a host that is full it gets no CPU for it.
    """
    threads = object.__new__(Threads)
    threads._looks = [
        (
            0.25 * turn,
            [
                Scheduler(Thread(1, "normal", 1, "R", cpu * 0.25 * turn, 0), "busy-waiting"),
                Scheduler(Thread(2, "normal", 2, "S", 0.0, 0), "sleeping"),
            ],
        )
        for turn in range(13)
    ]
    found = threads._spinning()
    assert is_found == (found is not None)
    if found:
        assert (0.5, cpu) == (found.evidence["share"], found.evidence["per_second"])


@pytest.mark.parametrize("error", [ReadRefusedError("no tables"), TooMuchError("no tables")])
def test_tables_that_cannot_be_read_leave_timers_and_the_rest(error: Exception):
    """
    Each has its own reason; memory that does not come is for who called.
    """
    found = Finding("timers", "warning", {}, ("many",), {})

    def refused(_read: object) -> list[Finding]:
        raise error

    part = object.__new__(Held)
    part._allocators, part.refused = SimpleNamespace(read=lambda: None), {}
    part._tables, part._timers = refused, lambda _read: [found]
    assert [found] == part.findings()
    assert {"tables": "no tables"} == part.refused
    error = NoAnswerError("a page")
    with pytest.raises(NoAnswerError):
        part.findings()
