# SPDX-License-Identifier: Apache-2.0
"""
``np.unique`` and ``np.isin`` without the imports that they need, and structured rows fast.

Those take a fifth of the time in which a command starts. numpy copies structured rows field
by field; as plain bytes they are copied five times as fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)


def distinct(values: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """The values of a column, sorted, each once."""
    ordered = np.sort(values)
    return ordered[_starts(len(ordered), ordered[1:] != ordered[:-1])]


def grouped(
    values: NDArray[_Scalar],
) -> tuple[NDArray[_Scalar], NDArray[np.int64], NDArray[np.int64]]:
    """The distinct *values* of a column, sorted; where each is first, and which each value is."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = _starts(len(ordered), ordered[1:] != ordered[:-1])
    which = np.empty(len(values), np.int64)
    which[order] = np.cumsum(starts) - 1
    return ordered[starts], order[starts], which


def distinct_rows(rows: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """Rows of two columns, shape ``(n, 2)``, sorted, each once."""
    ordered = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    return ordered[_starts(len(ordered), (ordered[1:] != ordered[:-1]).any(axis=1))]


def _starts(count: int, differs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of *count* sorted values are the first of their kind; *differs* compares neighbours."""
    starts = np.ones(count, np.bool_)
    starts[1:] = differs
    return starts


def within(values: NDArray[np.generic], some: ArrayLike) -> NDArray[np.bool_]:
    """Which of *values* are among *some*; a mask of the shape of *values*."""
    return sorted_within(values, np.sort(np.asarray(some, values.dtype)))


def sorted_within(values: NDArray[np.generic], ordered: NDArray[np.generic]) -> NDArray[np.bool_]:
    """As :func:`within`, of what is in order and of the dtype of *values*."""
    if not len(ordered):
        return np.zeros(values.shape, np.bool_)
    index = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[index] == values
    return found


def picked(rows: NDArray[np.void], mask: NDArray[np.bool_]) -> NDArray[np.void]:
    """The structured *rows*, shape ``(n,)``, at which *mask* is set; themselves if it is set."""
    if mask.all():
        return rows
    return as_bytes(rows)[mask].view(rows.dtype)


def joined(parts: Sequence[NDArray[np.void]]) -> NDArray[np.void]:
    """Structured rows of one dtype, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([as_bytes(part) for part in parts]).view(parts[0].dtype)


def taken(rows: NDArray[np.void], index: NDArray[np.int64]) -> NDArray[np.void]:
    """The structured *rows* at *index*, in that order."""
    return as_bytes(rows)[index].view(rows.dtype)


def as_bytes(rows: NDArray[np.void]) -> NDArray[np.void]:
    """Contiguous structured *rows* as rows of plain bytes, the same memory."""
    return np.ascontiguousarray(rows).view(np.dtype((np.void, rows.dtype.itemsize)))
