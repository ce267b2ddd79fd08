# SPDX-License-Identifier: Apache-2.0
"""
Erlang terms as the VM keeps them: 64-bit words with tags in the low bits.

From OTP-25.2.3 erts/emulator/beam/erl_term.h, the same for OTP 24 to 29 but
for pids and ports, whose bits moved in OTP 26 (erl_ptab.h).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.layouts import Layout
    from scope_ebpf.beam.memory.process_memory import Memory
    from scope_ebpf.beam.vm.target import Target

PRIMARY_MASK = 0x3
LIST, BOXED, IMMEDIATE = 0x1, 0x2, 0x3
PID_TAG, PORT_TAG, SMALL_TAG = 0x3, 0x7, 0xF
ATOM_TAG, ATOM_MASK = 0x0B, 0x3F
NIL = 0x3B
#: The word that is no term (THE_NON_VALUE without debug).
NON_VALUE = 0
#: Pointers lose the primary tag, and bit 2, which marks literals.
POINTER_MASK = 0xFFFFFFFFFFFFFFF8


def is_atom(term: int) -> bool:
    """True if *term* is an atom."""
    return term & ATOM_MASK == ATOM_TAG


def is_pid(term: int) -> bool:
    """True if *term* is a pid of the VM itself."""
    return term & 0xF == PID_TAG


def is_port(term: int) -> bool:
    """True if *term* is a port of the VM itself."""
    return term & 0xF == PORT_TAG


def is_small(term: int) -> bool:
    """True if *term* is a small integer."""
    return term & 0xF == SMALL_TAG


def is_list(term: int) -> bool:
    """True if *term* is a cons cell (``[]`` is not)."""
    return term & PRIMARY_MASK == LIST


def is_boxed(term: int) -> bool:
    """True if *term* points to a header word and what it heads."""
    return term & PRIMARY_MASK == BOXED


def small(term: int) -> int:
    """Give the value of a small integer (60 bits, signed)."""
    return ((term & 0xFFFFFFFFFFFFFFFF) ^ (1 << 63)) - (1 << 63) >> 4


class Shuffle(NamedTuple):
    """How OTP 26 and later spread a table index over the bits of an identifier."""

    mask: int
    low_mask: int
    low_shift: int
    high_mask: int
    high_shift: int

    @classmethod
    def read(cls, memory: Memory, layout: Layout, table: int) -> Shuffle:
        """Read it from a process or port table (``erts_proc``, ``erts_port``) at *table*."""
        words = ("pix_mask", "pix_cl_mask", "pix_cli_mask")
        mask, low, high = (memory.u64(table + layout.offset("ErtsPTab", f"r.o.{w}")) for w in words)
        shifts = ("pix_cl_shift", "pix_cli_shift")
        low_shift, high_shift = (
            memory.u32(table + layout.offset("ErtsPTab", f"r.o.{s}")) & 63 for s in shifts
        )
        return cls(mask, low, low_shift, high, high_shift)


def _shuffle(target: Target, table: str) -> Shuffle | None:
    if not target.layout.facts.shuffled_ids:
        return None
    return Shuffle.read(target.memory, target.layout, target.address(table))


class IdCodec:
    """
    Between an identifier's word and what a person reads.

    OTP 24 and 25 keep the number in the low half and the table slot in the
    high half; later releases keep both shuffled in one field (*shuffle*).
    """

    def __init__(self, number_bits: int, shuffle: Shuffle | None) -> None:
        self._bits = number_bits
        self.shuffle = shuffle

    def data(self, raw: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Undo the shuffle: number and serial as one counter, shape of *raw*."""
        raw = np.asarray(raw, np.uint64)
        if self.shuffle is None:
            return (raw >> np.uint64(4)) & np.uint64(0x0FFFFFFF)
        s = self.shuffle
        field = raw >> np.uint64(4)
        fixed = field & np.uint64(~s.mask & 0xFFFFFFFFFFFFFFFF)
        low = (field >> np.uint64(s.low_shift)) & np.uint64(s.low_mask)
        high = (field & np.uint64(s.high_mask)) << np.uint64(s.high_shift)
        data: NDArray[np.uint64] = fixed | low | high
        return data

    def slot(self, raw: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the table slot of each identifier, shape of *raw*."""
        raw = np.asarray(raw, np.uint64)
        if self.shuffle is None:
            return raw >> np.uint64(32)
        return (raw >> np.uint64(4)) & np.uint64(self.shuffle.mask)

    def decode(self, raw: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return number and serial of each identifier, two arrays of the shape of *raw*."""
        data = self.data(raw)
        bits = np.uint64(self._bits)
        return data & ((np.uint64(1) << bits) - np.uint64(1)), data >> bits


class PidCodec(IdCodec):
    """Pids: ``<0.NUMBER.SERIAL>``."""

    def __init__(self, shuffle: Shuffle | None = None) -> None:
        # OTP-25.2.3 erl_term.h: 15 bits of number, 13 of serial. OTP-26.2.1: 28 bits of number.
        super().__init__(28 if shuffle else 15, shuffle)

    @classmethod
    def of(cls, target: Target) -> PidCodec:
        """Make the codec of a running VM; ReadRefusedError where its table is not found."""
        return cls(_shuffle(target, "erts_proc"))

    def text(self, raw: int) -> str:
        """Write the pid as Erlang does."""
        number, serial = self.decode(np.array([raw], np.uint64))
        return f"<0.{number[0]}.{serial[0]}>"

    def texts(self, raw: NDArray[np.uint64]) -> list[str]:
        """Write every pid as Erlang does."""
        numbers, serials = self.decode(raw)
        return [f"<0.{n}.{s}>" for n, s in zip(numbers.tolist(), serials.tolist(), strict=True)]


class PortCodec(IdCodec):
    """Ports: ``#Port<0.NUMBER>``."""

    def __init__(self, shuffle: Shuffle | None = None) -> None:
        super().__init__(60 if shuffle else 28, shuffle)

    @classmethod
    def of(cls, target: Target) -> PortCodec:
        """Make the codec of a running VM; ReadRefusedError where its table is not found."""
        return cls(_shuffle(target, "erts_port"))

    def text(self, raw: int) -> str:
        """Write the port as Erlang does."""
        return f"#Port<0.{self.data(np.array([raw], np.uint64))[0]}>"
