# SPDX-License-Identifier: Apache-2.0
"""
What of a table and of a heading fits a given width.

Figures are shown whole or not at all: names are cut first, then whole columns go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.screen.cells import padded, width

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

#: Cells between two figures of a heading.
_BETWEEN = 2


class Span(NamedTuple):
    """Text in one style of the terminal: "", or one of ``terminal.STYLES``."""

    text: str
    style: str = ""


#: One line of a screen.
Line = list[Span]


class Column(NamedTuple):
    """One column of a table."""

    heading: str
    #: The higher, the longer it stays where there is little room.
    rank: int
    #: At the right end of its cells.
    right: bool = False
    #: Cells that it has at least; one that is *cut* has no more where there is little room.
    least: int = 0
    #: Whether its texts may be cut.
    cut: bool = False


def fit(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    cells: int,
    keep: Collection[int] = (),
) -> dict[int, int]:
    """
    The width of each column that is shown, by its index, for a table of *cells* in all.

    *rows* are the texts of the columns. The columns in *keep* are shown in any case.
    """
    whole = {
        index: max(column.least, width(column.heading), *(width(row[index]) for row in rows), 0)
        for index, column in enumerate(columns)
    }
    needed = {
        index: columns[index].least if columns[index].cut else size for index, size in whole.items()
    }
    while sum(needed.values()) + len(needed) - 1 > cells:
        less = [index for index in needed if index not in keep]
        if not less:
            break
        del needed[min(less, key=lambda index: columns[index].rank)]
    room = cells - sum(needed.values()) - (len(needed) - 1)
    flexible = {index: whole[index] for index in needed if columns[index].cut}
    return needed | _shared(flexible, needed, room)


def _shared(whole: dict[int, int], needed: dict[int, int], room: int) -> dict[int, int]:
    """Give the columns of *whole* the cells of *room*, evenly, but none more than it needs."""
    sizes = {index: needed[index] for index in whole}
    while room > 0 and (short := [index for index in sizes if sizes[index] < whole[index]]):
        part = max(1, room // len(short))
        for index in short:
            more = min(part, whole[index] - sizes[index], room)
            sizes[index] += more
            room -= more
    return sizes


def texts(columns: Sequence[Column], row: Sequence[str], sizes: dict[int, int]) -> dict[int, str]:
    """The texts of one row, by column, each as wide as *sizes* has it."""
    return {
        index: padded(row[index], size, right=columns[index].right) for index, size in sizes.items()
    }


def flow(spans: Iterable[Span], cells: int) -> list[Line]:
    """Lines of *cells* at most with these spans, none of them parted from its neighbour's line."""
    lines: list[Line] = []
    used = cells + 1
    for span in spans:
        size = width(span.text)
        if used + _BETWEEN + size > cells:
            lines.append([])
            used = 0
        else:
            lines[-1].append(Span(" " * _BETWEEN))
            used += _BETWEEN
        lines[-1].append(span)
        used += size
    return lines
