# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scope_ebpf.beam.elf.usdt import REGISTERS, Argument, ArgumentError, parse

#: Every form that was seen in beam.smp of OTP 25, 27 and 29, and those that gcc may choose.
OPERANDS = {
    "8@%r12": Argument("register", 8, is_signed=False, register="r12"),
    "-8@%rdx": Argument("register", 8, is_signed=True, register="rdx"),
    "4@%r9d": Argument("register", 4, is_signed=False, register="r9"),
    "-4@%ebx": Argument("register", 4, is_signed=True, register="rbx"),
    "2@%ax": Argument("register", 2, is_signed=False, register="rax"),
    "-1@%sil": Argument("register", 1, is_signed=True, register="rsi"),
    "1@%r15b": Argument("register", 1, is_signed=False, register="r15"),
    "8@$0": Argument("constant", 8, is_signed=False, value=0),
    "-4@$-7": Argument("constant", 4, is_signed=True, value=-7),
    "8@$0x1f": Argument("constant", 8, is_signed=False, value=31),
    "8@-312(%rbp)": Argument("memory", 8, is_signed=False, value=-312, register="rbp"),
    "4@24(%rsp)": Argument("memory", 4, is_signed=False, value=24, register="rsp"),
    "-4@(%rax)": Argument("memory", 4, is_signed=True, register="rax"),
    "8@0x10(%r13)": Argument("memory", 8, is_signed=False, value=16, register="r13"),
    "8@erts_this_node_sysname(%rip)": Argument(
        "symbol", 8, is_signed=False, symbol="erts_this_node_sysname"
    ),
    "4@counters+12(%rip)": Argument("symbol", 4, is_signed=False, value=12, symbol="counters"),
    "4@12+counters(%rip)": Argument("symbol", 4, is_signed=False, value=12, symbol="counters"),
    "4@counters-4(%rip)": Argument("symbol", 4, is_signed=False, value=-4, symbol="counters"),
}

UNKNOWN = [
    "8@",
    "@%rax",
    "3@%rax",
    "8@%xmm0",
    "8@%rip",
    "8@%ah",
    "8@(%rip)",
    "8@(%rax,%rbx,8)",
    "8@%fs:16",
    "8@$zz",
    "8@$0b1",
    "8@$010",
    "8@$99999999999999999999",
    "8@99999999999999999999(%rax)",
    "8@-(%rax)",
    "8@symbol",
    "rax",
]


@pytest.mark.parametrize("text", OPERANDS)
def test_every_form_of_an_operand_is_understood(text: str):
    """
    Each operand that a compiler gives a probe is read as size, sign and location.
    """
    assert (OPERANDS[text],) == parse(text)


@pytest.mark.parametrize("text", UNKNOWN)
def test_an_operand_of_unknown_form_is_refused(text: str):
    """
    An unknown operand is refused and named, never guessed.
    """
    with pytest.raises(ArgumentError, match=re.escape(text.partition("@")[2] or text)):
        parse(text)


def test_arguments_keep_their_order():
    """
    The arguments of a site come in the order of its note.
    """
    text = "8@%r12 8@-312(%rbp) 4@%r9d -4@$0 8@erts_this_node_sysname(%rip)"
    assert tuple(OPERANDS.get(word) or parse(word)[0] for word in text.split()) == parse(text)


def test_a_site_without_arguments_has_none():
    """
    An empty note text is a probe without arguments.
    """
    assert () == parse("")


def test_an_unsigned_constant_is_the_same_64_bits_signed():
    """
    A constant above 63 bits becomes the negative number with the same bits, as the map holds it.
    """
    assert -1 == parse("8@$18446744073709551615")[0].value


def test_one_register_argument_among_unknown_ones_refuses_the_whole_site():
    """
    A site of which one argument is not understood is refused as a whole.
    """
    with pytest.raises(ArgumentError):
        parse("8@%rax 8@%xmm0")


#: Parts of operands in any order are closer to real ones than arbitrary text.
PARTS = st.lists(
    st.sampled_from(
        ["8@", "-4@", "%", "(", ")", "$", "-", "+", ",", "0x", "rax", "rip", "symbol", "12", " "]
    ),
    max_size=12,
).map("".join)


@given(st.one_of(st.text(), PARTS))
@example("8@$" + "9" * 5000)
@example("8@$\u0663")
@example("8@1_0(%rax)")
def test_no_text_raises_anything_but_an_argument_error(text: str):
    """
    Whatever a note contains, it is either understood in full or refused with an ArgumentError.
    """
    with suppress(ArgumentError):
        for argument in parse(text):
            assert argument.size in (1, 2, 4, 8)
            assert -(1 << 63) <= argument.value < 1 << 63
            assert argument.register in {"", *REGISTERS.values()}
