# SPDX-License-Identifier: Apache-2.0
"""
What windows of marked functions show, their errors, and how it is printed.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from types import SimpleNamespace

import documents
import numpy as np
import pytest
from profile_fixtures import TARGET

from scope_ebpf import events
from scope_ebpf.beam.code.functions import Function
from scope_ebpf.beam.code.tables import CodeMap, Mfa
from scope_ebpf.beam.marks.marked import _ATTRIBUTE, VERSION, Mark, Marked, MarkedCode
from scope_ebpf.errors import NoSuchProcessError, NothingToAttachError
from scope_ebpf.kernel.observers.mark_watch import Called, OpenCall
from scope_ebpf.results.marks import Durations, MarkedCalls, Marks
from scope_ebpf.results.server_events import Times, bucket_of
from scope_ebpf.runs import (
    mark_everything,
    mark_hooks,
    mark_run,
    mark_stream,
    mark_windows,
    moments,
)
from scope_ebpf.runs.loop import Stop
from scope_ebpf.runs.mark_places import Places
from scope_ebpf.runs.mark_stream import MarkStream
from scope_ebpf.runs.moments import Moments, are_enough, are_few
from scope_ebpf.sinks.marks import lines


def times(seconds: list[float], cut: list[float] | None = None, reach: float | None = None):
    found = np.zeros((2, events.SERVER_BUCKETS), np.int64)
    for row, values in zip(found, (seconds, cut or []), strict=True):
        for value in values:
            row[bucket_of(value)] += 1
    return Times(found[0], sum(seconds), None if reach is None else found[1], reach, 0.0)


def test_what_hooks_took_within_a_call_is_taken_off():
    """
    As long as it is half of a mean or 15 % of a quantile at most; then no figure is shown.
    """
    durations = Durations(times([0.0001] * 100), 0.00003)
    assert durations.mean() == pytest.approx(0.00007)
    assert durations.quantile(0.5) is None
    durations = Durations(times([0.0001] * 100), 0.00001)
    assert durations.quantile(0.5) == pytest.approx(0.00009, rel=0.1)
    # Of a longer one it is a lesser part.
    durations = Durations(times([0.0001] * 98 + [0.001] * 2), 0.00003)
    assert durations.quantile(0.5) is None
    assert durations.quantile(0.99) == pytest.approx(0.00097, rel=0.1)
    assert Durations(times([0.0001] * 100), 0.00006).as_json() == {
        "mean": None,
        "p50": None,
        "p99": None,
        "reach": None,
    }
    assert Durations(times([]), 0.0).as_json() is None


def test_calls_that_windows_cut_off_are_not_forgotten():
    """
    Half of the calls take longer than a window: the median is one that ended, p99 is not known.
    """
    durations = Durations(times([0.001] * 600, [0.05] * 400, reach=0.1), 0.0)
    assert durations.quantile(0.5) == pytest.approx(0.001, rel=0.15)
    assert (durations.quantile(0.99), durations.mean()) == (None, None)


class Hooks:
    """
    A watch that counts *rate* calls a second, on a clock of its own.

    To attach takes a millisecond, in which the VM works for a tenth of a second. A window is over
    when *lasts* of its time has passed.
    """

    def __init__(self, monkeypatch, rate=1000, lasts=1.0):
        self.rate, self.lasts = rate, lasts
        self.now, self.since, self.until, self.hits, self.counted = 0.0, None, 0.0, 0, 0
        self.reductions = 0
        self.heavier, self.factor, self.lights = 1, 1, []
        self.limits, self.burst = [], 0
        monkeypatch.setattr(moments.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(moments.time, "monotonic_ns", lambda: int(self.now * 1e9))
        monkeypatch.setattr(moments.time, "sleep", self.sleep)
        counters = type("Counters", (), {"now": staticmethod(self.counters)})
        monkeypatch.setattr(moments, "ReferenceCounters", lambda _target: counters)

    def sleep(self, seconds):
        self.now += seconds

    def counters(self):
        return {"reductions": self.reductions + int(self.now * 1_000_000)}

    def hurry(self):
        pass

    def attach(self, *, light=False):
        self.lights.append(light)
        self.factor = 1 if light else self.heavier
        self.now += 0.001
        self.hits += self.rate // 1000
        self.reductions += 100_000

    def release(self):
        self.now += 0.001
        self.hits += self.rate // 1000

    def open_window(self, seconds, hits):
        self.since, self.until = self.now, self.now + seconds * self.lasts
        self.limits.append(hits)
        return int(self.now * 1e9)

    def is_over(self):
        return self.now >= self.until

    def close_window(self):
        end = min(self.now, self.until)
        found, self.burst = round(self.rate * (end - self.since)) + self.burst, 0
        self.hits += found * self.factor
        self.counted += found
        return int(end * 1e9)

    def run(self, hit, seconds=10.0, *, light=False):
        """
        Windows of a VM that uses one CPU, of which hits of *hit* seconds may take one percent.

        With *light* there are light windows: in others a call is four hits.
        """
        self.heavier = 4 if light else 1
        counts = lambda _opened, _closed: np.array([self.counted])  # noqa: E731
        run = Moments(None, self, (0.01, seconds), lambda: self.hits, counts, light=light)
        run.begin()
        while self.now < seconds:
            self.now += 0.05
            if run.is_due(self.now):
                run.look(self.now, self.now, self.hits * hit, hit)
        run.end()
        return run


@pytest.mark.parametrize("changed", [False, True])
def test_windows_keep_within_the_budget(monkeypatch, changed):
    """
    Ten seconds of a VM that uses one CPU: a hit takes 0.1 ms, and one percent may be used.
    """
    hooks = Hooks(monkeypatch)
    run = hooks.run(0.0001)
    assert 0 < hooks.hits * 0.0001 <= 0.01 * 10
    assert run.enough
    scale = run.scale(changed=changed)
    assert scale.by_work == changed
    work = 1 + hooks.reductions / (run.seconds * 1e6) if changed else 1
    assert hooks.counted * scale.factor == pytest.approx(10_000 * work, rel=0.05)
    assert 0 < run.error(scale, 0) <= 1


def test_work_while_hooks_are_attached_is_not_that_of_the_window(monkeypatch):
    """
    A window has the reductions between its bounds; what is hit outside of it is planned with.
    """
    hooks = Hooks(monkeypatch)
    run = hooks.run(0.0001)
    inside = [window.reductions for window in run.windows]
    assert inside == pytest.approx([window.seconds * 1e6 for window in run.windows], rel=0.01)
    assert all(limit >= 1 for limit in hooks.limits)
    assert run.rate == pytest.approx(1000, rel=0.1)
    # 1000 hits a second of 0.1 ms are a tenth of a CPU.
    assert run.slows(10.0, 0.0001)
    assert not run.slows(10.0, 0.00002)
    assert not run.slows(100.0, 0.0001)


def test_less_than_three_windows_tell_nothing(monkeypatch):
    """
    Hits of a millisecond leave room for a window of 5 ms and one of 50 ms, which may be anything.
    """
    run = Hooks(monkeypatch).run(0.001)
    assert 0 < len(run.windows) < 3
    assert not run.enough
    assert "less than 3 windows" in run.why


def test_where_hits_are_many_windows_are_brief(monkeypatch):
    """
    100,000 hits a second of 10 us take all of a CPU: the budget pays for 75 ms.
    """
    hooks = Hooks(monkeypatch, rate=100_000)
    run = hooks.run(0.00001)
    assert 0 < hooks.hits * 0.00001 <= 0.01 * 10
    assert run.enough
    assert min(window.seconds for window in run.windows[1:]) == pytest.approx(0.01, rel=0.2)
    assert hooks.counted * run.scale(changed=False).factor == pytest.approx(1_000_000, rel=0.05)
    assert 0 < run.error(run.scale(changed=False), 0) < 0.1


def test_windows_that_bursts_cut_short_tell_nothing(monkeypatch):
    """
    Each was over before half of its time.
    """
    hooks = Hooks(monkeypatch, rate=100_000, lasts=0.3)
    run = hooks.run(0.00001)
    assert len(run.windows) >= 3
    assert not run.enough


def test_where_whole_windows_are_too_dear_light_ones_give_rates(monkeypatch):
    """
    A call takes 0.8 ms of four hits in one CPU: all windows are light, and rates are known.
    """
    hooks = Hooks(monkeypatch)
    run = hooks.run(0.0002, light=True)
    assert run.enough
    assert hooks.lights == [True] * len(hooks.lights)
    assert 0 < hooks.hits * 0.0002 <= 0.01 * 10
    assert run.longest == 0.0
    assert hooks.counted * run.scale(changed=False).factor == pytest.approx(10_000, rel=0.05)
    assert 0 < run.error(run.scale(changed=False), 0) < 0.5


def test_light_windows_take_a_part_of_the_budget_only(monkeypatch):
    """
    Where a call takes 4 us there are windows of both kinds, and more of them than without.
    """
    hooks = Hooks(monkeypatch)
    run = hooks.run(0.000001, light=True)
    assert hooks.lights[0]
    assert not all(hooks.lights)
    assert 3 <= len(run.whole) < len(run.windows)
    whole = run.scale(changed=False, windows=run.whole)
    assert whole.factor > run.scale(changed=False).factor
    assert are_enough(run.whole)
    assert are_few(run.whole[:3])


def test_a_burst_in_the_first_window_does_not_make_all_of_them_light(monkeypatch):
    """
    23 calls at once in its 5 ms are not what the VM does: other windows follow, and times count.
    """
    hooks = Hooks(monkeypatch)
    hooks.burst = 23
    run = hooks.run(0.000002, light=True)
    assert [True, True] == hooks.lights[:2]
    assert are_enough(run.whole)
    assert not run.slows(10.0, 0.000002)


def attribute(version: int = VERSION, profile: bytes = b"callbacks", functions: int = 12) -> bytes:
    """
    The attribute as OTP encodes it, among others.
    """

    def pair(name: bytes, value: bytes) -> bytes:
        return b"h\x02w" + bytes((len(name),)) + name + value

    number = bytes((97, functions)) if functions < 256 else b"b" + struct.pack(">I", functions)
    pairs = [
        pair(b"version", bytes((97, version))),
        pair(b"profile", b"w" + bytes((len(profile),)) + profile),
        pair(b"functions", number),
        pair(b"markers", b"a\x1f"),
    ]
    marks = pair(b"scope_mark", b"l" + struct.pack(">I", 4) + b"".join(pairs) + b"j")
    return b"\x83l\0\0\0\x02" + pair(b"vsn", b"l\0\0\0\x01a\x07j") + marks + b"j"


@pytest.mark.parametrize("functions", [10, 12, 300])
def test_the_attribute_of_a_marked_module_is_read(functions):
    """
    Numbers of both sizes, also such whose bytes end a line.
    """
    found = _ATTRIBUTE.search(attribute(profile=b"all", functions=functions))
    assert found is not None
    reported = (found[1], found[2], int.from_bytes(found[3] or found[4], "big"))
    assert reported == (bytes((VERSION,)), b"all", functions)
    assert _ATTRIBUTE.search(b"\x83j" + b"w\x0ascope_mark") is None


def test_code_of_another_marker_version_is_named():
    """
    How many modules, which version, and the remedy; also where the version is not readable.
    """
    code = MarkedCode.__new__(MarkedCode)
    code.found = Marked()
    texts = {0x1000: attribute(version=1), 0x2000: attribute(version=1)}
    at = 64
    words = lambda address, _count: np.array([address - at, 300], np.int64)  # noqa: E731
    code._target = SimpleNamespace(
        memory=SimpleNamespace(words=words, read=lambda address, _size: texts[address]),
        layout=SimpleNamespace(offset=lambda *_: at),
    )
    assert [code._mark(f"shop_{header}", header) for header in texts] == [None, None]
    target = SimpleNamespace(pid=23)
    reason = (
        r"^2 modules were marked by another version of scope-mark \(1; 2 is read\) in process 23"
    )
    with pytest.raises(NothingToAttachError, match=reason + ": mark them again and start it anew"):
        mark_hooks.require_marked(target, code, [])
    texts[0x3000] = b"\x83l\0\0\0\x01h\x02w\x0ascope_markj"
    code.found = Marked()
    code._mark("shop", 0x3000)
    with pytest.raises(NothingToAttachError, match=r"^1 module was .* scope-mark \(2 is read\)"):
        mark_hooks.require_marked(target, code, [])


def test_a_table_names_what_is_not_known():
    """
    A figure that is not known is a dash, control characters of names are not printed.
    """
    exact = MarkedCalls(
        *("Elixir.Shop.Cart", "handle_call", 3, "callback", 812, 0.0, 3, 1, 808),
        Durations(times([0.002] * 808), 0.0),
        {"add": 700, "\x1b[2J": 112},
        {"reply": 808},
    )
    unknown = MarkedCalls(
        *("shop", "leaf", 1, "function", 5, 0.25, None, None, 0), Durations(times([]), 0.0)
    )
    found = Marks(TARGET, 10.0, 214, 9120, "callbacks", [exact, unknown], notes=["a note"])
    documents.fits(found.as_json(), "marks")
    text = lines(found, "calls", 20)
    assert "214 modules marked (callbacks)" in text[0]
    assert text[2].startswith("Shop.Cart.handle_call/3")
    assert text[2].split()[1:4] == ["812", "81.2", "3"]
    assert "add 700" in text[2]
    assert "\x1b" not in "".join(text)
    assert text[3].split() == ["shop:leaf/1", "5", "25%", "0.5", "-", "-", "-", "-"]
    assert text[4] == "a note"


def test_profiles_are_named_together():
    """
    Modules may be marked with different profiles.
    """
    found = Marked({"a": Mark("callbacks", 1), "b": Mark("all", 2), "c": Mark("all", 3)})
    assert found.profiles == "all, callbacks"


class Watched:
    """
    A watch of a VM whose processes 1 and 2 live: calls that end, and tags.
    """

    def __init__(self):
        self.calls = [OpenCall(pid, 7, 1000, pid != 5) for pid in (1, 2, 4, 5)]

    def open_calls(self):
        return self.calls

    def close_window(self):
        """
        A call that begins, and one whose process ends, just before.
        """
        self.calls = [*self.calls[1:], OpenCall(3, 7, 2000, True)]
        return 3000

    def detach(self):
        """
        Meanwhile every process ends.
        """
        Table.living = frozenset()

    def forget_open(self):
        self.calls = []

    def stats(self):
        stats = np.zeros(8, events.MARK_STATS)
        stats[7]["calls"] = 23
        return stats

    def called(self):
        return {1: Called(7, is_callback=True)}

    def callers(self):
        return []

    def tags(self):
        return [(7, 0, 5 << 6 | 11, 23), (7, 0, 6 << 6 | 11, 4), (7, 1, 0, 2)]


class Table:
    """
    The table of processes, of which the row of process 2 was torn.
    """

    living = frozenset((1, 2))

    def __init__(self, _target, _fields):
        pass

    def snapshot(self):
        rows = np.array([(pid,) for pid in sorted(self.living - {2})], [("id", "<u8")])
        return type("Snapshot", (), {"rows": rows})

    def one(self, pid):
        return [pid] if pid in self.living else []


def unstarted(kind, watch):
    """
    A run of marks on *watch*, as far as its end needs it.
    """
    run = kind.__new__(kind)
    run._watch, run._target, run._names = watch, None, {}
    run._cpu, run._stream = SimpleNamespace(update=lambda: None), None
    run._places = SimpleNamespace(known=True, callers=lambda _: {7: {"shop:loop/1": 23}})
    return run


def test_what_ends_while_hooks_are_taken_out_has_not_failed(monkeypatch):
    """
    Only an open callback whose process was gone while calls were counted is a failure.
    """
    monkeypatch.setattr(mark_run, "ProcessTable", Table)
    monkeypatch.setattr(Table, "living", frozenset((1, 2)))
    run = unstarted(mark_everything.Everything, Watched())
    run.end()
    running, failed = run._open_at_end
    assert (running[7], failed[7], running.sum(), failed.sum()) == (2, 1, 2, 1)


def test_names_of_tags_outlive_the_vm():
    """
    What was read before the VM ended is named, the rest is "?".
    """
    run = unstarted(mark_run.MarkRun, Watched())
    atoms = run._atoms = type("Atoms", (), {})()
    atoms.texts = lambda wanted: {atom: "late" if atom == 5 else None for atom in wanted}
    run._learn_names()
    atoms.texts = ended
    assert dict(run._tags(run._watch.tags())) == {(7, 0): {"late": 23, "?": 4}, (7, 1): {"": 2}}


@pytest.mark.parametrize(
    ("calls", "entries", "taken", "returned"),
    [(27, 3, {"?": 27}, {"": 2}), (28, 3, None, {"": 2}), (27, 4096, {"?": 27}, None)],
)
def test_tags_of_which_some_found_no_room_are_null(monkeypatch, calls, entries, taken, returned):
    """
    Fewer messages than calls are not all of them; of what was returned, a full map says nothing.
    """
    watch = Watched()
    stats, tags = watch.stats(), watch.tags()
    stats[7]["calls"] = calls
    monkeypatch.setattr(watch, "stats", lambda: stats)
    monkeypatch.setattr(watch, "tags", lambda: tags + [(9, 0, 0, 1)] * (entries - len(tags)))
    run = unstarted(mark_run.MarkRun, watch)
    run._hit, run._learn_names = lambda: 0.0, lambda: None
    function = Function("shop", "handle_call", 3, 0, 0, (0, 0), is_bif=False)
    run._code = SimpleNamespace(found=Marked(functions={1: function}))
    fields = ("calls", "error", "failures", "running", "timed")
    run._row = lambda *_: dict.fromkeys(fields, 0) | {"times": times([])}
    (row,) = run._rows()
    assert (row.tags, row.returned) == (taken, returned)
    assert row.callers is None  # of 23 of the calls


class Code:
    """
    Tables of code of a VM: functions by address, as they were at the last look.
    """

    def __init__(self, functions):
        self.there, self.seen, self.generation = functions, dict(functions), 0

    def refresh(self):
        self.generation += self.seen != self.there
        self.seen = dict(self.there)

    def functions(self, addresses):
        return {address: self.seen.get(address) for address in addresses}

    def location(self, address):
        name = self.seen.get(address)
        if name is None:
            return None
        module, function = name.removesuffix("/1").split(":")
        return Mfa(module, function, 1, f"{module}.erl", 23)


def places_of(functions):
    """
    Places in the code *functions*, and that code.
    """
    places = Places.__new__(Places)
    places._code = Code(functions)
    places._settled, places._calls = {}, defaultdict(dict)
    return places, places._code


def test_callers_are_folded_and_what_has_no_code_is_apart():
    """
    Addresses of one function are one caller, the rarest are together, and nothing counts twice.
    """
    functions = {8 * n: f"shop:caller_{n}/1" for n in range(1, 24)} | {4: "shop:caller_23/1"}
    places, _ = places_of(functions)
    rows = [(7, 8 * n, n) for n in range(1, 24)] + [(7, 4, 100), (7, 1, 50), (9, 8, 3)]
    found = places.callers(lambda: rows)
    assert list(found[7].items())[:3] == [
        ("shop:caller_23/1", 123),
        ("", 50),
        ("shop:caller_22/1", 22),
    ]
    assert (len(found[7]), found[7]["..."]) == (11, sum(range(1, 15)))
    assert sum(found[7].values()) == sum(range(1, 24)) + 150
    assert found[9] == {"shop:caller_1/1": 3}
    assert places.callers(lambda: rows) == found


def test_calls_keep_the_caller_whose_code_was_there():
    """
    Other code comes to an address: what was counted before is the first one's, what is counted
    later the second one's, and what is counted between two looks is nobody's.
    """
    places, code = places_of({8: "shop:old/1", 16: "shop:stays/1"})
    places.count(lambda: [(7, 8, 23), (7, 16, 5), (7, 24, 2)])
    code.there = {8: "shop:new/1", 16: "shop:stays/1", 24: "shop:loaded/1"}
    counts = iter([[(7, 8, 30), (7, 16, 6), (7, 24, 4)], [(7, 8, 31), (7, 16, 6), (7, 24, 4)]])
    places.count(lambda: next(counts))
    found = places.callers(lambda: [(7, 8, 41), (7, 16, 7), (7, 24, 9)])
    assert found[7] == {
        "shop:old/1": 23,
        "shop:new/1": 10,
        "shop:stays/1": 7,
        "shop:loaded/1": 7,
        "": 2,
    }
    # Eight calls are of unknown callers: no callers are shown of 57.
    run = unstarted(mark_run.MarkRun, Watched())
    run._places = places
    assert run._callers(found[7], 57) is None


def test_tables_of_code_do_not_remember_that_an_address_was_empty():
    """
    Code that is loaded where there was none is named, once its range is read.
    """
    code = CodeMap.__new__(CodeMap)
    code._modules, code._functions, code._headers, code.generation = {}, {}, {}, 0
    code._starts = code._ends = np.empty(0, np.uint64)
    code._layout = SimpleNamespace(offset=lambda *_: 0)
    code._memory = SimpleNamespace(gather=lambda *_: ([], None))
    code._lookup = lambda address, **_: "shop:new/1" if address in code._starts else None
    assert code.function(8) is None
    code._ranges = lambda: np.array([[8, 16]], np.uint64)
    code.refresh()
    assert code.function(8) == "shop:new/1"


def line(kind: int, began: int, *, time_ns: int = 0, process: int = 7, slot: int = 3) -> np.void:
    """
    A line of the ring; only begins and returns are long.
    """
    whole = kind in (events.LINE_ENTERED, events.LINE_RETURNED, events.LINE_UNFOLLOWED)
    made = np.zeros((), events.MARK_CALL if whole else events.MARK_END)
    made["line"], made["began_ns"], made["time_ns"] = kind, began, time_ns or began
    made["process"], made["slot"] = process, slot
    if whole:
        made["id"], made["arity"] = 1, kind != events.LINE_RETURNED or 1
        made["code"], made["caller"] = 8, 16
    return made[()]


def streamed(functions):
    """
    A stream of calls in the code *functions*, that code, and what the stream reported.
    """
    reported = []
    places, code = places_of(functions)
    stream = MarkStream.__new__(MarkStream)
    stream._functions = {1: Function("shop", "handle_call", 1, 0, 0, (0, 0), is_bif=False)}
    stream._pids, stream._shapes = SimpleNamespace(text=str), SimpleNamespace(shapes=lambda x, _: x)
    stream._open, stream._show, stream._places = {}, reported.append, places
    stream._mfas, stream._before, stream._generation, stream._changed_ns = {}, {}, 0, 0
    return stream, code, reported


def test_ends_are_joined_to_the_calls_that_they_end():
    """
    By process, time and slot, in any order of processes; an end without a begin is not reported.
    """
    stream, _, reported = streamed({8: "shop:handle_call/1"})
    stream.take(
        [
            line(events.LINE_ENTERED, 100),
            line(events.LINE_ENTERED, 100, process=8),
            line(events.LINE_ENTERED, 110),
            line(events.LINE_RETURNED, 110, time_ns=133),
            line(events.LINE_FAILED, 100, process=8),
            line(events.LINE_RETURNED, 90),
            line(events.LINE_UNFOLLOWED, 140),
            line(events.LINE_ENTERED, 150),
            line(events.LINE_HANDED, 150, time_ns=160),
        ],
        60.0,
    )
    assert stream.end({}, 60.0) == 0
    assert [(one.process, one.time_ns, one.end, one.duration_ns) for one in reported] == [
        ("7", 110, "returned", 23),
        ("8", 100, "failed", None),
        ("7", 140, "untold", None),
        ("7", 150, "handed over", 10),
        ("7", 100, "untold", None),
    ]
    assert {one.location for one in reported} == {"shop.erl:23"}


def test_a_line_names_the_code_that_was_there_when_the_call_began():
    """
    Other code comes to the addresses: calls before keep their names, those that were read only
    afterwards have none, and later ones have the new ones. A marker's place is in its function.
    """
    stream, code, reported = streamed({8: "shop:handle_call/1", 16: "shop:old/1"})
    stream.take([line(events.LINE_ENTERED, 100)], 60.0)
    code.there = {8: "shop:other/1", 16: "shop:new/1"}
    stream._places.refresh()
    stream.take([line(events.LINE_UNFOLLOWED, 110), line(events.LINE_HANDED, 100)], 60.0)
    stream.take([line(events.LINE_UNFOLLOWED, 1 << 62)], 60.0)
    assert [(one.time_ns, one.caller, one.location) for one in reported] == [
        (110, None, None),
        (100, "shop:old/1", "shop.erl:23"),
        (1 << 62, "shop:new/1", None),
    ]


class Flood(Watched):
    """
    A watch whose ring holds a hundred thousand begins of calls.
    """

    def __init__(self):
        super().__init__()
        self.ring = (line(events.LINE_ENTERED, began) for began in range(1, 100_001))

    def lines(self):
        return self.ring

    def drop_lines(self):
        return sum(1 for _ in self.ring)

    def counts(self):
        return {"callback": 200_000, "function": 0, "untold": 0}


@pytest.fixture
def flooded(monkeypatch):
    """
    A run with a stream on a clock of its own, on which a line of the stream takes 10 ms.
    """
    monkeypatch.setattr(mark_run, "ProcessTable", Table)
    monkeypatch.setattr(Table, "living", frozenset((1, 2)))
    run = unstarted(mark_everything.Everything, Flood())
    stream, _, reported = streamed({})
    clock = [0.0]
    place = stream._place

    def slow(address):
        clock[0] += 0.005
        return place(address)

    stream._place, run._stream = slow, stream
    monkeypatch.setattr(mark_stream.time, "monotonic", lambda: clock[0])
    run._stop, run._next_look, run._follow_code = Stop(), 0.0, lambda: None
    run._hit, run._cpu = lambda: 0.001, SimpleNamespace(update=lambda: None, seconds=1.0)
    run._left_out, run._code = 0, SimpleNamespace(found=Marked())
    return run, clock, reported


def test_a_run_that_costs_too_much_ends_before_its_stream_is_read(flooded):
    """
    Lines are taken for 50 ms a turn, none once the run must end; what is left then is counted.
    """
    run, clock, reported = flooded
    run._brake = SimpleNamespace(add=lambda *_: False)
    run.turn(0.0)
    taken = clock[0]
    assert taken == pytest.approx(mark_everything._SLICE, abs=0.02)
    run._brake = SimpleNamespace(add=lambda *_: True, share=0.5, most=0.01)
    run.turn(1.0)
    assert (run._stop.reason, clock[0]) == ("cost", taken)
    run.end()
    assert clock[0] <= taken + 2 * mark_everything._LAST + 0.02
    assert run._dropped + run._untold + len(reported) == 100_000
    assert len(reported) <= 100
    found = Marks(TARGET, 10.0, 1, 1, "callbacks", [])
    run._note(found)
    assert (
        f"{run._dropped} begins or ends of calls were not read before the run ended" in found.notes
    )


def test_a_signal_ends_a_run_with_a_stream_at_once(flooded):
    """
    A turn after Ctrl-C takes no lines.
    """
    run, clock, _ = flooded
    run._brake = SimpleNamespace(add=lambda *_: False)
    run._stop.ask("interrupted")
    run.turn(0.0)
    assert clock[0] == 0.0


def test_calls_that_are_left_at_the_end_are_counted():
    """
    Those for which there is no time have no line.
    """
    stream, _, reported = streamed({})
    stream.take([line(events.LINE_ENTERED, began) for began in range(1, 24)], 60.0)
    assert stream.end({(7, 1): "running"}, 0.0) == 23
    assert reported == []


@pytest.mark.parametrize(("unfollowed", "p50"), [(0, 0.001), (9, 0.001), (10, None)])
def test_durations_are_null_where_many_calls_were_not_followed(unfollowed, p50):
    """
    Of a thousand calls, ten that are nested deeper than is followed may be all that are long.
    """
    run = unstarted(mark_everything.Everything, Watched())
    run._open_at_end = None
    stats = np.zeros((), events.MARK_STATS)
    stats["calls"], stats["unfollowed"] = 1000, unfollowed
    stats["durations"][bucket_of(0.001)] = 1000 - unfollowed
    found = run._row(stats, 7, "callback")["times"].quantile(0.5)
    assert found == (p50 and pytest.approx(p50, rel=0.1))


def ended(_wanted):
    """
    What reading does when the VM has ended.
    """
    raise NoSuchProcessError("process 1 has ended")


def test_failed_calls_are_not_cut_off(monkeypatch):
    """
    At the end of a window, open calls of processes that are gone count as neither long nor short.
    """
    monkeypatch.setattr(mark_run, "ProcessTable", Table)
    run = unstarted(mark_windows.InMoments, Watched())
    run._cut = np.zeros((events.MARK_SLOTS, events.SERVER_BUCKETS), np.int64)
    run._followed = True
    assert run._window(0, 2_001_000)[7] == 23
    assert (run._cut[7].sum(), run._cut[7, bucket_of(0.002)], run._followed) == (2, 2, True)
    assert run._watch.calls == []
    run._target, run._watch = None, Watched()
    monkeypatch.setattr(Table, "snapshot", ended)
    run._window(0, 2_001_000)
    assert not run._followed
