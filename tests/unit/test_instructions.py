# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import pytest

from scope_ebpf.errors import ProbeError
from scope_ebpf.kernel.bpf.instructions import (
    ALLOWED,
    MOST_INSTRUCTIONS,
    MOST_VERIFIED,
    judge,
    require_bounded,
)


def step(code: int, source: int = 0, immediate: int = 0) -> bytes:
    """
    One instruction, to register 1.
    """
    return struct.pack("<BBhi", code, source << 4 | 1, 0, immediate)


def address(source: int) -> bytes:
    """
    The load of an address, which takes two.
    """
    return step(0x18, source, 7) + step(0, 0, 0x85)


END = step(0xB7) + step(0x95)


@pytest.mark.parametrize("helper", ALLOWED)
def test_helpers_of_the_list_are_allowed(helper: int):
    """
    A program may call what is on the list, and functions of its own.
    """
    judge("f", step(0x85, 0, helper) + step(0x85, 1, 3) + END)


@pytest.mark.parametrize("source", [0, 1, 2])
def test_numbers_and_maps_are_allowed(source: int):
    """
    A program may load a number of 64 bits, a map and what is in one.
    """
    judge("f", address(source) + END)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (step(0x85, 0, 113), "f calls BPF helper 113, which reads the kernel's memory"),
        (step(0x85, 0, 9999), "f calls BPF helper 9999, which is not on the list"),
        (step(0x85, 0, 181), "f calls BPF helper 181, which may stop the VM's scheduler"),
        (step(0x85, 0, 164), "f calls BPF helper 164, which may stop the VM's scheduler"),
        (step(0x85, 2, 65504), "f calls function 65504 of the kernel's, which is no BPF helper"),
        # By the number of a helper that is on the list, too.
        (step(0x85, 2, 1), "f calls function 1 of the kernel's"),
        (step(0x85, 3, 1), "f calls function 1 of the kernel's"),
        (address(3), "f takes a variable of the kernel's"),
        (address(4), "f takes an address (4)"),
        (address(6), "f takes an address (6)"),
        (address(15), "f takes an address (15)"),
        (step(0x20), "f loads from a network packet"),
        (step(0x50), "f loads from a network packet"),
        (step(0xE5), "f has a loop that may stop the VM's scheduler"),
    ],
)
def test_what_reaches_beyond_is_refused(code: bytes, said: str):
    """
    Every use of the kernel's functions, variables and packets, and every loop without a bound, is
    refused by its name, at any position.
    """
    for text in (code + END, address(1) + step(0x85, 0, 1) + code + END):
        with pytest.raises(ProbeError) as error:
            judge("f", text)
        assert str(error.value).startswith(said)


def test_programs_are_bounded():
    """
    A function may have so many instructions, of which one hit may run so many, and not one more.
    """
    judge("f", step(0xB7) * MOST_INSTRUCTIONS)
    with pytest.raises(ProbeError, match="f has 16,385 instructions"):
        judge("f", step(0xB7) * (MOST_INSTRUCTIONS + 1))
    require_bounded("f", MOST_VERIFIED)
    with pytest.raises(ProbeError, match="one hit of f may run 100,001 instructions"):
        require_bounded("f", MOST_VERIFIED + 1)
