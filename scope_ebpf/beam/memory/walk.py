# SPDX-License-Identifier: Apache-2.0
"""
Following pointers of many processes at once: trees and lists, level by level.

Every walk has a bound, because a list that changes while it is read may lead
anywhere, and in circles.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.memory.process_memory import UnreadableMemoryError, column

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.memory.process_memory import Memory

_WORD_MASK = 0xFFFFFFFFFFFFFFFF
_WORD = struct.Struct("<Q")
#: Bytes of a page of x86-64.
_PAGE = 4096


class Walk(NamedTuple):
    """The nodes of many lists, rings or trees."""

    #: Index of the root of each node, shape ``(n,)``.
    owners: NDArray[np.int64]
    #: Address of each node, shape ``(n,)``.
    addresses: NDArray[np.uint64]
    #: Bytes of each node, shape ``(n, size)``.
    nodes: NDArray[np.uint8]
    #: True for each root all of whose nodes were read, shape ``(roots,)``.
    whole: NDArray[np.bool_]


def walk(
    memory: Memory,
    roots: NDArray[np.uint64],
    size: int,
    follow: Callable[[NDArray[np.uint8]], list[NDArray[np.uint64]]],
    limit: int,
    *,
    least: int = 0,
) -> Walk:
    """
    Read every node that can be reached from each of the *roots*.

    *follow* takes nodes, shape ``(n, size)``, and gives the pointers that lead
    on, each of shape ``(n,)``; 0 leads nowhere. A root with more than *limit*
    levels, or more nodes than *limit*, is not whole. Where a node may be cut
    short by the end of mapped memory, *least* bytes of it are enough.
    """
    owners = np.flatnonzero(roots)
    frontier = roots[owners]
    whole = np.ones(len(roots), np.bool_)
    found: list[tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint8]]] = []
    counts = np.zeros(len(roots), np.int64)
    for _ in range(limit):
        if not len(frontier):
            break
        nodes, read = memory.gather(frontier, size)
        if least and not read.all():
            nodes[~read, :least], read[~read] = memory.gather(frontier[~read], least)
        whole[owners[~read]] = False
        owners, frontier, nodes = owners[read], frontier[read], nodes[read]
        found.append((owners, frontier, nodes))
        counts += np.bincount(owners, minlength=len(roots))
        whole[counts > limit] = False
        onward = follow(nodes)
        owners = np.concatenate([owners] * len(onward))
        frontier = np.concatenate(onward)
        go = (frontier != 0) & whole[owners]
        owners, frontier = owners[go], frontier[go]
    whole[owners] = False  # what is left was not followed
    if not found:
        return Walk(owners, frontier, np.empty((0, size), np.uint8), whole)
    return Walk(
        np.concatenate([item[0] for item in found]),
        np.concatenate([item[1] for item in found]),
        np.concatenate([item[2] for item in found]),
        whole,
    )


def chain(
    memory: Memory, root: int, offset: int, limit: int, *, closed: bool = False
) -> NDArray[np.uint64]:
    """
    Return the addresses of the nodes of one list or ring, at most *limit* + 1 of them.

    One list gives a level nothing to share. But nodes that were made one after the other often lie
    so, too: where one is near the one before it, the words of its page are read at once.
    """
    nodes: list[int] = []
    words, node = _Words(memory), root
    while node and len(nodes) <= limit and not (closed and nodes and node == root):
        nodes.append(node)
        try:
            node = words.at(node + offset & _WORD_MASK)
        except UnreadableMemoryError:
            break
    return np.array(nodes, np.uint64)


class _Words:
    """Words of *memory*; the page that was read last is kept, and none before it."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._start, self._data = 0, b""

    def at(self, address: int) -> int:
        """The word at *address*; UnreadableMemoryError."""
        if not 0 <= address - self._start <= len(self._data) - _WORD.size:
            near = abs(address - self._start) < 2 * _PAGE
            # A page is mapped as a whole, so reading all of it can fail only where the word does.
            whole = near and address % _PAGE <= _PAGE - _WORD.size
            self._start = address - address % _PAGE if whole else address
            self._data = self._memory.read(self._start, _PAGE if whole else _WORD.size)
        word: int = _WORD.unpack_from(self._data, address - self._start)[0]
        return word


def pointers(offset: int) -> Callable[[NDArray[np.uint8]], list[NDArray[np.uint64]]]:
    """Make the *follow* of a simple list, whose next pointer lies at *offset*."""
    return lambda nodes: [column(nodes, offset, np.uint64)]
