# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import io
from types import SimpleNamespace

import documents
import numpy as np
import pytest
from profile_fixtures import TARGET

from scope_ebpf.beam.code.captured_words import ShapeFormatter
from scope_ebpf.beam.code.functions import Function, Functions, Pattern, parse
from scope_ebpf.beam.layouts import load
from scope_ebpf.cli.calls import calls, choose
from scope_ebpf.errors import UsageError
from scope_ebpf.kernel.attach.breakpoints import program_decides
from scope_ebpf.results.calls import Call, CallSummary, Return, Upgrade
from scope_ebpf.runs.call_run_jit import uncounted
from scope_ebpf.sinks.calls import CallLines, print_calls


def function(name: str = "handle_call", address: int = 0x1000, **more: object) -> Function:
    fields = {"module": "cart", "function": name, "arity": 3, "address": address}
    fields |= {"code": 0x100, "terms": (7 << 6 | 0xB, 9 << 6 | 0xB), "is_bif": False}
    return Function(**{**fields, **more})


@pytest.mark.parametrize(
    ("text", "module", "name", "arity"),
    [
        ("gen_server:handle_call/3", "gen_server", "handle_call", 3),
        ("gen_server:handle_call", "gen_server", "handle_call", None),
        ("gen_*:handle_*/*", "gen_*", "handle_*", None),
        ("MyApp.Server.handle_call/3", "Elixir.MyApp.Server", "handle_call", 3),
        ("MyApp.Server:handle_call/3", "Elixir.MyApp.Server", "handle_call", 3),
        ("Elixir.MyApp:run", "Elixir.MyApp", "run", None),
        (":lists.map/2", "lists", "map", 2),
        ("'Elixir.My App':'do it'/0", "Elixir.My App", "do it", 0),
        ("m:-f/1-fun-0-/2", "m", "-f/1-fun-0-", 2),
    ],
)
def test_a_pattern_is_read_as_erlang_or_elixir_writes_it(
    text: str, module: str, name: str, arity: int | None
):
    """
    Module, function and arity are those of both notations.
    """
    assert Pattern(text, module, name, arity) == parse(text)


@pytest.mark.parametrize("text", ["", "foo", "foo/2", "lists:", ":x", "lists:map/256"])
def test_what_names_no_function_is_refused(text: str):
    """
    A text without module and function, or with an arity that none has, is a mistake.
    """
    with pytest.raises(UsageError):
        parse(text)


def test_more_functions_than_registers_are_refused_with_their_names():
    """
    Five functions fit nowhere, and the message lists them; three are left beside a duration.
    """
    five = [function(f"f{n}") for n in range(5)]
    with pytest.raises(UsageError, match=r"(?s)5 functions fit.* for 4;.*cart:f0/3.*cart:f4/3"):
        choose(five, 4)
    with pytest.raises(UsageError, match="for 3 beside the one for durations"):
        choose(five[:4], 3)
    assert five[:4] == choose(five[:4], 4)


def test_a_function_in_c_is_refused_with_the_hook_that_sees_it():
    """
    What is written in C is called past its Erlang stub, so long_call is named.
    """
    with pytest.raises(UsageError, match=r"written in C.*long_call"):
        choose([function(is_bif=True)], 4)
    assert [function()] == choose([function("send", is_bif=True), function()], 4)


def test_a_limit_is_a_number_up_to_a_million():
    """
    A limit may have separators, and is 1 to a million.
    """
    assert [1000, 1000] == [calls(t) for t in ("1000", "1,000")]
    for wrong in ("0", "1000001", "-1", "x"):
        with pytest.raises((ValueError, argparse.ArgumentTypeError)):
            calls(wrong)


def test_a_program_decides_since_linux_6_10():
    """
    Before that each hit counts against the breakpoint's own limit.
    """
    assert [False, False, True, True] == [
        program_decides(r) for r in ("5.10.0-8", "6.9.1", "6.10.0", "7.1")
    ]


class Names:
    def text(self, term: int) -> str:
        return {1: "add", 2: "key", 3: "evil\x1b[31m"}[term >> 6]


ADD, KEY, EVIL = (n << 6 | 0xB for n in (1, 2, 3))
BOX, LIST, SMALL = 2, 1, 0xF


def small(number: int) -> int:
    return (number << 4 | SMALL) & 0xFFFFFFFFFFFFFFFF


def shaper(monkeypatch: pytest.MonkeyPatch, release: int) -> ShapeFormatter:
    codec = SimpleNamespace(text=lambda term: f"<0.{term >> 4}.0>")
    for name in ("PidCodec", "PortCodec"):
        monkeypatch.setattr(
            f"scope_ebpf.beam.code.captured_words.{name}.of", lambda _, codec=codec: codec
        )
    layout = load(release, usdt=False, interpreter=False)
    return ShapeFormatter(SimpleNamespace(layout=layout), Names())


def pieces(*rows: tuple[int, ...]) -> np.ndarray:
    table = np.zeros((14, 8), np.uint64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table


def test_shapes_are_written_from_the_pieces_alone(monkeypatch: pytest.MonkeyPatch):
    """
    A tuple, a list, a map and a binary are shown as far as they were copied, texts by their size.
    """
    made = shaper(monkeypatch, 25)
    copied = pieces(
        (0x1000 | BOX, 3 << 6, ADD, small(-7), 0x2000 | LIST),
        (0x2000 | LIST, 5 << 4 | 3, KEY),
        (0x3000 | BOX, 0x3C, 1, 0x4000 | BOX),
        (0x4000 | BOX, 1 << 6, KEY),
        (0x5000 | BOX, 0x24, 23),
        (0x6000 | LIST, small(104), 0x6010 | LIST),
    )
    terms = [0x1000 | BOX, 0x3000 | BOX, 0x5000 | BOX, 0x6000 | LIST, 0x7000 | BOX, 0x3B, EVIL]
    expected = ["{add,-7,[<0.5.0>|key]}", "#{key}", "<<23 bytes>>", "[char,...]", "...", "[]"]
    assert [*expected, "'evil\\x{1b}[31m'"] == made.shapes(terms, copied)


def test_binaries_of_otp_27_are_measured_in_bits(monkeypatch: pytest.MonkeyPatch):
    """
    Since OTP 27 the size of a binary is in bits, and a part of one has a start and an end.
    """
    made = shaper(monkeypatch, 27)
    copied = pieces((0x1000 | BOX, 0x20, 184), (0x2000 | BOX, 0x24, 0, 8, 192))
    assert ["<<23 bytes>>"] * 2 == made.shapes([0x1000 | BOX, 0x2000 | BOX], copied)


def test_hits_of_other_code_are_not_passed_over():
    """
    New code at an address that another function had: its 23 calls are said to be not counted.
    """
    assert [] == uncounted([{"calls": 5, "strange": 0}])
    assert [
        "23 calls are not counted: other code came to an address that was watched"
    ] == uncounted([{"calls": 5, "strange": 20}, {"calls": 0, "strange": 3}])


def test_a_circle_ends(monkeypatch: pytest.MonkeyPatch):
    """
    Memory that changed under the copy may lead in a circle: the text is cut.
    """
    made = shaper(monkeypatch, 25)
    circle = pieces((0x1000 | LIST, 0x2000 | BOX, 0x1000 | LIST), (0x2000 | BOX, 1 << 6, ADD))
    assert ["[{add},...]"] == made.shapes([0x1000 | LIST], circle)
    itself = pieces((0x1000 | BOX, 1 << 6, 0x1000 | BOX))
    assert len(made.shapes([0x1000 | BOX], itself)[0]) <= 200


CALL = Call(5, "<0.9.0>", "cart", "cart:add/1", 2, ("{a,\x1b}", "1"), "m:f/0", "a/m.erl:3", 7)


def test_a_line_says_who_what_and_whence(monkeypatch: pytest.MonkeyPatch):
    """
    Calls, returns and new code are a line each, and nothing of a VM's text reaches the terminal.
    """
    monkeypatch.setattr("scope_ebpf.sinks.calls.wall_offset_ns", lambda: 0)
    monkeypatch.setattr("scope_ebpf.sinks.calls._clock", lambda _: "12:00")
    output = io.StringIO()
    lines = CallLines(output, "text")
    lines.write(CALL)
    lines.write(Return(5, "<0.9.0>", None, "cart:add/1", 1, 2_500_000))
    lines.write(Upgrade(5, "cart:add/1", 2, 0))
    lines.write(Upgrade(5, "cart:add/1", 3, 4_000_000))
    assert [
        "12:00 <0.9.0>      cart  cart:add/1 v2({a,?}, 1) <- m:f/0 (m.erl:3)",
        "12:00 <0.9.0>      -  cart:add/1 returned after 2.5 ms",
        (
            "12:00 -- cart:add/1 v2: other code was loaded; it was watched before it ran, so "
            "no call is missing"
        ),
        (
            "12:00 -- cart:add/1 v3: other code was loaded; its calls of the first 4 ms at "
            "most are not counted"
        ),
    ] == output.getvalue().splitlines()


def test_json_has_the_same(monkeypatch: pytest.MonkeyPatch):
    """
    One object a line, with seconds instead of ns.
    """
    monkeypatch.setattr("scope_ebpf.sinks.calls.wall_offset_ns", lambda: 1_000_000_000)
    output = io.StringIO()
    CallLines(output, "jsonl").write(CALL)
    document = documents.load(output.getvalue())
    assert 1.000000005 == document.pop("time")
    assert {
        "event": "call",
        "pid": "<0.9.0>",
        "who": "cart",
        "function": "cart:add/1",
        "version": 2,
        "arguments": ["{a,\x1b}", "1"],
        "caller": "m:f/0",
        "line": "a/m.erl:3",
        "tid": 7,
    } == document


def test_the_tables_sum_up_what_was_seen():
    """
    Calls by function, process and caller, durations of those that were measured.
    """
    summary = CallSummary(TARGET, durations=True, stopped_because="duration", duration_seconds=2.0)
    for _ in range(23):
        summary.add(CALL)
    for ms in range(1, 24):
        summary.add(Return(5, "<0.9.0>", "cart", "cart:add/1", 2, ms * 1_000_000))
    summary.notes.append("all of it")
    output = io.StringIO()
    print_calls(summary, output)
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert ["cart:add/1", "v2", "23", "11.5"] in lines
    assert ["cart:add/1", "v2", "23", "12", *("ms", "23") * 2, "ms"] in lines
    assert ["<0.9.0>", "cart", "23"] in lines
    assert ["m:f/0", "23"] in lines
    assert ["note:", "all", "of", "it"] in lines
    assert 23 == documents.validated(summary.as_json())["calls"]
    assert {"p50": 0.012, "p99": 0.023, "max": 0.023} == (
        summary.as_json()["functions"][0]["duration_seconds"]
    )


@pytest.mark.parametrize(
    ("code", "leads"),
    [
        ("48b960e6fa9bc0550000", True),
        ("b910b6650040", True),  # of a build at a fixed address
        ("49ffce0f8ef0fcffff49", False),
    ],
)
def test_a_function_that_only_leads_to_c_is_recognized(code: str, *, leads: bool):
    """
    It loads its own name and then the address of the C function, which has 8 or 4 bytes.
    """
    begins = bytes.fromhex("eb0600e890ffffff" + "488d35d9ffffff488d15f2ffffff" + code)
    assert leads == Functions._leads_to_c(SimpleNamespace(_call_bif=0), begins)
