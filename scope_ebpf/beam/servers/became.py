# SPDX-License-Identifier: Apache-2.0
"""
The module that a server really runs, where it is not the one that it began with.

gen_server2 of RabbitMQ lets a callback replace the callback module; its idle loop has
``{gs2_state,Parent,Name,State,Mod,...}`` on its stack (gen_server2.erl of RabbitMQ 3.10).
xmpp_stream_in of ejabberd, which p1_server runs, has callback modules of its own: its state is a
map that has one under the key ``mod`` (xmpp_stream_in.erl of xmpp 1.6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.memory.terms import BOXED, POINTER_MASK, is_atom, is_boxed, is_list
from scope_ebpf.beam.servers.waiting import stacks
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.view import Viewer

#: Behaviours whose servers may run another module.
BECOMING = ("gen_server2", "p1_server")
#: Header of a map, and its kinds: few keys in a tuple, or a tree (erl_map.h, OTP 24 to 28).
_SUBTAG, _MAP, _FLAT, _NODE = 0x3F, 0x3C, 0, 1
#: Keys of a map in a tuple; words of a map's tree and of maps on a stack that are followed.
_MOST_KEYS, _MOST_NODES, _MOST_MAPS = 32, 256, 16
_WORD = 8


def became(viewer: Viewer, rows: NDArray[np.void], behaviours: list[str | None]) -> dict[int, str]:
    """Return by pid the modules that idle servers of *rows* run, where that is known."""
    found: dict[int, str] = {}
    for behaviour, find in (("gen_server2", _of_tuple), ("p1_server", _of_map)):
        these = rows[[one == behaviour for one in behaviours]]
        for pid, words, stood, _ in zip(*stacks(viewer, these), strict=True):
            module = find(viewer, words) if stood else None
            if module:
                found[pid] = module
    return found


def _of_tuple(viewer: Viewer, words: NDArray[np.uint64]) -> str | None:
    boxed = words[words & np.uint64(3) == BOXED] & np.uint64(POINTER_MASK)
    tuples, read = viewer.target.memory.gather(boxed, 6 * _WORD)
    for header, first, *_, module in tuples.view(np.uint64)[read].tolist():
        # A tuple has its arity above six bits of zeros.
        if header & _SUBTAG or header < 5 << 6 or not (is_atom(first) and is_atom(module)):
            continue
        # By now these may be no atoms any more.
        texts = viewer.atoms.texts([first >> 6, module >> 6])
        if texts.get(first >> 6) == "gs2_state":
            return texts.get(module >> 6)
    return None


def _of_map(viewer: Viewer, words: NDArray[np.uint64]) -> str | None:
    index = viewer.atoms.indices(["mod"]).get("mod")
    boxed = [word for word in words.tolist() if is_boxed(word)]
    for word in boxed[:_MOST_MAPS]:
        try:
            for key, value in _pairs(viewer, word & POINTER_MASK):
                if is_atom(key) and key >> 6 == index and is_atom(value):
                    return viewer.atoms.texts([value >> 6]).get(value >> 6)
        except ReadRefusedError:
            continue  # the process went on
    return None


def _pairs(viewer: Viewer, address: int) -> Iterator[tuple[int, int]]:
    """Keys and values of the map at *address*, as terms; of a large one not all."""
    memory = viewer.target.memory
    header, size, keys = memory.words(address, 3).tolist()
    if header & _SUBTAG != _MAP or header >> 6 & 3 == _NODE:
        return
    if header >> 6 & 3 == _FLAT:
        if size <= _MOST_KEYS and is_boxed(keys):
            names = memory.words((keys & POINTER_MASK) + _WORD, size).tolist()
            yield from zip(names, memory.words(address + 3 * _WORD, size).tolist(), strict=True)
        return
    # The head of a tree has its size behind its header.
    left = [(header, address + 2 * _WORD)]
    for _ in range(_MOST_NODES):
        if not left:
            return
        header, at = left.pop()
        count = 16 if header >> 6 & 3 == 2 else (header >> 16 & 0xFFFF).bit_count()
        for word in memory.words(at, count).tolist():
            if is_list(word):
                key, value = memory.words(word & POINTER_MASK, 2).tolist()
                yield key, value
            elif is_boxed(word):
                inner = memory.u64(word & POINTER_MASK)
                if inner & _SUBTAG == _MAP and inner >> 6 & 3 == _NODE:
                    left.append((inner, (word & POINTER_MASK) + _WORD))
