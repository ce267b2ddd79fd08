# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import io
import json
import os
import random
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
from profile_fixtures import HOSTILE, IDLE, INNER, OUTER, OWNER, hostile, profile

from scope_ebpf.cli import profile as command
from scope_ebpf.errors import CaptureError, UsageError
from scope_ebpf.results.profile import Frame, Profile, Sample
from scope_ebpf.results.profile_diff import (
    Recorded,
    Weighted,
    chance,
    functions,
    innermost,
    processes,
)
from scope_ebpf.runs import recorded
from scope_ebpf.runs.recorded import read
from scope_ebpf.sinks import profile_diff, speedscope
from scope_ebpf.sinks.folded import folded
from scope_ebpf.sinks.pprof import message, pprof

OTHER = Frame("shop:tax/1", "erlang", "shop.erl", 60)
KERNEL = Frame("do_futex", "kernel", "[kernel]")


def planted(price: int, tax: int, idle: int) -> Profile:
    """
    A profile with so many samples of 10 ms in two functions of a process, and in the kernel.
    """
    made = profile()
    stacks = [(OWNER, OUTER, INNER)] * price + [(OWNER, OUTER, OTHER)] * tax
    stacks += [(IDLE, KERNEL)] * idle
    made.samples = [
        Sample(number, "normal 1", stack, 10_000_000) for number, stack in enumerate(stacks)
    ]
    return made


@pytest.fixture(autouse=True)
def viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A viewer of two short texts in place of speedscope, which may not be built here.
    """
    monkeypatch.setattr(speedscope, "viewer", lambda: ("body{}", 'console.log("script")'))


WRITERS = {
    "a.speedscope.json": speedscope.speedscope,
    "a.html": speedscope.html,
    "a.pb.gz": pprof,
    "a.folded": folded,
}


def write(folder: Path, name: str, made: Profile) -> str:
    path = folder / name
    path.write_bytes(WRITERS[name](made))
    return str(path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_profile_reads_back_from_each_format(tmp_path: Path, name: str):
    """
    Stacks, kinds, lines, times and, where the format has it, the number of samples.
    """
    found = read(write(tmp_path, name, planted(23, 0, 7)))
    weights = {}
    for stack, weight, _ in found.stacks:
        weights[stack] = weights.get(stack, 0) + weight
    process = Frame("shop_cart", "process")
    assert {
        (process, OUTER, INNER): 230_000_000,
        (Frame("(scheduler)", "process"), KERNEL): 70_000_000,
    } == weights
    assert (None if name == "a.folded" else 30) == found.samples
    assert (None if name == "a.folded" else pytest.approx(30)) == found.equal_samples


def test_a_process_that_ended_is_the_one_that_lives(tmp_path: Path):
    """
    Whether it was named before it ended is no difference, and Elixir's functions have one spelling.
    """
    made = planted(1, 0, 0)
    stack = (Frame("shop:order/1 (ended)", "process"), Frame("Elixir.Shop.Cart:add/2", "erlang"))
    made.samples = [Sample(1, "normal 1", stack, 1_000_000)]
    (found,) = read(write(tmp_path, "a.folded", made)).stacks
    assert ["shop:order/1", "Shop.Cart.add/2"] == [frame.name for frame in found.stack]
    assert "erlang" == found.stack[1].kind


def test_shares_differ_as_planted(tmp_path: Path):
    """
    Of 100 samples each: one function goes from 60 to 20, one from none to 40, the rest stays.
    """
    before = read(write(tmp_path, "a.pb.gz", planted(60, 0, 40)))
    after = read(write(tmp_path, "a.speedscope.json", planted(20, 40, 40)))
    rows = functions(before, after)
    assert ["shop:price/2", "shop:tax/1", "shop:loop/1"] == [row.name for row in rows]
    assert [-0.4, 0.4, 0.0] == pytest.approx([row.change for row in rows])
    assert [-0.4, 0.4, 0.0] == pytest.approx([row.total_change for row in rows])
    assert rows[0].probability < 1e-6
    assert [0.0, 0.0] == pytest.approx([row.change for row in processes(before, after)])
    assert [1.0, 1.0] == [row.probability for row in processes(before, after)]
    assert [("do_futex", "kernel")] == [(r.name, r.kind) for r in innermost(before, after)]


@pytest.mark.parametrize(
    ("hits", "sizes", "expected"),
    [
        ((3, 1), (4, 4), 34 / 70),  # the lady tasting tea, both sides
        ((1, 11), (10, 14), 0.002759456),  # the example of scipy's fisher_exact
        ((9, 3), (10, 14), 0.002759456),  # its complement
        ((0, 0), (10, 10), 1.0),
        ((5200, 4800), (10_000, 10_000), 1.54e-8),  # |z| = 5.657
    ],
)
def test_chance_is_what_statisticians_say(hits, sizes, expected: float):
    """
    Probabilities of published tables, and of the normal distribution for many samples.
    """
    shares = (hits[0] / sizes[0], hits[1] / sizes[1])
    assert expected == pytest.approx(chance(shares, sizes), rel=0.01)


@pytest.mark.parametrize("shares", [(1 + 1e-11, 1.0), (-1e-11, 0.0)])
def test_the_rounding_of_shares_is_no_difference(shares: tuple[float, float]):
    """
    Of so many samples a share a little beyond 0 or 1 is some samples that are not there.
    """
    assert chance(shares, (1 << 40, 1 << 40)) == 1.0


def test_the_same_load_twice_has_no_difference():
    """
    Of 400 functions sampled twice from one distribution, in 20 tries, chance explains all rows.
    """
    chosen = random.Random(23)
    names = [Frame(f"m:f{number}/1", "erlang") for number in range(400)]
    weights = [1 / (number + 1) for number in range(400)]
    alarms = 0
    for _ in range(20):
        pair = []
        for _ in range(2):
            frames = chosen.choices(names, weights, k=1000)
            stacks = [weighted(frame) for frame in frames]
            pair.append(Recorded("", stacks, sum(each.weight**2 for each in stacks)))
        alarms += any(row.probability < 0.05 for row in functions(*pair))
    assert alarms <= 4


def weighted(frame: Frame):
    return Weighted((OWNER, frame), 1e7, 1)


def test_the_tables_of_a_difference(tmp_path: Path):
    """
    The whole text.
    """
    before = read(write(tmp_path, "a.pb.gz", planted(60, 0, 40)))
    after = read(write(tmp_path, "a.speedscope.json", planted(20, 40, 40)))
    output = io.StringIO()
    profile_diff.print_difference(before, after, output)
    expected = """\
before: shop@host: CPU, 1.0 s; 100 samples stand for 1.00 s
after:  shop@host: CPU, 1.0 s; 100 samples stand for 1.00 s

BEFORE%  AFTER%    DIFF      P  PROCESS
   40.0    40.0    +0.0  1.000  (scheduler)
   60.0    60.0    +0.0  1.000  shop_cart

BEFORE%  AFTER%    DIFF   TOTAL      P  ERLANG FUNCTION
   60.0    20.0   -40.0   -40.0 <0.001  shop:price/2
    0.0    40.0   +40.0   +40.0 <0.001  shop:tax/1
    0.0     0.0    +0.0    +0.0      -  shop:loop/1

BEFORE%  AFTER%    DIFF      P  OUTSIDE ERLANG CODE
   40.0    40.0    +0.0  1.000  do_futex [kernel]

P: how likely chance alone makes a difference as large in any row of its table, by the
   number of samples; below 0.05 something has changed
"""
    assert expected == output.getvalue()


def test_without_counts_of_samples_nothing_is_said_of_chance(tmp_path: Path):
    """
    Collapsed stacks have times alone, and every P is a dash with the reason beneath.
    """
    before = read(write(tmp_path, "a.pb.gz", planted(60, 0, 40)))
    after = read(write(tmp_path, "a.folded", planted(20, 40, 40)))
    output = io.StringIO()
    profile_diff.print_difference(before, after, output)
    assert "P is not known: collapsed stacks do not say" in output.getvalue()
    assert {None} == {row.probability for row in functions(before, after)}


def test_the_difference_as_collapsed_stacks_has_both_times(tmp_path: Path):
    """
    A line for each stack of either profile, microseconds before and after.
    """
    before = read(write(tmp_path, "a.pb.gz", planted(2, 0, 1)))
    after = read(write(tmp_path, "a.folded", planted(1, 4, 0)))
    expected = """\
(scheduler);do_futex_[k] 10000 0
shop_cart;shop:loop/1 (shop.erl:12);shop:price/2 (shop.erl:40) 20000 10000
shop_cart;shop:loop/1 (shop.erl:12);shop:tax/1 (shop.erl:60) 0 40000
"""
    assert expected == profile_diff.folded(before, after).decode()


def test_both_profiles_are_in_one_document(tmp_path: Path):
    """
    The viewer changes between them by their names.
    """
    before = read(write(tmp_path, "a.pb.gz", planted(2, 0, 1)))
    after = read(write(tmp_path, "a.html", planted(1, 4, 0)))
    document = json.loads(profile_diff.speedscope(before, after))
    names = [(one["name"], one["endValue"]) for one in document["profiles"]]
    assert [
        ("before: shop@host: CPU, 1.0 s", 30_000_000),
        ("after: shop@host: CPU, 1.0 s", 50_000_000),
    ] == names


def test_hostile_names_are_text_in_a_difference(tmp_path: Path):
    """
    No control character of a file reaches a terminal.
    """
    paths = [write(tmp_path, name, hostile()) for name in ("a.pb.gz", "a.speedscope.json")]
    output = io.StringIO()
    profile_diff.print_difference(*map(read, paths), output)
    assert output.getvalue().replace("\n", "").isprintable()
    assert HOSTILE not in output.getvalue()


def document(**changes: object) -> bytes:
    """
    A speedscope document of one sample, with other values.
    """
    sampled = {
        "type": "sampled", "name": "all", "unit": "nanoseconds", "startValue": 0, "endValue": 1,
        "samples": [[0, 1]], "weights": [1],
    }  # fmt: skip
    frames = changes.pop("frames", [{"name": "p"}, {"name": "m:f/1"}])
    return json.dumps({"profiles": [sampled | changes], "shared": {"frames": frames}}).encode()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"[" * 100_000, "not a profile of that format"),
        ("a.json", b"\xff", "not a profile of that format"),
        ("a.json", b"1" * 5000, "not a profile of that format"),
        ("a.json", b'{"profiles":[]}', "not a profile of that format"),
        ("a.json", document(type="evented"), "no samples of time"),
        ("a.json", document(unit="bytes"), "no samples of time"),
        ("a.json", document(samples=[[0, 2]]), "not a profile of that format"),
        ("a.json", document(samples=[[-1]]), "a frame that is no number"),
        ("a.json", document(samples=[[True]]), "a frame that is no number"),
        ("a.json", document(samples=[[]]), "a stack of no frames"),
        ("a.json", document(samples=[[0] * 8193]), "too many frames"),
        ("a.json", document(weights=[float("nan")]), "a weight"),
        ("a.json", document(weights=[1e300]), "a weight"),
        ("a.json", document(weights=[-1]), "a weight"),
        ("a.json", document(weights=["x"]), "not a profile of that format"),
        ("a.json", document(weights=[]), "not a profile of that format"),
        ("a.json", document(weights=[0]), "has no samples"),
        ("a.json", document(frames=[{"name": 7}, {"name": "x"}]), "a name is no text"),
        ("a.json", document(frames=[{"name": "x", "line": "7"}] * 2), "a line is no number"),
        ("a.json", document(frames=[{"name": "x", "line": 1 << 61}] * 2), "a line is no number"),
        ("a.html", b"<html>", "no profile of ours"),
        ("a.html", b'<script id="profile">AAAA</script>', "it is not gzipped data"),
        ("a.pb.gz", b"profile", "it is not gzipped data"),
        ("a.pb.gz", gzip.compress(b"\xff" * 99, mtime=0), "it is not pprof's message"),
        ("a.pb.gz", gzip.compress(b"\x32\x00" * 9, mtime=0)[:-9], "cut off"),
        ("a.pb.gz", gzip.compress(bytes((64 << 20) + 1), 1), "larger than 64 MiB"),
        ("a.folded", b"a;b 1 2\na;b", "a line does not end with one number"),
        ("a.folded", b"a;b " + b"9" * 19, "a line does not end with one number"),
        ("a.folded", b"", "has no samples"),
        ("a.svg", b"", "its ending names no format"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: bytes, said: str
):
    """
    In one line, whatever is in the file.
    """
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=said):
        read(str(path))


def located(folder: Path, lines: int, called: int, *, samples: int = 1) -> str:
    """
    A pprof of two locations, of one line and of so many; the second is called so often.
    """
    made = message()()
    made.string_table.extend(["", "cpu", "nanoseconds", "samples", "count", "m:f/1"])
    made.sample_type.add(type=1, unit=2)
    made.sample_type.add(type=3, unit=4)
    made.function.add(id=1, name=5)
    for number, depth in ((1, 1), (2, lines)):
        location = made.location.add(id=number)
        for _ in range(depth):
            location.line.add(function_id=1)
    made.sample.add(location_id=[2] * called + [1], value=[10, samples])
    path = folder / "a.pb.gz"
    path.write_bytes(gzip.compress(made.SerializeToString(), 1))
    return str(path)


def test_frames_of_pprof_are_counted_before_they_are_made(tmp_path: Path):
    """
    A location has at most 8192 lines, and a stack of 1.6 million frames takes no room.
    """
    assert 8192 == len(read(located(tmp_path, 8191, 1)).stacks[0].stack)
    with pytest.raises(CaptureError, match="too many frames"):
        read(located(tmp_path, 8193, 0))
    content = Path(located(tmp_path, 200, 8000)).read_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(CaptureError, match="too many frames"):
            recorded.READERS[".pb.gz"](content)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_equal_stacks_are_one(tmp_path: Path):
    """
    Times and samples are added up, equal frames are one object, and unequal samples say less.
    """
    path = tmp_path / "a.json"
    path.write_bytes(document(samples=[[0, 1], [0, 1], [0, 1, 1]], weights=[1, 3, 2]))
    found = read(str(path))
    assert [(4, 2), (2, 1)] == [(each.weight, each.samples) for each in found.stacks]
    assert 36 / 14 == pytest.approx(found.equal_samples)
    (tmp_path / "a.folded").write_text("a;b;c 1\na;b 1\na;b;c 22\n")
    first, second = read(str(tmp_path / "a.folded")).stacks
    assert (23e3, 1e3) == (first.weight, second.weight)
    assert first.stack[1] is second.stack[1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (lambda n: f"a;b{n} 1\n", "too many frames"),
        (lambda n: f"a{n * ';b'} 1\n", "more than 40 different stacks"),
    ],
)
def test_what_differs_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line, said: str
):
    """
    So are more frames than any program has, and more stacks.
    """
    monkeypatch.setattr(recorded, "_MOST_DIFFERENT", 40)
    path = tmp_path / "a.folded"
    path.write_text("".join(map(line, range(30))))
    assert 30 == len(read(str(path)).stacks)
    path.write_text("".join(map(line, range(60))))
    with pytest.raises(CaptureError, match=said):
        read(str(path))


def test_stacks_are_counted_before_they_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    A file of short lines without end takes time, though all of them are one stack.
    """
    monkeypatch.setattr(recorded, "_MOST_STACKS", 40, raising=False)
    path = tmp_path / "a.folded"
    path.write_text("a 1\n" * 40)
    assert 1 == len(read(str(path)).stacks)
    path.write_text("a 1\n" * 41)
    with pytest.raises(CaptureError, match="more than 40 stacks"):
        read(str(path))


def test_more_samples_than_can_be_taken_are_refused(tmp_path: Path):
    """
    Beyond 2^40 samples the arithmetic of chance is not exact enough.
    """
    assert 1 << 40 == read(located(tmp_path, 1, 1, samples=1 << 40)).samples
    with pytest.raises(CaptureError, match="more than 1,099,511,627,776 samples"):
        read(located(tmp_path, 1, 1, samples=(1 << 40) + 1))


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, name: str):
    """
    80 files with changed bytes give a profile or the one error, and nothing else.
    """
    content = Path(write(tmp_path, name, profile())).read_bytes()
    if name == "a.pb.gz":
        content = gzip.decompress(content)
    chosen, path, read_well = random.Random(23), tmp_path / name, 0
    refused = []
    for _ in range(80):
        damaged = bytearray(content)
        for _ in range(chosen.choice((1, 3, 9))):
            damaged[chosen.randrange(len(damaged))] = chosen.randrange(256)
        path.write_bytes(gzip.compress(damaged, 1, mtime=0) if name == "a.pb.gz" else damaged)
        try:
            read_well += bool(functions(read(str(path)), read(str(path))))
        except CaptureError as error:
            refused.append(str(error))
    assert read_well > 0
    assert refused
    assert all(name in text for text in refused)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path):
    """
    A pipe without a writer does not hang the command, and a folder is named as what it is.
    """
    pipe = tmp_path / "a.json"
    os.mkfifo(pipe)
    (tmp_path / "b.json").mkdir()
    for path in (pipe, tmp_path / "b.json"):
        with pytest.raises(CaptureError, match="is no regular file"):
            read(str(path))
    with pytest.raises(CaptureError, match="No such file"):
        read(str(tmp_path / "c.json"))


def asked(**more: object) -> SimpleNamespace:
    fields = {
        "diff": None,
        "pid": None,
        "words": [],
        "output": None,
        "open": False,
        "force": False,
        "hz": 99,
    }
    return SimpleNamespace(**fields | more)


def test_profiles_of_two_kinds_are_not_compared(tmp_path: Path):
    """
    CPU time and waiting have nothing in common.
    """
    waits = planted(0, 0, 1)
    wait = Frame("[waits in the run queue]", "wait")
    waits.samples = [Sample(1, "waiting", (OWNER, OUTER, wait), 10_000)]
    paths = [write(tmp_path, "a.folded", waits), write(tmp_path, "a.pb.gz", planted(1, 1, 1))]
    with pytest.raises(UsageError, match="cannot be compared"):
        command.run(asked(diff=paths))


def test_a_comparison_looks_at_no_vm(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    Two files are enough, and a VM besides is a mistake.
    """
    paths = [write(tmp_path, name, planted(23, 7, 1)) for name in ("a.folded", "a.pb.gz")]
    assert 0 == command.run(asked(diff=paths))
    assert "ERLANG FUNCTION" in capsys.readouterr().out
    output = str(tmp_path / "d.html")
    assert 0 == command.run(asked(diff=paths, output=output))
    assert read(output).stacks
    for wrong in (asked(diff=paths, pid="1"), asked(diff=paths, output="d.pb.gz")):
        with pytest.raises(UsageError):
            command.run(wrong)
