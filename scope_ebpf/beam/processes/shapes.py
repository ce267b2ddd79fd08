# SPDX-License-Identifier: Apache-2.0
"""
Terms as text, cut in depth and length.

A *text* shows a small term, such as a process label. A *shape* shows
only the tag of a message, never its contents.
Memory that changes while it is read may be a circle; the budget ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.memory.terms import (
    NIL,
    POINTER_MASK,
    PidCodec,
    PortCodec,
    is_atom,
    is_boxed,
    is_list,
    is_pid,
    is_port,
    is_small,
    small,
)
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: Elements of one tuple or list, characters of one text, terms of one text.
MAX_ELEMENTS = 8
MAX_CHARACTERS = 128
MAX_TERMS = 64
_DEPTH = 4
_WORD = 8

#: Header subtags, OTP-25.2.3 and OTP-27.3.4.1 erts/emulator/beam/erl_term.h.
_SUBTAG = 0x3F
_TUPLE = 0x00
#: Text for each kind of header, tuples excepted.
KINDS_ALWAYS = {
    0x08: "integer",
    0x0C: "integer",
    0x10: "reference",
    0x14: "fun",
    0x18: "float",
    0x30: "pid",
    0x34: "port",
    0x38: "reference",
}
#: Bitstrings and maps have other subtags since OTP 27.
KINDS_24 = {0x04: "match", 0x20: "binary", 0x24: "binary", 0x28: "binary", 0x3C: "map"}
KINDS_27 = {0x04: "fun", 0x20: "binary", 0x24: "binary", 0x28: "binary", 0x2C: "map"}
_HEAP_BITS, _SUB_BITS = 0x20, 0x24

#: Tuples in which OTP wraps what one process sends another: their elements, the last of which is
#: what the receiver distinguishes (OTP-27.3.4.1 lib/stdlib/src/gen.erl, gen_event.erl, gen_fsm.erl;
#: erts/doc: link/1 and monitor/2).
_WRAPPING = {
    "$gen_call": 3,
    "$gen_cast": 2,
    "$gen_event": 2,
    "$gen_all_state_event": 2,
    "$gen_sync_event": 3,
    "$gen_sync_all_state_event": 3,
    "notify": 2,
    "EXIT": 3,
    "DOWN": 5,
}

#: A term, and what it points to if it is boxed: its header, and the word behind that.
Seen = tuple[int, tuple[int, int] | None]


class TermReader:
    """Reads terms on the heaps of one VM."""

    def __init__(self, target: Target, atoms: Atoms) -> None:
        self._memory = target.memory
        self._atoms = atoms
        self._pids = PidCodec.of(target)
        self._ports = PortCodec.of(target)
        self._bits = target.layout.facts.heap_bits
        self._kinds = KINDS_ALWAYS | (KINDS_27 if self._bits else KINDS_24)
        self._left = 0

    def shape(
        self, term: int, head: tuple[int, int] | None = None, last: Seen | None = None
    ) -> str:
        """
        Return the tag of a message, such as ``{mail, _}``; ``?`` where it is not known.

        *head* is what a boxed term points to: its header, and the word behind that. *last* is the
        last element of a tuple; its tag is shown where OTP wraps it: ``{'$gen_cast', {mail, _}}``.
        """
        try:
            if is_atom(term):
                return quoted(self._atoms.text(term))
            if not is_boxed(term):
                return self._word(term) if term == NIL else _kind_of_word(term)
            return self._tag(*head, last) if head else "?"
        except ReadRefusedError:
            return "?"

    def _tag(self, header: int, word: int, last: Seen | None) -> str:
        """Write a tuple by its first element, anything else by its kind."""
        if header & _SUBTAG != _TUPLE:
            return self._kinds.get(header & _SUBTAG, "?")
        arity = header >> 6
        if arity == 0 or arity >= 1 << 24:
            return "{}" if arity == 0 else "?"
        name = self._atoms.text(word) if is_atom(word) else None
        first = "_" if name is None else quoted(name)
        rest = ["_"] * min(arity - 1, MAX_ELEMENTS) + ["..."] * (arity - 1 > MAX_ELEMENTS)
        if last and name is not None and _WRAPPING.get(name) == arity:
            rest[-1] = self.shape(*last)
        return "{" + ", ".join([first, *rest]) + "}"

    def text(self, term: int) -> str:
        """Write a term as Erlang does, cut to MAX_CHARACTERS; ``?`` for what changed."""
        self._left = MAX_TERMS
        text = self._text(term, _DEPTH)
        return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."

    def _text(self, term: int, depth: int) -> str:
        self._left -= 1
        if self._left < 0 or depth < 0:
            return "..."
        try:
            if is_list(term):
                return self._list(term, depth)
            if is_boxed(term):
                return self._boxed(term & POINTER_MASK, depth)
            return self._word(term)
        except ReadRefusedError:
            return "?"

    def _word(self, term: int) -> str:
        if is_atom(term):
            return quoted(self._atoms.text(term))
        if is_small(term):
            return str(small(term))
        if is_pid(term):
            return self._pids.text(term)
        if is_port(term):
            return self._ports.text(term)
        return "[]" if term == NIL else "?"

    def _boxed(self, address: int, depth: int) -> str:
        header = self._memory.u64(address)
        if header & _SUBTAG == _TUPLE:
            arity = header >> 6
            words = self._memory.words(address + _WORD, min(arity, MAX_ELEMENTS)).tolist()
            parts = [self._text(word, depth - 1) for word in words]
            return "{" + ",".join(parts + ["..."] * (arity > MAX_ELEMENTS)) + "}"
        data = self._bytes(address, header & _SUBTAG)
        if data is not None:
            return _binary(data)
        return f"#{self._kinds.get(header & _SUBTAG, '?')}"

    def _bytes(self, address: int, subtag: int) -> bytes | None:
        """Read the start of a binary (OTP 27 and later: where labels come from)."""
        if not self._bits or subtag not in (_HEAP_BITS, _SUB_BITS):
            return None
        if subtag == _HEAP_BITS:
            bits = self._memory.u64(address + _WORD)
            return self._memory.read(address + 2 * _WORD, min(bits // 8, MAX_CHARACTERS))
        base, start, end = self._memory.words(address + _WORD, 3).tolist()
        if not 0 <= end - start < 1 << 40:
            return None
        size = min((end - start) // 8, MAX_CHARACTERS)
        return self._memory.read((base & ~3) + start // 8, size)

    def _list(self, term: int, depth: int) -> str:
        """Write a list, as a string where it is one."""
        cells: list[int] = []
        while is_list(term) and len(cells) < MAX_CHARACTERS:
            head, term = self._memory.words(term & POINTER_MASK, 2).tolist()
            cells.append(head)
        text = all(is_small(cell) and 32 <= small(cell) < 0x110000 for cell in cells)
        if text and (term == NIL or is_list(term)):
            return '"' + escaped("".join(chr(small(cell)) for cell in cells)) + '"'
        parts = [self._text(cell, depth - 1) for cell in cells[:MAX_ELEMENTS]]
        if len(cells) > MAX_ELEMENTS or is_list(term):
            parts.append("...")
        tail = "" if term == NIL or is_list(term) else "|" + self._text(term, depth - 1)
        return "[" + ",".join(parts) + tail + "]"


def _binary(data: bytes) -> str:
    """Write a binary as Erlang does: as a string where it is one, else byte by byte."""
    # One that was cut may end within a character.
    for cut in range(4 if len(data) == MAX_CHARACTERS else 1):
        try:
            text = data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
        if all(character.isprintable() or character in "\n\r\t" for character in text):
            return '<<"' + escaped(text) + '">>'
        break
    shown = [str(byte) for byte in data[:MAX_ELEMENTS]] + ["..."] * (len(data) > MAX_ELEMENTS)
    return "<<" + ",".join(shown) + ">>"


def _kind_of_word(term: int) -> str:
    kinds = ((is_list, "list"), (is_small, "integer"), (is_pid, "pid"), (is_port, "port"))
    return next((name for test, name in kinds if test(term)), "?")


def quoted(atom: str) -> str:
    """Write an atom as Erlang does: in quotes where it needs them."""
    plain = atom[:1].islower() and atom.replace("_", "a").replace("@", "a").isalnum()
    return atom if plain and atom.isascii() else "'" + escaped(atom) + "'"


def escaped(text: str) -> str:
    """Replace characters that do not print: a terminal or a log would interpret them."""
    return "".join(
        c if c.isprintable() and not 0xD800 <= ord(c) < 0xE000 else f"\\x{{{ord(c):x}}}"
        for c in text
    )
