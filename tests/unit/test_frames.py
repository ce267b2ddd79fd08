# SPDX-License-Identifier: Apache-2.0
"""
Frames of C functions as a compiler describes them, and of Erlang functions as the JIT writes them.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from beams_run import require

from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.beam.memory.process_memory import UnreadableMemoryError
from scope_ebpf.beam.stacks.frames import R12, RBP, RBX, RETURN, RSP, CallFrames
from scope_ebpf.beam.stacks.jit_frames import JitFrames

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
.text
.globl pushes
.type pushes, @function
pushes:
    .cfi_startproc
    push %rbx
    .cfi_def_cfa_offset 16
    .cfi_offset %rbx, -16
    push %r12
    .cfi_def_cfa_offset 24
    .cfi_offset %r12, -24
    sub $0x28, %rsp
    .cfi_def_cfa_offset 64
    nop
    ret
    .cfi_endproc
.size pushes, .-pushes
.globl framed
.type framed, @function
framed:
    .cfi_startproc
    push %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    mov %rsp, %rbp
    .cfi_def_cfa_register %rbp
    nop
    ret
    .cfi_endproc
.size framed, .-framed
.globl outermost
.type outermost, @function
outermost:
    .cfi_startproc
    .cfi_undefined %rip
    nop
    .cfi_endproc
.size outermost, .-outermost
.globl silent
.type silent, @function
silent:
    nop
    nop
.size silent, .-silent
"""


@pytest.fixture(scope="module")
def binary(tmp_path_factory) -> Binary:
    require(shutil.which("gcc"), "gcc is not installed")
    folder: Path = tmp_path_factory.mktemp("frames")
    (folder / "frames.s").write_text(SOURCE)
    out = folder / "frames.so"
    command = ["gcc", "-shared", "-nostdlib", "-o", out, folder / "frames.s"]
    subprocess.run(command, check=True)
    return Binary.open(out)


@pytest.mark.parametrize(
    ("function", "shift", "expected"),
    [
        ("pushes", 0, (RSP, 8, {RETURN: -8})),
        ("pushes", 1, (RSP, 16, {RETURN: -8, RBX: -16})),
        ("pushes", 3, (RSP, 24, {RETURN: -8, RBX: -16, R12: -24})),
        ("pushes", 7, (RSP, 64, {RETURN: -8, RBX: -16, R12: -24})),
        ("framed", 4, (RBP, 16, {RETURN: -8, RBP: -16})),
    ],
)
def test_the_caller_of_a_c_function_is_where_its_description_says(
    binary: Binary, function: str, shift: int, expected: tuple[int, int, dict[int, int]]
):
    """
    At each instruction the frame begins at a register plus a distance, and holds what was saved.
    """
    address = binary.symbol(function).address
    rules = CallFrames(binary).rules(address + shift)
    assert expected == (rules.base, rules.offset, dict(rules.saved))
    assert address == CallFrames(binary).function(address + shift)


def test_the_outermost_function_has_no_caller(binary: Binary):
    """
    An undefined return address ends the walk.
    """
    assert CallFrames(binary).rules(binary.symbol("outermost").address).outermost


def test_a_function_without_a_description_is_not_guessed(binary: Binary):
    """
    No rules, and no beginning, for code that the file says nothing of.
    """
    frames = CallFrames(binary)
    address = binary.symbol("silent").address + 1
    assert (None, None) == (frames.rules(address), frames.function(address))


START = 0x1000


@dataclass
class Code:
    """
    The memory of a process that is this code and nothing else.
    """

    code: bytes

    def read(self, address: int, size: int) -> bytes:
        offset = address - START
        if not 0 <= offset <= len(self.code) - size:
            raise UnreadableMemoryError("no such memory")
        return self.code[offset : offset + size]


def jit(code: str) -> tuple[JitFrames, int]:
    raw = bytes.fromhex(code.replace(" ", ""))
    return JitFrames(Code(raw)), START + len(raw)


@pytest.mark.parametrize(
    ("code", "shift", "sizes"),
    [
        ("c3", 0, (0,)),
        ("4883ec18 90 4883c418 c3", 0, (0,)),  # sub rsp,24; nop; add rsp,24; ret
        ("4883ec18 90 4883c418 c3", 4, (24,)),
        ("50 90 58 c3", 1, (8,)),  # push rax; nop; pop rax; ret
        ("488d642408 c3", 0, (8,)),  # lea rsp,[rsp+8]; ret
        ("7405 4883c408 c3 4883c410 c3", 0, (8, 16)),  # je: two exits
        ("ebfe", 0, ()),  # for ever
        ("4883c410 e9fb0f0000", 0, (16,)),  # add rsp,16; jmp elsewhere: a tail call
        ("90 e800000000 4883c420 c3", 0, (32,)),  # what it calls gives back what it took
    ],
    ids=["leaf", "entry", "body", "push", "lea", "branch", "loop", "tail call", "call"],
)
def test_a_frame_is_as_large_as_what_the_function_gives_back(code: str, shift: int, sizes):
    """
    The distances to the return address on every path to a return.
    """
    frames, end = jit(code)
    assert sizes == frames.sizes(START + shift, START, end)


@pytest.mark.parametrize(
    ("code", "found_in"),
    [
        ("4889ec", "rbp"),  # mov rsp,rbp
        (
            "4c89f0 498b6558",
            "stop",
        ),  # mov rax,r14; mov rsp,[r13+88]: another register does not count
        ("4c89f0 4889ec", "rbp"),
        ("90909090", "stop"),
    ],
)
def test_the_erlang_stack_is_where_the_code_behind_the_call_takes_it_from(code: str, found_in: str):
    """
    The first instruction that sets the stack pointer says it; without one it is in the process.
    """
    frames = JitFrames(Code(bytes.fromhex(code.replace(" ", "")) + b"\x90" * 600))
    assert found_in == frames.put_down(START)


@pytest.mark.parametrize(
    ("code", "returns"),
    [
        ("9090 e8 00000000", True),
        ("9090 ff15 00000000".replace("9090 ", "90 "), True),
        ("9090909090 ffd0", True),
        ("90909090 41ffd0", True),
        ("90909090909090", False),
        ("9090909090 ffe0", False),  # a jump
    ],
    ids=["relative", "memory", "register", "wide register", "nops", "jump"],
)
def test_only_code_behind_a_call_is_returned_to(code: str, returns: bool):
    """
    Words of a stack that look like code are frames only where a call could have put them.
    """
    frames, end = jit(code)
    assert returns == frames.is_return(end)


def test_code_that_is_gone_is_nowhere_to_return_to():
    """
    An address whose code cannot be read is no frame, and no error.
    """
    frames, _ = jit("90")
    assert not frames.is_return(0x900000)
    assert "stop" == frames.put_down(0x900000)
    assert () == frames.sizes(0x900000, 0x900000, 0x900010)
