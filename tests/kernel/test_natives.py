# SPDX-License-Identifier: Apache-2.0
"""
C functions that the VM's own tables name: against its answers, its symbols, and where it works.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import beams_run
import pytest
from tracing import require_root, scope_trace, trace

from scope_ebpf.beam.code.natives import Natives
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.stacks.native import NativeCode
from scope_ebpf.beam.vm.discover import inspect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Functions of C whose names are not that of the BIF: operators, and two with their module twice.
OTHERS = (
    {">": "sgt", ">=": "sge", "<": "slt", "=<": "sle", "=:=": "seq", "==": "seqeq"}
    | {"=/=": "sneq", "/=": "sneqeq", "+": "splus", "-": "sminus", "*": "stimes", "/": "div"}
    | {"div": "intdiv", "!": "ebif_bang", "++": "ebif_plusplus", "--": "ebif_minusminus"}
    | {"part": "binary_part"}
)


def symbols_of(name: str) -> set[str]:
    """
    The symbols that the function of ``M:F/A (BIF)`` may have in OTP's source.
    """
    module, function, arity = re.fullmatch(r"(\w+):(.+)/(\d+) \(BIF\)", name).groups()
    known = {function, OTHERS.get(function, function)}
    return {f"{one}_{arity}" for one in known} | {f"{module}_{one}_{arity}" for one in known}


@pytest.mark.parametrize("kind", ["stock25", "trixie27", "sid29"])
def test_bifs_and_nifs_are_those_that_the_vm_lists(kind: str, vm: Callable[[str], beams_run.Beam]):
    """
    Every BIF has a name, and every NIF, and no other; where the build has symbols they agree.
    """
    beam = vm(kind)
    target = inspect(beam.pid)
    _, bifs, nifs = beam.ask("natives").split(" ")
    natives = Natives(target, Atoms(target))
    assert set(bifs.split(",")) == {name.removesuffix(" (BIF)") for name in natives.bifs.values()}
    found = set()
    for name in natives.nifs.values():
        stem, _, arities = name.removesuffix(" (NIF)").rpartition("/")
        found |= {f"{stem}/{arity}" for arity in arities.split(",")}
    assert set(nifs.split(",")) == found
    if kind == "sid29":
        return
    wrong = {}
    for address, name in natives.bifs.items():
        symbol = target.binary.function_at(address - target.base)
        if symbol.address + target.base != address or symbol.name not in symbols_of(name):
            wrong[name] = symbol
    assert {} == wrong


@pytest.mark.parametrize("kind", ["stock25", "trixie27"])
def test_without_its_symbol_every_bif_is_named_from_inside(
    kind: str, vm: Callable[[str], beams_run.Beam], monkeypatch: pytest.MonkeyPatch
):
    """
    Each is named all the same when its symbol is taken away; functions behind them are not.
    """
    target = inspect(vm(kind).pid)
    atoms = Atoms(target)
    code = NativeCode(target, Natives(target, atoms))
    every = [target.binary.function_at(at - target.base) for at in Natives(target, atoms).bifs]
    behind = [target.binary.function_at(one.address + one.size + 16) for one in every]
    bifs = {one.name for one in every}
    others = {one.address: one for one in behind if one is not None and one.name not in bifs}
    monkeypatch.setattr(target.binary, "function_at", lambda _: None)

    def name(symbol) -> str:
        return code.name(target.base + symbol.address + symbol.size - 1).name

    # A part that is seldom run may lie elsewhere, as a function of its own.
    assert all(one.name in symbols_of(name(one)) for one in every)
    assert len(others) >= 23
    wrong = {one.name: name(one) for one in others.values() if "beam.smp+0x" not in name(one)}
    assert {} == wrong


def test_a_profile_of_hidden_functions_names_the_bif(tmp_path: Path):
    """
    On OTP 29 the BIF that works stands in the place of its address, above who calls it.
    """
    require_root()
    output = tmp_path / "out.folded"
    code = "L = lists:seq(1, 20000), spawn(fun F() -> lists:member(0, L), F() end)"
    with beams_run.start_beam("sid29", eval=f'{code}, io:format("ready~n")') as beam:
        beam.expect("ready")
        words = ("--pid", str(beam.pid), "--duration", "1", "-o", str(output))
        outcome = scope_trace("profile", *words)
    assert 0 == outcome.code, outcome.errors
    time = {line: int(line.rpartition(" ")[2]) for line in output.read_text().splitlines()}
    pattern = r"erl_eval:do_apply/\d [^;]*;.*lists:member/2 \(BIF\) \d+$"
    found = sum(spent for line, spent in time.items() if re.search(pattern, line))
    assert found > 0.2 * sum(time.values()), output.read_text()


def test_a_stream_of_native_calls_names_what_was_called(vm: Callable[[str], beams_run.Beam]):
    """
    On OTP 29 each call of a BIF has its name, which the function has no symbol for.
    """
    beam = vm("sid29")
    words = ("--events", "long_call", "--slow-call", "0")
    with trace(beam.pid, *words, form="jsonl") as run:
        beam.plant("gc_major 23")
        lines = run.stop().lines
    called = [line["symbol"] for line in lines if line.get("class") == "bif"]
    assert ["erts_internal:garbage_collect/1 (BIF)"] * 23 == called
