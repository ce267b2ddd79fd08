# SPDX-License-Identifier: Apache-2.0
"""
Terms, pids and names, without a VM.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scope_ebpf.beam.memory import terms
from scope_ebpf.beam.memory.terms import PidCodec, PortCodec, Shuffle
from scope_ebpf.beam.processes.shapes import escaped, quoted

#: As a VM with 262,144 slots has them (OTP 26 and later).
SHUFFLE = Shuffle(mask=0x3FFFF, low_mask=0x7FFF, low_shift=3, high_mask=0x7, high_shift=15)


def shuffled(data: int) -> int:
    """
    A pid's word, made the way the VM makes it.
    """
    s = SHUFFLE
    low = (data & s.low_mask) << s.low_shift
    high = data >> s.high_shift & s.high_mask
    return (data & ~s.mask | low | high) << 4 | 3


def test_a_pid_of_otp_25_has_15_bits_of_number_and_13_of_serial():
    """
    The low half of the word holds the number, then the serial.
    """
    assert "<0.97.0>" == PidCodec().text(97 << 4 | 3 | 97 << 32)
    assert "<0.5.3>" == PidCodec().text((3 << 15 | 5) << 4 | 3)


@given(st.integers(0, (1 << 40) - 1))
def test_a_pid_of_otp_26_comes_back_from_its_shuffle(data: int):
    """
    Undoing the shuffle gives the counter back.
    """
    assert data == int(PidCodec(SHUFFLE).data(np.array([shuffled(data)], np.uint64))[0])


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1))
def test_any_word_has_some_text_and_no_error(words: list[int]):
    """
    Hostile words are decoded to something.
    """
    raw = np.array(words, np.uint64)
    for codec in (PidCodec(), PidCodec(SHUFFLE)):
        assert len(words) == len(codec.texts(raw))
    assert PortCodec(SHUFFLE).text(words[0]).startswith("#Port<0.")


@given(st.integers(-(1 << 59), (1 << 59) - 1))
def test_a_small_integer_keeps_its_sign(number: int):
    """
    Sixty bits, signed.
    """
    word = (number << 4 | 0xF) & 0xFFFFFFFFFFFFFFFF
    assert terms.is_small(word)
    assert number == terms.small(word)


@pytest.mark.parametrize(
    ("atom", "text"),
    [
        ("ok", "ok"),
        ("gen_server2", "gen_server2"),
        ("$gen_call", "'$gen_call'"),
        ("Elixir.Foo", "'Elixir.Foo'"),
        ("", "''"),
        ("a\x1b[2Jb", "'a\\x{1b}[2Jb'"),
        ("\u202eevil", "'\\x{202e}evil'"),
    ],
)
def test_an_atom_is_written_as_erlang_does_and_never_obeyed_by_a_terminal(atom: str, text: str):
    """
    Quotes where they belong; what does not print is spelled out.
    """
    assert text == quoted(atom)


@given(st.text())
def test_escaped_text_prints(text: str):
    """
    Whatever a VM calls its processes, a terminal gets characters that print.
    """
    assert escaped(text).isprintable()
