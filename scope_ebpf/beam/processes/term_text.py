# SPDX-License-Identifier: Apache-2.0
"""Text of the terms that come out of the kernel: a word each, with nothing behind it."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from scope_ebpf.beam.memory import terms
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.errors import ScopeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.marks.names import MarkNames
    from scope_ebpf.beam.vm.target import Target

#: A name of a VM is cut at this length.
_MAX_TEXT = 255


class _Atoms(Protocol):
    def text(self, term: int) -> str:
        """The text of an atom term; ReadRefusedError where it is not known."""


class TermText:
    """
    Text of terms of one target.

    What cannot be named is given as its word in hexadecimal: an atom that could not
    be read, any term of a VM whose tables are not found, any term after its end.
    """

    def __init__(self, target: Target) -> None:
        self._pids: terms.PidCodec | None = None
        self._ports: terms.PortCodec | None = None
        self._atoms: _Atoms | None = None
        self._target = target
        with suppress(ScopeError):
            self._pids = terms.PidCodec.of(target)
        with suppress(ScopeError):
            self._ports = terms.PortCodec.of(target)
        with suppress(ScopeError):
            self._atoms = Atoms(target)

    def texts(self, words: list[int], *, text_pids: bool) -> list[str | None]:
        """
        The text of each word, None for an absent one.

        *text_pids* says that pids are ``number | serial << 32`` instead of terms,
        as USDT probes give them.
        """
        if text_pids:
            return [f"<0.{w & 0xFFFFFFFF}.{w >> 32}>" if w else None for w in words]
        pids = [w for w in words if terms.is_pid(w)]
        texts: dict[int, str | None] = {}
        if pids and self._pids is not None:
            array = np.array(pids, np.uint64)
            texts = dict(zip(pids, self._pids.texts(array), strict=True))
        return [texts[w] if w in texts else self._text(w) for w in words]

    @cached_property
    def _marks(self) -> MarkNames | None:
        """Names of marked functions, made when one is asked for."""
        from scope_ebpf.beam.marks.names import MarkNames  # noqa: PLC0415 - few ask

        with suppress(ScopeError):
            return MarkNames(self._target, Atoms(self._target))
        return None

    def marked(self, number: int) -> str | None:
        """The function with this id in its markers, ``M:F/A``; None where it is not known."""
        return self._marks.name(number) if self._marks else None

    def _text(self, word: int) -> str | None:
        if word == terms.NON_VALUE:
            return None
        if terms.is_port(word) and self._ports is not None:
            return self._ports.text(word)
        if terms.is_atom(word) and self._atoms is not None:
            with suppress(ScopeError):
                return self._atoms.text(word)[:_MAX_TEXT]
        return next((text(word) for holds, text in _SHAPES if holds(word)), hex(word))


#: Terms that are complete in one word.
_SHAPES: tuple[tuple[Callable[[int], bool], Callable[[int], str]], ...] = (
    (terms.is_small, lambda word: str(terms.small(word))),
    (lambda word: word == terms.NIL, lambda _: "[]"),
    (terms.is_list, lambda _: "[...]"),
    (terms.is_boxed, lambda _: "{...}"),
)
