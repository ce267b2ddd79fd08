# SPDX-License-Identifier: Apache-2.0
"""
The shapes of arguments, from words of memory that were copied at the call.

A shape shows atoms, numbers, pids, the sizes of what is large and the keys of
small maps; it never shows the text in a string or a binary. What was not
copied is ``...``; nothing is read from the heap later, when it may have changed.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from scope_ebpf.beam.memory.terms import (
    NIL,
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
from scope_ebpf.beam.processes.shapes import KINDS_24, KINDS_27, KINDS_ALWAYS, quoted
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: Captured words of a term: the term, then what it points to (probes/function.bpf.c).
WORDS = 8
#: Elements of a tuple that are captured, elements of a list and keys of a map that are shown.
_ELEMENTS = 6
_MAX_TEXT = 200
#: Terms of all arguments: more than can be captured, fewer than would overflow the stack.
_TERMS = 128
_UNKNOWN = "..."
#: erl_term.h: the subtag of a header; since OTP 27 bitstrings have others.
_SUBTAG = 0x3F
_SUB_BITS_27 = 0x24
#: erl_map.h: what kind of map, above the subtag; a flat one has its keys in a tuple.
_FLAT = 0


class ShapeFormatter:
    """Writes the shapes of terms of one VM."""

    def __init__(self, target: Target, atoms: Atoms) -> None:
        self._atoms = atoms
        self._pids = PidCodec.of(target)
        self._ports = PortCodec.of(target)
        self._bits = target.layout.facts.heap_bits
        self._kinds = KINDS_ALWAYS | (KINDS_27 if self._bits else KINDS_24)
        self._map = target.layout.facts.map_subtag
        self._captured: dict[int, list[int]] = {}
        self._left = 0

    def shapes(self, terms: list[int], captured: NDArray[np.uint64]) -> list[str]:
        """Write each of *terms*, from *captured* of shape ``(14, WORDS)``."""
        self._captured = {row[0]: row[1:] for row in captured.tolist() if row[0]}
        self._left = _TERMS
        texts = [self._shape(term) for term in terms]
        return [text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..." for text in texts]

    def _shape(self, term: int) -> str:
        self._left -= 1
        if self._left < 0:
            return _UNKNOWN  # a circle, or that full of terms
        writers = (
            (is_atom, self._atom),
            (is_small, lambda term: str(small(term))),
            (is_pid, self._pids.text),
            (is_port, self._ports.text),
            (is_list, self._list),
            (is_boxed, self._boxed),
        )
        write = next((write for test, write in writers if test(term)), None)
        if write is None:
            return "[]" if term == NIL else "?"
        return write(term)

    def _atom(self, term: int) -> str:
        try:
            return quoted(self._atoms.text(term))
        except ReadRefusedError:
            return "?"

    def _list(self, term: int) -> str:
        shapes: list[str] = []
        seen: set[int] = set()
        while is_list(term) and term in self._captured and term not in seen:
            seen.add(term)
            head, term = self._captured[term][:2]
            # A list of characters is text, whose contents are not shown.
            shapes.append(
                "char" if is_small(head) and 32 <= small(head) < 0x110000 else self._shape(head)
            )
        if term == NIL:
            return f"[{','.join(shapes)}]"
        rest = f",{_UNKNOWN}" if is_list(term) else f"|{self._shape(term)}"
        return f"[{','.join(shapes)}{rest}]" if shapes else f"[{_UNKNOWN}]"

    def _boxed(self, term: int) -> str:
        words = self._captured.get(term)
        if words is None:
            return _UNKNOWN
        subtag = words[0] & _SUBTAG
        if subtag == 0:
            return self._tuple(words)
        if subtag == self._map:
            return self._keys(words)
        kind = self._kinds.get(subtag, "?")
        if kind == "float":
            return repr(struct.unpack("<d", words[1].to_bytes(8, "little"))[0])
        if kind == "binary":
            return f"<<{self._bytes(subtag, words)} bytes>>"
        return f"#{kind}"

    def _tuple(self, words: list[int]) -> str:
        arity = words[0] >> 6
        shapes = [self._shape(word) for word in words[1 : 1 + min(arity, _ELEMENTS)]]
        return "{" + ",".join(shapes + [_UNKNOWN] * (arity > _ELEMENTS)) + "}"

    def _keys(self, words: list[int]) -> str:
        size = words[1]
        keys = self._captured.get(words[2])
        if words[0] >> 6 & 3 != _FLAT or keys is None:
            return f"#{{{size} keys}}"
        shapes = [self._shape(word) for word in keys[1 : 1 + min(size, _ELEMENTS)]]
        return "#{" + ",".join(shapes + [_UNKNOWN] * (size > _ELEMENTS)) + "}"

    def _bytes(self, subtag: int, words: list[int]) -> int:
        """The size of a binary: in bytes up to OTP 26, since then in bits, or as start and end."""
        if not self._bits:
            return words[1]
        if subtag == _SUB_BITS_27:
            return (words[3] - words[2]) // 8
        return words[1] // 8
