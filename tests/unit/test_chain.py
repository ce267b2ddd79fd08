# SPDX-License-Identifier: Apache-2.0
"""Lists and rings of another process, followed node by node."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, cast

from scope_ebpf.beam.memory.process_memory import UnreadableMemoryError
from scope_ebpf.beam.memory.walk import chain

if TYPE_CHECKING:
    from scope_ebpf.beam.memory.process_memory import Memory

PAGE = 4096
#: Where the pointer to the next node lies in a node.
NEXT = 8


class Pages:
    """Some pages of memory at *start*; says how often it was read."""

    def __init__(self, start: int, size: int) -> None:
        self.start, self.data = start, bytearray(size)
        self.readings = 0

    def read(self, address: int, size: int) -> bytes:
        at = address - self.start
        self.readings += 1
        if not 0 <= at <= len(self.data) - size:
            raise UnreadableMemoryError(f"no {size} bytes at {address:#x}")
        return bytes(self.data[at : at + size])

    def link(self, nodes: list[int]) -> None:
        """Make each of *nodes* lead to the one behind it, and leave the last as it is."""
        for node, onward in pairwise(nodes):
            struct.pack_into("<Q", self.data, node + NEXT - self.start, onward)


def followed(pages: Pages, root: int, limit: int, *, closed: bool = False) -> list[int]:
    found: list[int] = chain(cast("Memory", pages), root, NEXT, limit, closed=closed).tolist()
    return found


def test_nodes_that_lie_one_behind_the_other_are_read_by_pages() -> None:
    """2,300 messages of 40 bytes lie in 23 pages and are read by two readings more."""
    pages = Pages(0x10000, 24 * PAGE)
    nodes = [0x10000 + 40 * number for number in range(2300)]
    pages.link(nodes)
    assert followed(pages, nodes[0], 5000) == nodes
    assert pages.readings <= 25


def test_a_list_that_leads_back_and_forth_is_followed() -> None:
    """Nodes in an order of no pattern, near and far, come in the order of their pointers."""
    pages = Pages(0x10000, 64 * PAGE)
    nodes = [0x10000 + (number * 7919 * 16) % (64 * PAGE) for number in range(1, 2000)]
    assert len(set(nodes)) == len(nodes)
    pages.link(nodes)
    assert followed(pages, nodes[0], 5000) == nodes


def test_a_pointer_across_two_pages_is_read() -> None:
    """A word of which each page holds a half is that word, also behind a near node."""
    pages = Pages(0x10000, 4 * PAGE)
    nodes = [0x10000, 0x10020, 0x10000 + PAGE - NEXT - 4, 0x10000 + 2 * PAGE]
    pages.link(nodes)
    assert followed(pages, nodes[0], 10) == nodes


def test_the_last_page_of_a_mapping_is_the_end_of_a_list() -> None:
    """A node behind which no memory is ends the list, which is as long as was seen."""
    pages = Pages(0x10000, PAGE)
    nodes = [0x10000 + 40 * number for number in range(100)]
    pages.link([*nodes, 0x10000 + PAGE + 16])
    assert followed(pages, nodes[0], 1000) == [*nodes, 0x10000 + PAGE + 16]


def test_a_ring_ends_where_it_began() -> None:
    """A closed ring gives each node once, and one that never closes a node more than the limit."""
    pages = Pages(0x10000, 2 * PAGE)
    nodes = [0x10000 + 64 * number for number in range(23)]
    pages.link([*nodes, nodes[0]])
    assert followed(pages, nodes[0], 1000, closed=True) == nodes
    pages.link([nodes[-1], nodes[5]])
    assert len(followed(pages, nodes[0], 1000, closed=True)) == 1001


def test_what_changes_behind_another_page_is_read_again() -> None:
    """A page that was left is not remembered: on the way back its words are read anew."""
    pages = Pages(0x10000, 8 * PAGE)
    first, second, far, again = 0x10000, 0x10040, 0x10000 + 4 * PAGE, 0x10080
    pages.link([first, second, far, again])
    read = pages.read

    def change(address: int, size: int) -> bytes:
        if address <= far + NEXT < address + size:
            pages.link([again, 0x100C0])
        return read(address, size)

    pages.read = change  # type: ignore[method-assign]
    assert followed(pages, first, 10) == [first, second, far, again, 0x100C0]
