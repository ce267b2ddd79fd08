# SPDX-License-Identifier: Apache-2.0
"""
Marked code does what plain code does: values, classes, stack traces with lines, stacks that stay
small.
"""

from __future__ import annotations

import hashlib
import re
import shutil

import pytest
from mark_run import command, compiled, erl, mark, run

RELEASES = ("stock25", "trixie27", "sid29")
#: What the callbacks of tests/mark/server.erl, states.erl and the ring are, by their sources.
CALLBACKS = {
    "server": {"init/1", "handle_call/3", "handle_cast/2", "handle_info/2"}
    | {"handle_continue/2", "terminate/2"},
    "states": {"init/1", "callback_mode/0", "idle/3", "busy/3", "terminate/3"},
    "ring_a": {"step/3", "leap/3"},
}


def answers(kind: str, folder: str) -> dict[str, str]:
    """
    The constructs' results by name, of the modules in that folder.
    """
    top = compiled(kind)
    words = ("-enable-feature", "maybe_expr", "-pa", f"{{}}/{folder}")
    erl(kind, top, *words, "-run", "constructs", "main", f"{{}}/{folder}.txt")
    lines = (top / f"{folder}.txt").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def marked(kind: str, profile: str) -> str:
    """
    The name of a folder with a marked copy of the test modules.
    """
    top = compiled(kind)
    if not (top / profile).exists():
        shutil.copytree(top / "plain", top / profile)
        assert "failed" not in mark(top / profile, "--profile", profile).stdout
    return profile


@pytest.mark.parametrize("kind", RELEASES)
def test_constructs_are_alike(kind):
    """
    Each construct has the same value, or class, reason, frames and lines, plain and marked.
    """
    plain = answers(kind, "plain")
    assert len(plain) > 50
    assert plain["tail_through_fun"] == "true"
    for profile in ("all", "callbacks"):
        assert answers(kind, marked(kind, profile)) == plain


@pytest.mark.parametrize("kind", RELEASES)
def test_a_closed_exit_adds_one_frame_without_a_line(kind):
    """
    A callback that ends in a tail call is in the stack trace of what it called, and nothing
    else changes.
    """
    call = (
        "logger:set_primary_config(level,none),{ok,P}=server:start(),R=monitor(process,P),"
        "catch gen_server:call(P,crash),receive {'DOWN',R,process,P,{badarith,S}} -> "
        'io:format("~0p.~n",[[{F,proplists:get_value(line,L)}||{server,F,_,L}<-S]]) end,halt().'
    )
    top = compiled(kind)
    plain = erl(kind, top, "-pa", "{}/plain", "-eval", call).strip()
    closed = erl(kind, top, "-pa", f"{{}}/{marked(kind, 'callbacks')}", "-eval", call).strip()
    line = re.fullmatch(r"\[\{crash,(\d+)\}\]\.", plain)
    assert line, plain
    assert closed == f"[{{crash,{line[1]}}},{{handle_call,undefined}}]."


def ids(function: str) -> dict[int, int]:
    """
    What the contract says the ids of a function are, by kind.
    """
    digest = hashlib.md5(function.encode()).digest()
    number = int.from_bytes(digest[:7], "big") >> 4
    return {kind: number << 6 | kind for kind in range(1, 6)}


@pytest.mark.parametrize("module", sorted(CALLBACKS))
def test_ids_are_those_of_the_contract(module):
    """
    The callbacks, and no other functions, enter by a call of ets:is_compiled_ms/1 with the
    md5 of their names.
    """
    top = compiled("stock25")
    program = (
        "{beam_file,_,_,_,_,Fs}=beam_disasm:file('{}/callbacks/MODULE.beam'),"
        'io:format("~p.~n",[[I||{function,_,_,_,Is}<-Fs,{bif,is_compiled_ms,_,[{integer,I}],_}<-Is]]),halt().'
    ).replace("MODULE", module)
    marked("stock25", "callbacks")
    found = {int(n) for n in re.findall(r"\d+", erl("stock25", top, "-eval", program))}
    entries = {n for n in found if n & 63 == 1}
    assert entries == {ids(f"{module}:{name}")[1] for name in CALLBACKS[module]}
    assert all(n < 1 << 58 for n in found)


@pytest.mark.parametrize("kind", ["trixie27", "sid29"])
def test_the_command_runs_on_every_release(kind):
    """
    The escript that OTP 25 made marks and unmarks on a newer one, which does not load the code
    in it.
    """
    top = compiled(kind)
    shutil.copy(command(), top / "scope-mark")
    shutil.copytree(top / "plain", top / "by_itself")
    escript = ["/usr/bin/escript", "{}/scope-mark", "{}/by_itself"]
    done = run(kind, [*escript, "--profile", "all"], top)
    assert done.stdout.startswith(f"marked {len(list((top / 'plain').iterdir()))} modules")
    run(kind, [*escript, "--unmark"], top)
    for path in (top / "plain").iterdir():
        assert (top / "by_itself" / path.name).read_bytes() == path.read_bytes()


def test_cover_drops_markers_and_dialyzer_reads_the_plain_code():
    """
    Cover compiles from the abstract code, so it counts as ever; the abstract code is that of
    the plain module.
    """
    program = (
        '{ok,ring_a}=cover:compile_beam("{}/all/ring_a.beam"),ring_a:step(self(),0,[]),'
        "{ok,{_,{1,_}}}=cover:analyse(ring_a,coverage,module),"
        'io:format("~p.~n",[lists:keymember(scope_mark,1,ring_a:module_info(attributes))]),'
        "C=fun(F)->{ok,{_,[{abstract_code,C}]}}=beam_lib:chunks(F,[abstract_code]),C end,"
        'io:format("~p.~n",[C("{}/all/ring_a.beam")=:=C("{}/plain/ring_a.beam")]),halt().'
    )
    marked("stock25", "all")
    assert erl("stock25", compiled("stock25"), "-eval", program).split() == ["false.", "true."]
