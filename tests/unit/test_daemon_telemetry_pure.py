# SPDX-License-Identifier: Apache-2.0
"""
When the daemon reads whose telemetry, and what its hooks count for.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.beam.telemetry import library
from scope_ebpf.beam.telemetry.encoding import Decoder
from scope_ebpf.budget.strata import Estimate
from scope_ebpf.daemon import telemetry as hooks
from scope_ebpf.daemon import telemetry_slot
from scope_ebpf.daemon.looks.owners import ROOT, Owner
from scope_ebpf.daemon.readings import telemetry
from scope_ebpf.daemon.readings.telemetry import Sight, TelemetryLooks
from scope_ebpf.daemon.telemetry import Crop, TelemetryHooks
from scope_ebpf.daemon.telemetry_slot import TelemetrySlot
from scope_ebpf.errors import (
    HostError,
    NoAnswerError,
    NoSuchProcessError,
    NothingToAttachError,
    ReadRefusedError,
)
from scope_ebpf.metrics.telemetry import Span, TelemetryReading
from scope_ebpf.runs import telemetry_hooks
from scope_ebpf.telemetry.specs import Spec, of_series

REFUSED = ReadRefusedError("code is being loaded")


@dataclass(eq=False)
class Watched:
    """
    A watch whose telemetry is there or not, and whose looks have planned failures.
    """

    pid: int = 7
    has: bool = True
    planned: list = field(default_factory=list)
    income: float = 0.02
    owner: Owner = ROOT
    found: TelemetryReading = field(default_factory=TelemetryReading)
    error: Exception | None = None
    refused: Exception | None = None
    offers: list = field(default_factory=list)
    moves: list = field(default_factory=list)
    looks: int = 0
    crops: int = 0
    moved: list | None = None

    def __post_init__(self) -> None:
        identity = SimpleNamespace(check=lambda: None)
        self.target = SimpleNamespace(pid=self.pid, identity=identity, watch=self)

    def offer_telemetry(self, offer: object) -> None:
        self.refused = None
        self.offers.append(offer)

    def move_telemetry(self, addresses: object) -> None:
        self.moves.append(addresses)

    def specify_telemetry(self, specified: object) -> None:
        raise AssertionError(specified)

    def take_telemetry(self) -> Crop | None:
        if self.refused:
            raise self.refused
        self.crops += 1
        empty = np.zeros(0)
        return Crop(empty, empty, [], Span(5.0, 1.0, {}, {}))

    def publish_telemetry(self, found: TelemetryReading) -> None:
        self.found = found

    def fail(self, error: Exception) -> None:
        self.error = error


class ASight:
    """
    Stands for a Sight: what it reads takes CPU.
    """

    def __init__(self, state: SimpleNamespace, watch: Watched) -> None:
        self._state, self._watch, self.is_there, self._offered = state, watch, False, False

    def moved(self) -> list | None:
        moved, self._watch.moved = self._watch.moved, None
        return moved

    def look(self) -> str | None:
        self._spend()
        self.is_there = self._watch.has
        if not self.is_there or self._offered:
            return None
        self._offered = True
        return "offer"

    def specified(self) -> list:
        self._spend()
        return []

    def counted(self, crop: Crop) -> list:
        return []

    def _spend(self) -> None:
        self._watch.looks += 1
        self._state.spent += self._state.cpu
        self._state.order.append(self._watch.pid)
        if self._watch.planned and (error := self._watch.planned.pop(0)):
            raise error


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """
    Reads telemetry of *watches*, as the config's *series* says.
    """
    state = SimpleNamespace(watches=[], now=0.0, spent=0.0, cpu=0.001, order=[], errors=Counter())
    state.config = SimpleNamespace(telemetry=SimpleNamespace(series=200))
    monkeypatch.setattr(telemetry, "cpu_seconds", lambda: state.spent)
    looks = TelemetryLooks(
        lambda: state.watches,
        lambda: state.config,
        state.errors,
        lambda: state.now,
        lambda target, specs: ASight(state, target.watch),
    )

    def go(seconds: int) -> None:
        for _ in range(seconds):
            state.now += 1
            looks.look()

    state.go, state.once = go, looks.look
    return state


def test_without_series_nothing_is_read_and_nothing_stays(run: SimpleNamespace):
    """
    Off by default; where it is switched off, hooks and figures go.
    """
    run.watches = [watch := Watched()]
    run.config.telemetry.series = 0
    run.go(100)
    assert (0, []) == (watch.looks, watch.offers)
    run.config.telemetry.series = 200
    run.go(100)
    assert ["offer"] == watch.offers
    assert watch.found.spans > 10
    run.config.telemetry.series = 0
    run.go(1)
    assert (None, TelemetryReading()) == (watch.offers[-1], watch.found)


def test_a_vm_without_telemetry_gets_no_hooks(run: SimpleNamespace):
    """
    It is looked at every half minute, nothing is offered, nothing is said of it.
    """
    run.watches = [watch := Watched(has=False)]
    run.go(300)
    assert {None} == set(watch.offers)
    assert 9 <= watch.looks <= 12
    assert TelemetryReading() == watch.found


def test_a_vm_without_telemetry_is_not_refused_for_good(run: SimpleNamespace):
    """
    Its first look fails; or the library is unloaded later, and its last figures go.
    """
    first = Watched(1, has=False, planned=[REFUSED])
    later = Watched(2, owner=Owner(1000, ""))
    run.watches = [first, later]
    run.go(10)
    assert "code is being loaded" == first.found.refused
    assert later.found.spans
    later.has = False
    run.go(100)
    assert (TelemetryReading(), TelemetryReading()) == (first.found, later.found)


def test_reading_stays_within_the_budget_also_where_it_fails(run: SimpleNamespace):
    """
    A tenth of the budget of 0.02 of a core pays for one look of 0.03 s in 15 s.
    """
    good = Watched(1)
    bad = Watched(2, planned=[REFUSED] * 9999, owner=Owner(1000, ""))
    run.watches, run.cpu = [good, bad], 0.03
    run.go(1500)
    assert 50 < good.looks <= 110
    assert bad.looks <= 101


def test_figures_do_not_wait_for_what_a_search_cost(run: SimpleNamespace):
    """
    Nor for specifications that are looked for in the same look: 4 s of CPU, and 0.02 a second.
    """
    run.watches, run.cpu = [watch := Watched(1)], 2.0
    run.go(1)
    run.cpu = 0.0
    run.go(10)
    assert 11 == watch.crops


def test_a_failure_now_and_then_changes_nothing(run: SimpleNamespace):
    """
    Four in a row are not shown; five are, hooks go out, and are offered again.
    """
    run.watches = [watch := Watched()]
    run.go(10)
    watch.planned = [*[REFUSED] * 4, None, *[REFUSED] * 5]
    while watch.planned:
        run.go(1)
        assert ("" if watch.planned else "code is being loaded") == watch.found.refused
    assert ["offer", None] == watch.offers
    run.go(100)
    assert ("", ["offer", None, "offer"]) == (watch.found.refused, watch.offers)
    assert {} == run.errors


def test_breakpoints_follow_code_that_was_loaded_anew(run: SimpleNamespace):
    """
    Within a second or two, with the hooks that are there: a VM may load code all the time, and to
    load programs takes the daemon most of a second.
    """
    run.watches = [watch := Watched()]
    run.go(10)
    for turn in range(23):
        watch.moved = [4096 + turn]
        run.go(2)
    assert ["offer"] == watch.offers
    assert [[4096 + turn] for turn in range(23)] == watch.moves


class Code:
    """
    Stands for the memory of a VM that hides its functions: *tables* of current and old code, and
    by code where it has the function.
    """

    terms = (7 << 6 | 0x0B, 9 << 6 | 0x0B)

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tables, self.at, self.searches = [(4096, 0), (4096, 0), (0, 0)], {4096: 4160}, 0
        function = SimpleNamespace(terms=self.terms, arity=3)
        modules = SimpleNamespace(code=lambda _: {7: SimpleNamespace(tables=self.tables)})
        found = SimpleNamespace(again=self.again), modules, function
        monkeypatch.setattr(library, "execute", lambda *_: found)
        layout = SimpleNamespace(size=lambda _: 40, offset=lambda *_: 16)
        target = SimpleNamespace(memory=self, layout=layout)
        self.sight = object.__new__(Sight)
        self.sight._execute = library.Everywhere(target, None)
        self.sight._addresses = self.sight._execute.addresses()

    def again(self, _function: object, header: int) -> SimpleNamespace | None:
        self.searches += 1
        return SimpleNamespace(address=self.at[header]) if header in self.at else None

    def gather(self, addresses: np.ndarray, size: int):
        name = (*self.terms, 1 << 40 | 3) if addresses[0] + 24 in self.at.values() else (0, 0, 0)
        raw = np.array([name], np.uint64)
        assert size == raw.nbytes
        return raw.view(np.uint8), np.ones(1, bool)


def test_a_breakpoint_is_where_the_function_is(monkeypatch: pytest.MonkeyPatch):
    """
    In all code of its module, and also where new code lies at the address of code that was
    unloaded, or can be read only later. Where functions are seen nothing is looked for.
    """
    sight = object.__new__(Sight)
    sight._execute = None
    assert sight.moved() is None
    code = Code(monkeypatch)
    assert [4160] == code.sight._addresses
    code.tables[2] = (4096, 0)  # some other module was loaded
    assert code.sight.moved() is None
    assert 1 == code.searches
    code.tables[0], code.at[8192] = (8192, 4096), 8200
    assert [4160, 8200] == code.sight.moved()
    assert code.sight.moved() is None
    code.at[4096] = 4176
    assert [4176, 8200] == code.sight.moved()
    code.tables[1] = (12288, 8192)
    assert code.sight.moved() is None
    code.at[12288] = 12300
    assert [4176, 8200, 12300] == code.sight.moved()
    code.at.clear()
    with pytest.raises(ReadRefusedError, match="no code of telemetry"):
        code.sight.moved()


def test_a_breakpoint_is_on_every_thread_that_runs_erlang_code(monkeypatch: pytest.MonkeyPatch):
    """
    At the address that was given, and events alone cost something.
    """
    found = [SimpleNamespace(tid=n, role=role) for n, role in enumerate(("normal", "poll") * 2)]
    monkeypatch.setattr(telemetry_hooks, "threads", lambda pid: found if pid == 23 else [])
    monkeypatch.setattr(telemetry_hooks, "number_of_threads", lambda _: len(found))
    armed: list[tuple] = []
    watch = SimpleNamespace(arm=lambda *given: armed.append(given))
    place = telemetry_hooks.Armed(watch, 23, [4096])
    place.attach()
    assert [([4096], [0, 2])] == armed
    assert 0 == place.cost(1000, 0, 1e-6) < place.cost(0, 1, 1e-6)
    place.follow()
    assert 1 == len(armed)
    place.move([8192])
    place.follow()
    place.follow()
    assert [([8192], [0, 2])] == armed[1:]


@pytest.mark.parametrize(("number", "role"), [(5000, "async"), (300, "normal")])
def test_a_vm_of_many_threads_gets_no_breakpoints(
    number: int, role: str, monkeypatch: pytest.MonkeyPatch
):
    """
    Any program may give its threads the names of schedulers; each breakpoint takes two files.
    """
    found = [SimpleNamespace(tid=n, role=role) for n in range(number)]
    monkeypatch.setattr(telemetry_hooks, "threads", lambda _: found)
    monkeypatch.setattr(telemetry_hooks, "number_of_threads", lambda _: len(found))
    with pytest.raises(NothingToAttachError, match=r"5,000 threads|600 breakpoints"):
        telemetry_hooks.Armed(SimpleNamespace(), 23, [4096, 8192]).attach()


def test_hooks_that_the_kernel_refuses_are_shown_at_once(run: SimpleNamespace):
    """
    They are offered again after a minute.
    """
    run.watches = [watch := Watched()]
    run.go(5)
    watch.refused = HostError("the kernel does not permit it")
    run.go(10)
    assert "the kernel does not permit it" == watch.found.refused
    run.go(100)
    assert ("", ["offer", None, "offer"]) == (watch.found.refused, watch.offers)


def test_hooks_that_fail_unexpectedly_are_counted_and_shown(run: SimpleNamespace):
    """
    Once for each try; the VM stays, and its hooks are offered again.
    """
    run.watches = [watch := Watched()]
    run.go(5)
    watch.refused = TypeError("a mistake")
    run.go(10)
    assert "TypeError('a mistake')" == watch.found.refused
    assert (1, None) == (run.errors["snapshot"], watch.error)
    run.go(100)
    assert ("", ["offer", None, "offer"]) == (watch.found.refused, watch.offers)


def test_other_targets_go_on_beside_one_that_fails(run: SimpleNamespace):
    """
    An unexpected error is counted; memory that hangs is for the loop, and so is an end.
    """
    odd, hangs = Watched(1, planned=[ValueError("odd")]), Watched(2, planned=[NoAnswerError()])
    gone, good = Watched(3, planned=[NoSuchProcessError("ended")]), Watched(4)
    run.watches = [odd, hangs, gone, good]
    run.go(30)
    assert 1 == run.errors["snapshot"]
    assert "ValueError('odd')" == odd.found.refused
    assert isinstance(hangs.error, NoAnswerError)
    assert gone.error is None
    assert good.crops > 10


def test_owners_take_turns_in_a_pass(run: SimpleNamespace):
    """
    The VM of another user comes second; after 1 s of CPU the others of the first one wait.
    """
    evil = [Watched(pid, has=False, owner=Owner(666, "")) for pid in range(10, 20)]
    run.watches, run.cpu = [*evil, Watched(1, has=False, owner=Owner(1000, ""))], 0.6
    run.once()
    assert [10, 1, 11] == list(dict.fromkeys(run.order))


# Hooks ---------------------------------------------------------------------------------------


def rows_of(*labels: int) -> np.ndarray:
    """
    Rows of the first specification, with such labels.
    """
    rows = np.zeros(len(labels), events.TELEMETRY_ROW)
    rows["spec"], rows["label"][:, 0] = 1, labels
    return rows


class AWatch:
    """
    Stands for the kernel's rows: *counts* by label.
    """

    def __init__(self) -> None:
        self.by_label: dict[int, int] = {}
        self.forgotten: list[bytes] = []
        self.samples: dict[int, int] = {}
        self.start = self.release = self.close = lambda: None

    def counts(self) -> dict[str, int]:
        return dict.fromkeys(events.TELEMETRY_COUNTS, 0)

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        totals = np.zeros(len(self.by_label), events.TELEMETRY_TOTALS)
        totals["count"] = list(self.by_label.values())
        totals["sum"][:, 0] = totals["count"] * 5
        return rows_of(*self.by_label), totals

    def work_samples(self) -> dict[int, int]:
        return dict(self.samples)

    def forget_work(self, number: int) -> None:
        del self.samples[number]

    def work_row(self, number: int) -> np.void | None:
        return rows_of(number - 10)[0] if number > 10 else None

    def forget(self, row: bytes) -> None:
        self.forgotten.append(row)
        (found,) = np.frombuffer(row, events.TELEMETRY_ROW)
        del self.by_label[int(found["label"][0])]


def hooks_on(watch: AWatch) -> TelemetryHooks:
    """
    Hooks that count with *watch*, at work.
    """
    found = object.__new__(TelemetryHooks)
    found._watch, found._before, found._gone, found.crop = watch, {}, set(), None
    found._samples_before = {}
    found._counting = hooks._Counting(watch, [Spec(("oban", "job", "stop"))], samples=True)
    place = SimpleNamespace(
        via="", turn=0.1, cost=lambda *_: 0.0, attach=lambda: None, follow=lambda: None
    )
    vm = hooks.Vm(lambda: 0.0, lambda: None)
    found._observation = hooks.Observation(found._counting, [place], vm, 1e-6, 0.01)
    found._observation.begin()
    return found


def test_a_harvest_has_what_came_since_the_last_one():
    """
    Counts, sums and errors by kind; a row without news is not in it.
    """
    found = hooks_on(watch := AWatch())
    watch.by_label = {16: 3, 32: 1}
    found._harvest()
    watch.by_label |= {32: 24, 48: 7}
    found._harvest()
    crop = found.crop
    assert crop is not None
    assert {32: 23, 48: 7} == {
        int(row["label"][0]): int(growth["count"])
        for row, growth in zip(crop.rows, crop.growth, strict=True)
    }
    assert [115, 35] == crop.growth["sum"][:, 0].tolist()
    assert [Estimate(23, 0), Estimate(7, 0)] == list(crop.estimates)
    assert (30, 0) == crop.span.errors["jobs"]
    assert (0, 0) == crop.span.errors["http"]


def test_samples_of_work_are_seconds():
    """
    By the row of what was worked on; what is outside, and what found no room, has its number.
    """
    found = hooks_on(watch := AWatch())
    watch.samples = {events.WORK_OUTSIDE: 97, events.WORK_OTHER: 0, 26: 194}
    found._harvest()
    assert found.crop is not None
    (outside, seconds), (row, more) = found.crop.work
    assert (events.WORK_OUTSIDE, 1, 16, 2) == (outside, seconds, int(row["label"][0]), more)
    watch.samples |= {events.WORK_OTHER: 291}
    found._harvest()
    assert [(events.WORK_OTHER, 3)] == found.crop.work


def test_idle_works_make_room_for_others(monkeypatch: pytest.MonkeyPatch):
    """
    Only where many are there, never those without a number; one that comes again counts anew.
    """
    monkeypatch.setattr(hooks, "WORKS", 8)
    found = hooks_on(watch := AWatch())
    watch.samples = {events.WORK_OUTSIDE: 97, events.WORK_OTHER: 97, 26: 97, 27: 0}
    found._harvest()
    assert {events.WORK_OUTSIDE, events.WORK_OTHER, 26, 27} == watch.samples.keys()
    watch.samples |= {28: 0, 29: 0}
    found._harvest()
    assert {events.WORK_OUTSIDE, events.WORK_OTHER, 28, 29} == watch.samples.keys()
    watch.samples |= {26: 194}
    found._harvest()
    assert found.crop is not None
    ((row, seconds),) = found.crop.work
    assert (16, 2) == (int(row["label"][0]), seconds)


def test_idle_rows_make_room_for_others(monkeypatch: pytest.MonkeyPatch):
    """
    Only where many are there, never those for the rest; one that comes again is counted anew.
    """
    monkeypatch.setattr(hooks, "ROWS", 8)
    found = hooks_on(watch := AWatch())
    watch.by_label = {16: 2, 32: 2, events.LABEL_OTHER: 1}
    found._harvest()
    watch.by_label |= {48: 1, 64: 1}
    found._harvest()
    assert {48, 64, events.LABEL_OTHER} == watch.by_label.keys()
    watch.by_label |= {16: 5}
    found._harvest()
    assert found.crop is not None
    assert [5] == found.crop.growth["count"].tolist()
    assert [Estimate(5, 0)] == list(found.crop.estimates)


@pytest.mark.parametrize("windows", [0, 6])
def test_sums_of_a_kind_outlast_idle_rows(monkeypatch: pytest.MonkeyPatch, windows: int):
    """
    Rows of 20,000 events are removed; then 30 come, counted in full or in windows.
    """
    monkeypatch.setattr(hooks, "ROWS", 8)
    found = hooks_on(watch := AWatch())
    watch.by_label = {16: 10_000, 32: 10_000}
    found._harvest()
    watch.by_label |= {48: 50, 64: 50, 80: 50}
    found._harvest()
    assert {48, 64, 80} == watch.by_label.keys()
    for _ in range(windows):
        watch.by_label[48] += 5
        now = time.monotonic()
        found._observation._window.opened, found._observation._window.until = now, now + 0.1
        found._observation._close(now)
    watch.by_label[48] += 0 if windows else 30
    found._harvest()
    assert found.crop is not None
    number, error = found.crop.span.errors["jobs"]
    assert number >= 30
    assert 0 <= error <= 1
    assert windows or number == 30


def test_counted_events_are_scaled_as_their_estimate():
    """
    46 events of which 23 were seen, with their labels and twice their sums.
    """
    sight = object.__new__(Sight)
    sight._specs = of_series()
    sight._decoder = SimpleNamespace(labels=lambda row, n: ("/a", None, "404")[:n])
    growth = np.zeros(1, events.TELEMETRY_TOTALS)
    growth["count"], growth["measured"][0, 0], growth["sum"][0, 0] = 23, 20, 1000
    growth["slots"][0, 84] = 20
    crop = Crop(rows_of(16), growth, [Estimate(46.0, 0.1)], Span(5.0, 0.5, {}, {}))
    (one,) = sight.counted(crop)
    assert "phoenix.router_dispatch.stop" == one.event
    assert {"route": "/a", "method": None, "status": "4xx"} == one.labels
    assert (46, 40, 2000, 40) == (one.number, one.measured[0], one.sums[0], one.slots[84])


class Unreadable:
    """
    Atoms of which none can be read, for the reason *error*.
    """

    def __init__(self, error: Exception) -> None:
        self.error, self.asked = error, 0

    def text_at(self, index: int) -> str:
        self.asked += 1
        raise self.error


def unreadable(error: Exception) -> tuple[Sight, Crop, Unreadable]:
    """
    A sight of 500 rows with a label each that cannot be read, and an event by name.
    """
    sight = object.__new__(Sight)
    sight._specs, atoms = of_series(), Unreadable(error)
    sight._decoder = Decoder(atoms, strict=True)
    rows = rows_of(*(index << 6 | 0xB for index in range(500)))
    rows["spec"][499], rows["text"][499, :4] = 0, (9, 0, 0, 0)
    growth = np.zeros(500, events.TELEMETRY_TOTALS)
    growth["count"] = 1
    crop = Crop(rows, growth, [Estimate(1.0, 0.0)] * 500, Span(5.0, 1.0, {}, {}))
    return sight, crop, atoms


def test_names_that_cannot_be_read_now_are_no_labels():
    """
    Such events count for the rest of their specification: a label would stay for good.
    """
    sight, crop, _ = unreadable(REFUSED)
    found = Counter((one.event, one.labels) for one in sight.counted(crop))
    assert {("phoenix.router_dispatch.stop", None): 499, ("other", None): 1} == found


@pytest.mark.parametrize("error", [NoAnswerError("hangs"), NoSuchProcessError("ended")])
def test_a_name_that_does_not_come_ends_the_look(error: Exception):
    """
    It is not waited for as often as there are rows; the command, which looks once, shows "?" after
    an end.
    """
    sight, crop, atoms = unreadable(error)
    with pytest.raises(type(error)):
        list(sight.counted(crop))
    assert 1 == atoms.asked
    command = Decoder(atoms)
    if isinstance(error, NoSuchProcessError):
        assert ("?",) == command.labels(crop.rows[0], 1)
    else:
        with pytest.raises(NoAnswerError):
            command.labels(crop.rows[0], 1)


def test_refused_hooks_leave_the_target_to_the_loop(monkeypatch: pytest.MonkeyPatch):
    """
    The thread learns what the kernel refuses; what hooks took before they went still counts.
    """
    made: list[SimpleNamespace] = []

    def make(*_: object, **__: object) -> SimpleNamespace:
        made.append(SimpleNamespace(crop="crop", next_due=1.0, spent=0.25, closed=False))
        one = made[-1]
        one.close = lambda: setattr(one, "closed", True)
        one.specify = lambda _: None
        return one

    def refuse() -> None:
        raise HostError("no breakpoint")

    monkeypatch.setattr(telemetry_slot, "TelemetryHooks", make)
    shared = SimpleNamespace(attacher=None, cost=SimpleNamespace(entry=1e-6))
    slot = TelemetrySlot(None, SimpleNamespace(resources=shared, counters=None, budget=0.01))
    assert (0.0, None, None) == (slot.tick(), slot.next_due, slot.take())
    slot.offer("offer")
    assert (0.25, 1.0, "crop", None) == (slot.tick(), slot.next_due, slot.take(), slot.take())
    made[0].run = refuse
    slot.run()
    assert (True, None, 0.25) == (made[0].closed, slot.next_due, slot.tick())
    with pytest.raises(HostError, match="no breakpoint"):
        slot.take()
    slot.offer("offer")
    assert (0.5, "crop") == (slot.tick(), slot.take())
    made[1].run = [].pop
    slot.run()
    assert (True, None) == (made[1].closed, slot.next_due)
    with pytest.raises(IndexError):
        slot.take()
    slot.offer(None)
    assert (0.5, None, None) == (slot.tick(), slot.next_due, slot.take())
