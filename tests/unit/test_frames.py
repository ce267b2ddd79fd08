# SPDX-License-Identifier: Apache-2.0
"""
Frames of C functions as a compiler describes them, and of Erlang functions as the JIT writes them.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from beams_run import require

from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.beam.memory.process_memory import UnreadableMemoryError
from scope_ebpf.beam.stacks.frames import R12, RBP, RBX, RETURN, RSP, CallFrames
from scope_ebpf.beam.stacks.jit_frames import JitFrames
from scope_ebpf.sandbox import jit_code
from scope_ebpf.sandbox.questions import Questions

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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other registers")
def test_a_confined_process_finds_the_frames_that_this_one_finds():
    """
    The frame descriptions of the interpreter, around a hundred addresses of its code.
    """
    program = Path("/proc/self/exe")
    with program.open("rb") as file, contextlib.closing(Binary.open(program)) as binary:
        own = Questions("this process", file.fileno())
        (start, end), *_ = [
            (one.address, one.address + one.file_size) for one in binary.segments if one.executable
        ]
        addresses = range(start, end, max(1, (end - start) // 100))
        found = [own.ask("frames", [address], []) for address in addresses]
        confined = [binary.frames(address) for address in addresses]
    # As JSON: the numbers of registers are its texts.
    assert json.dumps(found) == json.dumps(confined)
    assert any(rows for _, _, rows in filter(None, found))


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
    raw = bytes.fromhex(code.replace(" ", ""))
    assert list(sizes) == jit_code.sizes(raw, START, START + shift)


#: Bytes around the call of erts_schedule that are read.
AROUND = 2048
#: nop; jmp to the store; mov [r13+0xf8],rdx; nop; call; mov r13,rax; call; mov rax,[rax]; jmp rax
SCHEDULING = "90 eb04 90909090 498995f8000000 90 ff1500000000 4989c5 ff1500000000 488b00 ffe0 90c3"


@pytest.mark.parametrize(
    ("shift", "known"),
    [
        *((shift, False) for shift in (0, 1, 7)),
        *((shift, True) for shift in (14, 15, 21, 24, 30, 33)),
        (35, False),
    ],
)
def test_a_process_resumes_where_it_says_once_that_was_stored(shift: int, known: bool):
    """
    Before the store the process has the address of the time before; other code does not schedule.
    """
    schedule = START + AROUND + 21
    code = bytes.fromhex(SCHEDULING.replace(" ", ""))
    frames = JitFrames(Code(AROUND * b"\x90" + code + AROUND * b"\x90"))
    assert known == frames.resumes(START + AROUND + shift, schedule, 0xF8)
    assert not frames.resumes(START + AROUND + shift, 0, 0xF8)


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
    raw = bytes.fromhex(code.replace(" ", "")) + b"\x90" * 600
    assert found_in == JitFrames(Code(raw)).put_down(START)
    assert (found_in == "rbp") == jit_code.leave(raw)


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
