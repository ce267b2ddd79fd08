# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import documents
import pytest
from profile_fixtures import HOSTILE, TARGET, hostile, profile

from scope_ebpf.cli.profile import say_written
from scope_ebpf.errors import MissingPackageError
from scope_ebpf.results.profile import Profile, Row, tree
from scope_ebpf.runs import profiler
from scope_ebpf.sinks import speedscope as sinks
from scope_ebpf.sinks.folded import folded
from scope_ebpf.sinks.pprof import message, pprof
from scope_ebpf.sinks.profile_report import print_profile
from scope_ebpf.sinks.speedscope import html, speedscope


def test_the_outermost_frames_are_the_processes():
    """
    Time by process or thread, the most first.
    """
    expected = [
        Row("shop_cart", "process", 60_000_000, 60_000_000),
        Row("(scheduler)", "thread", 50_000_000, 50_000_000),
    ]
    assert expected == profile().owners()


def test_an_erlang_function_has_the_time_of_the_native_code_it_called():
    """
    What is its own is where it was the innermost Erlang function, whatever line it was in.
    """
    expected = [
        Row("shop:price/2", "erlang", 60_000_000, 60_000_000),
        Row("shop:loop/1", "erlang", 0, 60_000_000),
    ]
    assert expected == profile().functions()


def test_a_function_that_calls_itself_counts_once():
    """
    Recursion does not make more time of a sample than it stands for.
    """
    made = profile()
    made.samples = [
        sample._replace(stack=(sample.stack[0], *sample.stack[1:2] * 5)) for sample in made.samples
    ]
    loop = next(row for row in made.functions() if row.name == "shop:loop/1")
    assert 60_000_000 == loop.total_ns


def test_code_outside_of_erlang_is_counted_where_it_is_the_innermost():
    """
    Native and kernel functions by their own time, each kind apart.
    """
    expected = [
        Row("do_futex", "kernel", 50_000_000, 50_000_000),
        Row("ets_lookup_2", "native", 20_000_000, 20_000_000),
    ]
    assert expected == profile().innermost()


def test_the_tree_holds_each_nanosecond_once():
    """
    A node's weight is its own and its children's, and children stand side by side.
    """
    root = tree(profile())
    assert 110_000_000 == root.weight
    for _, _, node in root.walk():
        assert node.weight == node.own + sum(c.weight for c in node.children.values())
    boxes = sorted((depth, start, node.frame.name) for depth, start, node in root.walk())
    assert [(1, 0, "(scheduler)"), (1, 50_000_000, "shop_cart")] == boxes[1:3]


def test_collapsed_stacks_are_one_line_each_with_the_line_of_the_source():
    """
    The whole document, in microseconds.
    """
    expected = """\
(scheduler);do_futex_[k] 50000
shop_cart;shop:loop/1 (shop.erl:12);shop:price/2 (shop.erl:40) 40000
shop_cart;shop:loop/1 (shop.erl:12);shop:price/2 (shop.erl:44);ets_lookup_2 20000
"""
    assert expected == folded(profile()).decode()


def test_collapsed_stacks_of_hostile_names_have_as_many_frames():
    """
    No name makes a frame or a line of its own.
    """
    (line,) = folded(hostile()).decode().splitlines()
    stack, _, value = line.rpartition(" ")
    assert (2, "10000") == (len(stack.split(";")), value)
    assert line.isprintable()


def test_a_speedscope_document_has_all_samples_and_each_thread():
    """
    Stacks go from the outermost frame on, in the order of time, and weights sum up.
    """
    document = documents.load(speedscope(profile()))
    frames = document["shared"]["frames"]
    whole, first, second = document["profiles"]
    assert ["all", "normal 1", "normal 2"] == [p["name"] for p in document["profiles"]]
    assert [20_000_000, 50_000_000, 30_000_000, 10_000_000] == whole["weights"]
    assert whole["endValue"] == sum(whole["weights"])
    assert (3, 1) == (len(first["samples"]), len(second["samples"]))
    shown = [frames[index] for index in first["samples"][0]]
    assert ["shop_cart", "shop:loop/1", "shop:price/2", "ets_lookup_2"] == [
        f["name"] for f in shown
    ]
    assert {"name": "shop:price/2", "file": "shop.erl", "line": 44} == shown[2]
    assert {"sampled"} == {p["type"] for p in document["profiles"]}


def test_a_pprof_profile_reads_back():
    """
    Innermost location first, functions with file and line, both values, the labels.
    """
    read = message().FromString(gzip.decompress(pprof(profile())))
    text = list(read.string_table)
    assert "" == text[0]
    types = [(text[t.type], text[t.unit]) for t in read.sample_type]
    assert [("samples", "count"), ("cpu", "nanoseconds")] == types
    functions = {f.id: f for f in read.function}
    locations = {
        p.id: [(text[functions[n.function_id].name], n.line) for n in p.line] for p in read.location
    }
    found = {
        tuple(locations[number][0] for number in sample.location_id): list(sample.value)
        for sample in read.sample
    }
    stack = (("shop:price/2", 40), ("shop:loop/1", 12), ("shop_cart", 0))
    assert [2, 40_000_000] == found[stack]
    labels = {text[label.key]: text[label.str] for label in read.sample[0].label}
    assert {"thread": "normal 1", "process": "shop_cart"} == labels
    assert (1_000_000_000, round(1e9 / 99)) == (read.duration_nanos, read.period)


def test_a_pprof_profile_has_the_wire_numbers_of_the_published_schema():
    """
    What another reader of the format sees: field 1 sample types, 2 samples, 4 locations, 5
    functions, 6 strings, 10 the duration, 12 the period.
    """
    data, at, seen = gzip.decompress(pprof(profile())), 0, {}
    while at < len(data):
        key, at = varint(data, at)
        value, at = varint(data, at)
        if key & 7 == 2:
            seen.setdefault(key >> 3, []).append(data[at : at + value])
            at += value
        else:
            assert 0 == key & 7
            seen.setdefault(key >> 3, []).append(value)
    assert {1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14} == set(seen)
    assert (2, 3, b"", [1_000_000_000]) == (len(seen[1]), len(seen[2]), seen[6][0], seen[10])


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


class Page(HTMLParser):
    """
    The tags and attributes of a page, and its texts by the tag that they stand in.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        if self.tags:
            self.texts.append((self.tags[-1], data))


@pytest.fixture
def viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A viewer of two short texts in place of speedscope, which may not be built here.
    """
    monkeypatch.setattr(sinks, "viewer", lambda: ("body{}", 'console.log("script")'))


@pytest.mark.usefixtures("viewer")
@pytest.mark.parametrize("made", [profile, hostile])
def test_a_page_holds_the_profile_and_permits_its_own_scripts_alone(made):
    """
    The data are those of the speedscope document, and each script that runs has its digest in the
    policy, which permits nothing else.
    """
    page = Page(html(made()).decode())
    data, *scripts = [text for tag, text in page.texts if tag == "script"]
    scripts = [text for text in scripts if text.strip()]
    assert speedscope(made()) == gzip.decompress(base64.b64decode(data, validate=True))
    policy = next(value for name, value in page.attributes if name == "content")
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert 2 == len(scripts)
    assert "script-src " + " ".join(f"'sha256-{d}'" for d in digests) == policy.split("; ")[-1]
    assert policy.startswith("default-src 'none'")
    assert [] == [name for name, _ in page.attributes if name in ("src", "href")]


@pytest.mark.usefixtures("viewer")
def test_a_page_of_hostile_names_holds_only_our_own_tags():
    """
    A name is text in the page, never markup, and its control characters are gone.
    """
    text = html(hostile()).decode()
    page, known = Page(text), Page(html(profile()).decode())
    assert known.tags == page.tags
    assert [name for name, _ in known.attributes] == [name for name, _ in page.attributes]
    assert "\x1b" not in text
    assert "\u202e" not in text
    names = json.loads(speedscope(hostile()))["shared"]["frames"]
    assert all(frame["name"].isprintable() for frame in names)


def test_without_the_viewer_a_page_is_refused_with_what_works(monkeypatch: pytest.MonkeyPatch):
    """
    An installation that was built without npm says so, and which ending needs no viewer.
    """
    monkeypatch.setattr(sinks, "resources", SimpleNamespace(files=lambda _: Path("/nowhere")))
    with pytest.raises(MissingPackageError, match=r"-o FILE\.speedscope\.json"):
        html(profile())


def test_a_report_fits_a_terminal_and_says_what_it_stands_on():
    """
    The whole text.
    """
    output = io.StringIO()
    print_profile(profile(), output)
    expected = """\
shop@host (pid 4711): OTP 25, erts 13.1.5, jit, 2 schedulers

     %  SECONDS  PROCESS
  54.5    0.060  shop_cart
  45.5    0.050  (scheduler)

  OWN% TOTAL%  SECONDS  ERLANG FUNCTION
  54.5   54.5    0.060  shop:price/2
   0.0   54.5    0.000  shop:loop/1

     %  SECONDS  OUTSIDE ERLANG CODE
  45.5    0.050  do_futex [kernel]
  18.2    0.020  ets_lookup_2 [native]

stopped: duration, after 1.0 s
samples: 4, 0.11 s +-0.06 s of CPU time; the kernel counted 0.12 s
whole: 100.0 % of the 3 Erlang stacks reach the process's beginning
       100.0 % of the samples have every C frame
lost: 0 samples; 0 with unreadable memory
"""
    assert expected == output.getvalue()


def test_a_report_of_hostile_names_has_no_control_characters():
    """
    Nothing of a VM reaches a terminal but text.
    """
    output = io.StringIO()
    print_profile(hostile(), output)
    assert output.getvalue().replace("\n", "").isprintable()
    assert HOSTILE not in output.getvalue()


def test_a_profile_without_samples_is_a_document_too():
    """
    A VM that did nothing has an empty profile in every format.
    """
    empty = profile()
    empty.samples = []
    output = io.StringIO()
    print_profile(empty, output)
    assert b"" == folded(empty)
    assert [] == documents.load(speedscope(empty))["profiles"][0]["samples"]
    assert 0 == len(message().FromString(gzip.decompress(pprof(empty))).sample)
    assert str(TARGET["pid"]) in output.getvalue()


def test_a_profile_without_a_sample_is_said_to_be_empty(capsys: pytest.CaptureFixture[str]):
    """
    An idle VM gives no line of collapsed stacks, and so an empty file.
    """
    empty = Profile("cpu", TARGET, 99, 0.0)
    say_written("out.folded", b"", empty)
    said = capsys.readouterr().err
    assert said.endswith("out.folded is empty\n")
    assert "no sample was taken: the VM was idle" in said
    assert "--off-cpu" in said
    assert "\nwritten:" not in said


def test_what_the_target_used_is_counted_up_to_the_last_sample(monkeypatch: pytest.MonkeyPatch):
    """
    What it used until the sampler stopped, 0.2 s here, is in it: samples are a share of that.
    """
    used = [1.0]

    class Sampler:
        def start(self) -> None:
            pass

        def stop(self) -> None:
            used[0] += 0.2  # it goes on while the timers are taken out

        def records(self) -> list[bytes]:
            return []

        def counts(self) -> dict[str, int]:
            return {"lost": 0}

    identity = SimpleNamespace(check=lambda: None, wait=lambda _seconds: None)
    symbolizer = SimpleNamespace(take=lambda records: None, undecoded=0)
    monkeypatch.setattr(profiler, "cpu_seconds", lambda _pid: used[0])
    monkeypatch.setattr(profiler, "require_target", lambda *_: None)
    taken = Profile("cpu", TARGET, 99, 0.0)
    target = SimpleNamespace(pid=4711, identity=identity)
    assert profiler.ProfileRun(target, taken, Sampler(), symbolizer).go(0.0) is None
    assert 0.2 == pytest.approx(taken.cpu_seconds)
