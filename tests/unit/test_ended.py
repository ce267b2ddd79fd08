# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest

from scope_ebpf.beam.code.tables import Mfa
from scope_ebpf.beam.stacks.erlang_frames import Stack
from scope_ebpf.beam.stacks.native import NativeName
from scope_ebpf.runs.ended import EndedProcesses

PID = 0x1B3


def frames(*names: str) -> tuple[Mfa, ...]:
    """
    Frames from the outermost to the innermost, as a stack has them: innermost first.
    """
    found = [re.fullmatch(r"(.+):(.+)/(\d+)", name) for name in names]
    return tuple(Mfa(m[1], m[2], int(m[3])) for m in reversed(found))


def named(*names: str, complete: bool = True, native: tuple[str, ...] = ()) -> str:
    code = tuple(NativeName(name, "beam.smp") for name in native)
    return EndedProcesses().name(PID, Stack(code, frames(*names), complete, unwound=True))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("shop:order/1", "rand:uniform/1"), "shop:order/1 (ended)"),
        (("erlang:apply/2", "shop:-order/1-fun-0-/2"), "shop:-order/1-fun-0-/2 (ended)"),
        (("proc_lib:init_p/3", "pool:work/2", "lists:map/2"), "pool:work/2 (ended)"),
        (
            (
                *("proc_lib:init_p_do_apply/3", "gen_server:try_handle_call/4"),
                *("shop_cart:handle_call/3", "lists:sum/1"),
            ),
            "shop_cart (ended)",
        ),
        (
            (
                *("proc_lib:init_p_do_apply/3", "Elixir.Task.Supervised:invoke_mfa/2"),
                "Elixir.Shop.Report:-run/1-fun-0-/1",
            ),
            "Elixir.Shop.Report:-run/1-fun-0-/1 (ended)",
        ),
        (("proc_lib:init_p_do_apply/3", "gen_server:loop/7"), "proc_lib:init_p_do_apply/3 (ended)"),
        (("shop:till/1", "gen_server:call/2", "gen:do_call/4"), "shop:till/1 (ended)"),
    ],
)
def test_a_process_that_ended_is_named_by_what_it_was_for(names: tuple[str, ...], expected: str):
    """
    Functions that start processes for others do not name one; a callback's module does.
    """
    assert expected == named(*names)


def test_a_stack_that_is_not_whole_names_its_outermost_known_function():
    """
    The name says that the process began further out.
    """
    said = named("shop:walk/2", "shop:walk/2", complete=False)
    assert "shop:walk/2 (ended, outer stack unknown)" == said


@pytest.mark.parametrize(
    ("native", "expected"),
    [
        (("memcpy", "erts_do_exit_process"), "(ended while it exited)"),
        (("erts_garbage_collect_nobump",), "(ended during a garbage collection)"),
        (("copy_in_registers",), "(ended before it was named)"),
    ],
)
def test_without_an_erlang_stack_the_name_is_what_the_vm_did(native, expected: str):
    """
    The C functions say whether it exited or its memory was collected.
    """
    assert expected == named(complete=False, native=native)


def test_what_one_sample_shows_names_later_ones():
    """
    A process whose whole stack was seen once keeps that name where its stack is unreadable.
    """
    ended = EndedProcesses()
    whole = Stack((), frames("shop:order/1"), complete=True, unwound=True)
    empty = Stack((), (), complete=False, unwound=True)
    assert "shop:order/1 (ended)" == ended.name(PID, whole)
    assert "shop:order/1 (ended)" == ended.name(PID, empty)
    assert "(ended before it was named)" == ended.name(PID + 16, empty)
