# SPDX-License-Identifier: Apache-2.0
"""
Functions of Elixir modules, for people and for programs.
"""

from __future__ import annotations

import collections
import io

import documents
import pytest
from profile_fixtures import profile

from scope_ebpf.beam.vm.schedulers import Scheduler
from scope_ebpf.beam.vm.threads import Thread
from scope_ebpf.cli import process_text, top_cells
from scope_ebpf.cli.schedulers import _what
from scope_ebpf.results.calls import Call, CallSummary
from scope_ebpf.results.profile import Frame, Sample
from scope_ebpf.sinks.calls import CallLines, print_calls
from scope_ebpf.sinks.columns import add_names
from scope_ebpf.sinks.plain import spelled
from scope_ebpf.sinks.profile_report import print_profile

RAW, READ = "Elixir.Demo.Slow:query/1", "Demo.Slow.query/1"
CALL = Call(5, "<0.9.0>", "cart", RAW, 1, (), RAW, "a/m.ex:3", 7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RAW, READ),
        ("Elixir.Demo:-query/1-fun-0-/0", "Demo.-query/1-fun-0-/0"),
        (
            "by <0.9.0> Elixir.Demo:init/1, and Elixir.B.C:d/0",
            "by <0.9.0> Demo.init/1, and B.C.d/0",
        ),
        ("Elixir.Demo.Server", "Demo.Server"),
        ("['Elixir.Shop.Sup', <0.9.0>]", "[Shop.Sup, <0.9.0>]"),
        ("'Elixir.Shop.Cart':add/2", "Shop.Cart.add/2"),
        ("gen_server (Elixir.Shop.Cart)", "gen_server (Shop.Cart)"),
        ("'Elixir.Not An Alias'", "'Elixir.Not An Alias'"),
        ("Elixir.Demo.server", "Elixir.Demo.server"),  # no alias either
        ("Elixir.A@host", "Elixir.A@host"),
        ("Elixir.Demo.Server: 5", "Demo.Server: 5"),
        ("my_Elixir.Demo:f/0", "my_Elixir.Demo:f/0"),
        ("Elixir:f/0", "Elixir:f/0"),
        ("lists:map/2", "lists:map/2"),
    ],
)
def test_a_function_of_elixir_is_written_as_elixir_does(text: str, expected: str):
    """
    Only an alias is written without Elixir: no other atom that begins so, and no name of a node.
    """
    assert expected == spelled(text)


#: What the messages of an empty mailbox hold.
HOLDS_NOTHING = {"outside_bytes": 0, "binary_bytes": 0, "estimated": False}


def test_calls_are_spelled_for_people_alone():
    """
    Lines, tables and callers in text; the fields of JSON as they were.
    """
    text, jsonl, tables = io.StringIO(), io.StringIO(), io.StringIO()
    CallLines(text, "text").write(CALL)
    CallLines(jsonl, "jsonl").write(CALL)
    summary = CallSummary({}, durations=True, stopped_because="end", duration_seconds=1.0)
    summary.add(CALL)
    print_calls(summary, tables)
    assert f"{READ}() <- {READ} (m.ex:3)" in text.getvalue()
    assert {RAW} == {documents.load(jsonl.getvalue())[name] for name in ("function", "caller")}
    assert tables.getvalue().count(READ) == 3  # two of functions, one of callers
    assert "Elixir." not in text.getvalue() + tables.getvalue()


def test_profiles_and_long_calls_are_spelled():
    """
    The table of functions, and the code that called in a line of a long call.
    """
    made, output = profile(), io.StringIO()
    made.samples.append(Sample(5_000, "normal 1", (Frame(RAW, "erlang"),), 1_000))
    print_profile(made, output)
    assert f"  {READ}\n" in output.getvalue()

    class Called:
        def function(self, address: int) -> str:
            return RAW

        def symbol(self, address: int) -> None:
            return None

    for instead, expected in ((True, READ), (False, RAW)):
        table = {"code": [1], "native": [2]}
        add_names(table, Called(), instead=instead)
        assert [expected] == table["code" if instead else "function"]


def test_processes_and_schedulers_are_spelled():
    """
    What a process is in and where it began, in the rows of top and of schedulers.
    """
    process = dict.fromkeys(("name", "label", "behaviour", "module"))
    process |= {"pid": "<0.9.0>", "initial_call": RAW, "current_function": RAW, "status": "waiting"}
    cells = top_cells.cells(process | {"memory_bytes": 1, "message_queue_len": 0}, 0.0)
    assert (READ, READ) == (cells[1], cells[-1])
    item = Scheduler(Thread(1, "normal", 1, "R", 0.0, 0), "running", "<0.9.0>", RAW, RAW)
    assert f"<0.9.0> {READ} in {READ}" == _what(item, 0.0)


def test_messages_of_one_tag_in_a_row_are_one_line():
    """
    Ten messages of one kind take one line with their number; others keep their order.
    """
    shapes = ["{'$gen_cast',_}"] * 9 + ["{'Elixir.Shop.Tick',_}"]
    text = process_text.lines(
        collections.defaultdict(
            lambda: None, messages=shapes, stack=[], moved=[], related={}, mailbox=HOLDS_NOTHING
        )
    )
    first = next(n for n, line in enumerate(text) if "first messages" in line)
    assert ["    9 x {'$gen_cast',_}", "    {Shop.Tick,_}"] == text[first + 1 : first + 3]


@pytest.mark.parametrize(
    ("process", "pid"),
    [
        ({"module": "Elixir.Shop.Cart"}, "#PID<0.97.0>"),
        ({"name": "Elixir.Shop.Cart"}, "#PID<0.97.0>"),
        ({"module": "gen_server", "name": "rabbit"}, "<0.97.0>"),
    ],
)
def test_a_pid_is_written_as_the_language_of_its_process_does(process: dict, pid: str):
    """
    A process that runs or is named by a module of Elixir has its pid as Elixir writes it.
    """
    about = collections.defaultdict(lambda: None, pid="<0.97.0>", **process)
    about |= {"mailbox": HOLDS_NOTHING, "related": {}}
    about |= {"messages": [], "stack": [], "moved": [], "trap_exit": True}
    text = process_text.lines(about)
    assert pid == text[0]
    assert "  trap_exit     true" in text
