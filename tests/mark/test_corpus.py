# SPDX-License-Identifier: Apache-2.0
"""
Real modules, and damaged ones: a part of what bench/marks.py does with all of them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mark_run import LIBRARY, build, compiled, erl, terms

INSTALLED = Path("/usr/lib/erlang/lib")


@pytest.mark.parametrize("profile", ["all", "callbacks"])
@pytest.mark.parametrize("kind", ["stock25", "trixie27", "sid29"])
def test_every_module_of_a_release_marks_loads_and_unmarks(kind, profile):
    """
    Modules of kernel (and stdlib): marked twice alike, taken by the loader, unmarked to the byte.
    """
    root = "/usr/lib/erlang/lib"
    names = sorted(p.name for p in Path(f"{build(kind).root or ''}{root}").iterdir())
    wanted = ("kernel-", "stdlib-") if kind == "stock25" else ("kernel-",)
    chosen = [n for n in names if n.startswith(wanted)]
    folders = [f"{root}/{n}" for n in chosen]
    found = erl(kind, compiled(kind), "-run", "corpus", "main", profile, *folders)
    totals = terms(found)
    assert totals["failed"] == 0, found
    assert totals["modules"] > (90 if profile == "all" else 30)
    assert totals["entry"] == totals["functions"]


def test_tables_know_every_opcode_and_bif_of_each_release():
    """
    Operands are those that each release's own compiler knows; each BIF that counts as one is
    one there.
    """
    program = (
        "Ops=fun F(N)->try {_,A}=beam_opcodes:opname(N),[A|F(N+1)] catch error:_ -> [] end end,"
        "true=lists:prefix(Ops(1),tuple_to_list(scope_mark_tables:arities())),"
        "[true=erlang:is_builtin(binary_to_atom(M),binary_to_atom(F),A)||M<-"
        '[<<"erlang">>,<<"ets">>,<<"lists">>,<<"maps">>],{F,A}<-scope_mark_tables:bifs(M)],'
        "[true=lists:member(atom_to_binary(M),scope_mark_tables:preloaded())||M<-erlang:pre_loaded()],"
        "[true=erlang:is_builtin(M,F,A)||{M,F,A}<-[{ets,is_compiled_ms,1},{erts_internal,cmp_term,2}]],"
        'io:format("~p~n",[length(Ops(1))]),halt().'
    )
    known = {
        kind: int(erl(kind, compiled(kind), "-eval", program))
        for kind in ("stock25", "trixie27", "sid29")
    }
    text = re.sub(r"\s", "", (LIBRARY / "src/scope_mark_tables.erl").read_text())
    table = re.search(r"arities\(\)->\{([\d,]+)\}", text)
    assert table
    assert max(known.values()) == len(table[1].split(","))


def test_mutated_files_are_refused_or_load():
    """
    Of 400 mutated files none crashes the library, none loads only unmarked, and each marked
    one can be unmarked.
    """
    top = compiled("stock25")
    files = [f"{{}}/plain/{name}.beam" for name in ("constructs", "server", "ring_a")]
    files += [str(p) for p in INSTALLED.glob("stdlib-*/ebin/gen_server.beam")]
    found = erl("stock25", top, "-run", "fuzz", "main", "0", "400", *files)
    totals = terms(found)
    assert totals["failed"] == 0, found
    assert totals["refused"] > 100
    assert totals["loads"] > 20
